"""What can go wrong with TLS, in words that say what is wrong and what to do.

All of it is a `TlsFault`, which is an `OSError`: whoever has a plain socket's errors in hand has these too.
"""

from __future__ import annotations

import ssl

NO_TLS = "it does not speak TLS: is it a node of LIFL, and not one that was started with --insecure?"
ENROLL = "enroll again: lifl enroll HOST:PORT --token-file F"
_ALERTS = {
    "CERTIFICATE_EXPIRED": f"it says that our certificate has expired; {ENROLL} (and compare the clocks)",
    "UNKNOWN_CA": f"it does not trust the CA of our certificate, which is not of its cluster; {ENROLL}",
    "DECRYPT_ERROR": f"our certificate is not signed by a CA that it trusts; {ENROLL}",
    "CERTIFICATE_REQUIRED": f"it asks for a certificate; {ENROLL}",
    "CERTIFICATE_REVOKED": f"it says that our certificate was revoked; {ENROLL}",
    "UNSUPPORTED_CERTIFICATE": "it says that our certificate is for another purpose",
    "BAD_CERTIFICATE": (
        f"it cannot use our certificate, which by its clock may not be valid yet: compare the clocks; else {ENROLL}"
    ),
    "CERTIFICATE_UNKNOWN": f"it does not accept our certificate; {ENROLL}",
    "PROTOCOL_VERSION": "it does not speak TLS 1.3",
    "HANDSHAKE_FAILURE": "it has no cipher in common with us",
}
_REASONS = {
    "WRONG_VERSION_NUMBER": NO_TLS,
    "HTTP_REQUEST": "it speaks HTTP, and this is a TLS port of LIFL",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "NO_SHARED_CIPHER": "it has no cipher in common with us",
}
_EXPIRED, _NOT_YET, _HOST, _ADDRESS = 10, 9, 62, 64
_UNTRUSTED = frozenset({2, 7, 18, 19, 20, 21, 27})
"""Codes of a chain that leads to no CA that is trusted; 7: to one that has a trusted one's name, and not its key."""


class TlsFault(ConnectionError):
    """The TLS of a connection failed; `lasting`: it will again until somebody does something about it.

    `verify_code` is OpenSSL's, where the peer's certificate is at fault; 0 elsewhere.
    """

    def __init__(self, text: str, lasting: bool = True, verify_code: int = 0) -> None:
        super().__init__(text)
        self.lasting = lasting
        self.verify_code = verify_code

    @property
    def is_not_yet(self) -> bool:
        """Whether the certificate begins later than this machine's clock says it is."""
        return self.verify_code == _NOT_YET

    @property
    def is_of_time(self) -> bool:
        """Whether nothing is wrong but the time: the certificate's, or that of this machine's clock."""
        return self.verify_code in (_EXPIRED, _NOT_YET)


def fault_of(error: ssl.SSLError) -> TlsFault:
    """Return what an error of `ssl` means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsFault(_about_certificate(error), verify_code=error.verify_code)
    return fault_of_reason(error.reason or "", str(error))


def fault_of_reason(reason: str, text: str = "it gives no reason") -> TlsFault:
    """Return what the name that OpenSSL has for an error means; `text` stands where there is none."""
    for alert, meaning in _ALERTS.items():
        if reason.endswith(f"ALERT_{alert}"):
            return TlsFault(meaning)
    if reason in _REASONS:
        return TlsFault(_REASONS[reason])
    return TlsFault(f"TLS failed: {(reason or text).replace('_', ' ').lower()}", lasting=False)


def _about_certificate(error: ssl.SSLCertVerificationError) -> str:
    code, message = error.verify_code, error.verify_message
    if code == _EXPIRED:
        return "its certificate has expired (or a clock is wrong)"
    if code == _NOT_YET:
        return "its certificate is not valid yet: compare the clocks"
    if code in (_HOST, _ADDRESS):
        return f"its certificate is for another host: {message.rstrip('.')}"
    if code in _UNTRUSTED:
        return f"its certificate is not of this cluster's CA ({message})"
    return f"its certificate cannot be used: {message}"

"""What a certificate says, for people: whose it is, for which hosts, and for how long.

For texts of errors alone: nothing is believed here.
"""

from __future__ import annotations

from lifl.tls.unreadable import unreadable

NAMES_SHOWN_MAX = 8


def described(certificate: bytes) -> str:
    """Return in words whose a certificate (DER or PEM) is, for which hosts, and for how long."""
    from cryptography import x509

    load = x509.load_pem_x509_certificate if certificate.startswith(b"-----") else x509.load_der_x509_certificate
    try:
        found = load(certificate)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        begins, ends = (f"{when:%Y-%m-%d %H:%M}" for when in (found.not_valid_before_utc, found.not_valid_after_utc))
    except unreadable():
        return "one that cannot be read"
    whose = [str(name.value) for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    hosts = [str(name.value) for name in names if not isinstance(name, x509.UniformResourceIdentifier)]
    return f"{_list(whose) or 'nobody'}'s, for {_list(hosts) or 'no host'}, valid from {begins} to {ends} UTC"


def _list(names: list[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN_MAX])

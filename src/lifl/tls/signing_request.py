"""A key of one's own, and the request to certify it: the key stays on the machine that uses it."""

from __future__ import annotations

from typing import NamedTuple


class KeyAndRequest(NamedTuple):
    """A new key (PEM), and the signing request for it (DER), which has no names: nobody would believe them."""

    key: bytes
    request: bytes


def new_key() -> KeyAndRequest:
    """Return a new key on the curve P-256, and its signing request."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    return KeyAndRequest(pem, request.public_bytes(s.Encoding.DER))

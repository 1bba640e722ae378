"""What the library of certificates raises at bytes that are no certificate, no key and no signing request."""

from __future__ import annotations


def unreadable() -> tuple[type[Exception], ...]:
    """Return the errors of `cryptography` at what came from outside, in reading it and in reading its parts.

    Its parts are read when they are asked for: keep what asks for them in the same `try`.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    missing = (x509.ExtensionNotFound, x509.AttributeNotFound)
    strange = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, UnsupportedAlgorithm)
    return (ValueError, TypeError, *missing, *strange)

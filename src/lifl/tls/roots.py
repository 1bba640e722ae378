"""Which of the roots that somebody tells is the one that a token names: nothing else makes it worth to be believed."""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----", re.DOTALL)


def root_named(told: str, authority: str) -> str | None:
    """Return the root (PEM) with this SHA-256 digest (64 hex digits) among those that are told (PEM)."""
    for found in _CERTIFICATE.findall(told):
        with contextlib.suppress(ValueError):
            if hashlib.sha256(ssl.PEM_cert_to_DER_cert(found)).hexdigest() == authority:
                return str(found)
    return None

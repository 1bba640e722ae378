"""Which of the roots that somebody tells is the one that a token names: nothing else makes it worth to be believed."""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----", re.DOTALL)


def roots_in(told: str) -> dict[str, str]:
    """Return the roots (PEM) among those that are told, by the SHA-256 digest of each (64 hex digits)."""
    out: dict[str, str] = {}
    for found in _CERTIFICATE.findall(told):
        with contextlib.suppress(ValueError):
            out.setdefault(hashlib.sha256(ssl.PEM_cert_to_DER_cert(found)).hexdigest(), str(found))
    return out


def root_named(told: str, authority: str) -> str | None:
    """Return the root with this digest among those that are told (PEM)."""
    return roots_in(told).get(authority)

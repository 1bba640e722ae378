"""Who is at the other end of a TLS connection: what its certificate says, which OpenSSL has verified."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

from lifl.core.identity import Identity, identity_of


class Peer(NamedTuple):
    """A verified certificate; `serial` are upper-case hexadecimal digits, without leading zeros."""

    cluster: str
    identity: Identity
    serial: str
    expires_unix_s: float


def peer_of(certificate: Mapping[str, Any]) -> Peer:
    """Return what a certificate says, as `getpeercert` tells it.  Raise `RemoteFault` when it is no identity."""
    names = certificate.get("subjectAltName", ())
    cluster, identity = identity_of(value for kind, value in names if kind == "URI")
    serial = str(certificate["serialNumber"]).lstrip("0") or "0"
    return Peer(cluster, identity, serial, float(ssl.cert_time_to_seconds(str(certificate["notAfter"]))))

"""Who is at the other end of a TLS connection: what its certificate says, which OpenSSL has verified."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

from lifl.core.identity import AUTHORITY_URI, Identity, identity_of, jobs_of


class Peer(NamedTuple):
    """A verified certificate; `serial` are upper-case hexadecimal digits, without leading zeros.

    `jobs`: a client's that it is limited to, if there are any.  `is_authority`: the node that issues certificates.
    """

    cluster: str
    identity: Identity
    serial: str
    begins_unix_s: float
    expires_unix_s: float
    jobs: tuple[str, ...] = ()
    is_authority: bool = False


def peer_of(certificate: Mapping[str, Any]) -> Peer:
    """Return what a certificate says, as `getpeercert` tells it.  Raise `RemoteFault` when it is no identity."""
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    cluster, identity = identity_of(uris)
    serial = str(certificate["serialNumber"]).lstrip("0") or "0"
    begins, ends = (float(ssl.cert_time_to_seconds(str(certificate[each]))) for each in ("notBefore", "notAfter"))
    is_authority = identity.role == "node" and AUTHORITY_URI in uris
    return Peer(cluster, identity, serial, begins, ends, jobs_of(uris), is_authority)

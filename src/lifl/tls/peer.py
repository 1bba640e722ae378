"""Who is at the other end of a TLS connection: what its certificate says, which OpenSSL has verified."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

from lifl.core.identity import AUTHORITY_URI, Identity, identity_of, issued_of, jobs_of


class Peer(NamedTuple):
    """A verified certificate; `serial` are upper-case hexadecimal digits, without leading zeros.

    `jobs`: a client's that it is limited to, if there are any.  `is_authority`: the node that issues certificates.
    `hosts`: a node's names and addresses.  `issued_unix_s` is when it begins where it does not say when it was issued.
    """

    cluster: str
    identity: Identity
    serial: str
    begins_unix_s: float
    expires_unix_s: float
    jobs: tuple[str, ...] = ()
    is_authority: bool = False
    hosts: tuple[str, ...] = ()
    issued_unix_s: float = 0.0

    @property
    def renews_unix_s(self) -> float:
        """When it is to be renewed: at half of its time."""
        return (self.begins_unix_s + self.expires_unix_s) / 2


def peer_of(certificate: Mapping[str, Any]) -> Peer:
    """Return what a certificate says, as `getpeercert` tells it.  Raise `RemoteFault` when it is no identity."""
    names = certificate.get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    hosts = tuple(_host(value) for kind, value in names if kind in ("DNS", "IP Address"))
    cluster, identity = identity_of(uris)
    serial = str(certificate["serialNumber"]).lstrip("0") or "0"
    begins, ends = (float(ssl.cert_time_to_seconds(str(certificate[each]))) for each in ("notBefore", "notAfter"))
    is_authority = identity.role == "node" and AUTHORITY_URI in uris
    issued = issued_of(uris)
    issued = begins if issued is None else issued
    return Peer(cluster, identity, serial, begins, ends, jobs_of(uris), is_authority, hosts, issued)


def _host(text: str) -> str:
    """Return a name or an address as it is written: OpenSSL writes all of an IPv6 address."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return text

"""Tickets: one line by which another process brings one update to a fold."""

from __future__ import annotations

import ipaddress
import os
import socket
import time

import msgspec

from lifl.aggregator.session import Session
from lifl.client.bearer import TicketAccess
from lifl.core.errors import LocalFault, Refused
from lifl.core.limits import DEADLINE_S_MAX
from lifl.core.protocol.ticket_line import BEGIN, TicketLine, content_of, line_of
from lifl.core.trust.ticket import credential_of, entry_key, entry_of

__all__ = ["BEGIN", "TICKET_S", "TicketContent", "made_ticket", "read_ticket"]

TICKET_S = 3600.0
UNIX = "unix:"


class TicketContent(TicketLine, frozen=True, array_like=True):
    """What is in the line, and how its holder comes."""

    @property
    def access(self) -> TicketAccess | None:
        """What its holder comes with in the place of a certificate, if it lets anybody in."""
        shown = self.lets_in
        return TicketAccess(self.authority, shown) if shown is not None else None


def made_ticket(session: Session, fold: int, client: str, valid_s: float, bearer: bool = False) -> str:
    """Return the line; with `bearer` it lets its holder in, too.

    Raise `Refused` when `valid_s` is no number of seconds that a ticket may be good for, or nobody needs to be let in.
    """
    if isinstance(valid_s, bool) or not isinstance(valid_s, int | float) or not abs(valid_s) <= DEADLINE_S_MAX:
        raise Refused("bad-time", "valid_s", f"valid_s={valid_s!r}: give seconds, at most {DEADLINE_S_MAX:.0f}")
    made = int(time.time())
    expires = int(time.time() + valid_s)
    credential = credential_of(session.secret, session.name, fold, client, expires)
    elsewhere = _from_elsewhere(session.gateway, session.line.dialled)
    addresses = (*elsewhere, *session.line.own_addresses())
    content = TicketContent(addresses, session.line.node, session.name, fold, client, credential, expires)
    if bearer:
        authority = session.line.authority(elsewhere)
        entry = entry_of(entry_key(session.secret, session.name), session.name, fold, client, made, expires)
        content = msgspec.structs.replace(content, made_unix_s=made, authority=authority, entry=entry)
    return line_of(content)


def _from_elsewhere(gateway: str, dialled: str) -> list[str]:
    """Return where others reach the gateway: one that listens everywhere says so, and nobody can dial that.

    Then it is where the fold's host has `dialled` it or, on the host's own machine, that from which it sends out.
    """
    host, _, port = gateway.rpartition(":")
    found = _address_of(host)
    if not gateway or found is None or not found.is_unspecified:
        return [gateway] if gateway else []
    met = dialled.rpartition(":")[0]
    own = _address_of(met)
    if met and not dialled.startswith(UNIX) and not os.path.isdir(dialled) and not (own and own.is_loopback):
        return [f"{met}:{port}"]
    out = [_way_out(socket.AF_INET, "192.0.2.1")]
    if found.version == 6:
        out.append(_way_out(socket.AF_INET6, "2001:db8::1"))
    return [*(f"{each}:{port}" for each in out if each), f"127.0.0.1:{port}"]


def _address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host is, or None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _way_out(family: int, towards: str) -> str:
    """Return the machine's address from which it would send to another one (nothing is sent), or ''."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))
        except OSError:
            return ""
        address = str(probe.getsockname()[0])
    return f"[{address}]" if family == socket.AF_INET6 else address


def read_ticket(line: str) -> TicketContent:
    """Raise `LocalFault` when it is none."""
    try:
        return content_of(str(line), TicketContent)
    except Refused as refused:
        raise LocalFault(refused.text) from refused

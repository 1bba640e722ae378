"""Tickets: one line by which another process brings one update to a fold."""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import time

import msgspec

from lifl.aggregator.session import Session
from lifl.core.errors import LocalFault, Refused
from lifl.core.fields import Address, Count, Name, Secret, Ticket, Word
from lifl.core.limits import DEADLINE_S_MAX
from lifl.core.trust.ticket import credential_of

TICKET_S = 3600.0
BEGIN = "lifl-ticket-1:"
CHARS_MAX = 4096
UNIX = "unix:"


class TicketContent(msgspec.Struct, frozen=True, array_like=True):
    """What is in the line: where to go, to which node, and for what it is good."""

    addresses: tuple[Address, ...]
    node: Word
    job: Name
    fold: Count
    client: Name
    credential: Secret
    expires_unix_s: Count

    @property
    def shown(self) -> Ticket:
        """What the node is shown."""
        return Ticket(self.credential, self.expires_unix_s)


def made_ticket(session: Session, fold: int, client: str, valid_s: float) -> str:
    """Return the line.  Raise `Refused` when `valid_s` is no number of seconds that a ticket may be good for."""
    if isinstance(valid_s, bool) or not isinstance(valid_s, int | float) or not abs(valid_s) <= DEADLINE_S_MAX:
        raise Refused("bad-time", "valid_s", f"valid_s={valid_s!r}: give seconds, at most {DEADLINE_S_MAX:.0f}")
    expires = int(time.time() + valid_s)
    credential = credential_of(session.secret, session.name, fold, client, expires)
    addresses = (*_from_elsewhere(session.gateway, session.line.dialled), *session.line.own_addresses())
    content = TicketContent(addresses, session.line.node, session.name, fold, client, credential, expires)
    return BEGIN + base64.urlsafe_b64encode(msgspec.msgpack.encode(content)).decode()


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
    text = str(line).strip()
    if not text.startswith(BEGIN) or len(text) > CHARS_MAX:
        raise LocalFault(f"{text[:20]!r} ... is no ticket: `fold.ticket(client=...)` makes one")
    try:
        return msgspec.msgpack.decode(
            base64.b64decode(text[len(BEGIN) :], altchars=b"-_", validate=True), type=TicketContent
        )
    except (ValueError, msgspec.MsgspecError) as error:
        raise LocalFault(f"the ticket is damaged: {error}") from error

"""Tickets: one line by which another process brings one update to a fold."""

from __future__ import annotations

import base64
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
    addresses = tuple(filter(None, (session.gateway, *session.line.own_addresses())))
    content = TicketContent(addresses, session.line.node, session.name, fold, client, credential, expires)
    return BEGIN + base64.urlsafe_b64encode(msgspec.msgpack.encode(content)).decode()


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

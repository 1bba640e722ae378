"""The one line that a ticket is: where to go, to which node, and for what it is good."""

from __future__ import annotations

import base64
from typing import TypeVar

import msgspec

from lifl.core.errors import Refused
from lifl.core.fields import Address, Count, Name, Secret, Ticket, Word
from lifl.core.protocol.tickets import ShowTicket

BEGIN = "lifl-ticket-1:"
CHARS_MAX = 4096

T = TypeVar("T", bound="TicketLine")


class TicketLine(msgspec.Struct, frozen=True, array_like=True):
    """What is in the line."""

    addresses: tuple[Address, ...]
    node: Word
    job: Name
    fold: Count
    client: Name
    credential: Secret
    expires_unix_s: Count
    made_unix_s: Count = 0
    authority: Word = ""
    entry: Secret = ""

    @property
    def shown(self) -> Ticket:
        """What the node is shown."""
        return Ticket(self.credential, self.expires_unix_s)

    @property
    def lets_in(self) -> ShowTicket | None:
        """What is told in the place of a certificate, if it lets anybody in."""
        if not self.entry:
            return None
        return ShowTicket(self.job, self.fold, self.client, self.made_unix_s, self.expires_unix_s, self.entry)


def line_of(content: TicketLine) -> str:
    """Return the line."""
    return BEGIN + base64.urlsafe_b64encode(msgspec.msgpack.encode(content)).decode()


def content_of(line: str, kind: type[T]) -> T:
    """Return what is in a line.  Raise `Refused` when it is none."""
    text = line.strip()
    if not text.startswith(BEGIN) or len(text) > CHARS_MAX:
        raise Refused("wrong-ticket", "ticket", f"{text[:20]!r} ... is no ticket: `fold.ticket(client=...)` makes one")
    try:
        data = base64.b64decode(text[len(BEGIN) :], altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(data, type=kind)
    except (ValueError, msgspec.MsgspecError) as error:
        raise Refused("wrong-ticket", "ticket", f"the ticket is damaged: {error}") from error

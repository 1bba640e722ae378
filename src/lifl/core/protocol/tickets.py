"""What is said of tickets that let their holders in without a certificate, and of those that count no more."""

from __future__ import annotations

from lifl.core.fields import Count, Message, Name, RevokedTicketList, Secret

# ---- client → gateway ------------------------------------------------------------------------------------------------


class ShowTicket(Message, frozen=True):
    """Comes before Hello, of who has no certificate and a ticket that lets it in (`trust/ticket.py`), as `client`."""

    job: Name
    fold: Count
    client: Name
    made_unix_s: Count
    expires_unix_s: Count
    entry: Secret

    def __repr__(self) -> str:
        return f"ShowTicket({self.job}, {self.fold}, {self.client})"  # its secret is shown nowhere


class RevokeTicket(Message, frozen=True):
    """Of a host: no ticket of `client` for the fold (0: no standing one) counts any more.  TicketRevoked answers it."""

    job: Name
    fold: Count
    client: Name


# ---- gateway → client ------------------------------------------------------------------------------------------------


class TicketRevoked(Message, frozen=True):
    """It was done; an update that was brought by it stays."""

    job: Name
    fold: Count
    client: Name


# ---- gateway → lifld -------------------------------------------------------------------------------------------------


class RevocationAsked(Message, frozen=True):
    """The host of a session says RevokeTicket."""

    conn: Count
    job: Name
    fold: Count
    client: Name


# ---- lifld → gateway -------------------------------------------------------------------------------------------------


class TicketKey(Message, frozen=True):
    """By `key` the tickets of a session are known that let their holders in, but those `revoked`, until JobForget.

    An empty one: there are none.
    """

    job: Name
    key: Secret
    revoked: RevokedTicketList = ()


class TicketsAwaited(Message, frozen=True):
    """The key of a session is not known: its host has not come back since `lifld` began.

    Who shows a ticket of it is to come again, until TicketKey or JobForget.
    """

    job: Name


class TicketOut(Message, frozen=True):
    """Let nobody in by a ticket of `client` for this fold any more (0: a standing one): who came by it goes.

    Those for folds before `current` may be forgotten.
    """

    job: Name
    fold: Count
    client: Name
    current: Count


TicketNews = TicketKey | TicketsAwaited | TicketOut

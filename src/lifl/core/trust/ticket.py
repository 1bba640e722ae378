"""What lets somebody bring an update to one fold, under one name, until a time.

Its host draws a secret for each session and tells it to the node; the credential in a ticket is what HMAC makes of the
session, the fold, the name and the time with it.  The node keeps no list: whoever has the credential may bring the one
update of that name.  A *standing* ticket is for no fold, but for all of the session, one update to each.

Where certificates are asked for, a ticket may have a second credential, its *entry*, that lets its holder in without
one: as a client of that name, who may take part in that session alone.  It is made with a key that the gateway is told,
and that is made of the session's secret.  No row has either of them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import NamedTuple

from lifl.core.errors import Refused
from lifl.core.fields import RevokedTicket
from lifl.core.ids import round_of
from lifl.core.limits import REVOKED_TICKETS_MAX

ANY_FOLD = 0
"""In the place of a fold: the ticket is a standing one."""
HOST_AWAY = "host-away"
"""The code of a refusal that means: come again, the session's host is expected back."""
REVOKED = "that ticket was revoked by its fold's host"


def credential_of(secret: str, job: str, fold: int, client: str, expires_unix_s: int) -> str:
    """Return the credential of a ticket, 64 hexadecimal digits; no field can have a newline."""
    text = f"LIFL ticket\n{job}\n{fold}\n{client}\n{expires_unix_s}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def fits(credential: str, secret: str, job: str, fold: int, client: str, expires_unix_s: int) -> bool:
    """Return whether it is that credential; without a secret none is."""
    wanted = credential_of(secret, job, fold, client, expires_unix_s)
    return bool(secret) and hmac.compare_digest(credential.encode(), wanted.encode())


def entry_key(secret: str, job: str) -> str:
    """Return what a gateway knows a session's entries by, 64 hexadecimal digits."""
    return hmac.new(secret.encode(), f"LIFL ticket key\n{job}".encode(), hashlib.sha256).hexdigest()


def entry_of(key: str, job: str, fold: int, client: str, made_unix_s: int, expires_unix_s: int) -> str:
    """Return the entry of a ticket, 64 hexadecimal digits."""
    text = f"LIFL ticket entry\n{job}\n{fold}\n{client}\n{made_unix_s}\n{expires_unix_s}"
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


class Holder(NamedTuple):
    """Who has come by an entry: for which session and fold, under which name, from when and until when."""

    job: str
    fold: int
    client: str
    made_unix_s: int
    expires_unix_s: int

    def reads(self, round_: int) -> bool:
        """Return whether it may have the model that this round starts from."""
        return self.fold == ANY_FOLD or round_of(self.fold) == round_


class RevokedTickets:
    """Which tickets of one session count no more: of which clients, for which fold (0: standing ones)."""

    def __init__(self, known: Iterable[RevokedTicket] = ()) -> None:
        self._entries: dict[tuple[int, str], None] = {(each.fold, each.client): None for each in known}

    @property
    def entries(self) -> tuple[RevokedTicket, ...]:
        """All of them."""
        return tuple(RevokedTicket(*at) for at in self._entries)

    def add(self, fold: int, client: str, current: int) -> None:
        """Note one; those for folds before the `current` one make room.  Raise `Refused` for too many."""
        if len(self._entries) >= REVOKED_TICKETS_MAX:
            self._entries = {at: None for at in self._entries if at[0] == ANY_FOLD or at[0] >= current}
        if len(self._entries) >= REVOKED_TICKETS_MAX and (fold, client) not in self._entries:
            text = f"{REVOKED_TICKETS_MAX} tickets of this session are revoked: open another Aggregator"
            raise Refused("too-many-revocations", "client", text)
        self._entries[fold, client] = None

    def has(self, fold: int, client: str) -> bool:
        """Return whether it is one of them."""
        return (fold, client) in self._entries


class TicketKeys:
    """The keys of the sessions of one node, and which of their tickets count no more."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._awaited: set[str] = set()
        self._revoked: dict[str, RevokedTickets] = {}

    def told(self, job: str, key: str, revoked: Iterable[RevokedTicket] = ()) -> None:
        """Know the entries of a session, of which the `revoked` count no more; without a key there are none."""
        self._awaited.discard(job)
        self._keys[job] = key
        self._revoked[job] = RevokedTickets(revoked)

    def awaited(self, job: str) -> None:
        """Have those who show one of a session come again: its key is not known, until `told` or `forget`."""
        self._awaited.add(job)

    def forget(self, job: str) -> None:
        """Let nobody in by those of a session that is over."""
        self._awaited.discard(job)
        self._keys.pop(job, None)
        self._revoked.pop(job, None)

    def revoke(self, job: str, fold: int, client: str, current: int) -> None:
        """Let nobody in by a client's tickets for a fold."""
        if job in self._keys:
            self._revoked[job].add(fold, client, current)

    def check(self, holder: Holder, entry: str, now_unix_s: float) -> None:
        """Raise `Refused` unless that is somebody's entry, which counts.

        Who has another one hears the same, whatever is wrong with it.  So does everybody, whatever they show, as long
        as the key is awaited: nothing is compared then, and nobody learns by it whether a guess is right.
        """
        if holder.job in self._awaited:
            text = f"the host of session {holder.job!r} has not come back since the node began again; come again"
            raise Refused(HOST_AWAY, "ticket", text)
        key = self._keys.get(holder.job, "")
        wanted = entry_of(key, *holder)
        if not hmac.compare_digest(entry.encode(), wanted.encode()) or not key:
            text = "that ticket lets nobody in here: its session is over, or it is another node's; ask its host for one"
            raise Refused("wrong-ticket", "ticket", text)
        if now_unix_s >= holder.expires_unix_s:
            raise Refused("ticket-expired", "ticket", "that ticket is too old; ask the fold's host for another one")
        if not self.counts(holder, now_unix_s):
            raise Refused("wrong-ticket", "ticket", REVOKED)

    def counts(self, holder: Holder, now_unix_s: float) -> bool:
        """Return whether who has come by an entry may stay."""
        revoked = self._revoked.get(holder.job)
        out = revoked is not None and revoked.has(holder.fold, holder.client)
        return holder.job in self._keys and not out and now_unix_s < holder.expires_unix_s

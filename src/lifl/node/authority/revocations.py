"""Certificates that are not believed any more, though they have not expired.

Each node keeps the list on its disk: the coordinator's is the operator's word, the others' is the coordinator's; where
the coordinator moves all have what any of them was told.  It names serials; or a role and a name, of whom all is void
that was issued until then, and nothing that is issued afterwards, whatever the clock does meanwhile.  An entry ends
when what it is about has expired.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from lifl.core.errors import Refused
from lifl.core.fields import NAME_RULE
from lifl.core.identity import ROLES, Identity, moment
from lifl.core.limits import REVOKED_MAX, SERIAL_DIGITS_MIN
from lifl.core.trust.enrolment import is_name
from lifl.core.trust.revocation import Revocation, RevokedList, name_of
from lifl.node.authority.credential_store import CertificateRow, CredentialStore
from lifl.node.database import DatabaseFault

log = logging.getLogger("lifl.authority")

TICK_S = 2e-6
"""What is issued after a revocation is at least so much later: twice what times are told by."""
KEPT_S = 10 * 365 * 24 * 3600.0
"""How long is remembered what was issued elsewhere: nobody here knows when it expires."""

BEGUN_SHOWN = 4
"""Certificates that are listed where the beginning of a serial is that of several."""


class Revocations:
    """The list of one node; `on_change` is called after each change of it.  `note` is the audit log's."""

    def __init__(
        self,
        store: CredentialStore,
        clock: Callable[[], float] = time.time,
        note: Callable[..., None] = lambda *_given, **_about: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._note = note
        self._left_out: dict[str, Revocation] = {}  # by `which`: what other nodes have told and has no room here
        self.on_change: Callable[[], None] = lambda: None
        self.entries: tuple[Revocation, ...] = ()
        self.list = RevokedList()
        self._read()

    def _read(self) -> None:
        self.entries = tuple(self._store.revocations(self._clock()))
        self.list = RevokedList(self.entries)

    def revoke(self, which: str, own_serial: str) -> list[str]:
        """Revoke a serial (or the beginning of one), all of NAME, or of ROLE/NAME; return what was added to the list.

        Raise `Refused` when it is nobody's, or may be two people's, or is this node's own.
        """
        now = self._clock()
        found = self._found(which, now)
        entry = self._entry(_named(which, found), found, now)
        if own_serial in [entry.which, *(row.serial for row in found)]:
            text = "that is this node's own certificate: its clients and nodes would be cut off; end it by `lifl down`"
            raise Refused("own-certificate", "which", text)
        self._store.revoke(entry, now)
        self._read()
        log.warning("certificate.revoked %s", entry.which)
        self.on_change()
        return [entry.which]

    def _entry(self, which: str, found: Sequence[CertificateRow], now: float) -> Revocation:
        """Return the entry for these certificates: of a name not before the last of them was issued."""
        known = [each for each in self.entries if each.which == which]
        since = [now, *(row.issued_unix_s for row in found), *(each.revoked_unix_s for each in known)]
        until = [row.expires_unix_s for row in found] or [now + KEPT_S]
        until += [each.expires_unix_s for each in known]
        return Revocation(which, moment(max(since) + TICK_S / 2), max(until))

    def has(self, row: CertificateRow) -> bool:
        """Return whether a certificate that was issued here is revoked."""
        return self.list.names(_whose(row), row.serial, row.issued_unix_s)

    def issued(self, identity: Identity, now: float) -> float:
        """Return when a certificate is issued that is issued now: after what is revoked of somebody."""
        return moment(max(now, self.list.since(identity) + TICK_S))

    def _found(self, which: str, now: float) -> Sequence[CertificateRow]:
        """Return the certificates that are meant; none when they were issued elsewhere."""
        role, slash, name = which.partition("/")
        if slash:
            if role not in ROLES or not is_name(name):
                text = f"{which!r} is not ROLE/NAME: a role is one of {', '.join(ROLES)}, a name {NAME_RULE}"
                raise Refused("bad-name", "which", text)
            return self._store.certificates_of(role, name, now)
        if (row := self._store.certificate(_serial(which))) is not None:  # also where somebody is called like it
            return [row]
        named = self._store.certificates_named(which, now)
        roles = sorted({row.role for row in named})
        if len(roles) > 1:
            meant = " or ".join(f"{role}/{which}" for role in roles)
            raise Refused("ambiguous", "which", f"there are a {' and a '.join(roles)} {which!r}: say {meant}")
        begun = self._store.certificates_beginning(_serial(which), BEGUN_SHOWN) if _begins_serial(which) else []
        if len(begun) + bool(named) > 1:
            meant = " or ".join([*(f"{row.role}/{row.name}" for row in named[:1]), *(row.serial for row in begun)])
            raise Refused("ambiguous", "which", f"more than one certificate is meant by {which!r}: say {meant}")
        if not named and not begun and not _is_serial(which):
            text = f"no certificate was issued to {which!r} that has not expired; `lifl cert list` shows them"
            raise Refused("unknown-certificate", "which", f"{text} (one issued elsewhere: its serial, or ROLE/NAME)")
        return named or begun

    def merge(self, entries: Sequence[Revocation]) -> None:
        """Add another node's list to the own one: each may have been told what the other was not.

        What is here stays.  Of what has no room the audit log and `trouble` tell; it comes in when there is some.
        """
        now = self._clock()
        known = {entry.which: entry for entry in self.entries if entry.expires_unix_s > now}
        others: dict[str, Revocation] = {}
        for entry in (*self._left_out.values(), *entries):
            kept = known if entry.which in known else others
            here = kept.get(entry.which, entry)
            if entry.expires_unix_s > now:
                kept[entry.which] = max(here, entry, key=lambda one: (one.revoked_unix_s, one.expires_unix_s))
        longest = sorted(others.values(), key=lambda entry: -entry.expires_unix_s)
        room = max(0, REVOKED_MAX - len(known))
        self._leave_out(longest[room:])
        self.replace(sorted([*known.values(), *longest[:room]], key=lambda entry: entry.which))

    def _leave_out(self, entries: Sequence[Revocation]) -> None:
        """Keep in mind, up to as many as the list has, what has no room; tell of what is new among them."""
        left_out = {entry.which: entry for entry in entries[:REVOKED_MAX]}
        news = sorted(left_out.keys() - self._left_out.keys())
        self._left_out = left_out
        if news:
            log.error("certificate.not_revoked count=%d %s", len(news), self.trouble)
            self._note("cert.kept", "lifld", self.trouble, count=len(news), which=news[0])

    @property
    def trouble(self) -> str:
        """What other nodes have revoked and is believed here, for the list is full; empty: nothing."""
        if not self._left_out:
            return ""
        names = sorted(self._left_out)
        return (
            f"{len(names)} names and certificates that another node has revoked are believed on this one, since its"
            f" list of {REVOKED_MAX} is full: {', '.join(names[:BEGUN_SHOWN])}{', ...' if names[BEGUN_SHOWN:] else ''};"
            " they are refused here when others have expired"
        )

    def replace(self, entries: Sequence[Revocation]) -> None:
        """Take the coordinator's list in the place of the own one."""
        if tuple(entries) == self.entries:
            return
        self.entries, self.list = tuple(entries), RevokedList(entries)
        try:
            self._store.replace_revocations(entries)
        except DatabaseFault as fault:  # it holds all the same; after a start the coordinator tells it again
            log.error("certificate.revocations %s", fault)
        log.info("certificate.revocations count=%d", len(self.entries))
        self.on_change()


def _named(which: str, found: Sequence[CertificateRow]) -> str:
    """Return how the list names what is meant: ROLE/NAME, or a serial as certificates are asked for it."""
    if "/" in which:
        return which
    if not found:
        return _serial(which)
    by_serial = _begins_serial(which) and found[0].serial.startswith(_serial(which))
    return found[0].serial if by_serial else name_of(_whose(found[0]))


def _whose(row: CertificateRow) -> Identity:
    return Identity(row.role, row.name)  # type: ignore[arg-type]


def _serial(text: str) -> str:
    return text.upper().lstrip("0")


def _begins_serial(text: str) -> bool:
    return len(_serial(text)) >= SERIAL_DIGITS_MIN and all(digit in "0123456789ABCDEFabcdef" for digit in text)


def _is_serial(text: str) -> bool:
    return len(text) >= 16 and _begins_serial(text)

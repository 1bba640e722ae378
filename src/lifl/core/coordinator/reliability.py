"""Which clients keep their word: of those selected for rounds of one job, who delivered and who did not.

A client that was selected and has sent nothing by the deadline, or has left meanwhile, has a *miss*; one that declined
a part of one, since it said so in time.  A round that was complete without a client, or failed for another reason, lays
nothing to it.  Whoever has `misses` is asked late, after all others, for so many attempts at rounds: 7 after one miss,
twice as many and 7 more after each further one.  An update that is accepted halves them; so does time, as soon as they
are over.  So a client that failed once is soon as good as before, and one that never delivers is hardly asked.

Nothing is known of a client that comes for the first time.  For a while after a missed deadline, and when a round is
tried again, those are asked first who have delivered before: so a job has its rounds, and goes on to try others.

Clients are put into groups: among equals the draw is what it would be without all this.  The books are kept in memory,
of the clients that were selected last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lifl.core.coordinator.round import Round
from lifl.core.limits import RELIABILITY_CLIENTS_MAX

DECLINE = 0.25
"""What a client that declined misses."""
LATE_ATTEMPTS = 7
"""After one miss a client is asked late for so many attempts at rounds."""
FORGET_ATTEMPTS = 64
"""Behind that, its misses halve with each so many."""
TROUBLED_ATTEMPTS = 8
"""So many attempts after one whose deadline came first, those who have delivered before are asked first."""
MISSES_MAX = 5.0
"""More do not count: for some two hundred attempts such a client is asked late."""


class Record(NamedTuple):
    """How often a client was selected, and what came of that; `misses` are as of attempt `at`."""

    selected: int = 0
    delivered: int = 0
    late: int = 0
    left: int = 0
    declined: int = 0
    spoilt: int = 0
    misses: float = 0.0
    at: int = 0


def late_attempts(misses: float) -> float:
    """Return for how many attempts a client with so many misses is asked late."""
    return LATE_ATTEMPTS * float(2.0**misses - 1.0)


class Reliability:
    """The books of one job's clients."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}  # the one selected last stands last
        self._late: dict[str, None] = {}  # those who are asked late
        self._attempts = 0  # that have ended
        self._overdue_at = -TROUBLED_ATTEMPTS  # the last of them whose deadline came first

    def ended(self, round_: Round) -> None:
        """Note what became of those who were selected: the attempt at the round has ended, well or not."""
        self._attempts += 1
        if round_.overdue:
            self._overdue_at = self._attempts
        for client in round_.selected:
            before = self._records.pop(client, Record())
            record = _judged(before._replace(selected=before.selected + 1, misses=self._misses(before)), client, round_)
            self._records[client] = record._replace(misses=min(record.misses, MISSES_MAX), at=self._attempts)
            if record.misses:
                self._late[client] = None
        while len(self._records) > RELIABILITY_CLIENTS_MAX:
            oldest = next(iter(self._records))
            del self._records[oldest]
            self._late.pop(oldest, None)
        for client in [client for client in self._late if not self.level(client)]:
            del self._late[client]

    def _misses(self, record: Record) -> float:
        """Return the misses that count now."""
        over = self._attempts - record.at - late_attempts(record.misses)
        return record.misses * float(0.5 ** (max(0.0, over) / FORGET_ATTEMPTS))

    def level(self, client: str) -> int:
        """Return how late a client is asked: 0, as at first, or from 1 on the more it has missed."""
        record = self._records.get(client) if client in self._late else None
        if record is None or self._attempts - record.at >= late_attempts(record.misses):
            return 0
        return math.ceil(record.misses)

    def by_turn(self, clients: Iterable[str], again: bool) -> list[list[str]]:
        """Return clients in groups, in the order in which they are asked; `again`: the round is tried once more."""
        clients = list(clients)
        proven_first = again or self._attempts - self._overdue_at < TROUBLED_ATTEMPTS
        if not self._late and not proven_first:
            return [clients]
        groups: dict[int, list[str]] = {}
        for client in clients:
            level = self.level(client)
            if proven_first and not level and client in self._records and self._records[client].delivered:
                level = -1
            groups.setdefault(level, []).append(client)
        return [groups[level] for level in sorted(groups)]

    def records(self) -> Mapping[str, Record]:
        """Return the books, with the misses that count now."""
        return {client: record._replace(misses=self._misses(record)) for client, record in self._records.items()}

    def close(self) -> None:
        """Forget all: the job is over."""
        self._records.clear()
        self._late.clear()

    def faults(self) -> Iterator[str]:
        """Yield what cannot be."""
        if strange := self._late.keys() - self._records.keys():
            yield f"clients {sorted(strange)} are asked late, and have no record"
        if len(self._records) > RELIABILITY_CLIENTS_MAX:
            yield f"{len(self._records)} clients have records, at most {RELIABILITY_CLIENTS_MAX} may"


def _judged(record: Record, client: str, round_: Round) -> Record:
    """Return a client's record with what became of it in a round."""
    if client in round_.suspects:
        return record._replace(spoilt=record.spoilt + 1, misses=record.misses + 1.0)
    if client in round_.accepted:
        return record._replace(delivered=record.delivered + 1, misses=record.misses / 2)
    if client in round_.declined:
        return record._replace(declined=record.declined + 1, misses=record.misses + DECLINE)
    if client in round_.left:
        return record._replace(left=record.left + 1, misses=record.misses + 1.0)
    if round_.overdue:
        return record._replace(late=record.late + 1, misses=record.misses + 1.0)
    return record

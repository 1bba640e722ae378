"""Which jobs that are over are known: the last ones, so that neither memory nor database grows for ever."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

FORGOTTEN_AT_ONCE = 64
"""Jobs that go when one is over, or when a node begins to coordinate: what earlier lives have left goes bit by bit."""


class OverJob(NamedTuple):
    """A job that is over: its number, and when it was at work last."""

    number: int
    at_unix_s: float


def beyond(over: Iterable[OverJob], kept: int, needed: Collection[int] = ()) -> list[int]:
    """Return the numbers of jobs that are to be forgotten, `FORGOTTEN_AT_ONCE` at most, the oldest first.

    The last `kept` stay, and so do those whose numbers are `needed`.
    """
    found = sorted(over, key=lambda job: (job.at_unix_s, job.number))
    old = found[: max(0, len(found) - kept)]
    return [job.number for job in old if job.number not in needed][:FORGOTTEN_AT_ONCE]

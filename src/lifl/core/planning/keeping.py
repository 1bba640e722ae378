"""Which committed rounds' models stay as files: pure functions of a job's `checkpoint.keep` and of its rounds' metrics.

Only what is committed is ever removed, and only when a later round is: the last one always stays, which is what a
restart, a rule's state and every copy go on from.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from lifl.core.config.keep import KeepSection
from lifl.core.fields import Count, RoundOrNone
from lifl.core.limits import KEPT_RANGES_MAX


class Best(NamedTuple):
    """The round with the best mean of the metric, and that mean."""

    round: int
    value: float


class Kept(msgspec.Struct, frozen=True):
    """Which rounds stay when `committed` is the last one: the last ones, each so-manyth, the best (-1: none is).

    Those before `since` are none of this rule's: an earlier version has committed them, and said that they stay.
    """

    committed: Count
    last: Count
    every: Count = 0
    best: RoundOrNone = -1
    since: Count = 0

    def has(self, number: int) -> bool:
        """Return whether the files of a round stay; those of a round that is not committed do."""
        return (
            number > self.committed - self.last
            or number < self.since
            or number == self.best
            or (self.every > 0 and number % self.every == 0)
        )


def better(keep: KeepSection, best: Best | None, number: int, metrics: Mapping[str, float]) -> Best | None:
    """Return the best round when this one is committed, too; of equals it is the first."""
    value = metrics.get(keep.best.removeprefix("-"), math.nan) if keep.best else math.nan
    if not math.isfinite(value):
        return best
    sign = -1.0 if keep.best.startswith("-") else 1.0
    return Best(number, value) if best is None or sign * value > sign * best.value else best


def models_max(keep: KeepSection, rounds: int) -> int:
    """Return how many models of a job of so many rounds lie on a disk at most: one is being written."""
    every = rounds // keep.every + 1 if keep.every else 0
    return min(rounds + 1, keep.last + 1 + every + bool(keep.best))


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return rounds as ranges (first, last) of those that follow each other; of many the middle ones are left out."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    half = KEPT_RANGES_MAX // 2
    return found if len(found) <= KEPT_RANGES_MAX else found[:half] + found[-half:]


def removable(kept: Kept, numbers: Iterable[int], needed: Collection[int] = ()) -> list[int]:
    """Return which of the rounds whose files are there go: not kept, and `needed` by nobody; the oldest first."""
    return sorted({number for number in numbers if not kept.has(number) and number not in needed})

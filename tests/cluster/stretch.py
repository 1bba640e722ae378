"""A thousand rounds of one job without a fault: do what two nodes take, and the time of a round, stay as they were?

It is the last part of a soak (`soak.py`): on its nodes, with TLS and etcd, one job runs as many short rounds as are
wanted.  The node that coordinates and another one are measured every `EVERY` rounds.  After `WARM` rounds, in which
caches fill, the median of the first `EDGE` rounds is compared with that of the last: single values say little on a
machine that others use too.  Models, rows and receipts of the last `KEPT` rounds stay, so that databases have to stay
as they are as well; the fate of every update is looked at meanwhile.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from field import FATES, Field
from measured import measured
from netns import Machine, SharedCluster

WARM, EDGE, EVERY = 1_000, 100, 10
"""Rounds.  In the first thousand a node's memory rises by 2 to 3 MB, and no further: 4,000 rounds rose by as much."""
CLIENTS = 4
KEPT = 32
BEHIND = 5
"""So many rounds after its own it is known what became of an update."""


class Allowed(NamedTuple):
    """By how much a median may rise: by a share of itself, and by so much beside that, which is noise."""

    share: float
    spare: float


ALLOWED: dict[str, Allowed] = {
    "pss_bytes": Allowed(0.01, 1 << 20),
    "private_bytes": Allowed(0.01, 1 << 20),
    "descriptors": Allowed(0.0, 1),
    "processes": Allowed(0.0, 0),
    "bpf": Allowed(0.0, 0),
    "database_bytes": Allowed(0.0, 1 << 20),
    "cpu_s": Allowed(0.15, 0.002),
    "round_s": Allowed(0.15, 0.01),
}
"""Of `cpu_s` and `round_s` it is that of a round."""


class Edges(NamedTuple):
    """The medians of a figure over the first rounds after the warm-up, and over the last."""

    first: float
    last: float


def edges(values: Sequence[float], warm: int, edge: int) -> Edges:
    """The medians of the `edge` values after `warm` others, and of the last `edge`."""
    assert len(values) >= warm + 2 * edge, f"{len(values)} values are too few to tell their ends apart"
    return Edges(statistics.median(values[warm : warm + edge]), statistics.median(values[-edge:]))


def risen(kind: str, found: Edges) -> bool:
    """Whether a figure is more at the end than it may be."""
    share, spare = ALLOWED[kind]
    return found.last > found.first * (1 + share) + spare


class Stretch:
    """The rounds of one job, and what was measured in them: by node and kind, one value for each `EVERY` rounds."""

    def __init__(self, shared: SharedCluster, steady: Machine) -> None:
        self._field = Field(shared, "stretch", CLIENTS, pace_s=0.0)
        leader = shared.coordinator
        other = steady if steady is not leader else next(each for each in shared.machines if each is not leader)
        self._nodes = {"coordinator": leader, "agent": other}
        self.values: dict[str, dict[str, list[float]]] = {name: {} for name in self._nodes}
        self.rounds_s: list[float] = []
        self.sums: Counter[str] = Counter(dict.fromkeys(FATES, 0))
        self._looked_at = 0

    def run(self, rounds: int) -> None:
        """Run so many rounds after the warm-up."""
        keep: dict[str, Any] = {
            "checkpoint__keep": {"last": KEPT},
            "history__keep": {"rounds": KEPT, "receipts": KEPT},
            "job__rounds": 10 * (WARM + rounds),
        }
        with self._field.running(**keep):
            first = begun = self._field.round + 1
            before_s = self._field.wait(first)
            while begun < first + WARM + rounds:
                for number in range(begun + 1, begun + EVERY + 1):
                    now_s = self._field.wait(number)
                    self.rounds_s.append(now_s - before_s)
                    before_s = now_s
                begun += EVERY
                self._measure()
                self._account(self._field.round - BEHIND)
        self._account(self._field.last)

    def _measure(self) -> None:
        for name, machine in self._nodes.items():
            for kind, value in measured(machine).items():
                self.values[name].setdefault(kind, []).append(value)
        if len(self.rounds_s) % EDGE == 0:
            median = statistics.median(self.rounds_s[-EDGE:])
            print(f"{len(self.rounds_s)} rounds, the last at {1000 * median:.0f} ms each", file=sys.stderr, flush=True)

    def _account(self, last: int) -> None:
        """Look at what became of the updates of the rounds up to this one; their models do not stay for long."""
        self._field.collect()
        last = min(last, self._field.last)
        self.sums.update(self._field.account(self._looked_at + 1, last))
        self._looked_at = max(self._looked_at, last)
        self._field.forget(last)

    def found(self) -> dict[str, Edges]:
        """Each figure's medians, by its name and the node's."""
        made = {"round_s": edges(self.rounds_s, WARM, EDGE)}
        for name, of in self.values.items():
            for kind, values in of.items():
                of_rounds = [(later - earlier) / EVERY for earlier, later in pairwise(values)]
                each = of_rounds if kind == "cpu_s" else values
                made[f"{name} {kind}"] = edges(each, len(each) - (len(values) - WARM // EVERY), EDGE // EVERY)
        return made


def faults(found: Mapping[str, Edges], sums: Mapping[str, int]) -> list[str]:
    """What is wrong with a stretch."""
    said = [f"{sums[each]} updates of the stretch were {each}" for each in ("lost", "doubled", "unseen") if sums[each]]
    for name, each in found.items():
        if risen(name.split()[-1], each):
            said.append(f"{name} rises from {each.first:g} to {each.last:g}")
    return said


def told(found: Mapping[str, Edges]) -> str:
    """The medians, a line each."""
    return "\n".join(f"{name:28} {each.first:14g} {each.last:14g}" for name, each in found.items())


def run(shared: SharedCluster, steady: Machine, rounds: int) -> tuple[dict[str, Any], list[str]]:
    """Run a stretch; return its figures for the ledger, and what was wrong."""
    began_s, stretch = time.monotonic(), Stretch(shared, steady)
    stretch.run(rounds)
    found = stretch.found()
    print(told(found), file=sys.stderr, flush=True)
    medians = {name: [round(value, 4) for value in each] for name, each in found.items()}
    figures = {"rounds": rounds, "seconds": round(time.monotonic() - began_s), **stretch.sums, "medians": medians}
    return figures | {"rounds": stretch.sums["rounds"]}, faults(found, stretch.sums)

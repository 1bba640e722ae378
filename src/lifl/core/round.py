"""One attempt at one round, as the coordinator keeps it: who is selected, granted, accepted.

This is the ledger.  An update is *granted* from its admission, *accepted* when it is sealed, *counted* when the
round commits.  Its identity is (job, round, client): whoever submits again gets the first one's answer.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

from lifl.core.config import SelectionSection
from lifl.core.errors import LocalFault
from lifl.core.ids import epoch_of
from lifl.core.members import Member


class Phase(Enum):
    """The life of a round; `TRANSITIONS` is the whole of it."""

    WAITING = "waiting"  # for clients
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"  # all updates are in, or the deadline has closed it
    SAVING = "saving"  # the model is sealed, its checkpoint is being written
    COMMITTED = "committed"
    FAILED = "failed"


_P = Phase
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    _P.WAITING: frozenset({_P.COLLECTING, _P.FAILED}),
    _P.COLLECTING: frozenset({_P.AGGREGATING, _P.FAILED}),
    _P.AGGREGATING: frozenset({_P.SAVING, _P.FAILED}),
    _P.SAVING: frozenset({_P.COMMITTED, _P.FAILED}),
    _P.COMMITTED: frozenset(),
    _P.FAILED: frozenset(),
}


class Round:
    """The books of one attempt at one round; `core/job.py` acts on them."""

    def __init__(self, number: int, attempt: int, selection: SelectionSection, now: float) -> None:
        self.number = number
        self.attempt = attempt
        self.epoch = epoch_of(number, attempt)
        self.goal = selection.clients_per_round
        self.target = math.ceil(selection.clients_per_round * selection.over_provision)
        self.quorum = selection.quorum or selection.clients_per_round
        self.deadline_s = selection.deadline_s
        self.phase = Phase.WAITING
        self.deadline_at_s = now + selection.deadline_s
        self.opened_at_s: float | None = None
        self.selected: dict[str, None] = {}
        self.planned: dict[int, int] = {}  # by node: the updates that its branch takes
        self.top = 0  # the node that makes the model
        self.assigned: dict[str, int] = {}  # by client: the node whose gateway it was told to use
        self.places: dict[str, int] = {}  # by client: the node that has its update, or gets it
        self.closed: dict[int, int] = {}  # by node: the updates in its closed branch
        self.granted: dict[str, Member] = {}
        self.accepted: dict[str, Member] = {}
        self.saved = False
        self.reason = ""
        self.received_bytes = 0
        self.copied_bytes = 0
        self.last_accepted_s: float | None = None
        self.sealed_s: float | None = None
        self.cost: dict[str, Any] = {}

    def move(self, phase: Phase) -> None:
        """Raises `LocalFault`, and changes nothing, when the table does not allow it."""
        if phase not in TRANSITIONS[self.phase]:
            raise LocalFault(f"round {self.number} cannot go from {self.phase.value} to {phase.value}")
        self.phase = phase

    def open(self, now: float) -> None:
        """Updates may come, until the deadline."""
        self.move(Phase.COLLECTING)
        self.opened_at_s = now
        self.deadline_at_s = now + self.deadline_s

    def room(self, node: int) -> int:
        """How many more updates the node's branch can be granted."""
        return self.planned.get(node, 0) - sum(place == node for place in self.places.values())

    def metrics(self) -> dict[str, float]:
        """The weighted means of the metrics over the accepted clients that sent each."""
        sums: dict[str, tuple[float, float]] = {}
        for member in self.accepted.values():
            for name, value in member.metrics.items():
                total, weight = sums.get(name, (0.0, 0.0))
                sums[name] = (total + value * member.weight, weight + member.weight)
        return {name: total / weight for name, (total, weight) in sorted(sums.items())}

    def receipt(self, now: float) -> dict[str, Any]:
        """What the round cost; the node adds its own processes' CPU, and the redirector."""
        last, cost = self.last_accepted_s, self.cost
        starts = cost.get("starts", {})
        return {
            "selected": len(self.selected),
            "accepted": len(self.accepted),
            "counted": len(self.accepted) if self.phase is Phase.COMMITTED else 0,
            "expired": len(self.selected) - len(self.accepted),
            "weight": sum(member.weight for member in self.accepted.values()),
            "bytes_in": self.received_bytes,
            "bytes_copied": self.copied_bytes + cost.get("copied_bytes", 0),
            "bytes_out": cost.get("sent_bytes", 0),
            "cpu_s": {"workers": cost.get("worker_cpu_s", 0.0)},
            "arena_peak_bytes": cost.get("peak_bytes", 0),
            "duration_s": now - self.opened_at_s if self.opened_at_s is not None else 0.0,
            "last_accepted_to_sealed_s": self.sealed_s - last if last is not None and self.sealed_s else None,
            "last_accepted_to_commit_s": now - last if last is not None else None,
            "workers_cold": starts.get("cold", 0),
            "workers_warm": starts.get("warm", 0),
            "workers_promoted": starts.get("promoted", 0),
            "workers_shared": starts.get("shared", 0),
            "tree": cost.get("tree", []),
        }

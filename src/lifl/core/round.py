"""One attempt at one round: who is selected, whose update is where, and the books for its receipt.

This is the ledger.  An update is *in flight* from its admission, *accepted* when it is sealed, *counted* when the
round commits.  Its identity is (job, round, client): whoever submits again gets the first one's answer.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum

from lifl.core.config import SelectionSection
from lifl.core.errors import LocalFault
from lifl.core.ids import Key, epoch_of
from lifl.core.members import Member
from lifl.core.tree import Task, Tree


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


class Receipt:
    """What a round cost, in bytes and seconds; `core/aggregation.py` writes it up."""

    def __init__(self) -> None:
        self.received_bytes = 0
        self.sent_bytes = 0
        self.copied_bytes = 0
        self.peak_bytes = 0
        self.worker_cpu_s = 0.0
        self.busy_s = 0.0
        self.starts = {"cold": 0, "warm": 0, "promoted": 0, "shared": 0}
        self.first_accepted_s: float | None = None
        self.last_accepted_s: float | None = None
        self.sealed_s: float | None = None


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
        self.opened_at_s = 0.0
        self.selected: dict[str, None] = {}
        self.inflight: dict[str, tuple[Key, Member]] = {}
        self.accepted: dict[str, Member] = {}
        self.unfed: deque[tuple[Key, Task | None]] = deque()  # accepted, waiting for room for their task's output
        self.in_leaves = 0  # updates that were given to leaves
        self.tree: Tree | None = None
        self.checkpoint: Task | None = None
        self.saved = False
        self.receipt = Receipt()
        self.reason = ""

    def move(self, phase: Phase) -> None:
        """Raises `LocalFault`, and changes nothing, when the table does not allow it."""
        if phase not in TRANSITIONS[self.phase]:
            raise LocalFault(f"round {self.number} cannot go from {self.phase.value} to {phase.value}")
        self.phase = phase

    def client_of(self, key: Key) -> str | None:
        """The client whose update in flight has this key."""
        return next((client for client, (flying, _) in self.inflight.items() if flying == key), None)

    def accept(self, client: str, now: float) -> None:
        """Moves an update from in flight to accepted; it waits for its leaf in `unfed`."""
        key, member = self.inflight.pop(client)
        self.accepted[client] = member
        self.unfed.append((key, None))
        if self.receipt.first_accepted_s is None:
            self.receipt.first_accepted_s = now
        self.receipt.last_accepted_s = now

    @property
    def for_leaves(self) -> int:
        """How many updates the leaves are to take of those that are accepted."""
        return self.in_leaves + sum(task is None for _, task in self.unfed)

    @property
    def leaves_needed(self) -> int:
        """How many leaves the updates that are accepted or in flight can come to fill."""
        if self.tree is None:
            return 0
        coming = self.for_leaves + len(self.inflight)
        return min(-(-coming // self.tree.fan_in), len(self.tree.leaves))

    def metrics(self) -> dict[str, float]:
        """The weighted means of the metrics over the accepted clients that sent each."""
        sums: dict[str, tuple[float, float]] = {}
        for member in self.accepted.values():
            for name, value in member.metrics.items():
                total, weight = sums.get(name, (0.0, 0.0))
                sums[name] = (total + value * member.weight, weight + member.weight)
        return {name: total / weight for name, (total, weight) in sorted(sums.items())}

"""One attempt at one round, as the coordinator keeps it: who is selected, granted, accepted.

This is the ledger.  An update is *granted* from its admission, *accepted* when it is sealed, *counted* when the
round commits.  Its identity is (job, round, client): whoever submits again gets the first one's answer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from enum import Enum
from typing import Any

from lifl.core.config.job import SelectionSection
from lifl.core.errors import LocalFault
from lifl.core.ids import epoch_of
from lifl.core.protocol.contribution import Contribution


class Phase(Enum):
    """The life of a round; `TRANSITIONS` is the whole of it."""

    RECOVERING = "recovering"  # the coordinator has started again: who has what of this round?
    WAITING = "waiting"  # for clients
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"  # all updates are in, or the deadline has closed it
    SAVING = "saving"  # the model is sealed, its checkpoint is being written
    COMMITTED = "committed"
    FAILED = "failed"


_P = Phase
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    _P.RECOVERING: frozenset({_P.WAITING, _P.COLLECTING, _P.FAILED}),
    _P.WAITING: frozenset({_P.RECOVERING, _P.COLLECTING, _P.FAILED}),
    _P.COLLECTING: frozenset({_P.AGGREGATING, _P.FAILED}),
    _P.AGGREGATING: frozenset({_P.COLLECTING, _P.SAVING, _P.FAILED}),  # back when a node dies with what it had
    _P.SAVING: frozenset({_P.COMMITTED, _P.FAILED}),
    _P.COMMITTED: frozenset(),
    _P.FAILED: frozenset(),
}


class Part:
    """A branch of the round as the coordinator knows it: `updates` are what it takes, of a closed one what it has."""

    def __init__(self, number: int, node: int, updates: int) -> None:
        self.number = number
        self.node = node
        self.updates = updates
        self.updates_max = updates  # what its tree has leaves for
        self.closed = False
        self.arrived = False  # the top has its partial: what becomes of its node does not matter any more
        self.forgetting = False  # its node is gone; the top is asked whether it has the partial
        self.recovering = False  # coordinator or node has started again; the node has not said yet what it has
        self.cost: dict[str, Any] = {}

    @property
    def open(self) -> bool:
        """Whether it takes updates."""
        return not (self.closed or self.arrived or self.forgetting or self.recovering)


class Round:
    """The books of one attempt at one round; `coordinator/job.py` acts on them."""

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
        self.parts: dict[int, Part] = {}  # by number; part 0 has the top; `add` and `discard` change it
        self._at: dict[int, dict[int, Part]] = {}  # the same by node, so that a client costs no look at all nodes
        self.next_part = 1
        self.others_max = 0  # how many partials of others the top was opened for
        self.expected: int | None = None  # how many it was told will come
        self.home_adopted = False
        self.replan_at_s = math.inf
        self.assigned: dict[str, int] = {}  # by client: the node whose gateway it was told to use
        self.places: dict[str, int] = {}  # by client: the part that has its update, or gets it
        self._placed: defaultdict[int, dict[str, None]] = defaultdict(dict)  # the same by part
        self._awaited: Counter[int] = Counter()  # by node: who is assigned there and has no place yet
        self.granted: dict[str, Contribution] = {}
        self.accepted: dict[str, Contribution] = {}
        self.saved = False
        self.reason = ""
        self.received_bytes = 0
        self.copied_bytes = 0
        self.between_bytes = 0
        self.last_accepted_s: float | None = None
        self.sealed_s: float | None = None

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

    def add(self, part: Part) -> None:
        """The part is one of the round's, in the place of the one that had its number."""
        self.discard(part.number)
        self.parts[part.number] = self._at.setdefault(part.node, {})[part.number] = part

    def discard(self, number: int) -> None:
        """No part has this number any more."""
        part = self.parts.pop(number, None)
        if part is not None:
            del self._at[part.node][number]
            if not self._at[part.node]:
                del self._at[part.node]

    def room(self, part: Part) -> int:
        """How many more updates the part can be granted."""
        return part.updates - len(self._placed[part.number]) if part.open else 0

    def placed(self, part: Part) -> int:
        """How many updates the part has, or gets."""
        return len(self._placed[part.number])

    def clients_of(self, part: Part) -> list[str]:
        """Whose updates the part has, or gets."""
        return list(self._placed[part.number])

    def room_at(self, node: int) -> int:
        """How many more updates can be granted at the node."""
        return sum(self.room(part) for part in self._at.get(node, {}).values())

    def _unclaimed_at(self, node: int) -> int:
        """The room at a node beyond what those who were told it will take."""
        return self.room_at(node) - self._awaited[node]

    def place(self, client: str, part: Part) -> None:
        """The client's update is in the part, or on its way there."""
        self.unplace(client)
        if client in self.assigned:
            self._awaited[self.assigned[client]] -= 1
        self.places[client] = part.number
        self._placed[part.number][client] = None

    def unplace(self, client: str) -> None:
        """The client's update is nowhere."""
        number = self.places.pop(client, None)
        if number is not None:
            del self._placed[number][client]
            if client in self.assigned:
                self._awaited[self.assigned[client]] += 1

    def assign(self, client: str, own: int) -> None:
        """Chooses the node that a client without a place is told: `own` where that has room, else the one with most."""
        self.unassign(client)
        best = own
        if own not in self._at or self._unclaimed_at(own) <= 0:
            room = {node: self._unclaimed_at(node) for node in self._at}
            best = max(room, key=lambda node: (room[node] > 0, node == own, room[node]))
        self.assigned[client] = best
        self._awaited[best] += 1

    def unassign(self, client: str) -> None:
        """The client is told no node."""
        node = self.assigned.pop(client, None)
        if node is not None and client not in self.places:
            self._awaited[node] -= 1

    @property
    def nodes(self) -> list[int]:
        """The nodes that have a part of the round."""
        return list(self._at)

    def part_for(self, node: int) -> Part | None:
        """The part at the node that takes another update: with room, or the only one of the round."""
        here = [part for part in self._at.get(node, {}).values() if part.open]
        if len(self.parts) == 1:  # whoever was selected beyond the goal may come, and the first ones count
            return here[0] if here else None
        return next((part for part in here if self.room(part) > 0), None)

    def take_out(self, part: Part) -> tuple[list[str], int]:
        """Forgets the part, and who was in it: the clients, and how many of them were accepted."""
        self.discard(part.number)
        lost = self.clients_of(part)
        accepted = sum(client in self.accepted for client in lost)
        for client in lost:
            self.remove(client)
        return lost, accepted

    def remove(self, client: str) -> None:
        """The client's update is not in the round (any more)."""
        self.accepted.pop(client, None)
        self.granted.pop(client, None)
        self.unplace(client)
        self.unassign(client)

    def metrics(self) -> dict[str, float]:
        """The weighted means of the metrics over the accepted clients that sent each."""
        sums: dict[str, tuple[float, float]] = {}
        for member in self.accepted.values():
            for name, value in member.metrics.items():
                total, weight = sums.get(name, (0.0, 0.0))
                sums[name] = (total + value * member.weight, weight + member.weight)
        return {name: total / weight for name, (total, weight) in sorted(sums.items())}

    def costs(self) -> list[dict[str, Any]]:
        """What each branch cost; its tree's lines name the node."""
        found = []
        for part in self.parts.values():
            tree = [line | {"node": f"{part.node:016x}"} for line in part.cost.get("tree", ())]
            found.append(part.cost | {"tree": tree})
        return found

    def receipt(self, now: float) -> dict[str, Any]:
        """What the round cost; the node adds its own processes' CPU, and the redirector."""
        last, costs = self.last_accepted_s, self.costs()

        def total(name: str) -> float:
            return sum(float(cost.get(name, 0)) for cost in costs)

        def started(how: str) -> int:
            return sum(int(cost.get("starts", {}).get(how, 0)) for cost in costs)

        return {
            "selected": len(self.selected),
            "accepted": len(self.accepted),
            "counted": len(self.accepted) if self.phase is Phase.COMMITTED else 0,
            "expired": len(self.selected) - len(self.accepted),
            "weight": sum(member.weight for member in self.accepted.values()),
            "bytes_in": self.received_bytes,
            "bytes_copied": self.copied_bytes + int(total("copied_bytes")),
            "bytes_out": int(total("sent_bytes")),
            "bytes_between": self.between_bytes + int(total("fetched_bytes")),
            "cpu_s": {"workers": total("worker_cpu_s")},
            "arena_peak_bytes": max((cost.get("peak_bytes", 0) for cost in costs), default=0),
            "duration_s": now - self.opened_at_s if self.opened_at_s is not None else 0.0,
            "last_accepted_to_sealed_s": self.sealed_s - last if last is not None and self.sealed_s else None,
            "last_accepted_to_commit_s": now - last if last is not None else None,
            "workers_cold": started("cold"),
            "workers_warm": started("warm"),
            "workers_promoted": started("promoted"),
            "workers_shared": started("shared"),
            "nodes": len(self.nodes),
            "tree": [line for cost in costs for line in cost["tree"]],
        }

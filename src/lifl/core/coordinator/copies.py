"""Copies of a job's committed models on other nodes: a round is committed when enough of them are durable.

Each copy is ordered of one node, and counts when its files have the digests of those that were written at home.  A
node that dies, has no room or takes too long is given up for a while, and another one is asked; where there is none the
round waits, and the job says for what.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.round import Round
from lifl.core.coordinator.rounds import Rounds
from lifl.core.limits import COPY_BYTES_PER_S, COPY_RETRY_S, COPY_S
from lifl.core.protocol import commands as o
from lifl.core.protocol.cluster import COPIES
from lifl.core.turn import Turn


class Copies:
    """Has the models of rounds that are being saved copied."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable, rounds: Rounds) -> None:
        self.wanted = spec.config.checkpoint.copies
        self._spec = spec
        self._turn = turn
        self._nodes = nodes
        self._rounds = rounds
        self._asked: dict[int, dict[int, float]] = {}  # by epoch: the nodes that make a copy, and until when they may
        self._there: dict[int, dict[int, tuple[str, ...]]] = {}  # by epoch: those that have one, and its digests
        self._not_before_s: dict[int, tuple[float, str]] = {}  # by node: when it is asked again, and why not now
        self._last: dict[int, None] = {}  # who has the last copies
        self._told: set[int] = set()  # who knows of the job: a node that does not drops what is ordered of it

    def begin(self, round_: Round) -> None:
        """Have the model of a round copied, which is being saved at home."""
        if self.wanted:
            self._asked[round_.epoch], self._there[round_.epoch] = {}, {}
            self.ask()

    def ask(self) -> None:
        """Order the copies that are missing, of the nodes that can make one."""
        for round_ in self._rounds.saving if self.wanted else ():
            asked, there = self._asked[round_.epoch], self._there[round_.epoch]
            missing = self.wanted - len(asked) - len(there)
            for node in self._candidates(asked.keys() | there.keys())[: max(0, missing)]:
                asked[node] = self._turn.now + COPY_S + self._spec.layout.data_bytes / COPY_BYTES_PER_S
                home, term = self._nodes.home, self._turn.term
                paths = self._spec.path_of(round_.number, term), self._spec.state_path_of(round_.number, term)
                order = o.CopyModel(self._spec.number, round_.epoch, home, self._nodes.gateway_of(home), *paths)
                self._turn.order(node, order)

    def _candidates(self, but: set[int]) -> list[int]:
        """Return the nodes that may be asked now, those first that have the last copies."""
        found = []
        for number in self._nodes.others():
            node = self._nodes.get(number)
            usable = node is not None and node.takes_new and not node.suspect and COPIES in node.knows
            if usable and number in self._told - but and self._not_before_s.get(number, (0.0, ""))[0] <= self._turn.now:
                found.append(number)
        return sorted(found, key=lambda number: (number not in self._last, number))

    def heard(self, node: int, report: o.ModelCopied | o.CopyFailed) -> None:
        """Note what became of a copy; what was not asked for does not count."""
        asked = self._asked.get(report.epoch, {})
        if node not in asked:
            return
        del asked[node]
        if isinstance(report, o.CopyFailed):
            self._give_up(node, report.text)
        else:
            self._there[report.epoch][node] = report.digests
        self.ask()

    def _give_up(self, node: int, why: str) -> None:
        self._not_before_s[node] = (self._turn.now + COPY_RETRY_S, why)

    def complete(self, round_: Round) -> bool:
        """Return whether a round, whose model is saved at home, has its copies; one that is another is made anew."""
        if not self.wanted:
            return True
        there = self._there[round_.epoch]
        for node in [node for node, digests in there.items() if digests != round_.digests]:
            del there[node]
            self._give_up(node, "its copy was not what was written")
            self.ask()
        return len(there) >= self.wanted

    def committed(self, round_: Round) -> list[str]:
        """Return the names of the nodes that have the model of a round that is committed; none where none is copied."""
        if not self.wanted:
            return []
        del self._asked[round_.epoch]
        self._last = dict.fromkeys(self._there.pop(round_.epoch))
        self._turn.order(self._nodes.home, o.ReleaseModel(self._spec.number, round_.epoch))
        return [self._nodes.home_name, *(f"{node:016x}" for node in self._last)]

    @property
    def short(self) -> str:
        """What the first round waits for that is saved at home, when no node can be asked for it; else nothing."""
        for round_ in self._rounds.saving[:1] if self.wanted else ():
            asked, there = self._asked[round_.epoch], self._there[round_.epoch]
            if round_.saved and len(asked) + len(there) < self.wanted:
                whys = [
                    f"node {node:016x}: {why}" for node, (_, why) in self._not_before_s.items() if node not in there
                ]
                return (
                    f"round {round_.number} waits for copies of its model on {self.wanted} other nodes"
                    f" (checkpoint.replicas), {len(there)} are there: {'; '.join(whys) or 'no other node can be asked'}"
                )
        return ""

    # ---- nodes and the clock -----------------------------------------------------------------------------------------

    def node_there(self, node: int) -> None:
        """Ask a node anew that is told of the job (again): what it was asked before may be lost, or its answer."""
        self._told.add(node)
        self._not_before_s.pop(node, None)
        self._forget(node)

    def node_gone(self, node: int) -> None:
        """Have others make the copies of a node that is dead, or has left."""
        for there in self._there.values():
            there.pop(node, None)
        self._told.discard(node)
        self._not_before_s.pop(node, None)
        self._forget(node)

    def _forget(self, node: int) -> None:
        for asked in self._asked.values():
            asked.pop(node, None)
        self.ask()

    def tick(self) -> None:
        """Give up who takes too long, and ask again who may be."""
        now = self._turn.now
        for asked in self._asked.values():
            for node in [node for node, until_s in asked.items() if until_s <= now]:
                del asked[node]
                self._give_up(node, "it took too long")
        self._not_before_s = {node: told for node, told in self._not_before_s.items() if told[0] > now}
        self.ask()

    def next_timer(self) -> float:
        """Return when `tick` is due; infinity: not before something happens."""
        if not self.wanted or not self._rounds.saving:
            return math.inf
        due = [until_s for asked in self._asked.values() for until_s in asked.values()]
        due += [at_s for at_s, _ in self._not_before_s.values()]
        return min(due, default=math.inf)

    def close(self) -> None:
        """Have no more copies made: the job is over."""
        self._asked, self._there = {}, {}

    def faults(self) -> Iterator[str]:
        """Yield what cannot be."""
        if self.wanted and self._asked.keys() != {round_.epoch for round_ in self._rounds.saving}:
            yield f"epochs {sorted(self._asked)} are copied, and others are being saved"

"""Which of a job's committed models it goes on from after a restart: the newest that is there, and as it was written.

*Committed* means: the model of the round is durable, and stands.  A checkpoint that is lost, damaged or another job's
is found when it is loaded; then the one before it is tried, down to the oldest of which the coordinator remembers who
is in it.  When one is found, the rounds after it are *set aside*: their rows say ``damaged`` and why, they do not stand
any more, and they are run again, under other epochs.  Of each round one commit stands at most, at any time.  When none
is found nothing is set aside, and the job fails.

Where other nodes keep copies, a model that home has not, or cannot read, comes from one of these; as long as one of
them is not connected it is waited for, and no round is set aside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lifl.core import effects as fx
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.replicas import Replicas
from lifl.core.coordinator.round import Round
from lifl.core.coordinator.rounds import Rounds
from lifl.core.limits import ROUNDS_REMEMBERED
from lifl.core.protocol.cluster import COPIES
from lifl.core.turn import Turn

Stored = tuple[int, tuple[str, ...]]
"""Of a committed round: its attempt, and its files' digests as far as they are known."""


class Checkpoints:
    """Has a job's model loaded."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable, rounds: Rounds, replicas: Replicas) -> None:
        self._spec = spec
        self._nodes = nodes
        self._turn = turn
        self._rounds = rounds
        self._replicas = replicas
        self._stored: dict[int, Stored] = {}  # of the last committed rounds, as the next two
        self._terms: dict[int, int] = {}
        self._holders: dict[int, tuple[int, ...]] = {}
        self._at = -1  # the round whose model is loaded; -1: the initial one's, from the user's file
        self._bad: dict[int, str] = {}  # those that could not be, and why
        self._adopt = False
        self._from: int | None = None  # the node whose copy is being served, or fetched
        self._tried: set[int] = set()  # those whose copy could not be had, home among them
        self.waits = ""
        """Why none is loaded now: no node is there that has a copy."""

    def begin(
        self,
        committed: int,
        stored: Mapping[int, Stored],
        terms: Mapping[int, int],
        holders: Mapping[int, tuple[int, ...]],
    ) -> None:
        """Take up what an earlier life left: `committed` is the last round, `stored` has the last ones.

        `terms` has the terms under which those were written that a coordinator which moves has written, `holders` the
        nodes that have those which are copied.
        """
        self._at = committed
        self._stored, self._terms, self._holders = dict(stored), dict(terms), dict(holders)

    def committed(self, round_: Round, term: int, holders: Sequence[str]) -> None:
        """Note a commit: from there the job goes on when it was paused; `holders` are nodes by name."""
        number = self._at = round_.number
        for noted in (self._stored, self._terms, self._holders):
            noted.pop(number, None)
            noted.pop(number - ROUNDS_REMEMBERED, None)
        self._stored[number] = (round_.attempt, round_.digests)
        if term:
            self._terms[number] = term
        if holders:
            self._holders[number] = tuple(int(name, 16) for name in holders)

    def load(self, adopt: bool) -> None:
        """Have the last committed model (or the initial one) loaded; `adopt`: what is sealed for the job is kept."""
        self._adopt, self._tried, self._from, self.waits = adopt, set(), None, ""
        holders = self._holders.get(self._at, ())
        if holders and self._nodes.home not in holders:
            self._replicas.model_round = max(self._at, 0)
            self._tried.add(self._nodes.home)
            return
        self._replicas.load(self._at, adopt, self._digests, self._terms.get(self._at, 0))

    def next_holder(self) -> int | None:
        """Return a node that is connected and has a copy that was not tried; None: a try goes on, or there is none."""
        holders = self._holders.get(self._at, ())
        if self._from is not None or self._nodes.home not in self._tried:
            return None
        left = [node for node in holders if node not in self._tried]
        here = [node for node in left if self._nodes.takes_grants(node) and self._nodes.knows(node, COPIES)]
        names = ", ".join(f"{node:016x}" for node in left)
        self.waits = f"no node is here that has a copy of the model of round {self._at}: {names}" if left else ""
        return here[0] if here else None

    def serve(self, node: int) -> None:
        """Have a node serve its copy; it knows of the job."""
        self._from, self.waits = node, ""
        self._replicas.serve(node, self._at, self._digests, self._terms.get(self._at, 0))

    def asks(self, node: int) -> bool:
        """Return whether a node is to serve its copy."""
        return node == self._from

    def served(self, node: int) -> None:
        """Have home fetch the copy that a node serves."""
        if node == self._from:
            self._replicas.fetch(self._at, self._adopt, node)

    def try_another(self, node: int) -> bool:
        """Note that the model cannot be had from a node (home: from its own file, or from who served it).

        Return whether there is another copy.
        """
        holders = self._holders.get(self._at, ())
        if node == self._nodes.home and holders:
            self._replicas.unload()
        self._tried.add(node)
        if self._from is not None:
            self._tried.add(self._from)
        self._from = None
        return any(holder not in self._tried for holder in holders)

    def node_gone(self, node: int) -> None:
        """Try no more to get the model from a node that is gone; it is waited for, if it is the last one."""
        if node == self._from:
            self._replicas.unload()
            self._from = None

    @property
    def _digests(self) -> tuple[str, ...]:
        return self._stored.get(self._at, (0, ()))[1]

    def try_older(self, why: str) -> bool:
        """Have an older model loaded, because of `why`; return whether there is any."""
        if self._at < 0:
            return False
        self._bad[self._at] = why
        older = [number for number in self._stored if number < self._at]
        if not older:
            return False
        self._at = max(older)
        self._replicas.unload()
        self.load(adopt=False)
        return True

    @property
    def attempt(self) -> int:
        """The attempt that has committed the round whose model is loaded."""
        return self._stored.get(self._at, (0, ()))[0]

    @property
    def verdict(self) -> str:
        """What is to be said when several could not be loaded, and no other is left."""
        if len(self._bad) < 2:
            return ""
        newest = self._bad[max(self._bad)]
        return f"none of the last {len(self._bad)} checkpoints can be used; of the newest: {newest}"

    def settle(self, rows: dict[int, tuple[int, str, dict[str, Any]]]) -> bool:
        """Note that a model is loaded; set the rounds after it aside, in `rows` too, and return whether there were any.

        Neither those rounds nor what was begun after them stand any more.
        """
        name, last = self._spec.name, self._at
        if not self._bad:
            if last > 0 and not self._digests:
                reason = "the model was written without a digest, by an earlier version"
                self._turn.emit(fx.Publish("model.unchecked", name, {"round": last, "reason": reason}))
            return False
        self._turn.emit(fx.SetAside(name, last, self._bad[max(self._bad)]))
        for number, why in sorted(self._bad.items()):
            rows[number] = (self._stored[number][0], "damaged", {})
            self._rounds.counted.pop(number, None)
            self._turn.emit(fx.Publish("model.damaged", name, {"round": number, "used": last, "reason": why}))
        for number, (attempt, _status, _fields) in list(rows.items()):
            rows[number] = (attempt, "damaged", {})
        self._rounds.committed = last
        self._bad = {}
        return True

"""Which of a job's committed models it goes on from after a restart: the newest that is there, and as it was written.

*Committed* means: the model of the round is durable, and stands.  A checkpoint that is lost, damaged or another job's
is found when it is loaded; then the one before it is tried, down to the oldest of which the coordinator remembers who
is in it.  When one is found, the rounds after it are *set aside*: their rows say ``damaged`` and why, they do not stand
any more, and they are run again, under other epochs.  Of each round one commit stands at most, at any time.  When none
is found nothing is set aside, and the job fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifl.core import effects as fx
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.replicas import Replicas
from lifl.core.coordinator.rounds import Rounds
from lifl.core.turn import Turn

Stored = tuple[int, tuple[str, ...]]
"""Of a committed round: its attempt, and its files' digests as far as they are known."""


class Checkpoints:
    """Has a job's model loaded."""

    def __init__(self, spec: JobSpec, turn: Turn, rounds: Rounds, replicas: Replicas) -> None:
        self._spec = spec
        self._turn = turn
        self._rounds = rounds
        self._replicas = replicas
        self._stored: Mapping[int, Stored] = {}
        self._terms: Mapping[int, int] = {}
        self._at = -1  # the round whose model is loaded; -1: the initial one's, from the user's file
        self._bad: dict[int, str] = {}  # those that could not be, and why

    def begin(self, committed: int, stored: Mapping[int, Stored], terms: Mapping[int, int]) -> None:
        """Take up what an earlier life left: `committed` is the last round, `stored` has the last ones.

        `terms` has the terms under which those were written that a coordinator which moves has written.
        """
        self._at, self._stored, self._terms = committed, stored, terms

    def load(self, adopt: bool) -> None:
        """Have the last committed model (or the initial one) loaded; `adopt`: what is sealed for the job is kept."""
        self._replicas.load(self._at, adopt, self._digests, self._terms.get(self._at, 0))

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
        return True

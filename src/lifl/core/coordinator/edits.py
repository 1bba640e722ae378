"""Changes of a job's config by its user: they count from the next round on.

A round that waits for its clients has not begun, and takes them.
"""

from __future__ import annotations

from typing import Any

from lifl.core.config.edits import Edited
from lifl.core.config.job import JobConfig
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.replicas import Replicas
from lifl.core.coordinator.round import Phase, select_by
from lifl.core.coordinator.rounds import Rounds


class Edits:
    """Those of one job; `waiting` have not counted yet."""

    def __init__(self, spec: JobSpec, rounds: Rounds, replicas: Replicas) -> None:
        self.waiting: list[Edited] = []
        self._spec = spec
        self._rounds = rounds
        self._replicas = replicas
        self._changes: dict[str, Any] = {}  # of those that count: no round has run with them yet

    @property
    def pending(self) -> dict[str, Any]:
        """The keys that are to change, with what they will be."""
        return {key: value for edit in self.waiting for key, value in edit.changes.items()}

    def apply(self) -> None:
        """Let those count that wait, unless a round runs."""
        round_ = self._rounds.current
        if not self.waiting or (round_ is not None and round_.phase is not Phase.WAITING):
            return
        before, after = self._spec.config, self.waiting[-1].config
        self._spec.config = after
        self._changes |= self.pending
        self.waiting.clear()
        if _told(after) != _told(before):
            self._replicas.tell_options()
        if round_ is not None:
            select_by(round_, after.selection)
            self.note()

    def take(self, edit: Edited) -> None:
        """Let a change count now that the job has no room: nodes are told of it as a whole when it has."""
        self._spec.config = edit.config
        self._changes |= edit.changes

    def note(self) -> None:
        """Note in the books of the round that is about to begin what it is the first to run with."""
        round_ = self._rounds.current
        if round_ is not None and self._changes:
            round_.changes, self._changes = round_.changes | self._changes, {}


def _told(config: JobConfig) -> dict[str, Any]:
    """Return what nodes are told of the trainers' options; a selection tells what is another one (`selection.py`)."""
    return config.client.options_of(1, config.job.rounds)

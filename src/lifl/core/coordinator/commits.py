"""Sealed models on their way to the disk: each is saved, then its round is committed, in the order of the rounds.

A checkpoint that cannot be written now (its disk is full, or read-only) is tried again by the agent; meanwhile the job
is *paused*: the round that runs goes on to its model, and none begins after it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lifl.core import effects as fx
from lifl.core.coordinator.checkpoints import Checkpoints
from lifl.core.coordinator.copies import Copies
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.keeping import Keeping
from lifl.core.coordinator.presence import Presence
from lifl.core.coordinator.receipt import metrics_by_client, metrics_of, receipt_of, updates_of
from lifl.core.coordinator.replicas import Replicas
from lifl.core.coordinator.round import Round
from lifl.core.coordinator.round_runner import TOO_LATE
from lifl.core.coordinator.rounds import Rounds
from lifl.core.coordinator.selection import LOSS
from lifl.core.coordinator.stopping import Stopping
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.turn import Turn


class Commits:
    """The commits of one job; `paused` says why a file cannot be read or written now."""

    def __init__(
        self,
        spec: JobSpec,
        turn: Turn,
        presence: Presence,
        rounds: Rounds,
        replicas: Replicas,
        checkpoints: Checkpoints,
        copies: Copies,
        stopping: Stopping,
        keeping: Keeping,
    ) -> None:
        self.paused = ""
        self.attempt = 0  # of the round that was committed last
        self._stopping = stopping
        self._keeping = keeping
        self._checkpoints = checkpoints
        self._copies = copies
        self._spec = spec
        self._turn = turn
        self._presence = presence
        self._rounds = rounds
        self._replicas = replicas

    def save(self, round_: Round) -> None:
        """Have the current model, that of the round, written to its checkpoint."""
        self._rounds.saving.append(round_)
        self._replicas.save(round_.number, round_.epoch)
        self._copies.begin(round_)

    def saved(self, report: o.ModelSaved) -> None:
        """Note that a round's checkpoint is durable, and commit in order."""
        paused = self.paused
        for round_ in self._rounds.saving:
            if round_.epoch == report.epoch:
                round_.saved, round_.digests, self.paused = True, report.digests, ""
                round_.saved_s = self._turn.now
        self.commit(paused)

    def commit(self, paused: str) -> None:
        """Commit what is durable, in order; that may end the pause of before, `paused`."""
        saving = self._rounds.saving
        while saving and saving[0].saved and self._copies.complete(saving[0]):
            self._commit(saving.pop(0))
        if self._copies.short:
            self._pause(self._copies.short)
        elif self._copies.wanted and all(round_.saved for round_ in saving):
            self.paused = ""
        if paused and not self.paused:
            self._turn.emit(fx.Publish("job.goes_on", self._spec.name, {"committed": self._rounds.committed}))

    def file_paused(self, report: o.FilePaused) -> None:
        """Wait: the model or a checkpoint cannot be read or written now, and the agent tries again."""
        self._pause(report.text)

    def _pause(self, why: str) -> None:
        if why != self.paused:
            self.paused = why
            self._turn.emit(fx.Publish("job.paused", self._spec.name, {"reason": why}))

    def _commit(self, round_: Round) -> None:
        name = self._spec.name
        self._rounds.commit(round_)  # SAVING -> COMMITTED
        number, term, metrics = round_.number, self._turn.term, metrics_of(round_.accepted)
        path = self._spec.path_of(number, term)
        receipt: dict[str, Any] = {**receipt_of(round_, self._turn.now)} if number else {}
        if number and self._spec.config.told.per_client:
            receipt["clients"] = metrics_by_client(round_.accepted)
        row: dict[str, Any] = {"metrics": metrics, "path": path, "receipt": receipt, "members": sorted(round_.accepted)}
        updates = list(updates_of(round_).values())
        if any(digest for _, digest in updates):
            row["updates"] = updates
        if number and self._spec.config.selection.by_loss:
            row["losses"] = [round_.accepted[client].metrics.get(LOSS) for client in row["members"]]
        row["keep"] = self._keeping.committed(number, metrics)
        if round_.digests:
            row["digests"] = list(round_.digests)
        self.attempt = round_.attempt
        if number and isinstance(self._spec.config.evaluation, msgspec.UnsetType):
            self._stopping.note(number, metrics)
        if self._stopping.seen:
            row["stopping"] = self._stopping.seen
        if term:
            row["term"] = term
        if holders := self._copies.committed(round_):
            row["holders"] = holders
        self._checkpoints.committed(round_, term, holders)
        self._turn.emit(fx.SaveRound(name, number, round_.attempt, "committed", row))
        self._keeping.tell(number, fresh=number)
        for node in round_.nodes:
            self._turn.order(node, o.CommitBranch(self._spec.number, round_.epoch))
        if not number:
            return
        counted = len(round_.accepted)
        fields = {"round": number, "counted": counted, "metrics": metrics, "path": path, "receipt": receipt}
        self._turn.emit(fx.Publish("round.committed", name, fields))
        self._presence.tell_all(name, round_.accepted, cm.Committed(name, number, counted=True))
        late = cm.RoundOver(name, number, TOO_LATE)
        self._presence.tell_all(name, round_.granted, late)  # they are still on their way

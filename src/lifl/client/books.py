"""What a client knows of its rounds: what the node has said, and the updates that it keeps until they are committed.

The books are kept without a connection: they outlive the one over which a message came.

A round that ended without a model may be tried again, from the same model: then what this client trained for it still
counts.  So its update is kept until another round begins, and is sent again when the round selects the client again.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

import msgspec

from lifl.client.outcomes import Submission
from lifl.client.stream import Progress
from lifl.client.tensors import Update
from lifl.core.errors import Refused
from lifl.core.protocol import client as cm

log = logging.getLogger("lifl.client")

FATES_REMEMBERED = 16


@dataclass
class HeldUpdate:
    """An update that is kept until it is committed."""

    submit: cm.Submit
    update: Update
    progress: Progress | None
    accepted: bool = False
    detached: bool = False


class Numbered(Protocol):
    """A round, as far as the books know it."""

    number: int


def is_evaluation(event: cm.Selected | cm.JobOver) -> bool:
    """Return whether a client is selected to evaluate a model, and not to train."""
    return isinstance(event, cm.Selected) and not isinstance(event.kind, msgspec.UnsetType)


class Books:
    """The books of one client of `job`."""

    def __init__(self, job: str) -> None:
        self.events: deque[cm.Selected | cm.JobOver] = deque()
        """What the node has said and `Client.rounds` has not come to yet."""
        self.held: dict[int, HeldUpdate] = {}
        self.fates: dict[int, bool] = {}
        """Of the last rounds that are over, and those that the trainer has: whether this client's update counted."""
        self.rounds: WeakSet[Numbered] = WeakSet()
        """The rounds that the trainer has."""
        self._job = job
        self.declined: cm.Decline | None = None
        """The word that this client takes no part in a round, which is said again over a new connection.

        Who has not heard it yet, or is of an earlier version, may select the client for that round again.
        """
        self._round = 0  # the one at hand
        self._begun: cm.Selected | None = None  # its selection
        self._over = (0, "")  # the last round that ended without this client's update, and why
        self._named: tuple[int, str] = (0, "")  # the last selection's round, and the gateway it named

    def note(self, message: cm.ToClient) -> None:
        """Note what the node said.  Raise `Refused` when it refuses the client altogether."""
        match message:
            case cm.Selected() if is_evaluation(message):
                self.forget_evaluation(message.round)
                self.events.append(message)
            case cm.Selected():
                self.name_gateway(message)
                if self.declined is None or message.round != self.declined.round:
                    self.events.append(message)
            case cm.JobOver():
                self.events.clear()
                self.events.append(message)
            case cm.Committed(_, number, counted):
                self.held.pop(number, None)
                self._settle(number, counted)
            case cm.RoundOver(_, number, reason):
                log.info("round.over job=%s round=%d reason=%a", self._job, number, reason)
                self._over = (number, reason)
                if number < self._round:
                    self.held.pop(number, None)
                elif number in self.held:
                    self.held[number].accepted = False
                if self.declined is not None and self.declined.round == number:
                    self.declined = None
                self._settle(number, False)
            case cm.Refusal(cm.SPOILT, _, text):
                log.warning("update.spoilt job=%s round=%d reason=%a", self._job, message.round, text)
                self.held.pop(message.round, None)
            case cm.Refusal(cm.EVALUATION_OVER):
                self.forget_evaluation(message.round)
            case cm.Refusal(code, field, text) if message.round < 0:
                raise Refused(code, field, text)

    def _settle(self, number: int, counted: bool) -> None:
        self.forget_selection(number)
        self.fates[number] = counted
        kept = {round_.number for round_ in self.rounds}
        forgotten = sorted(self.fates.keys() - kept)[:-FATES_REMEMBERED]
        for other in forgotten:
            del self.fates[other]

    def name_gateway(self, selected: cm.Selected) -> None:
        """Note which gateway the selection names."""
        self._named = (selected.round, selected.gateway)

    def gateway_of(self, number: int) -> str:
        """Return the gateway that the round's selection named; empty for none."""
        return self._named[1] if self._named[0] == number else ""

    def take_event(self) -> cm.Selected | cm.JobOver:
        """Return what comes next.  That the job is over is said once: it stays, for whoever asks again."""
        return self.events[0] if self.is_job_over() else self.events.popleft()

    def is_job_over(self) -> bool:
        """Return whether the node has said that the job is over."""
        return any(isinstance(event, cm.JobOver) for event in self.events)

    def forget_selections(self) -> None:
        """Drop the selections that wait: after a break the node selects again, and may select otherwise."""
        self.events = deque(event for event in self.events if isinstance(event, cm.JobOver))

    def forget_selection(self, number: int) -> None:
        """Drop a selection that waits for a round that is over, or at hand."""
        self.events = deque(
            event
            for event in self.events
            if isinstance(event, cm.JobOver) or is_evaluation(event) or event.round != number
        )

    def forget_evaluation(self, number: int) -> None:
        """Drop a selection that waits to evaluate the model of a round."""
        self.events = deque(
            event
            for event in self.events
            if isinstance(event, cm.JobOver) or not is_evaluation(event) or event.round != number
        )

    def has_moved_on(self, number: int) -> bool:
        """Return whether the job is at a later round, or over."""
        return any(isinstance(event, cm.JobOver) or event.round > number for event in self.events)

    def is_settled(self, number: int) -> bool:
        """Return whether nothing is to be waited for: the fate is known, or what could still be told is that of others.

        An update that is not kept any more, of a round that others have followed, was not taken.
        """
        left = number < self._round or self.has_moved_on(number)
        return number in self.fates or self.is_job_over() or (left and number not in self.held)

    def asked_again(self) -> list[cm.Selected]:
        """Return the selections that wait for rounds whose update is kept."""
        return [event for event in self._to_train() if event.round in self.held]

    def _to_train(self) -> list[cm.Selected]:
        return [event for event in self.events if isinstance(event, cm.Selected) and not is_evaluation(event)]

    def resume(self) -> None:
        """Put the round at hand in line again when nothing came of it: the trainer asks for rounds anew."""
        begun = self._begun
        if begun is None or begun.round in self.held or self.is_settled(begun.round):
            return
        if not any(event.round == begun.round for event in self._to_train()):
            self.events.appendleft(begun)

    def begin(self, selected: cm.Selected) -> None:
        """Drop what cannot count any more now that a round is the one at hand."""
        self._begun = selected
        self._round = number = selected.round
        if self.declined is not None and self.declined.round < number:
            self.declined = None
        for other in [n for n, held in self.held.items() if n > number or (n < number and not held.accepted)]:
            del self.held[other]  # later ones were trained on a model that is gone

    def detach_held(self) -> None:
        """Copy the arrays of the updates that are kept, because their owner is about to change them."""
        for held in self.held.values():
            if not held.detached:
                held.update.detach()
                held.detached = True

    def verdict(self, submit: cm.Submit, reason: str) -> Submission:
        """Return how a round that is over ended: it may be known to count although ACCEPTED could not be told."""
        counted = self.fates.get(submit.round, False)
        if submit.round == self._over[0]:
            reason = self._over[1]
        return Submission(submit.job, submit.round, counted, "" if counted else reason)

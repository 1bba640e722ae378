"""The rounds of a job: the one that runs, those whose checkpoints are being written, those that are committed."""

from __future__ import annotations

from collections.abc import Iterator

from lifl.core.coordinator.round import Phase, Round
from lifl.core.limits import ROUNDS_REMEMBERED


class Rounds:
    """A job's rounds; its parts share these books."""

    def __init__(self) -> None:
        self.current: Round | None = None
        self.saving: list[Round] = []  # in the order in which they will be committed
        self.held = False  # the user lets no round begin
        self.committed = -1  # the last committed round; 0 is the initial model
        self.counted: dict[int, frozenset[str]] = {}  # by committed round: whose updates are in its model

    def live(self) -> list[Round]:
        """Return all rounds that are not over, the running one first."""
        return [self.current, *self.saving] if self.current is not None else list(self.saving)

    def at(self, epoch: int) -> Round | None:
        """Return the live round of the epoch."""
        return next((round_ for round_ in self.live() if round_.epoch == epoch), None)

    def numbered(self, number: int | None) -> Round | None:
        """Return the live round of the number."""
        return next((round_ for round_ in self.live() if round_.number == number), None)

    def has(self, number: int, client: str) -> bool:
        """Return True when the client's update of that round is accepted, or counted."""
        round_ = self.numbered(number)
        return (round_ is not None and client in round_.accepted) or client in self.counted.get(number, ())

    def commit(self, round_: Round) -> None:
        """Note that the round is committed."""
        round_.move(Phase.COMMITTED)
        self.committed = round_.number
        if round_.number:
            self.counted[round_.number] = frozenset(round_.accepted)
            self.counted.pop(round_.number - ROUNDS_REMEMBERED, None)

    def faults(self) -> Iterator[str]:
        """Yield what cannot be."""
        for round_ in self.live():
            yield from (f"round {round_.number}.{round_.attempt}: {fault}" for fault in round_.faults())
        if self.current is not None and self.current.phase in (Phase.SAVING, Phase.COMMITTED, Phase.FAILED):
            yield f"round {self.current.number} runs, and is {self.current.phase.value}"
        for round_ in self.saving:
            if round_.phase is not Phase.SAVING:
                yield f"round {round_.number} is being saved, and is {round_.phase.value}"
        numbers = [round_.number for round_ in (*self.saving, *([self.current] if self.current else []))]
        first = 0 if 0 in numbers else self.committed + 1  # the initial model counts as committed from its loading on
        if numbers != list(range(first, first + len(numbers))):
            yield f"the rounds behind the committed {self.committed} are {numbers}"
        if any(number > self.committed for number in self.counted):
            yield f"rounds {sorted(self.counted)} are counted, and the last committed is {self.committed}"

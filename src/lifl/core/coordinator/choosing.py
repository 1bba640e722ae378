"""A round's clients as the user's function chooses them (`selection.strategy` is ``module:function``).

The function is asked when the round opens, and again when a place is free and there is somebody whom it has not seen,
or when one that it has chosen is gone.  Meanwhile the round is open, and its deadline runs; no other job waits.  It
is given those who are here and may be selected, in an order that the seed draws, and each with what it says of itself
and its last loss; it names as many as are wanted, or fewer.  Where these are too few for the round's quorum, they are
invited, and it is asked again as soon as another client is here, until the deadline.  What it raises, or answers that
is none of that, fails the attempt at the round where too few take part, and else is told: nobody comes in the place of
who has gone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.round import Phase, Round
from lifl.core.coordinator.user_calls import FunctionCalls
from lifl.core.fields import Properties
from lifl.core.limits import BRANCH_UPDATES_MAX, CALL_BYTES_MAX
from lifl.core.planning.draw import NOTHING_SAID, seed_of
from lifl.core.protocol.user_calls import SELECTS, FunctionReturned
from lifl.core.turn import Turn

_Places = Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=BRANCH_UPDATES_MAX)]], msgspec.Meta(max_length=100_000)]
_ROOM_BYTES = 1024
"""Of what a function is given, beside its clients."""


class Choosing:
    """What was asked, and about which attempt at a round."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable) -> None:
        self.calls = FunctionCalls(spec, turn, nodes, SELECTS)
        self._spec = spec
        self._epoch = 0
        self._seen: dict[str, None] = {}  # who was offered in this attempt
        self._offered: list[str] = []  # in the last call, in order
        self._wanted = 0
        self._open = 0  # places that the last answer has left free

    @property
    def waits(self) -> bool:
        """Whether the function has not answered yet."""
        return self.calls.runs

    def ask(
        self,
        round_: Round,
        clients: Sequence[str],
        wanted: int,
        said: Mapping[str, Properties],
        losses: Mapping[str, float],
    ) -> None:
        """Have the function choose `wanted` of the clients, unless it has said all that it can say of them."""
        again = self._epoch == round_.epoch
        if again and (self.calls.runs or not (wanted > self._open or any(each not in self._seen for each in clients))):
            return
        ordered = sorted(clients)
        seed = seed_of(self._spec.config.selection, round_.number, round_.attempt, len(round_.selected))
        random.Random(seed).shuffle(ordered)
        packed: list[msgspec.Raw] = []
        left = CALL_BYTES_MAX - _ROOM_BYTES
        for client in ordered:
            line = msgspec.msgpack.encode(_told(client, said.get(client, NOTHING_SAID), losses.get(client)))
            left -= len(line)
            if left < 0:
                break
            packed.append(msgspec.Raw(line))
        if not again:
            self._epoch, self._seen = round_.epoch, {}
        self._offered = ordered[: len(packed)]
        self._seen |= dict.fromkeys(clients)
        self._open, self._wanted = wanted, min(wanted, len(packed))
        given = {"clients": packed, "wanted": self._wanted, "round": round_.number, "seed": seed}
        self.calls.ask(msgspec.msgpack.encode(given))

    def answered(self, round_: Round | None, report: FunctionReturned) -> tuple[list[str], str]:
        """Return whom the function has chosen, or why it has not; neither where that is not asked any more."""
        if not self.calls.answers(report) or round_ is None:
            return [], ""
        if round_.epoch != self._epoch or round_.phase is not Phase.COLLECTING:
            return [], ""
        try:
            if report.fault:
                raise ValueError(report.fault)
            places = msgspec.msgpack.decode(report.answer, type=_Places)
            if not len(set(places)) == len(places) <= self._wanted:
                raise ValueError(f"its answer names {len(places)} clients of {self._wanted} that are wanted")
            chosen = [self._offered[place] for place in places]
        except (ValueError, IndexError) as error:  # a DecodeError is one, too
            return [], f"{self.calls.function} (selection.strategy) chose nobody: {error}"
        self._open -= len(chosen)
        return chosen, ""


def _told(client: str, said: Properties, loss: float | None) -> dict[str, Any]:
    """Return what the function is given of a client."""
    examples = said.examples if isinstance(said.examples, int) else None
    return {"name": client, "labels": said.labels, "examples": examples, "device": said.device, "loss": loss}

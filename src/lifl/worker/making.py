"""A round's model in the making: by a top, from one set of inputs, in one pass from the front.

The pass may stop where an update ends that is still being received, and go on when more of it is there.  What it made
is worth nothing when another set of inputs comes in the end: then the model is made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lifl.core.errors import LocalFault
from lifl.core.ids import Key
from lifl.core.schema import DTYPE_BYTES, Segment
from lifl.core.worker_messages import TaskStart
from lifl.rules.base import Rule
from lifl.rules.finish import finish_segment
from lifl.rules.kernels import vector
from lifl.shm.arena import Arena

PIECE_ELEMENTS = 256 * 1024
"""The pass stops at multiples of it: a piece costs some calls, and begins where a vector register's bytes do."""


class Input(NamedTuple):
    """One input of a top: an update, or a partial."""

    weight: float
    update: bool


class Making:
    """The pass over `inputs`.  Raises `StaleKey` when one is gone, `LocalFault` when there is no object for a state."""

    def __init__(self, start: TaskStart, rule: Rule, arena: Arena, inputs: Mapping[Key, Input]) -> None:
        self.inputs = dict(inputs)
        missing = set(rule.states) - set(start.new_states)
        if missing:
            raise LocalFault(f"task {start.address} has no object for the rule's states {sorted(missing)}")
        self._rule = rule
        self._segments = list(zip(start.inputs, start.model_segments, start.outputs, strict=True))
        self._made = [0] * len(self._segments)
        data = {key: arena.data(key) for key in inputs}
        self._partials = [(data[key], weight) for key, (weight, update) in inputs.items() if not update]
        self._updates = [(data[key], weight) for key, (weight, update) in inputs.items() if update]
        self._model = arena.data(Key.unpack(start.model))
        self._output = arena.data(Key.unpack(start.output))
        self._states = {name: arena.data(Key.unpack(key)) for name, key in start.states.items() if key}
        self._new_states = {name: arena.data(Key.unpack(key)) for name, key in start.new_states.items()}

    def advance(self, received_bytes: int) -> None:
        """Makes what so many bytes of each update allow.  Raises what `finish_segment` raises."""
        for index, (part, model_part, target) in enumerate(self._segments):
            end = max(received_bytes - model_part.offset, 0) // DTYPE_BYTES[model_part.dtype]
            end = model_part.count if end >= model_part.count else end - end % PIECE_ELEMENTS
            begin, self._made[index] = self._made[index], end
            if begin < end:
                self._make(part, model_part, target, slice(begin, end))

    def _make(self, part: Segment, model_part: Segment, target: Segment, piece: slice) -> None:
        finish_segment(
            self._rule,
            vector(self._model, model_part)[piece],
            [(vector(view, part)[piece], weight) for view, weight in self._partials],
            [(vector(view, model_part)[piece], weight) for view, weight in self._updates],
            vector(self._output, target)[piece],
            {name: vector(view, part)[piece] for name, view in self._states.items()},
            {name: vector(view, part)[piece] for name, view in self._new_states.items()},
            piece.start,
        )


def can_be_in_pieces(rule: Rule) -> bool:
    """A rule's own `fold` may look at whole vectors."""
    return type(rule).fold is Rule.fold

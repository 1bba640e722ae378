"""A round's model in the making: by a top, from one set of inputs, while the last of them arrive.

The last pass, from the front, stops where an update ends that is still being received, and goes on when more of it is
there.  What has come is summed up before, unrounded, in an object of its own, while an update that is expected has not
even begun: then there is little left for the last pass to read, and it keeps up with what arrives (measured: onto a
sum that is there, one vector takes a third of the time of five vectors at once).

What was made is worth nothing when another set of inputs comes in the end: then the model is made anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from lifl.core.errors import LocalFault
from lifl.core.ids import Key
from lifl.core.protocol.worker import TaskStart
from lifl.core.schema import DTYPE_BYTES, STATE, relaid
from lifl.rules import binned, integers, kernels
from lifl.rules.base import Rule
from lifl.rules.finish import add, finish_segment, leave_segment
from lifl.rules.kernels import Vector, vector
from lifl.shm.arena import Arena
from lifl.worker.earlier import input_data
from lifl.worker.presence import Presence, Units
from lifl.worker.treatment import is_kept, settle, within

AHEAD_INPUTS_MIN = 2
"""So many inputs are summed up before the last pass: a single one would better go along with the next."""
PIECE_ELEMENTS = 256 * 1024
"""The pass stops at multiples of it: a piece costs some calls, and begins where a vector register's bytes do."""


class Input(NamedTuple):
    """One input of a top: an update, or a partial.  `units` is what each tensor weighs, where some may be absent."""

    weight: float
    update: bool
    units: Units = ()


class StreamingModel:
    """The model of `inputs`; what has come is summed up in the object `sums`, if there is one.

    Raises `StaleKey` when an object is gone, `LocalFault` when there is none for a state.
    """

    def __init__(
        self, start: TaskStart, rule: Rule, arena: Arena, inputs: Mapping[Key, Input], sums: Key | None
    ) -> None:
        self.inputs = dict(inputs)
        missing = set(rule.states) - set(start.new_states)
        if missing:
            raise LocalFault(f"task {start.address} has no object for the rule's states {sorted(missing)}")
        self._rule = rule
        self._treated = start.treated
        self._presence = Presence(start.places) if start.places else None
        self._segments = list(zip(start.inputs, start.model_segments, start.outputs, strict=True))
        self._state_segments = relaid(start.model_segments, STATE)
        self._made = [0] * len(self._segments)
        self._ahead: dict[Key, None] = {}  # what is summed up already
        self._sums = None if sums is None else arena.data(sums)
        self._data = {key: input_data(arena, key, start.model_segments) for key in inputs}
        self._partials = [key for key, each in inputs.items() if not each.update]
        self._updates = [key for key, each in inputs.items() if each.update]
        self._model = arena.data(Key.unpack(start.model))
        self._output = arena.data(Key.unpack(start.output))
        self._states = {name: arena.data(Key.unpack(key)) for name, key in start.states.items() if key}
        self._new_states = {name: arena.data(Key.unpack(key)) for name, key in start.new_states.items()}

    def _weights(self, keys: Collection[Key]) -> list[float]:
        return [self.inputs[key].weight for key in keys]

    def advance(self, whole: Collection[Key], received_bytes: int) -> None:
        """Make what is possible with the inputs that are `whole` and so many bytes of each of the others.

        Raise what `finish_segment` raises.
        """
        if received_bytes == 0 and not any(self._made):
            new = [key for key in self.inputs if key in whole and key not in self._ahead]
            if len(new) >= AHEAD_INPUTS_MIN and self._sums is not None:
                self._sum_up(self._sums, new)
            return
        for index, (_part, model_part, _target) in enumerate(self._segments):
            end = max(received_bytes - model_part.offset, 0) // DTYPE_BYTES[model_part.dtype]
            end = model_part.count if end >= model_part.count else end - end % PIECE_ELEMENTS
            begin, self._made[index] = self._made[index], end
            if begin < end:
                self._make(index, slice(begin, end))

    def _sum_up(self, sums: memoryview, keys: Collection[Key]) -> None:
        """Add inputs to what is summed up already."""
        partials = [key for key in keys if not self.inputs[key].update]
        updates = [key for key in keys if self.inputs[key].update]
        weights, last = self._weights(partials), self._weights(updates)
        done = self._weights(self._ahead)
        for index, (part, _model_part, _target) in enumerate(self._segments):
            if is_kept(part.dtype):
                continue
            every = slice(0, part.count)
            inputs = (self._vectors(index, partials, every), weights, self._vectors(index, updates, every), last)
            if part.dtype in integers.BITS:
                integers.add(vector(sums, part), *inputs, done)
            elif part.dtype == binned.ACCUMULATOR:
                binned.add(vector(sums, part), inputs[0], *inputs[2:], keep=bool(done))
            else:
                add(self._rule, vector(sums, part), *inputs, done)
        self._ahead |= dict.fromkeys(keys)

    def _make(self, index: int, piece: slice) -> None:
        _part, model_part, target = self._segments[index]
        model, out = vector(self._model, model_part)[piece], vector(self._output, target)[piece]
        averaged = [] if is_kept(model_part.dtype) else self._averaged(index, piece)
        if averaged != [piece]:
            for view in self._new_states.values():
                vector(view, self._state_segments[index])[piece] = 0
        for run in averaged:
            if self._presence is None:
                self._finish(index, run, {key: each.weight for key, each in self.inputs.items()})
                continue
            every = [each.units for each in self.inputs.values()]
            for part, weights in self._presence.runs(index, run, every):
                there = zip(self.inputs, weights, strict=True)
                self._finish(index, part, {key: weight for key, weight in there if weight})
        if self._treated:
            first = next(iter(self.inputs))
            (numbers,), (weight,) = self._vectors(index, [first], piece), self._weights([first])
            kind: Literal["update", "partial"] = "update" if self.inputs[first].update else "partial"
            settle(self._treated, index, piece.start, out, model, (numbers, weight, kind))

    def _averaged(self, index: int, piece: slice) -> list[slice]:
        """Return the runs of a piece that are averaged: among the others there may be infinities."""
        if not can_be_in_pieces(self._rule):
            return [piece]
        runs, begin = [], piece.start
        for treated in self._treated:
            if treated.segment == index and not treated.is_averaged and treated.begin + treated.count > begin:
                runs.append(slice(begin, min(treated.begin, piece.stop)))
                begin = min(treated.begin + treated.count, piece.stop)
        return [run for run in (*runs, slice(begin, piece.stop)) if run.start < run.stop]

    def _finish(self, index: int, piece: slice, weights: Mapping[Key, float]) -> None:
        """Make a piece from the inputs that have it, with their `weights` there; without one it stays as it was."""
        part, model_part, target = self._segments[index]
        state_part = self._state_segments[index]
        model, out = vector(self._model, model_part)[piece], vector(self._output, target)[piece]
        states = {name: vector(view, state_part)[piece] for name, view in self._states.items()}
        new_states = {name: vector(view, state_part)[piece] for name, view in self._new_states.items()}
        if not weights:
            leave_segment(self._rule, model, out, states, new_states)
            return
        partials = self._left(index, piece, self._partials, weights)
        updates = self._left(index, piece, self._updates, weights)
        if self._ahead and self._sums is not None:
            summed = vector(self._sums, part)[piece]
            partials.insert(0, (summed, kernels.total(self._weights(self._ahead))))
        finish_segment(
            self._rule,
            model,
            partials,
            updates,
            out,
            states,
            new_states,
            piece.start,
            list(within(self._treated, index, "exclude", piece.start, piece.stop)),
            part.dtype == binned.ACCUMULATOR,
        )

    def _left(
        self, index: int, piece: slice, keys: Collection[Key], weights: Mapping[Key, float]
    ) -> list[tuple[Vector, float]]:
        """Return a piece of those inputs that have it and are not summed up yet, each with its weight."""
        left = [key for key in keys if key in weights and key not in self._ahead]
        return list(zip(self._vectors(index, left, piece), [weights[key] for key in left], strict=True))

    def _vectors(self, index: int, keys: Collection[Key], piece: slice) -> list[Vector]:
        """Return a piece of a segment of each input: updates have it as the model has, partials as accumulators."""
        part, model_part, _target = self._segments[index]
        return [vector(self._data[key], model_part if self.inputs[key].update else part)[piece] for key in keys]


def can_be_in_pieces(rule: Rule) -> bool:
    """Return whether the rule's model can be made in pieces: a rule's own `fold` may look at whole vectors."""
    return type(rule).fold is Rule.fold

"""Numbers that are not treated as the others of their segment (`core/schema.Treated`), in the hands of a worker.

The fixed are the model's own in the end, whatever the partials hold for them.  Of the first, a task takes those of its
first input, at each step of the tree: so they are one update's.  The excluded are averaged as the others, and left out
of the rule's step (`rules/finish.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from lifl.core.schema import KEPT, Treated
from lifl.rules import integers, kernels
from lifl.rules.kernels import Vector, numpy_dtype


def within(treated: Sequence[Treated], segment: int, how: str, begin: int, end: int) -> Iterator[slice]:
    """Yield the runs from `begin` to `end` of a segment that are treated so, counted from `begin`."""
    for run in treated:
        if run.segment == segment and run.how == how and run.begin < end and begin < run.begin + run.count:
            yield slice(max(run.begin, begin) - begin, min(run.begin + run.count, end) - begin)


class Firsts:
    """The numbers of one segment of which the first input's are taken, through one fold or merge into `acc`."""

    def __init__(self, treated: Sequence[Treated], segment: int, acc: Vector, dtype: str) -> None:
        self._slices = list(within(treated, segment, "first", 0, len(acc)))
        self._acc = acc
        self._dtype = dtype  # the model's
        self._kept: list[Vector] = []

    def look(self, first: Vector, weight: float, partial: bool) -> None:
        """Keep the numbers of a first input, or of what `acc` holds already, which is a partial of this weight."""
        for run in self._slices:
            self._kept.append(value_of(first[run], weight, self._dtype) if partial else first[run])

    def put_back(self, whole: float) -> None:
        """Write what was kept to `acc`, whose weight is `whole`."""
        for run, kept in zip(self._slices, self._kept, strict=True):
            if numpy_dtype(self._dtype).kind in "iu":
                integers.fold(self._acc[run], [np.ascontiguousarray(kept)], [whole], 0.0, whole)
            else:
                self._acc[run] = kept


def value_of(partial: Vector, weight: float, dtype: str) -> Vector:
    """Return the numbers that a piece of a partial stands for, in the model's dtype (floats: the partial's)."""
    if numpy_dtype(dtype).kind not in "iu":
        return partial.copy()
    made = np.empty(len(partial), numpy_dtype(dtype))
    integers.finish(made, np.ascontiguousarray(partial), weight)
    return made


def is_kept(dtype: str) -> bool:
    """Return whether numbers of this dtype are not averaged."""
    return dtype in KEPT


def settle(
    treated: Sequence[Treated],
    segment: int,
    begin: int,
    out: Vector,
    model: Vector,
    first: tuple[Vector, float, Literal["update", "partial"]],
) -> None:
    """Write what is fixed, and what is one input's, to a piece of the new model that begins at element `begin`."""
    end = begin + len(out)
    if is_kept(out.dtype.name):
        out[:] = model
    for run in within(treated, segment, "fixed", begin, end):
        out[run] = model[run]
    numbers, weight, kind = first
    for run in within(treated, segment, "first", begin, end):
        if kind == "update" or is_kept(out.dtype.name):
            out[run] = numbers[run]
        else:
            kernels.store(value_of(numbers[run], weight, out.dtype.name), out[run])

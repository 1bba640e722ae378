"""Partials that an earlier version of LIFL has left in the arena, as today's.

Until LIFL 0.1 a partial was Σ wᵢxᵢ · 2⁻ᵉ, in floats for integers too; e is the exponent of its weight W = Σ wᵢ.  After
that it was what it is today, but its floats were float32 where the model's are not float64, and its sums of integers of
64 bits had 128, with 62 in the place of a weight.  They are met once, after an upgrade, so each is read into private
memory.
"""

from __future__ import annotations

import numpy as np

from lifl.core.ids import Key, Kind
from lifl.core.protocol.contribution import unpack_contributions
from lifl.core.schema import ACCUMULATOR, EARLIER_PARTIAL, NARROW_PARTIAL, Segment, end_of, relaid
from lifl.rules import kernels
from lifl.rules.integers import BITS, put
from lifl.rules.kernels import Vector, vector
from lifl.shm.arena import Arena
from lifl.shm.layout import Entry

FORMATS = {Kind.EARLIER_PARTIAL: EARLIER_PARTIAL, Kind.NARROW_PARTIAL: NARROW_PARTIAL}
"""What an earlier partial holds, by the model's dtypes."""


def input_bytes(entry: Entry, inputs: tuple[Segment, ...], models: tuple[Segment, ...]) -> int:
    """Return the bytes of data that an input of a task has: `inputs`, or an earlier partial of these `models`."""
    return end_of(relaid(models, FORMATS[Kind(entry.kind)]) if entry.kind in FORMATS else inputs)


def input_weight(arena: Arena, key: Key) -> float:
    """Return the weight of an input of a task: of a partial, exactly, that of its members."""
    entry = arena.entry(key)
    if entry.kind == Kind.UPDATE:
        return entry.weight
    members = unpack_contributions(bytes(arena.meta(key)))
    if len(members) != entry.contributions:
        return entry.weight
    return kernels.total([member.weight for member in members])


def input_data(arena: Arena, key: Key, models: tuple[Segment, ...]) -> memoryview:
    """Return the data of an input of a task; an earlier partial as one of today."""
    entry = arena.entry(key)
    if entry.kind in FORMATS:
        return converted(arena.data(key), Kind(entry.kind), input_weight(arena, key), models)
    return arena.data(key)


def converted(view: memoryview, kind: Kind, weight: float, models: tuple[Segment, ...]) -> memoryview:
    """Return the data of a partial that says what the earlier one in `view`, of this kind and weight, does."""
    accumulators = relaid(models, ACCUMULATOR)
    made = memoryview(bytearray(end_of(accumulators)))
    divisor = weight * 2.0 ** -kernels.exponent(weight) if kind is Kind.EARLIER_PARTIAL else 1.0
    for source, target in zip(relaid(models, FORMATS[kind]), accumulators, strict=True):
        numbers, out = vector(view, source), vector(made, target)
        if target.dtype == "float64":
            np.divide(numbers, divisor, out=out, dtype=np.float64)
        elif source.dtype == target.dtype:
            out[:] = numbers
        else:
            _whole(numbers, out, target.dtype, weight)
    return made


def _whole(sums: Vector, out: Vector, accumulator: str, weight: float) -> None:
    """Write the sums of integers, which are floats or have 128 bits, as whole numbers to `out`.

    Their e is that of the weight as a float64; of the longest sums it is that of the weight itself.
    """
    bits = BITS[accumulator]
    if accumulator == "int192":
        bits += kernels.exact(float(weight)).bit_length() - kernels.exact(weight).bit_length()
    if sums.dtype.names:
        numbers = ((sums["high"].astype(object) << 64) + sums["low"].astype(object)) << (bits - BITS["int128"])
    else:
        numbers = np.array([int(total) for total in np.rint(np.ldexp(sums, bits))], object)
    if accumulator == "int64":
        out[:] = numbers
    else:
        put(out, numbers)

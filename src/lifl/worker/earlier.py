"""Partials that an earlier version of LIFL has left in the arena, as today's.

Until LIFL 0.1 a partial was Σ wᵢxᵢ · 2⁻ᵉ, in floats for integers too; e is the exponent of its weight W = Σ wᵢ.  They
are met once, after an upgrade, so each is read into private memory.
"""

from __future__ import annotations

import numpy as np

from lifl.core.ids import Key, Kind
from lifl.core.schema import EARLIER_PARTIAL, Segment, end_of, relaid
from lifl.rules import kernels
from lifl.rules.integers import BITS
from lifl.rules.kernels import vector
from lifl.shm.arena import Arena


def earlier_bytes(accumulators: tuple[Segment, ...]) -> int:
    """Return the bytes of data that an earlier partial of these accumulators has."""
    return end_of(relaid(accumulators, EARLIER_PARTIAL))


def converted(view: memoryview, weight: float, accumulators: tuple[Segment, ...]) -> memoryview:
    """Return the data of a partial that says what the earlier one in `view`, of this weight, does."""
    made = memoryview(bytearray(end_of(accumulators)))
    divisor = weight * 2.0 ** -kernels.exponent(weight)
    for source, target in zip(relaid(accumulators, EARLIER_PARTIAL), accumulators, strict=True):
        sums, out = vector(view, source), vector(made, target)
        if target.dtype not in BITS:
            np.divide(sums, divisor, out=out)
            continue
        whole = np.rint(np.ldexp(sums, BITS[target.dtype]))
        if target.dtype == "int64":
            out[:] = whole
        else:
            high = np.floor(np.ldexp(whole, -64))
            out["high"], out["low"] = high, whole - np.ldexp(high, 64)
    return made


def input_data(arena: Arena, key: Key, accumulators: tuple[Segment, ...]) -> memoryview:
    """Return the data of an input of a task whose partials lie as `accumulators`."""
    entry = arena.entry(key)
    if entry.kind == Kind.EARLIER_PARTIAL:
        return converted(arena.data(key), entry.weight, accumulators)
    return arena.data(key)

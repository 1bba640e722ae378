"""The weighted mean of integers, exactly.

**What a sum is.**  A partial's vector is S = Σ qᵢxᵢ with whole numbers qᵢ = wᵢ · 2^(b−e) in the place of weights.  e is
the exponent of the partial's weight W = Σ wᵢ, 2^(e−1) ≤ W < 2^e, so it needs no place of its own; and Q = Σ qᵢ = W ·
2^(b−e) is below 2^b.  With b = `BITS` no sum can overflow: 54 bits and a number of 8 in 64, 62 bits and a number of
32 in 128, 126 bits and a number of 64 in 192.  When W grows past a power of two, what is there is shifted right.

**When it is exact.**  For whole weights with W < 2^53 each qᵢ is whole as it stands, with b − e zeros at its end, and a
shift drops nothing but zeros.  S / Q is then the mean, and it is rounded once, half to even.  Other weights are cut to
2^-b of W; so each share is off by about 2^-b for each task on its way, times the largest number: far less than the
half that rounding takes.  The result is within 1 of the mean, and equal numbers give that number.  For numbers of 64
bits that needs W to more bits than a float64 has: there W is the sum of the members' own weights (`kernels.Weight`);
for others it is the float64 of the partial's entry, whose error is 2^-53 of numbers below 2^32.

Compiled where `kernels.COMPILED` exists, else in NumPy, where a number of 128 bits is a pair (low, high), and those of
192 are Python's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lifl.rules import kernels
from lifl.rules.kernels import Vector, address, exact

BITS = {"int64": 54, "int128": 62, "int192": 126}
"""Of Q, by the accumulator's dtype."""
BLOCK = 4096
"""Python's numbers at a time."""


def accumulator(acc: Vector) -> str:
    """Return the name of an accumulator's dtype."""
    return {8: "int64", 16: "int128", 24: "int192"}[acc.itemsize]


def fold(acc: Vector, vectors: Sequence[Vector], weights: Sequence[float], before: float, whole: float) -> None:
    """Add weighted `vectors` to the sum `acc`, whose weight was `before` and is `whole` afterwards.

    With `before` 0, `acc` holds nothing yet and is not read.
    """
    name = accumulator(acc)
    shift = _shift(before, whole, name)
    factors = whole_numbers(weights, whole, name)
    # What was cut off of Q goes to the heaviest: equal numbers stay what they are.
    heaviest = max(range(len(factors)), key=factors.__getitem__)
    factors[heaviest] += sum(whole_numbers([whole], whole, name)) - sum(factors)
    if shift >= 0:
        factors[heaviest] -= whole_numbers([before], whole, name)[0]
    if kernels.COMPILED is not None:
        dtype, rows = vectors[0].dtype.name, [address(vector) for vector in vectors]
        kernels.COMPILED.fold_integers(dtype, address(acc), len(acc), rows, factors, shift)
        return
    if name == "int192":
        products = list(zip(vectors, factors, strict=True))
        _add_numbers(acc, shift, lambda run: sum(factor * vector[run].astype(object) for vector, factor in products))
        return
    _begin(acc, shift)
    for vector, factor in zip(vectors, factors, strict=True):
        _add_product(acc, vector, factor)


def merge(acc: Vector, partials: Sequence[Vector], weights: Sequence[float], before: float, whole: float) -> None:
    """Add sums with these weights to the sum `acc`, as `fold` does."""
    name = accumulator(acc)
    shift, shifts = _shift(before, whole, name), [_shift(weight, whole, name) for weight in weights]
    if kernels.COMPILED is not None:
        addresses = [address(partial) for partial in partials]
        kernels.COMPILED.merge_integers(name, address(acc), len(acc), addresses, shifts, shift)
        return
    if name == "int192":
        rows = list(zip(partials, shifts, strict=True))
        _add_numbers(acc, shift, lambda run: sum(_shifted(_numbers(partial[run]), bits) for partial, bits in rows))
        return
    _begin(acc, shift)
    for partial, its in zip(partials, shifts, strict=True):
        moved = partial.copy()
        _shift_right(moved, its)
        _add(acc, moved)


def add(
    acc: Vector,
    partials: Sequence[Vector],
    weights: Sequence[float],
    vectors: Sequence[Vector],
    last: Sequence[float],
    done: Sequence[float] = (),
) -> None:
    """Add sums, with their `weights`, and vectors, with their `last`, to the sum `acc` of what weighs `done`."""
    for rows, theirs, operation in ((partials, weights, merge), (vectors, last, fold)):
        if rows:
            before, done = kernels.total(done) if done else 0.0, [*done, *theirs]
            operation(acc, rows, theirs, before, kernels.total(done))


def finish(out: Vector, acc: Vector, weight: float) -> None:
    """Write the mean of the sum `acc` with its weight to `out`, rounded half to even."""
    divisor = whole_numbers([weight], weight, accumulator(acc))[0]
    if kernels.COMPILED is not None:
        kernels.COMPILED.finish_integers(out.dtype.name, address(out), address(acc), len(out), divisor)
        return
    info = np.iinfo(out.dtype)
    for index, total in enumerate(_whole_sums(acc)):
        quotient, rest = divmod(total, divisor)
        quotient += 2 * rest > divisor or (2 * rest == divisor and quotient % 2)
        out[index] = min(max(quotient, int(info.min)), int(info.max))


def whole_numbers(weights: Sequence[float], whole: float, name: str) -> list[int]:
    """Return weights as the whole numbers that stand for them in an accumulator `name` with the weight `whole`."""
    scale = BITS[name] - _exact(whole, name).bit_length()
    return [_exact(w, name) << scale if scale > 0 else _exact(w, name) >> -scale for w in weights]


def _shift(before: float, whole: float, name: str) -> int:
    return _exact(whole, name).bit_length() - _exact(before, name).bit_length() if before else -1


def _exact(weight: float, name: str) -> int:
    """Return what a weight is for an accumulator `name`: the float64, but for the longest."""
    return exact(weight if name == "int192" else float(weight))


# ---- NumPy's way -----------------------------------------------------------------------------------------------------


def _begin(acc: Vector, shift: int) -> None:
    if shift < 0:
        acc[:] = np.zeros((), acc.dtype)
    else:
        _shift_right(acc, shift)


def _shift_right(acc: Vector, bits: int) -> None:
    """acc = acc · 2^-bits, rounded, in place."""
    if not bits:
        return
    if acc.dtype == np.int64:
        acc[:] = (acc + (1 << (bits - 1))) >> bits if bits < 63 else 0
        return
    if bits > 126:
        acc[:] = np.zeros((), acc.dtype)
        return
    _add_number(acc, 1 << (bits - 1))
    low, high = acc["low"], acc["high"]
    if bits >= 64:
        low[:] = (high >> (bits - 64)).view(np.uint64)
        high >>= 63
    else:
        low >>= np.uint64(bits)
        low |= high.view(np.uint64) << np.uint64(64 - bits)
        high >>= bits


def _add_numbers(acc: Vector, shift: int, terms: Callable[[slice], Any]) -> None:
    """Add Python's numbers to sums of 192 bits."""
    for begin in range(0, len(acc), BLOCK):
        run = slice(begin, min(begin + BLOCK, len(acc)))
        put(acc[run], terms(run) + (_shifted(_numbers(acc[run]), shift) if shift >= 0 else 0))


def put(acc: Vector, numbers: Vector) -> None:
    """Write Python's numbers to sums of 128 or 192 bits."""
    position = 0
    for name in acc.dtype.names or ():
        limbs = (numbers >> position) & 0xFFFF_FFFF_FFFF_FFFF
        acc[name] = limbs.astype(np.uint64).view(acc.dtype[name])
        position += 64


def _numbers(acc: Vector) -> Vector:
    """Return sums of 192 bits as Python's numbers."""
    low, middle, high = (acc[name].astype(object) for name in ("low", "middle", "high"))
    numbers: Vector = low + (middle << 64) + (high << 128)
    return numbers


def _shifted(numbers: Vector, bits: int) -> Vector:
    """Return numbers · 2^-bits, rounded."""
    shifted: Vector = (numbers + (1 << (bits - 1))) >> bits if bits else numbers
    return shifted


def _add_product(acc: Vector, vector: Vector, factor: int) -> None:
    """Acc += factor · vector, in place; the factor has at most 62 bits.

    Halves of 32 bits are multiplied.  Unsigned numbers of 64 bits are taken less 2^63, as signed ones.
    """
    if acc.dtype == np.int64:
        acc += factor * vector.astype(np.int64)
        return
    numbers = vector.astype(np.int64)
    if vector.dtype == np.uint64:
        numbers ^= np.int64(-(2**63))
        _add_number(acc, factor << 63)
    factor_low, factor_high = factor & 0xFFFF_FFFF, factor >> 32
    low, high = numbers & 0xFFFF_FFFF, numbers >> 32
    _add_parts(acc, low.astype(np.uint64) * np.uint64(factor_low), high * factor_high)
    for middle in (low * factor_high, high * factor_low):
        _add_parts(acc, middle.view(np.uint64) << np.uint64(32), middle >> 32)


def _add(acc: Vector, other: Vector) -> None:
    if acc.dtype == np.int64:
        acc += other
    else:
        _add_parts(acc, other["low"], other["high"])


def _add_number(acc: Vector, number: int) -> None:
    _add_parts(acc, np.uint64(number & 0xFFFF_FFFF_FFFF_FFFF), np.int64(number >> 64))


def _add_parts(acc: Vector, low: Vector | np.uint64, high: Vector | np.int64) -> None:
    acc["low"] += low
    acc["high"] += high + (acc["low"] < low)


def _whole_sums(acc: Vector) -> list[int]:
    if acc.dtype == np.int64:
        return [int(total) for total in acc]
    if accumulator(acc) == "int192":
        return list(_numbers(acc))
    return [(int(high) << 64) + int(low) for low, high in zip(acc["low"], acc["high"], strict=True)]

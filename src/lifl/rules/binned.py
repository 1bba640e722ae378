"""Reproducible sums of floats: the same bits in any order, tree, number of workers and kernel.

**What a sum is.**  An accumulator is three float64, high, middle and low (`fold_bins.h` says what they hold): sums of
whole numbers of three units, 2^32 apart, of which the first is that of the largest product w·x that is in it.  Each
product is cut to the low unit, in the same way whatever else is there, and the rest is exact: so the sum is the same in
any order, and so is one that was made in parts.  This is Demmel and Nguyen's reproducible summation ("Parallel
Reproducible Summation", IEEE Transactions on Computers 64(7), 2015), with three bins at fixed places, of 32 bits.

**What it is right to.**  What is cut off is at most 2^-65 of the largest product for each update.  float32 and narrower
with weights below 2^29 are products that are exact.  The mean is the sum divided by the sum of the weights in float64,
rounded once more where the model is narrower.

Weights are whole numbers up to `WHOLE_WEIGHT_MAX`, so their sum is exact, too.  Compiled where `kernels.COMPILED`
exists, else in NumPy: the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lifl.rules import kernels
from lifl.rules.kernels import Vector, address

ACCUMULATOR = "binned192"
SCALE = 2.0**-128
"""What all weights are multiplied by: so no product of a float64 comes near the end of float64."""
BLOCK = 4096
"""Elements at a time, in NumPy."""

_BITS, _SHIFT, _MIN = 32, 52, 96  # as in fold.c: of a bin; from an accumulator's exponent to its unit's; the least bin
_EXPONENT, _HALF = np.int64(0x7FF << 52), np.int64(1 << 51)
_BIG = 1.5 * 2.0**52

Floats = NDArray[np.float64]
Bits = NDArray[np.int64]
Limbs = tuple[Floats, Floats, Floats]


def is_binned(acc: Vector) -> bool:
    """Return whether an accumulator is one of these."""
    return acc.dtype.names == ("high_bin", "middle_bin", "low_bin")


def add(
    acc: Vector, partials: Sequence[Vector], vectors: Sequence[Vector], weights: Sequence[float], keep: bool
) -> None:
    """Add other accumulators, and vectors of one dtype with their weights, to `acc`; without `keep` it is not read."""
    scaled = [weight * SCALE for weight in weights]
    if kernels.COMPILED is not None:
        dtype = vectors[0].dtype.name if vectors else "float64"
        others, rows = [address(partial) for partial in partials], [address(vector) for vector in vectors]
        kernels.COMPILED.fold_bins(dtype, address(acc), len(acc), others, rows, scaled, keep=keep)
        return
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # of what is not averaged
        for begin in range(0, len(acc), BLOCK):
            run = slice(begin, min(begin + BLOCK, len(acc)))
            made = _limbs(acc[run]) if keep else _nothing(run.stop - begin)
            for partial in partials:
                _add_bins(made, _limbs(partial[run]))
            for vector, weight in zip(vectors, scaled, strict=True):
                _add_terms(made, np.multiply(vector[run], np.float64(weight), dtype=np.float64))
            for name, limb in zip(acc.dtype.names or (), made, strict=True):
                acc[name][run] = limb


def mean(out: Vector, acc: Vector, weight: float) -> bool:
    """Write the mean of what weighs `weight` to `out`, float32 or float64; return whether all of it is finite."""
    if kernels.COMPILED is not None:
        return kernels.COMPILED.mean_bins(out.dtype.name, address(out), address(acc), len(out), weight * SCALE)
    for begin in range(0, len(acc), BLOCK):
        run = slice(begin, min(begin + BLOCK, len(acc)))
        high, middle, low = limbs = _limbs(acc[run])
        high, middle, low = high - _start(high), middle - _start(middle), low - _start(low)
        carry = _carried(low, limbs[1])
        low -= carry
        middle += carry
        carry = _carried(middle, limbs[0])
        middle -= carry
        high += carry
        with np.errstate(over="ignore", under="ignore"):
            out[run] = (high + (middle + low)) / (weight * SCALE)
    return kernels.all_finite(out)


def mean_of(one: Vector, weight: float) -> float:
    """Return the mean in an accumulator of one element."""
    out = np.empty(1)
    mean(out, one, weight)
    return float(out[0])


# ---- NumPy's way -----------------------------------------------------------------------------------------------------


def _nothing(count: int) -> Limbs:
    return np.zeros(count), np.zeros(count), np.zeros(count)


def _limbs(acc: Vector) -> Limbs:
    high, middle, low = (acc[name].copy() for name in acc.dtype.names or ())
    return high, middle, low


def _exponent(values: Floats) -> Bits:
    exponents: Bits = values.view(np.int64) >> 52 & 0x7FF
    return exponents


def _odd(values: Floats) -> Floats:
    return (values.view(np.int64) | 1).view(np.float64)


def _empty(units: Bits) -> Floats:
    return ((units + _SHIFT) << 52 | _HALF).view(np.float64)


def _start(values: Floats) -> Floats:
    return (values.view(np.int64) & _EXPONENT | _HALF).view(np.float64)


def _carried(sums: Floats, accumulators: Floats) -> Floats:
    units = _exponent(accumulators) - _SHIFT
    scaled = sums * ((2046 - units) << 52).view(np.float64) + 0.5
    whole = (scaled + _BIG) - _BIG
    whole -= whole > scaled
    return whole * (units << 52).view(np.float64)


def _raise(limbs: Limbs, wanted: Bits) -> None:
    """Raise the bins of those whose high unit is too small for numbers of these exponents."""
    high, middle, low = limbs
    top = np.maximum(wanted & ~np.int64(_BITS - 1), _MIN)
    up = top + _SHIFT - _exponent(high)
    which = up > 0
    if not which.any():
        return
    top, up, a, b = top[which], up[which], high[which], middle[which]
    low[which] = np.where(up == _BITS, b, np.where(up == 2 * _BITS, a, _empty(top - 2 * _BITS)))
    middle[which] = np.where(up == _BITS, a, _empty(top - _BITS))
    high[which] = _empty(top)


def _add_terms(limbs: Limbs, terms: Floats) -> None:
    _raise(limbs, _exponent(terms))
    high, middle, low = limbs
    rest = terms
    for limb in (high, middle):
        made = limb + _odd(rest)
        rest = rest - (made - limb)
        limb[:] = made
    low += _odd(rest)


def _add_bins(limbs: Limbs, its: Limbs) -> None:
    wanted = _exponent(its[0]) - _SHIFT
    _raise(limbs, np.where(wanted < 0, _MIN, wanted))
    _raise(its, _exponent(limbs[0]) - _SHIFT)
    for limb, other in zip(limbs, its, strict=True):
        np.add(limb, other - _start(other), out=limb)

"""The weighted mean of flat vectors of floats, at the speed of memory: by a compiled kernel, else in NumPy.

**What a partial is.**  A partial's vector is the weighted mean of its members, and the weight beside it is theirs
together.  `fold` adds vectors to a mean with *shares*: what each weighs of the whole, w / W, and what the mean so far
weighs (`keep`); together they are 1.  So no sum is larger than the largest number, whatever the weights, and a mean
that is a number of the type can be computed.  A weight is a float64 from `WEIGHT_MIN` to `WEIGHT_MAX`, and W is summed
exactly (`Weight`).

**Right to the last bit.**  A partial's vector is of float64, whatever the model's floats are, and is rounded to them
once, when the model is made (`mean`).  Sums of float32 and of narrower floats are products in float64: their own
errors, 2^-53 of a term each, are seen only where terms cancel to as little as that.  float64 folds differences from the
mean so far, which are 0 between equal numbers.  So the mean of equal numbers is that number, for any weights and any
tree, subnormal numbers are numbers like others, and zeros keep their sign.

**Compiled or not.**  `fold` hands a batch to `fold.c` when that could be built (`native`), and folds it in NumPy
otherwise, in blocks whose piece of the accumulator (`BLOCK_BYTES`) stays in the L2 cache; both agree within rounding.

Integers are summed in `integers`, and floats that are to be the same in any order in `binned`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lifl.core.errors import LocalFault
from lifl.core.schema import Segment
from lifl.rules import native

Vector = NDArray[Any]
"""A one-dimensional, contiguous array of one of the dtypes in `core/schema.DTYPE_BYTES`."""

BLOCK_BYTES = 256 * 1024
"""Of the accumulator per block, in NumPy's way."""
SHARES_SLACK = 1e-9
"""By so much the sum of shares may differ from 1."""

COMPILED = native.load()
"""The compiled kernel, if there is one.  Tests set it to None to have NumPy's way."""

_LONG = {
    "int128": np.dtype([("low", "<u8"), ("high", "<i8")]),
    "int192": np.dtype([("low", "<u8"), ("middle", "<u8"), ("high", "<i8")]),
    "binned192": np.dtype([("high_bin", "<f8"), ("middle_bin", "<f8"), ("low_bin", "<f8")]),
}
UNIT_BITS = 1074
"""2^-1074 is the smallest float64: every one is a whole number of it."""


class Weight(float):
    """A weight that is a sum, as the float64 next to it; `exact` is what it is, in units of 2^-1074."""

    def __new__(cls, value: float, exact: int) -> Weight:
        """Return `value`, with what it is exactly beside it."""
        made = super().__new__(cls, value)
        made.exact = exact
        return made

    exact: int


def exact(weight: float) -> int:
    """Return what a weight is, in units of 2^-1074."""
    if isinstance(weight, Weight):
        return weight.exact
    numerator, denominator = float(weight).as_integer_ratio()
    return numerator << (UNIT_BITS + 1 - denominator.bit_length())


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name in `core/schema.ITEM_BYTES`; a number of 128 bits or more is a tuple."""
    if name in _LONG:
        return _LONG[name]
    return np.dtype(getattr(ml_dtypes, name, name))


def vector(view: memoryview, segment: Segment) -> Vector:
    """Return the segment of an object's data as a flat array, without a copy."""
    array: Vector = np.frombuffer(view, numpy_dtype(segment.dtype), segment.count, segment.offset)
    return array


def total(weights: Sequence[float]) -> Weight:
    """Return Σ weights, exactly and correctly rounded.

    Raise `LocalFault` unless each is positive and the sum is finite.
    """
    if not all(weight > 0.0 for weight in weights):
        raise LocalFault(f"a weight must be a positive number; these are {sorted(weights)[:4]}")
    try:
        return weight_of(sum(map(exact, weights)))
    except OverflowError:
        raise LocalFault("the weights' sum is beyond float64; give weights as numbers of examples") from None


def weight_of(units: int) -> Weight:
    """Return the weight that is so many units of 2^-1074.  Raise `OverflowError` beyond float64."""
    return Weight(units / (1 << UNIT_BITS), units)


def exponent(weight: float) -> int:
    """Return the e of a weight: 2**(e-1) <= weight < 2**e."""
    return math.frexp(weight)[1]


def shares(weights: Sequence[float], before: float = 0.0) -> tuple[list[float], float]:
    """Return what each of `weights`, and `before`, the weight of a mean that is there already, is of all of them."""
    whole = total([*weights, before] if before else weights)
    return [weight / whole for weight in weights], before / whole


def fold(
    acc: Vector,
    vectors: Sequence[Vector],
    weights: Sequence[float],
    keep: float = 0.0,
    partials: Sequence[Vector] = (),
    scales: Sequence[float] = (),
) -> None:
    """acc = keep · acc + Σ weights[i] · vectors[i] + Σ scales[i] · partials[i], in place, in one pass.

    `acc` is (P,) float64; `vectors` are (P,) floats of one dtype, `partials` (P,) float64, none of them overlapping
    `acc`.  With `keep` 0 what `acc` held before (recycled memory, perhaps NaN) is not read.  `keep`, weights and scales
    are shares; a rule of one's own may give others, which are summed as they are.  Raise `LocalFault` on shapes or
    dtypes that do not belong together.
    """
    if acc.dtype != np.float64:
        raise LocalFault(f"an accumulator is float64, not {acc.dtype}")
    if not vectors:
        raise LocalFault("there is no vector to fold")
    _check(acc, vectors, weights)
    _check(acc, partials, scales, np.float64)
    if vectors[0].dtype == np.float64:
        _fold_float64(acc, [*partials, *vectors], [*scales, *weights], keep)
    elif keep:
        _fold_wide(acc, [acc, *partials], [keep, *scales], vectors, weights)
    else:
        _fold_wide(acc, partials, scales, vectors, weights)


def mean(
    out: Vector,
    partials: Sequence[Vector],
    scales: Sequence[float],
    vectors: Sequence[Vector],
    weights: Sequence[float],
) -> bool:
    """Out = Σ scales[i] · partials[i] + Σ weights[i] · vectors[i], rounded once; return whether all of it is finite.

    `out` is (P,) float32 or float64, `partials` are (P,) float64, `vectors` (P,) floats of one dtype, of float64 where
    `out` is; none overlaps `out`, and there is one at the least of all.  Scales and weights are shares.  Raise
    `LocalFault` on shapes or dtypes that do not belong together.
    """
    if out.dtype not in (np.float32, np.float64):
        raise LocalFault(f"a mean is float32 or float64, not {out.dtype}")
    if not partials and not vectors:
        raise LocalFault("there is no vector to make a mean of")
    _check(out, partials, scales, np.float64)
    _check(out, vectors, weights, np.float64 if out.dtype == np.float64 else None)
    if out.dtype == np.float64:
        return _fold_float64(out, [*partials, *vectors], [*scales, *weights], 0.0)
    return _fold_wide(out, partials, scales, vectors, weights)


def _fold_float64(acc: Vector, vectors: Sequence[Vector], weights: Sequence[float], keep: float) -> bool:
    """Do `fold` of float64; return whether all that it wrote is finite."""
    if not (abs(math.fsum([*weights, keep]) - 1.0) <= SHARES_SLACK and min(*weights, keep) >= 0.0):
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            _sum_by_blocks(acc, [acc] if keep else [], [keep] if keep else [], vectors, weights)
        return all_finite(acc)
    vectors, weights, keep = _heaviest_first(acc, vectors, weights, keep)
    if COMPILED is not None:
        before = [address(acc)] if keep else []
        addresses = [address(vector) for vector in vectors]
        return COMPILED("float64", address(acc), len(acc), before, [keep] if keep else [], addresses, weights)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        _fold_differences(acc, vectors, weights, keep)
    return all_finite(acc)


def _heaviest_first(
    out: Vector, vectors: Sequence[Vector], weights: Sequence[float], keep: float
) -> tuple[Sequence[Vector], Sequence[float], float]:
    """Return the same fold with its differences taken from what weighs most.

    The difference from a large number that weighs little would lose digits.
    """
    if keep >= max(weights):
        return vectors, weights, keep
    rows = list(zip(weights, vectors, strict=True))
    if keep:  # `out` may be one of the vectors: it is written when all are read
        rows, keep = [*rows, (keep, out)], 0.0
    rows.sort(key=lambda row: -row[0])
    return [vector for _, vector in rows], [weight for weight, _ in rows], keep


def _fold_wide(
    out: Vector,
    partials: Sequence[Vector],
    scales: Sequence[float],
    vectors: Sequence[Vector],
    weights: Sequence[float],
) -> bool:
    """Do `mean` of vectors that are narrower than float64; a wide `out` may be one of the partials, and is not
    looked at."""
    narrow = out.dtype == np.float32
    if COMPILED is not None:
        dtype = vectors[0].dtype.name if vectors else "float32"
        before, addresses = [address(partial) for partial in partials], [address(vector) for vector in vectors]
        return COMPILED(dtype, address(out), len(out), before, scales, addresses, weights, narrow=narrow)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        _sum_by_blocks(out, partials, scales, vectors, weights)
    return not narrow or all_finite(out)


def _sum_by_blocks(
    out: Vector,
    partials: Sequence[Vector],
    scales: Sequence[float],
    vectors: Sequence[Vector],
    weights: Sequence[float],
) -> None:
    """Sum in NumPy, in float64, and round once."""
    step = max(1, BLOCK_BYTES // 8)
    sums, term = np.empty(min(step, len(out))), np.empty(min(step, len(out)))
    rows = [*zip(partials, scales, strict=True), *zip(vectors, weights, strict=True)]
    for begin in range(0, len(out), step):
        block = out[begin : begin + step]
        made, product = sums[: len(block)], term[: len(block)]
        made.fill(-0.0)  # what is added to it stays as it is, -0 too
        for row, weight in rows:
            np.multiply(row[begin : begin + step], np.float64(weight), out=product, dtype=np.float64)
            made += product
        block[:] = made


def _fold_differences(acc: Vector, vectors: Sequence[Vector], weights: Sequence[float], keep: float) -> None:
    """Do `fold` of shares in NumPy: differences from the mean so far."""
    step = max(1, BLOCK_BYTES // acc.itemsize)
    for begin in range(0, len(acc), step):
        block, rows = acc[begin : begin + step], [vector[begin : begin + step] for vector in vectors]
        made = _mean_of_differences(block, rows, weights, keep, 1.0)
        odd = ~np.isfinite(made)
        if odd.any():  # perhaps only a difference is not; the others stay, for a quarter of them could lose bits
            again = [row[odd] for row in rows]
            held = block[odd]
            made[odd] = _mean_of_differences(held, again, weights, keep, 0.25) * made.dtype.type(4.0)
            if not np.isfinite(made).all():
                _sum_by_blocks(held, [held] if keep else [], [keep] if keep else [], again, weights)
                still = ~np.isfinite(made[odd])
                made[np.flatnonzero(odd)[still]] = held[still]
        block[:] = made


def _mean_of_differences(
    block: Vector, rows: Sequence[Vector], weights: Sequence[float], keep: float, unit: float
) -> Vector:
    one, done = block.dtype.type(unit), keep
    made: Vector = block * one if keep else np.zeros(len(block), block.dtype)
    for row, weight in zip(rows, weights, strict=True):
        wide = row.astype(block.dtype) * one
        done += weight
        if done == weight:
            made = wide
        else:
            made -= (made - wide) * block.dtype.type(weight / done)
    return made


def widen(block: Vector, acc_dtype: np.dtype[Any]) -> Vector:
    """Return `block` itself when it has `acc_dtype`, else a copy in `acc_dtype` (exact for float16 and bfloat16)."""
    return block if block.dtype == acc_dtype else block.astype(acc_dtype)


def store(values: Vector, out: Vector) -> None:
    """Write wide `values` to `out` in out's dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, values, casting="unsafe")


def all_finite(block: Vector) -> bool:
    """Return whether no element is NaN or infinite.

    The sum of the squares, one BLAS pass, is finite for all but those and very large ones, which are then looked at.
    """
    if block.dtype in (np.float32, np.float64):
        with np.errstate(invalid="ignore", over="ignore"):
            if math.isfinite(np.dot(block, block)):
                return True
    return bool(np.isfinite(block).all()) if block.dtype.kind not in "iu" else True


def _check(out: Vector, vectors: Sequence[Vector], weights: Sequence[float], dtype: Any = None) -> None:
    if len(vectors) != len(weights):
        raise LocalFault(f"{len(vectors)} vectors and {len(weights)} weights: give one weight for each")
    for vector in vectors:
        wanted = vectors[0].dtype if dtype is None else dtype
        if vector.shape != out.shape or vector.dtype != wanted or not vector.flags.c_contiguous:
            raise LocalFault(
                f"a vector of {vector.dtype}{vector.shape} cannot be folded with {np.dtype(wanted)} into {out.shape}:"
                " all must be contiguous, of one dtype and of the accumulator's length"
            )


def address(vector: Vector) -> int:
    """Return where a vector begins in memory."""
    return int(vector.__array_interface__["data"][0])

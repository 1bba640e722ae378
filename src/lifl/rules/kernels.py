"""The weighted mean of flat vectors of floats, at the speed of memory: by a compiled kernel, else in NumPy.

**What a partial is.**  A partial's vector is the weighted mean of its members, and the weight beside it is theirs
together.  `fold` adds vectors to a mean with *shares*: what each weighs of the whole, w / W, and what the mean so far
weighs (`keep`); together they are 1.  So no sum is larger than the largest number, whatever the weights, and a mean
that is a number of the type can be computed.  A weight is a float64 from `WEIGHT_MIN` to `WEIGHT_MAX`, and W is summed
with `math.fsum`.

**Right to the last bit.**  The mean of equal numbers is that number, for any weights and any tree, and subnormal
numbers are numbers like others.  float32 is summed in float64 and rounded once for each batch; float64 and the narrow
floats, whose accumulators are float32, fold differences from the mean so far, which are 0 between equal numbers.  A
float32 mean differs from the float64 mean by at most half an ulp of its largest number for each level of the tree; in
measure by less than one.

**Compiled or not.**  `fold` hands a batch to `fold.c` when that could be built (`native`), and folds it in NumPy
otherwise, in blocks whose piece of the accumulator (`BLOCK_BYTES`) stays in the L2 cache; both agree within rounding.

Integers are summed in `integers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lifl.core.errors import LocalFault
from lifl.core.schema import ACCUMULATOR, Segment
from lifl.rules import native

Vector = NDArray[Any]
"""A one-dimensional, contiguous array of one of the dtypes in `core/schema.DTYPE_BYTES`."""

BLOCK_BYTES = 256 * 1024
"""Of the accumulator per block, in NumPy's way."""
WIDEN_ROWS = 8
"""Vectors that are widened at once, there."""
SHARES_SLACK = 1e-9
"""By so much the sum of shares may differ from 1."""

COMPILED = native.load()
"""The compiled kernel, if there is one.  Tests set it to None to have NumPy's way."""

_INT128 = np.dtype([("low", "<u8"), ("high", "<i8")])


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name in `core/schema.ITEM_BYTES`; a number of 128 bits is a pair."""
    if name == "int128":
        return _INT128
    return np.dtype(getattr(ml_dtypes, name, name))


def vector(view: memoryview, segment: Segment) -> Vector:
    """Return the segment of an object's data as a flat array, without a copy."""
    array: Vector = np.frombuffer(view, numpy_dtype(segment.dtype), segment.count, segment.offset)
    return array


def total(weights: Sequence[float]) -> float:
    """Return Σ weights, correctly rounded.  Raise `LocalFault` unless each is positive and the sum is finite."""
    if not all(weight > 0.0 for weight in weights):
        raise LocalFault(f"a weight must be a positive number; these are {sorted(weights)[:4]}")
    try:
        result = math.fsum(weights)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise LocalFault("the weights' sum is beyond float64; give weights as numbers of examples")
    return result


def exponent(weight: float) -> int:
    """Return the e of a weight: 2**(e-1) <= weight < 2**e."""
    return math.frexp(weight)[1]


def shares(weights: Sequence[float], before: float = 0.0) -> tuple[list[float], float]:
    """Return what each of `weights`, and `before`, the weight of a mean that is there already, is of all of them."""
    whole = total([*weights, before] if before else weights)
    return [weight / whole for weight in weights], before / whole


def fold(acc: Vector, vectors: Sequence[Vector], weights: Sequence[float], keep: float = 0.0) -> None:
    """acc = keep · acc + Σ weights[i] · vectors[i], in place.

    `acc` is (P,) float32 or float64; `vectors` are (P,) floats of one dtype, none of them overlapping `acc`.  With
    `keep` 0 what `acc` held before (recycled memory, perhaps NaN) is not read.  `keep` and the weights are shares; a
    rule of one's own may give others, which are summed as they are.  float16 inputs must be finite: the gateway sees
    to it.  Raise `LocalFault` on shapes or dtypes that do not belong together.
    """
    mean(acc, vectors, weights, keep)


def mean(out: Vector, vectors: Sequence[Vector], weights: Sequence[float], keep: float = 0.0) -> bool:
    """Do `fold` into `out`; return whether all that it wrote is finite."""
    _check(out, vectors, weights)
    dtype = vectors[0].dtype.name
    are_shares = abs(math.fsum([*weights, keep]) - 1.0) <= SHARES_SLACK and min(*weights, keep) >= 0.0
    if are_shares and dtype != "float32":
        vectors, weights, keep = _heaviest_first(out, vectors, weights, keep)
    if COMPILED is not None and ACCUMULATOR.get(dtype) == out.dtype.name and (are_shares or dtype == "float32"):
        addresses = [address(vector) for vector in vectors]
        return COMPILED(dtype, address(out), len(out), addresses, weights, keep)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if are_shares and dtype != "float32":
            _fold_differences(out, vectors, weights, keep)
        else:
            _fold_wide(out, vectors, weights, keep)
    return all_finite(out)


def _heaviest_first(
    out: Vector, vectors: Sequence[Vector], weights: Sequence[float], keep: float
) -> tuple[Sequence[Vector], Sequence[float], float]:
    """Return the same fold with its differences taken from what weighs most.

    The difference from a large number that weighs little would lose digits.
    """
    if keep >= max(weights):
        return vectors, weights, keep
    rows = list(zip(weights, vectors, strict=True))
    if keep and out.dtype == vectors[0].dtype:  # it may be one of the vectors: it is written when all are read
        rows, keep = [*rows, (keep, out)], 0.0
    rows.sort(key=lambda row: -row[0])
    return [vector for _, vector in rows], [weight for weight, _ in rows], keep


def _fold_wide(acc: Vector, vectors: Sequence[Vector], weights: Sequence[float], keep: float) -> None:
    """Do `fold` in NumPy: sums in float64, rounded once."""
    step = max(1, BLOCK_BYTES // 8)
    wide = np.empty((min(WIDEN_ROWS, len(vectors)), min(step, len(acc))))
    for begin in range(0, len(acc), step):
        block = acc[begin : begin + step]
        sums = block * np.float64(keep) if keep else np.zeros(len(block))
        for start in range(0, len(vectors), WIDEN_ROWS):
            rows = vectors[start : start + WIDEN_ROWS]
            for row, into in zip(rows, wide, strict=False):
                into[: len(block)] = row[begin : begin + step]
            sums += np.array(weights[start : start + WIDEN_ROWS]) @ wide[: len(rows), : len(block)]
        block[:] = sums


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
                _fold_wide(held, again, weights, keep)
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
            made += (wide - made) * block.dtype.type(weight / done)
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


def _check(acc: Vector, vectors: Sequence[Vector], weights: Sequence[float]) -> None:
    if acc.dtype not in (np.float32, np.float64):
        raise LocalFault(f"an accumulator is float32 or float64, not {acc.dtype}")
    if not vectors or len(vectors) != len(weights):
        raise LocalFault(f"{len(vectors)} vectors and {len(weights)} weights: give one weight for each, at least one")
    for vector in vectors:
        if vector.shape != acc.shape or vector.dtype != vectors[0].dtype or not vector.flags.c_contiguous:
            raise LocalFault(
                f"a vector of {vector.dtype}{vector.shape} cannot be folded with {vectors[0].dtype} into"
                f" {acc.shape}: all must be contiguous, of one dtype and of the accumulator's length"
            )


def address(vector: Vector) -> int:
    """Return where a vector begins in memory."""
    return int(vector.__array_interface__["data"][0])

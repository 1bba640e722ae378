"""Weighted sums of flat vectors at the speed of memory: by a compiled kernel where there is one, else in NumPy.

**Compiled or not.**  `fold` hands a batch to `fold.c` when that could be built (`native`), and folds it in NumPy
otherwise; both agree within rounding.  How it works stands in fold.c, how much it gains at `_compiled_for`; the rest
of this text is about NumPy's way.

**One pass over the inputs.**  The sum of n vectors of length P is the matrix-vector product w @ X, with X
the (n, P) view of vectors that lie at equal distances.  `np.matmul` gives it to BLAS without copying X
(`np.dot` would copy).  The slots of a job's updates have equal distances in the arena, so X costs nothing;
any other set of vectors is split into such progressions (`progressions`).

**Blocks.**  The vectors are walked in blocks whose piece of the accumulator (`BLOCK_BYTES`) stays in the L2
cache.  So however many progressions there are, the accumulator goes through memory once per batch; the
first product of a fresh accumulator is written directly, later ones go through a temporary of one block.

**Width.**  float32 and float64 are multiplied as they are.  float16, bfloat16 and integers are widened
block by block, `WIDEN_ROWS` vectors at a time, to the accumulator's dtype; nothing is ever summed in their
own type.

**Range.**  A sum of weight · value would overflow float32 long before the mean does (weights are numbers of
examples).  So a partial's vector is Σ wᵢxᵢ · 2⁻ᵉ, where e is the exponent of its whole weight W = Σ wᵢ, 2ᵉ⁻¹
≤ W < 2ᵉ (`exponent`).  Each scaled weight wᵢ·2⁻ᵉ is then at most 1, no sum is larger than the largest |x|,
and because 2⁻ᵉ is a power of two the scaling rounds nothing.  e needs no place of its own: it follows from
the weight that stands beside the partial.  The mean is the vector divided by W·2⁻ᵉ, a number from ½ to 1.
W itself is a float64 summed with `math.fsum`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from lifl.core.errors import LocalFault
from lifl.core.schema import ACCUMULATOR, Segment
from lifl.rules import native

Vector = NDArray[Any]
"""A one-dimensional, contiguous array of one of the dtypes in `core/schema.DTYPE_BYTES`."""

BLOCK_BYTES = 256 * 1024
"""Of the accumulator per block.  Measured with 8 and 32 float32 inputs: 64 KB loses 5 %, 1 MB as much (L2
is full).
"""
WIDEN_ROWS = 8
"""Vectors of a narrow dtype that are widened at once: 2 MB of temporary, and OpenBLAS's pace is reached."""

COMPILED = native.load()
"""The compiled kernel, if there is one.  Tests set it to None to have NumPy's way."""

_HALF_MASK = np.int32(np.uint32(0x8FFF_E000).view(np.int32))
_HALF_FACTOR = 2.0**112


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name in `core/schema.DTYPE_BYTES`."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


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
    """Return the e of a partial with this whole weight: 2**(e-1) <= weight < 2**e."""
    return math.frexp(weight)[1]


def fold(acc: Vector, vectors: Sequence[Vector], weights: Sequence[float], keep: float = 0.0) -> None:
    """acc = keep · acc + Σ weights[i] · vectors[i], in place.

    `acc` is (P,) float32 or float64; `vectors` are (P,) of one dtype, none of them overlapping `acc`.  With
    `keep` 0 what `acc` held before (recycled memory, perhaps NaN) is not read.  `weights` are the caller's
    already scaled ones (|w| ≤ 2, see the module's theory).  float16 inputs must be finite: the gateway sees
    to it. Raise `LocalFault` on shapes or dtypes that do not belong together.
    """
    _check(acc, vectors, weights)
    dtype = vectors[0].dtype.name
    compiled = _compiled_for(dtype, acc.dtype.name)
    if compiled is not None:
        compiled(dtype, _address(acc), len(acc), [_address(vector) for vector in vectors], weights, keep)
    else:
        _fold_numpy(acc, vectors, weights, keep)


def mean(out: Vector, vectors: Sequence[Vector], weights: Sequence[float], keep: float = 0.0) -> bool:
    """Do `fold` of vectors of out's dtype into `out`; return whether all that it wrote is finite."""
    _check(out, vectors, weights)
    compiled = _compiled_for(vectors[0].dtype.name, out.dtype.name)
    if compiled is not None:
        addresses = [_address(vector) for vector in vectors]
        return compiled(out.dtype.name, _address(out), len(out), addresses, weights, keep)
    _fold_numpy(out, vectors, weights, keep)
    return all_finite(out)


def _compiled_for(dtype: str, acc_dtype: str) -> native.CompiledFold | None:
    """Choose the way, here and nowhere else: the compiled one wherever it exists.

    One case loses.  GB/s of input, compiled / NumPy, of 2 and of 32 vectors of 11.7 million numbers (medians of 5), one
    core of a Zen 4 that reads 28: float32 19 / 11 and 27 / 23, float64 20 / 13 and 19 / 22, bfloat16 16 / 5 and 23 / 9,
    float16 5.0 / 2.6 and 8.6 / 6.2, int8 4.1 / 1.8 and 7.0 / 2.7, int32 12 / 5 and 24 / 9.  Onto a partial that is
    there already (`keep`), one float32 vector 13 / 6.
    """
    return COMPILED if ACCUMULATOR.get(dtype) == acc_dtype else None


def _fold_numpy(acc: Vector, vectors: Sequence[Vector], weights: Sequence[float], keep: float) -> None:
    """Do `fold` in NumPy, as the module's theory says."""
    size = len(acc)
    narrow = vectors[0].dtype != acc.dtype
    half = vectors[0].dtype == np.float16
    rows_max = WIDEN_ROWS if narrow else len(vectors)
    runs = []
    for run in progressions([_address(vector) for vector in vectors], vectors[0].itemsize):
        for start in range(0, len(run), rows_max):
            rows = run[start : start + rows_max]
            factors = np.array([weights[row] for row in rows], np.float64)
            runs.append((_matrix(vectors, rows), (factors * _HALF_FACTOR if half else factors).astype(acc.dtype)))
    step = max(1, BLOCK_BYTES // acc.itemsize)
    scratch = np.empty(min(step, size), acc.dtype)
    wide = np.empty((min(rows_max, len(vectors)), min(step, size)), acc.dtype) if narrow else None
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for begin in range(0, size, step):
            target = acc[begin : begin + step]
            fresh = keep == 0.0
            if not fresh and keep != 1.0:
                np.multiply(target, keep, out=target)
            for matrix, factors in runs:
                rows_block = matrix[:, begin : begin + step]
                if wide is not None:
                    rows_block = _widen(rows_block, wide[: len(factors), : len(target)])
                _product(factors, rows_block, target if fresh else scratch[: len(target)])
                if not fresh:
                    np.add(target, scratch[: len(target)], out=target)
                fresh = False


def progressions(addresses: Sequence[int], itemsize: int) -> list[list[int]]:
    """Return the indices of `addresses`, split greedily into runs of equal distances (a positive multiple of
    `itemsize`).
    """
    order = sorted(range(len(addresses)), key=addresses.__getitem__)
    runs: list[list[int]] = []
    distance = 0
    for index in order:
        gap = addresses[index] - addresses[runs[-1][-1]] if runs else 0
        if runs and gap > 0 and gap % itemsize == 0 and (len(runs[-1]) == 1 or gap == distance):
            distance = gap
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def widen(block: Vector, acc_dtype: np.dtype[Any]) -> Vector:
    """Return `block` itself when it has `acc_dtype`, else a copy in `acc_dtype` (exact for float16 and bfloat16)."""
    return block if block.dtype == acc_dtype else block.astype(acc_dtype)


def store(values: Vector, out: Vector) -> None:
    """Write wide `values` to `out` in out's dtype: integers are rounded half to even and clipped to their
    range.
    """
    if out.dtype.kind not in "iu":
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out, values, casting="unsafe")
        return
    info = np.iinfo(out.dtype)
    highest = float(info.max)
    if int(highest) > info.max:  # 2**63 - 1 and 2**64 - 1 are no float64: the next one below
        highest = math.nextafter(highest, 0.0)
    rounded = np.rint(values)
    np.clip(rounded, float(info.min), highest, out=rounded)
    np.copyto(out, rounded, casting="unsafe")


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


def _address(vector: Vector) -> int:
    return int(vector.__array_interface__["data"][0])


def _matrix(vectors: Sequence[Vector], rows: Sequence[int]) -> Vector:
    """Return the (n, P) view over vectors at equal distances: it touches no byte that is not one of theirs."""
    first = vectors[rows[0]]
    distance = _address(vectors[rows[1]]) - _address(first) if len(rows) > 1 else first.nbytes
    return as_strided(first, (len(rows), len(first)), (distance, first.itemsize), writeable=False)


def _product(factors: Vector, rows: Vector, out: Vector) -> None:
    if len(factors) == 1:  # BLAS is slow with a single row: 4 GB/s against 21
        np.multiply(rows[0], factors[0], out=out)
    else:
        np.matmul(factors, rows, out=out)


def _widen(rows: Vector, wide: Vector) -> Vector:
    """Write (n, B) `rows` of a narrow dtype to `wide` in the accumulator's dtype.

    float16 is widened by moving its bits: sign, exponent and fraction of a half stand three bits apart from
    a float's, and the float so made is the half's value · 2⁻¹¹², subnormals too.  The weights carry the
    missing 2¹¹² (exact, both being powers of two).  Five times as fast as NumPy's conversion; a half's
    infinity would become 65,536.
    """
    if rows.dtype != np.float16:
        np.copyto(wide, rows, casting="unsafe")
        return wide
    bits = wide.view(np.int32)
    np.copyto(bits, rows.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _HALF_MASK, out=bits)
    return wide

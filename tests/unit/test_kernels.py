"""The kernels against float64: every dtype, any distances, any batches, recycled accumulators."""

from __future__ import annotations

import math
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.errors import LocalFault
from lifl.core.schema import ACCUMULATOR, DTYPE_BYTES
from lifl.rules import kernels

FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = tuple(d for d in DTYPE_BYTES if d not in FLOATS)


def values(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype in FLOATS:
        return rng.normal(size=shape).astype(kernels.numpy_dtype(dtype))
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -(2**40)), min(info.max, 2**40), shape, endpoint=True).astype(dtype)


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(tuple(DTYPE_BYTES)),
    size=st.integers(1, 300),
    slots=st.lists(st.integers(0, 40), min_size=1, max_size=24, unique=True),
    batches=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_slots_in_any_batches_give_the_float64_sum(
    dtype: str, size: int, slots: list[int], batches: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    memory = values(rng, dtype, (41, size + 3))[:, :size]
    vectors = [memory[slot] for slot in slots]
    weights = rng.uniform(0.01, 1.0, len(slots))
    acc = np.full(size, np.nan, ACCUMULATOR[dtype])
    for number, part in enumerate(np.array_split(np.arange(len(slots)), min(batches, len(slots)))):
        kernels.fold(acc, [vectors[i] for i in part], [weights[i] for i in part], 1.0 if number else 0.0)
    wide = [vector.astype(np.float64) for vector in vectors]
    expected = sum(w * x for w, x in zip(weights, wide, strict=True))
    magnitude = sum(abs(w * x) for w, x in zip(weights, wide, strict=True))
    epsilon = np.finfo(acc.dtype).eps
    assert (np.abs(acc - expected) <= (len(slots) + 4) * epsilon * magnitude + 1e-300).all()


def test_more_than_one_block_and_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 64)
    memory = np.arange(5 * 100, dtype=np.float32).reshape(5, 100)
    for dtype in ("float32", "float16", "bfloat16", "int32", "float64"):
        typed = (memory % 128).astype(kernels.numpy_dtype(dtype))
        acc = np.full(100, np.nan, ACCUMULATOR[dtype])
        kernels.fold(acc, [typed[i] for i in (0, 1, 2, 4)], [1.0, 2.0, 0.5, 0.25])
        kernels.fold(acc, [typed[3]], [1.0], keep=0.5)
        wide = typed.astype(np.float64)
        np.testing.assert_allclose(acc, 0.5 * ([1, 2, 0.5, 0.25] @ wide[[0, 1, 2, 4]]) + wide[3], rtol=1e-6)


def test_every_finite_half_is_widened_exactly() -> None:
    halves = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    acc = np.empty(len(halves), np.float32)
    kernels.fold(acc, [halves], [1.0])
    np.testing.assert_array_equal(acc, halves.astype(np.float32))
    kernels.fold(acc, [halves, halves], [0.5, 0.25])
    np.testing.assert_array_equal(acc, halves.astype(np.float32) * np.float32(0.75))


def test_narrow_types_are_not_summed_in_themselves() -> None:
    for dtype, value in (("float16", 60_000.0), ("bfloat16", 256.0), ("int8", 100), ("uint8", 255)):
        vectors = [np.full(3, value, kernels.numpy_dtype(dtype)) for _ in range(300)]
        acc = np.empty(3, ACCUMULATOR[dtype])
        kernels.fold(acc, vectors, [1.0] * 300)
        np.testing.assert_array_equal(acc, 300 * float(vectors[0][0]))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20))
def test_progressions_hold_every_index_once_at_equal_distances(places: list[int]) -> None:
    addresses = [4096 + 8 * place for place in places]
    runs = kernels.progressions(addresses, 8)
    assert sorted(index for run in runs for index in run) == list(range(len(places)))
    for run in runs:
        gaps = {addresses[b] - addresses[a] for a, b in pairwise(run)}
        assert len(gaps) <= 1
        assert all(gap > 0 for gap in gaps)


def test_equal_slots_are_one_progression_whatever_their_order() -> None:
    assert kernels.progressions([300, 100, 200, 400], 4) == [[1, 2, 0, 3]]


def test_the_same_vector_twice_counts_twice() -> None:
    acc = np.empty(2, np.float32)
    one = np.ones(2, np.float32)
    kernels.fold(acc, [one, one], [1.0, 2.0])
    assert acc.tolist() == [3.0, 3.0]


@given(st.lists(st.floats(2**-60, 2**60), min_size=1, max_size=20))
def test_scaled_weights_are_at_most_one_and_round_nothing(weights: list[float]) -> None:
    whole = kernels.total(weights)
    exponent = kernels.exponent(whole)
    assert 0.5 <= math.ldexp(whole, -exponent) < 1.0
    for weight in weights:
        assert math.ldexp(math.ldexp(weight, -exponent), exponent) == weight


@pytest.mark.parametrize("weights", [[0.0], [-1.0, 2.0], [math.nan], [math.inf], [1e308, 1e308]])
def test_weights_that_cannot_be(weights: list[float]) -> None:
    with pytest.raises(LocalFault, match="weight"):
        kernels.total(weights)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_rounded_half_to_even_and_clipped(dtype: str) -> None:
    info = np.iinfo(dtype)
    out = np.empty(6, dtype)
    kernels.store(np.array([0.5, 1.5, 2.5, 2.49, 1e30, -1e30]), out)
    assert out[:4].tolist() == [0, 2, 2, 2]
    assert info.max - int(out[4]) < max(1, info.max >> 52)
    assert out[5] == info.min


@pytest.mark.parametrize("dtype", FLOATS)
def test_all_finite(dtype: str) -> None:
    block = np.full(99, -1e4, kernels.numpy_dtype(dtype))
    assert kernels.all_finite(block)
    for bad in (np.nan, np.inf, -np.inf):
        block[98] = bad
        assert not kernels.all_finite(block)
    largest = np.full(9, ml_dtypes.finfo(kernels.numpy_dtype(dtype)).max, kernels.numpy_dtype(dtype))
    assert kernels.all_finite(largest)


def test_vectors_that_do_not_belong_together() -> None:
    acc = np.empty(4, np.float32)
    for vectors, weights in (
        ([], []),
        ([np.ones(4, np.float32)], [1.0, 2.0]),
        ([np.ones(5, np.float32)], [1.0]),
        ([np.ones(4, np.float32), np.ones(4, np.float64)], [1.0, 1.0]),
        ([np.ones(8, np.float32)[::2]], [1.0]),
    ):
        with pytest.raises(LocalFault):
            kernels.fold(acc, vectors, weights)
    with pytest.raises(LocalFault):
        kernels.fold(np.empty(4, np.float16), [np.ones(4, np.float16)], [1.0])

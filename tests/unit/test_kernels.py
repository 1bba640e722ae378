"""The kernels against float64: every float, any distances, any batches, recycled accumulators.

What is said of `fold` is said of both ways, the compiled one and NumPy's, by the fixture `way`.
"""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lifl.core.errors import LocalFault
from lifl.core.schema import ACCUMULATOR
from lifl.rules import kernels

FLOATS = ("float64", "float32", "float16", "bfloat16")


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "COMPILED", None)
    elif kernels.COMPILED is None:
        pytest.skip("the compiled kernel was not built: no C compiler when LIFL was installed")
    return str(request.param)


def values(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape).astype(kernels.numpy_dtype(dtype))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(FLOATS),
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
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        typed = (memory % 128).astype(kernels.numpy_dtype(dtype))
        acc = np.full(100, np.nan, ACCUMULATOR[dtype])
        kernels.fold(acc, [typed[i] for i in (0, 1, 2, 4)], [1.0, 2.0, 0.5, 0.25])
        kernels.fold(acc, [typed[3]], [1.0], keep=0.5)
        wide = typed.astype(np.float64)
        np.testing.assert_allclose(acc, 0.5 * ([1, 2, 0.5, 0.25] @ wide[[0, 1, 2, 4]]) + wide[3], rtol=1e-6)


def test_every_finite_half_is_widened_exactly() -> None:
    halves = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    acc = np.empty(len(halves))
    kernels.fold(acc, [halves], [1.0])
    np.testing.assert_array_equal(acc, halves.astype(np.float64))
    kernels.fold(acc, [halves, halves], [0.5, 0.25])
    np.testing.assert_array_equal(acc, halves.astype(np.float64) * 0.75)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 8, 11, 20])
@pytest.mark.parametrize("shares", [True, False])
def test_sizes_at_the_edges_of_chunks_and_blocks_and_any_alignment(dtype: str, rows: int, shares: bool) -> None:
    """What lies before and after the accumulator stays as it is."""
    rng = np.random.default_rng(rows)
    acc_dtype = np.dtype(ACCUMULATOR[dtype])
    for size in (1, 63, 64, 65, 16_384, 65_537):
        for shift in (0, 1, 7):
            memory = values(rng, dtype, (rows, size + shift))
            around = np.full(size + shift + 9, np.nan, acc_dtype)
            acc = around[shift : shift + size]
            vectors = [row[shift:] for row in memory]
            weights = rng.uniform(0.01, 1.0, rows)
            keep = 0.75 if shares else 0.5
            weights /= weights.sum() if shares else 1.0
            kernels.fold(acc, vectors, list(weights))
            kernels.fold(acc, vectors[:1], [0.25], keep)
            expected = keep * (weights @ np.array(vectors, np.float64)) + 0.25 * vectors[0].astype(np.float64)
            magnitude = weights @ np.abs(np.array(vectors, np.float64)) + np.abs(vectors[0].astype(np.float64))
            assert (np.abs(acc - expected) <= (rows + 6) * np.finfo(acc_dtype).eps * magnitude + 1e-300).all()
            assert np.isnan(around[:shift]).all()
            assert np.isnan(around[shift + size :]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("rows", [2, 6])
@pytest.mark.parametrize("shift", [0, 3])
def test_an_accumulator_larger_than_caches(dtype: str, rows: int, shift: int) -> None:
    """Its first batch is stored past the caches, whole lines at a time; so is a model."""
    size = (9 << 20) // 4 + 77
    memory = (np.arange(rows * (size + shift)) % 113).astype(kernels.numpy_dtype(dtype)).reshape(rows, size + shift)
    expected = memory[:, shift:].sum(axis=0, dtype=np.float64) / 2
    for out_dtype in ("float64",) if dtype == "float64" else ("float64", "float32"):
        around = np.full(size + shift + 99, np.nan, out_dtype)
        out, vectors = around[shift : shift + size], list(memory[:, shift:])
        if out_dtype == "float64":
            kernels.fold(out, vectors, [0.5] * rows)
        else:
            kernels.mean(out, [], [], vectors, [0.5] * rows)
        np.testing.assert_array_equal(out, expected)
        assert np.isnan(around[:shift]).all()
        assert np.isnan(around[shift + size :]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_what_is_not_finite_stays_so_and_where_it_is(dtype: str) -> None:
    vectors = [np.ones(200, kernels.numpy_dtype(dtype)) for _ in range(3)]
    vectors[1][70], vectors[2][71], vectors[0][199] = np.nan, np.inf, -np.inf
    acc = np.full(200, np.nan, ACCUMULATOR[dtype])
    for weights in ([0.5] * 3, [0.25, 0.25, 0.5]):
        kernels.fold(acc, vectors, weights)
        assert np.isnan(acc[70]) and acc[71] == np.inf and acc[199] == -np.inf
        assert np.isfinite(acc).sum() == 197


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("partials", [0, 1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 6, 9, 20])
def test_a_mean_of_any_partials_and_vectors_is_rounded_once(dtype: str, partials: int, rows: int) -> None:
    if partials + rows == 0:
        return
    rng = np.random.default_rng(rows)
    out_dtype = "float64" if dtype == "float64" else "float32"
    for size, shift in ((1, 1), (31, 0), (65, 3), (16_384, 0), (40_001, 1)):
        wide = list(rng.normal(size=(partials, size + shift))[:, shift:])
        vectors = list(values(rng, dtype, (rows, size + shift))[:, shift:])
        shares = list(rng.dirichlet(np.ones(partials + rows)))
        around = np.full(size + shift + 9, np.nan, out_dtype)
        out = around[shift : shift + size]
        assert kernels.mean(out, wide, shares[:partials], vectors, shares[partials:])
        rows_of_all = np.array([*wide, *(vector.astype(np.float64) for vector in vectors)])
        exact, sizes = shares @ rows_of_all, shares @ np.abs(rows_of_all)
        half = 2.0**-24 * np.abs(exact) if out_dtype == "float32" else 0.0
        assert (np.abs(out - exact) <= half * 1.0001 + 40 * 2.0**-52 * sizes).all()
        assert np.isnan(around[:shift]).all()
        assert np.isnan(around[shift + size :]).all()
        if not rows:
            continue
        acc = np.full(size + shift, np.nan)[shift:]
        halves = [share / 2 for share in shares]
        kernels.fold(acc, vectors, shares[partials:], 0.0, wide, shares[:partials])
        kernels.fold(acc, vectors, halves[partials:], 0.5, wide, halves[:partials])
        assert (np.abs(acc - exact) <= 80 * 2.0**-52 * sizes).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("partials", "rows"), [(0, 1), (0, 3), (0, 9), (1, 2), (3, 0), (4, 1)])
@pytest.mark.parametrize("shift", [0, 5])
def test_a_mean_tells_of_any_one_element_that_is_not_finite(dtype: str, partials: int, rows: int, shift: int) -> None:
    """Also where blocks are stored past the caches, in the rest of a block, and where only the rounding overflows."""
    size = (8 << 20) // np.dtype(dtype).itemsize + 81
    wide = list(np.ones((partials, size + shift))[:, shift:])
    vectors = list(np.ones((rows, size + shift), dtype)[:, shift:])
    out = np.full(size + shift, np.nan, dtype)[shift:]
    shares = [1.0 / (partials + rows)] * (partials + rows)
    given = (wide, shares[:partials], vectors, shares[partials:])
    assert kernels.mean(out, *given)
    np.testing.assert_allclose(out, 1.0, rtol=1e-6)
    one = (vectors or wide)[-1]
    values = itertools.cycle((np.nan, np.inf, -np.inf))
    for at in (0, 63, 64, 16_383, 16_384, size // 2, size - 82, size - 1):
        one[at] = next(values)
        assert not kernels.mean(out, *given)
        one[at] = np.finfo(one.dtype).max  # of float64: beyond float32
        twice = ([2.0] * partials, [2.0] * rows)
        assert not kernels.mean(out, wide, twice[0], vectors, twice[1])
        one[at] = 1.0
    assert kernels.mean(out, *given)


def test_narrow_types_are_not_summed_in_themselves() -> None:
    for dtype, value in (("float16", 60_000.0), ("bfloat16", 256.0)):
        vectors = [np.full(3, value, kernels.numpy_dtype(dtype)) for _ in range(300)]
        acc = np.empty(3, ACCUMULATOR[dtype])
        kernels.fold(acc, vectors, [1.0] * 300)
        np.testing.assert_array_equal(acc, 300 * float(vectors[0][0]))


def test_the_same_vector_twice_counts_twice() -> None:
    acc = np.empty(2)
    one = np.ones(2, np.float32)
    kernels.fold(acc, [one, one], [1.0, 2.0])
    assert acc.tolist() == [3.0, 3.0]


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=20), st.floats(1e-300, 1e300) | st.just(0.0))
def test_shares_add_up_to_one(weights: list[float], before: float) -> None:
    shares, keep = kernels.shares(weights, before)
    assert abs(math.fsum([*shares, keep]) - 1.0) <= 1e-15 * len(weights)
    assert (keep == 0.0) == (before == 0.0) or before < 1e-10 * max(weights)


@pytest.mark.parametrize("weights", [[0.0], [-1.0, 2.0], [math.nan], [math.inf], [1e308, 1e308]])
def test_weights_that_cannot_be(weights: list[float]) -> None:
    with pytest.raises(LocalFault, match="weight"):
        kernels.total(weights)


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
    acc = np.empty(4)
    some = np.ones(4, np.float32)
    for vectors, weights in (
        ([], []),
        ([some], [1.0, 2.0]),
        ([np.ones(5, np.float32)], [1.0]),
        ([some, np.ones(4)], [1.0, 1.0]),
        ([np.ones(8, np.float32)[::2]], [1.0]),
    ):
        with pytest.raises(LocalFault):
            kernels.fold(acc, vectors, weights)
        with pytest.raises(LocalFault):
            kernels.mean(np.empty(4, np.float32), [], [], vectors, weights)
    for narrow in (np.float16, np.float32):
        with pytest.raises(LocalFault):
            kernels.fold(np.empty(4, narrow), [some], [1.0])
    for out, partials, some_vectors in (
        (np.empty(4, np.float16), [], [some]),
        (np.empty(4, np.float32), [some], []),
        (np.empty(4, np.float32), [np.ones(5)], []),
        (acc, [np.ones(4)], [some]),
    ):
        with pytest.raises(LocalFault):
            kernels.mean(out, partials, [0.5] * len(partials), some_vectors, [0.5] * len(some_vectors))

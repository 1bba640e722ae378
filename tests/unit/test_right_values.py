"""Means that are right to the last bit: of equal numbers, of the largest and the smallest, of integers; in any tree."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import mean_of, partial_of

from lifl.core.schema import ACCUMULATOR, EARLIER_PARTIAL, Segment, end_of, relaid
from lifl.rules import integers, kernels, load_rule
from lifl.rules.finish import finish_mean
from lifl.worker.earlier import converted

FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
ANY_WEIGHT = st.floats(1e-300, 1e300) | st.integers(1, 10_000).map(float) | st.floats(1e-3, 1e3)
TREE = {
    "fan_in": st.integers(1, 9),
    "middle_fan_in": st.integers(2, 4),
    "batches": st.integers(1, 4),
    "tail": st.integers(0, 4),
}
PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "COMPILED", None)
    else:
        assert kernels.COMPILED is not None


def numbers(dtype: str) -> st.SearchStrategy[float]:
    """Every finite number of the type, the largest and the subnormal ones too."""
    info = ml_dtypes.finfo(kernels.numpy_dtype(dtype))
    tiny = float(info.smallest_subnormal)
    edges = [float(info.max), -float(info.max), tiny, 3 * tiny, float(info.tiny), 0.1, 100.0, 1.0, 0.0]
    return st.sampled_from(edges) | st.floats(-1e4, 1e4) | st.floats(-float(info.max), float(info.max))


# ---- equal updates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "value", "dtype"),
    [(10, 1.0, "float32"), (6, 1.0, "float64"), (3, 100.0, "float32"), (3, 0.1, "float64"), (3, 0.1, "float32")],
)
@pytest.mark.parametrize("fan_in", [1, 2, 3, 16])
def test_seen_means_of_equal_updates(count: int, value: float, dtype: str, fan_in: int) -> None:
    update = np.full(70, value, dtype)
    np.testing.assert_array_equal(mean_of([(update, 1.0)] * count, fan_in), update)


@pytest.mark.parametrize("dtype", FLOATS)
@PROPERTY
@given(data=st.data(), weights=st.lists(ANY_WEIGHT, min_size=1, max_size=40), **TREE)
def test_equal_floats_give_that_number(
    dtype: str, data: st.DataObject, weights: list[float], fan_in: int, middle_fan_in: int, batches: int, tail: int
) -> None:
    some = data.draw(st.lists(numbers(dtype), min_size=1, max_size=80))
    update = np.array(some, kernels.numpy_dtype(dtype))
    update = update[np.isfinite(update)]
    if len(update):
        made = mean_of([(update, w) for w in weights], fan_in, middle_fan_in, batches, tail)
        np.testing.assert_array_equal(made, update)


@pytest.mark.parametrize("dtype", INTEGERS)
@PROPERTY
@given(data=st.data(), weights=st.lists(st.integers(1, 2**40), min_size=1, max_size=40), **TREE)
def test_equal_integers_give_that_number(
    dtype: str, data: st.DataObject, weights: list[int], fan_in: int, middle_fan_in: int, batches: int, tail: int
) -> None:
    info = np.iinfo(dtype)
    some = st.integers(int(info.min), int(info.max)) | st.sampled_from([int(info.min), int(info.max)])
    update = np.array(data.draw(st.lists(some, min_size=1, max_size=20)), dtype)
    made = mean_of([(update, float(w)) for w in weights], fan_in, middle_fan_in, batches, tail)
    np.testing.assert_array_equal(made, update)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 17, 33, 64])
def test_equal_updates_of_many_blocks(dtype: str, count: int) -> None:
    """Chunks, blocks, passes and what is stored past the caches."""
    rng = np.random.default_rng(count)
    update = rng.normal(size=300_001 if count < 10 else 40_003).astype(kernels.numpy_dtype(dtype))
    weights = list(rng.uniform(0.001, 1e6, count))
    np.testing.assert_array_equal(mean_of([(update, w) for w in weights], 64, 8, 2), update)
    np.testing.assert_array_equal(mean_of([(update, w) for w in weights], 64, 8, 1, count), update)


def test_a_model_that_is_made_ahead_is_exact_too() -> None:
    rng = np.random.default_rng(1)
    for dtype in ("float32", "float64"):
        update, out = rng.normal(size=5000).astype(dtype), np.full(5000, np.nan, dtype)
        rule, weights = load_rule("fedavg", {}), [0.1, 3.0, 7.7, 1e3, 0.3]
        finish_mean(rule, [update] * 2, kernels.shares(weights[:2])[0], out, 0.0, 0)
        shares, keep = kernels.shares(weights[2:], sum(weights[:2]))
        finish_mean(rule, [update] * 3, shares, out, keep, 0)
        np.testing.assert_array_equal(out, update)


# ---- a mean that is a number of the type ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fan_in", [1, 2, 10])
@pytest.mark.parametrize("size", [3, 64, 20_000])
def test_the_mean_of_the_largest_numbers(dtype: str, fan_in: int, size: int) -> None:
    most = float(ml_dtypes.finfo(kernels.numpy_dtype(dtype)).max)
    update = np.full(size, most, kernels.numpy_dtype(dtype))
    np.testing.assert_array_equal(mean_of([(update, 1.0)] * 10, fan_in), update)
    np.testing.assert_array_equal(mean_of([(update, 1.0), (-update, 1.0)], fan_in), 0 * update)
    last = mean_of([(update, 3.0), (-update, 1.0)], fan_in).astype(np.float64)
    np.testing.assert_allclose(last, np.full(size, most / 2), rtol=float(ml_dtypes.finfo(update.dtype).eps))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [3, 32, 70])
@pytest.mark.parametrize("count", [9, 16, 17, 40, 64])
def test_the_largest_numbers_of_both_signs_in_many_passes(dtype: str, size: int, count: int) -> None:
    """A difference that is beyond the type, in any of a leaf's passes."""
    most = float(ml_dtypes.finfo(kernels.numpy_dtype(dtype)).max)
    update = np.full(size, most, kernels.numpy_dtype(dtype))
    for negative in range(count):
        signs = [-1 if index == negative else 1 for index in range(count)]
        made = mean_of([(sign * update, 1.0) for sign in signs], 64).astype(np.float64)
        expected = np.full(size, most * ((count - 2) / count))
        np.testing.assert_allclose(made, expected, rtol=4 * float(ml_dtypes.finfo(update.dtype).eps))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [3, 64])
@pytest.mark.parametrize("count", [2, 20])
def test_subnormal_numbers_beside_the_largest_are_kept(dtype: str, size: int, count: int) -> None:
    info = ml_dtypes.finfo(kernels.numpy_dtype(dtype))
    update = np.full(size, float(info.smallest_subnormal) * 3, kernels.numpy_dtype(dtype))
    update[-1] = info.max
    other = update.copy()
    other[-1] = -other[-1]
    made = mean_of([(update, 1.0), (other, 1.0)] * (count // 2), 64)
    np.testing.assert_array_equal(made[:-1], update[:-1])
    assert abs(float(made[-1])) <= float(info.eps) * float(info.max)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fan_in", [1, 2, 8])
@pytest.mark.parametrize("size", [3, 64])
def test_subnormal_numbers_are_kept(dtype: str, fan_in: int, size: int) -> None:
    tiny = float(ml_dtypes.finfo(kernels.numpy_dtype(dtype)).smallest_subnormal)
    updates = [(np.full(size, tiny * (4 * k), np.float64).astype(kernels.numpy_dtype(dtype)), 1.0) for k in range(1, 5)]
    assert mean_of(updates, fan_in).astype(np.float64).tolist() == [tiny * 10] * size


# ---- how near ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("count", "fan_in", "middle_fan_in"), [(2, 2, 8), (10, 2, 8), (32, 2, 8), (32, 8, 2), (64, 64, 8)]
)
def test_within_an_ulp_of_float64(dtype: str, count: int, fan_in: int, middle_fan_in: int) -> None:
    """Of the largest number that went in."""
    rng = np.random.default_rng(count)
    made = kernels.numpy_dtype(dtype)
    updates = [(rng.uniform(-1, 1, 20_000).astype(made), float(w)) for w in rng.uniform(1, 1000, count)]
    wide = np.array([u.astype(np.float64) for u, _ in updates])
    weights = np.array([w for _, w in updates])
    exact = weights @ wide / weights.sum()
    ulp = float(ml_dtypes.finfo(made).eps) / 2 * np.exp2(np.ceil(np.log2(np.abs(wide).max(axis=0))))
    for batches, tail in ((1, 0), (3, 4)):
        error = np.abs(mean_of(updates, fan_in, middle_fan_in, batches, tail).astype(np.float64) - exact)
        assert (error / ulp).max() <= 1.0


# ---- integers ------------------------------------------------------------------------------------------------------


def exact_mean(values: list[int], weights: list[float]) -> int:
    total = sum(Fraction(w) * x for x, w in zip(values, weights, strict=True))
    return round(total / sum(Fraction(w) for w in weights))  # half to even


@pytest.mark.parametrize("dtype", INTEGERS)
@PROPERTY
@given(data=st.data(), **TREE)
def test_integers_with_whole_weights_are_exact(
    dtype: str, data: st.DataObject, fan_in: int, middle_fan_in: int, batches: int, tail: int
) -> None:
    info = np.iinfo(dtype)
    low, high = int(info.min), int(info.max)
    number = st.integers(low, high) | st.integers(high - 5, high) | st.integers(low, low + 5)
    weight = st.integers(1, 2**53 // 40) | st.integers(1, 5)
    pairs = data.draw(st.lists(st.tuples(number, weight), min_size=1, max_size=24))
    updates = [(np.array([x, low, high, x], dtype), float(w)) for x, w in pairs]
    made = mean_of(updates, fan_in, middle_fan_in, batches, tail)
    assert made.tolist() == [exact_mean([int(u[i]) for u, _ in updates], [w for _, w in updates]) for i in range(4)]


def test_integers_that_were_off() -> None:
    for value, dtype, count in ((2**53 - 1, "int64", 5), (2**64 - 1, "uint64", 3), (2**64 - 1, "uint64", 1)):
        update = np.array([value], dtype)
        assert mean_of([(update, 1.0)] * count).tolist() == [value]
    largest = float(2**53 - 2)
    updates = [(np.array([2**63 - 1, -(2**63)], "int64"), largest), (np.array([-(2**63), 2**63 - 1], "int64"), 1.0)]
    expected = [exact_mean([a, b], [largest, 1.0]) for a, b in ((2**63 - 1, -(2**63)), (-(2**63), 2**63 - 1))]
    assert mean_of(updates, 1).tolist() == expected


@pytest.mark.parametrize("dtype", INTEGERS)
@PROPERTY
@given(data=st.data(), weights=st.lists(ANY_WEIGHT, min_size=1, max_size=24), **TREE)
def test_integers_with_any_weights_are_within_one(
    dtype: str, data: st.DataObject, weights: list[float], fan_in: int, middle_fan_in: int, batches: int, tail: int
) -> None:
    info = np.iinfo(dtype)
    number = st.integers(max(int(info.min), -(2**48)), min(int(info.max), 2**48))
    values = data.draw(st.lists(number, min_size=len(weights), max_size=len(weights)))
    updates = [(np.array([x], dtype), w) for x, w in zip(values, weights, strict=True)]
    made = mean_of(updates, fan_in, middle_fan_in, batches, tail)
    assert abs(int(made[0]) - exact_mean(values, weights)) <= 1


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("rows", [1, 2, 8, 11])
@pytest.mark.parametrize("heaviest", [3, 2**50])
def test_sizes_at_the_edges_of_blocks(dtype: str, rows: int, heaviest: int) -> None:
    """What lies before and after the accumulator stays as it is."""
    rng = np.random.default_rng(rows)
    info = np.iinfo(dtype)
    kind = kernels.numpy_dtype(ACCUMULATOR[dtype])
    for size in (1, 63, 2048, 2049) if kernels.COMPILED is not None else (63,):
        around = np.full((size + 2) * kind.itemsize, 0xA5, np.uint8).view(kind)
        acc, before = around[1:-1], around[0].tobytes()
        updates = [rng.integers(info.min, info.max, size, dtype, endpoint=True) for _ in range(rows)]
        weights = [float(w) for w in (*rng.integers(1, 4, rows - 1), heaviest)]
        integers.fold(acc, updates, weights, 0.0, sum(weights))
        integers.fold(acc, updates[:1], [5.0], sum(weights), sum(weights) + 5.0)
        made = np.empty(size, dtype)
        integers.finish(made, acc, sum(weights) + 5.0)
        for at in {0, size // 2, size - 1}:
            numbers_there = [int(update[at]) for update in (*updates, updates[0])]
            assert int(made[at]) == exact_mean(numbers_there, [*weights, 5.0])
        assert around[0].tobytes() == around[-1].tobytes() == before


# ---- what an earlier version left ----------------------------------------------------------------------------------


def test_partials_of_an_earlier_version_are_understood() -> None:
    """They were sums, scaled by a power of two."""
    rng = np.random.default_rng(2)
    weights = [3.0, 5.0, 11.0]
    models = (
        Segment("float64", 0, 70),
        Segment("float32", 576, 70),
        Segment("int64", 896, 70),
        Segment("uint8", 0, 70),
    )
    accumulators = relaid(models, ACCUMULATOR)
    before = relaid(accumulators, EARLIER_PARTIAL)
    view = memoryview(bytearray(end_of(before)))
    updates = {}
    for model, segment in zip(models, before, strict=True):
        if model.dtype.startswith("float"):
            drawn = [rng.normal(size=70).astype(model.dtype) for _ in weights]
        else:
            drawn = [rng.integers(0, 255, 70).astype(model.dtype) for _ in weights]
        updates[model.dtype] = drawn
        scaled = math.ldexp(1.0, -kernels.exponent(19.0))
        kernels.vector(view, segment)[:] = (
            sum(w * u.astype(np.float64) for w, u in zip(weights, drawn, strict=True)) * scaled
        )
    after = converted(view, 19.0, accumulators)
    rule = load_rule("fedavg", {})
    for model, segment in zip(models, accumulators, strict=True):
        wanted, _ = partial_of(rule, updates[model.dtype], weights)
        got = kernels.vector(after, segment)
        if model.dtype.startswith("float"):
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)
        else:
            assert got.tobytes() == wanted.tobytes()

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

from lifl.core.ids import Kind
from lifl.core.schema import ACCUMULATOR, EARLIER_PARTIAL, NARROW_PARTIAL, Segment, end_of, relaid
from lifl.rules import integers, kernels, load_rule
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


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_model_that_is_made_ahead_is_exact_too(dtype: str) -> None:
    update = np.random.default_rng(1).normal(size=5000).astype(kernels.numpy_dtype(dtype))
    weights = [0.1, 3.0, 7.7, 1e3, 0.3]
    for tail in (3, 5):
        made = mean_of([(update, weight) for weight in weights], tail=tail, ahead=1)
        np.testing.assert_array_equal(made, update)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 20])
def test_zeros_keep_their_sign(dtype: str, count: int) -> None:
    update = np.full(70, -0.0, kernels.numpy_dtype(dtype))
    for tail, batches in ((0, 1), (0, 2), (4, 1), (20, 1)):
        made = mean_of([(update, 1.0)] * count, 4, 2, batches, tail, 1)
        assert np.signbit(made.astype(np.float64)).all()
        mixed = mean_of([(update, 1.0)] * count + [(-update, 1.0)], 4, 2, batches, tail, 1)
        assert not np.signbit(mixed.astype(np.float64)).any()


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
    """Over the whole range of the type, in trees of many levels, whatever a top sums up ahead."""
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    number = st.integers(low, high) | st.sampled_from([low, low + 1, high - 1, high])
    values = data.draw(st.lists(st.tuples(number, number), min_size=len(weights), max_size=len(weights)))
    updates = [(np.array(x, dtype), w) for x, w in zip(values, weights, strict=True)]
    whole = sum(map(Fraction, weights))
    for made in (
        mean_of(updates, fan_in, middle_fan_in, batches, tail),
        mean_of(updates, fan_in, middle_fan_in, batches, tail, ahead=1),
    ):
        for place in range(2):
            mean = sum(Fraction(w) * x[place] for w, x in zip(weights, values, strict=True)) / whole
            assert abs(int(made[place]) - mean) <= 1


@pytest.mark.parametrize(
    "weights",
    [
        [1e-300, 1e300, 0.1, 1 / 3, 2**-1074, 7e299],
        [0.1, 1 / 3, 0.7, 1e-9, 123.456],
        [float(2**53 - 1), float(2**53 - 3), 1.0, 3.0],
        [2.0**60, 1.0, 2.0**-60, 2.0**60],
        [2.0**53 - 1, 2.0**-1, 2.0**-53],  # next to a power of two, which a float64 would round it to
    ],
)
@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("tree", [{"fan_in": 64}, {"fan_in": 1}, {"fan_in": 2, "tail": 3, "ahead": 1}])
def test_the_largest_integers_with_weights_that_no_float64_sums_up(
    dtype: str, weights: list[float], tree: dict[str, int]
) -> None:
    """Three levels of middles; what was off by up to 1,895."""
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    rng, weights = np.random.default_rng(3), weights * 8
    rows = [rng.integers(low, high, 40, dtype, endpoint=True) for _ in weights]
    for index, row in enumerate(rows):
        row[:4] = [high, low, high if index % 2 else low, high - index % 3]
    made, whole = mean_of(list(zip(rows, weights, strict=True)), **tree), sum(map(Fraction, weights))
    for place in range(40):
        mean = sum(Fraction(w) * int(row[place]) for w, row in zip(weights, rows, strict=True)) / whole
        assert abs(int(made[place]) - mean) <= 0.5 + Fraction(1, 2**40)


@pytest.mark.parametrize("dtype", INTEGERS)
@PROPERTY
@given(data=st.data(), weights=st.lists(ANY_WEIGHT, min_size=1, max_size=40), **TREE)
def test_equal_integers_give_that_number_with_any_weights(
    dtype: str, data: st.DataObject, weights: list[float], fan_in: int, middle_fan_in: int, batches: int, tail: int
) -> None:
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    update = np.array([data.draw(st.integers(low, high)), low, high], dtype)
    made = mean_of([(update, w) for w in weights], fan_in, middle_fan_in, batches, tail)
    np.testing.assert_array_equal(made, update)


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


@pytest.mark.parametrize(
    ("kind", "format_"), [(Kind.EARLIER_PARTIAL, EARLIER_PARTIAL), (Kind.NARROW_PARTIAL, NARROW_PARTIAL)]
)
def test_partials_of_an_earlier_version_are_understood(kind: Kind, format_: dict[str, str]) -> None:
    """They were sums, scaled by a power of two; or means in float32, and sums of 128 bits of integers of 64."""
    rng = np.random.default_rng(2)
    rule, weights = load_rule("fedavg", {}), [3.0, 5.0, 11.0]
    dtypes = ("float64", "float32", "bfloat16", "int64", "uint8", "bool")
    models = relaid([Segment(dtype, 0, 70) for dtype in dtypes], {dtype: dtype for dtype in dtypes})
    earlier = relaid(models, format_)
    view, wanted = memoryview(bytearray(end_of(earlier))), []
    for model, segment in zip(models, earlier, strict=True):
        number = (
            rng.normal(size=(3, 70))
            if "float" in model.dtype
            else rng.integers(0, 2 if model.dtype == "bool" else 255, (3, 70))
        )
        drawn = list(number.astype(kernels.numpy_dtype(model.dtype)))
        if model.dtype == "bool":
            kernels.vector(view, segment)[:] = drawn[0]
            wanted.append(drawn[0])
            continue
        partial, whole = partial_of(rule, drawn, weights)
        wanted.append(partial)
        if segment.dtype == "int128":
            sums = sum(int(w) * u.astype(object) for w, u in zip(weights, drawn, strict=True))
            integers.put(kernels.vector(view, segment), sums << (integers.BITS["int128"] - 5))  # 19 < 2^5
        elif kind is Kind.NARROW_PARTIAL:
            kernels.vector(view, segment)[:] = partial
        else:
            sums = sum(w * u.astype(np.float64) for w, u in zip(weights, drawn, strict=True))
            kernels.vector(view, segment)[:] = sums * math.ldexp(1.0, -kernels.exponent(whole))
    after = converted(view, kind, 19.0, models)
    for model, segment, its in zip(models, relaid(models, ACCUMULATOR), wanted, strict=True):
        got = kernels.vector(after, segment)
        if "float" in model.dtype:
            exact = 1e-15 if model.dtype == "float64" else 2.0**-23
            np.testing.assert_allclose(got, its, rtol=exact, atol=exact)
        else:
            assert got.tobytes() == its.tobytes()


@pytest.mark.parametrize("kind", [Kind.EARLIER_PARTIAL, Kind.NARROW_PARTIAL])
def test_an_earlier_sum_whose_weight_a_float64_rounds_to_a_power_of_two(kind: Kind) -> None:
    """Its numbers were scaled by that power, today's are by the one below."""
    weights, values = [1.0 - 2.0**-53, 2.0**-54 + 2.0**-60], [1_000_003, -7]
    weight = kernels.total(weights)
    assert (weight, kernels.exact(weight).bit_length()) == (1.0, kernels.exact(1.0).bit_length() - 1)
    format_ = EARLIER_PARTIAL if kind is Kind.EARLIER_PARTIAL else NARROW_PARTIAL
    models, out = (Segment("int64", 0, 1),), np.empty(1, np.int64)
    (segment,) = relaid(models, format_)
    view = memoryview(bytearray(end_of((segment,))))
    mean = sum(Fraction(w) * x for w, x in zip(weights, values, strict=True))
    if kind is Kind.EARLIER_PARTIAL:
        kernels.vector(view, segment)[:] = float(mean / 2)
    else:
        integers.put(kernels.vector(view, segment), np.array([round(mean * 2**61)], object))
    (now,) = relaid(models, ACCUMULATOR)
    integers.finish(out, kernels.vector(converted(view, kind, weight, models), now), weight)
    assert out.tolist() == [1_000_003]

"""Reproducible sums: the same bits in any order and tree, compiled or not; and as near to the exact mean as told."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from trees import partial_of

from lifl.core.limits import WHOLE_WEIGHT_MAX
from lifl.rules import Rule, RuleOptions, binned, kernels
from lifl.rules.finish import finish_segment
from lifl.rules.kernels import Vector, numpy_dtype

FLOATS = ("float64", "float32", "float16", "bfloat16")
WEIGHTS = (1.0, 2.0, 3.0, 600.0, 1e6 + 1, WHOLE_WEIGHT_MAX)


@pytest.fixture(params=["compiled", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "COMPILED", None)
    elif kernels.COMPILED is None:
        pytest.skip("there is no compiled kernel")
    return str(request.param)


def accumulator(size: int) -> Vector:
    """One whose memory holds something else."""
    acc = np.empty(size, numpy_dtype(binned.ACCUMULATOR))
    acc.view(np.uint8)[:] = 0xA5
    return acc


def draw_updates(rng: np.random.Generator, dtype: str, size: int, count: int, spread: int) -> list[Vector]:
    """Return updates of numbers whose exponents lie `spread` apart at most."""
    return [
        (rng.standard_normal(size) * 2.0 ** rng.integers(-spread, spread + 1, size)).astype(numpy_dtype(dtype))
        for _ in range(count)
    ]


def tree(rng: random.Random, updates: list[tuple[Vector, float]]) -> Vector:
    """Sum updates in an order, in batches and by partials that are drawn."""
    left = rng.sample(updates, len(updates))
    partials: list[Vector] = []
    while left or len(partials) > 1:
        acc = accumulator(len(updates[0][0]))
        vectors, left = left[: (taken := rng.randint(0, 3))], left[taken:]
        theirs = [partials.pop(rng.randrange(len(partials))) for _ in range(min(len(partials), rng.randint(0, 2)))]
        if not vectors and not theirs:
            continue
        binned.add(acc, theirs, [vector for vector, _ in vectors], [weight for _, weight in vectors], keep=False)
        if left and rng.random() < 0.5:
            (vector, weight), *left = left
            binned.add(acc, [], [vector], [weight], keep=True)
        partials.append(acc)
    return partials[0]


def result(acc: Vector, whole: float, dtype: str) -> bytes:
    out = np.empty(len(acc), np.float64 if dtype == "float64" else np.float32)
    assert binned.mean(out, acc, whole)
    return out.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_order_and_tree_gives_the_same_bits_in_both_kernels(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, order = np.random.default_rng(5), random.Random(5)
    for spread in (0, 3, 6) if dtype == "float16" else (0, 3, 40):
        vectors = draw_updates(rng, dtype, 700, 9, spread)
        updates = [(vector, float(rng.choice(WEIGHTS))) for vector in vectors]
        whole, found = sum(weight for _, weight in updates), set()
        for compiled in {kernels.COMPILED, None}:
            monkeypatch.setattr(kernels, "COMPILED", compiled)
            found |= {result(tree(order, updates), whole, dtype) for _ in range(8)}
        assert len(found) == 1


def in_both_kernels(
    monkeypatch: pytest.MonkeyPatch, before: Vector, partials: list[Vector], updates: list[tuple[Vector, float]]
) -> set[bytes]:
    """Add to a copy of an accumulator, or to one that is not read if that is empty; return the sums."""
    found, size = set(), len((updates or [(partials[0], 0.0)])[0][0])
    for compiled in (kernels.COMPILED, None):
        monkeypatch.setattr(kernels, "COMPILED", compiled)
        acc = before.copy() if len(before) else accumulator(size)
        binned.add(acc, partials, [vector for vector, _ in updates], [w for _, w in updates], keep=len(before) > 0)
        found.add(result(acc, 1.0, "float64"))
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_number_of_updates_at_a_time_gives_the_same_sums(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 39 bits round the products: a kernel that makes one operation of a product and a sum differs."""
    rng, info = np.random.default_rng(3), kernels.ml_dtypes.finfo(numpy_dtype(dtype))
    edges = [0.0, -0.0, float(info.smallest_subnormal), -float(info.tiny), 1 / 3, 2.0**-3, 2.0**-3 - 2.0**-9]
    edges += [float(info.max), -float(info.max)] if dtype != "float64" else [1e150, -1e-150]
    nothing = accumulator(0)
    for count in (*range(1, 11), 15, 17):
        size, spread = int(rng.choice([1, 2, 3, 5, 8, 15, 250, 256, 259, 530])), int(rng.choice([0, 2, 6]))
        updates = [
            (vector, float(rng.choice([*WEIGHTS, WHOLE_WEIGHT_MAX - 1, WHOLE_WEIGHT_MAX / 3 // 1])))
            for vector in draw_updates(rng, dtype, size, count, spread)
        ]
        for vector, _ in updates:
            where = rng.integers(0, size, 3)
            vector[where] = np.array(rng.choice(edges, 3)).astype(vector.dtype)
        one, other = accumulator(size), accumulator(size)
        binned.add(one, [], [updates[0][0][::-1].copy()], [5.0], keep=False)
        binned.add(other, [], [np.zeros(size, vector.dtype)], [2.0], keep=False)
        for before in (nothing, one, other):
            for partials in ([], [one], [other, one]):
                assert len(in_both_kernels(monkeypatch, before, partials, updates)) == 1


def test_a_large_accumulator_is_the_same_wherever_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stored past the caches where it begins with a line of them."""
    rng, size = np.random.default_rng(4), 2**23 // 24 + 300
    updates = [(vector, 3.0) for vector in draw_updates(rng, "float32", size, 2, 0)]
    (expected,) = in_both_kernels(monkeypatch, accumulator(0), [], updates)
    memory = np.zeros(24 * size + 128, np.uint8)
    line = -memory.ctypes.data % 64
    for offset in (0, 8):
        acc = memory[line + offset :][: 24 * size].view(numpy_dtype(binned.ACCUMULATOR))
        memory[:] = 0xA5
        binned.add(acc, [], [vector for vector, _ in updates], [3.0, 3.0], keep=False)
        assert result(acc, 1.0, "float64") == expected
        assert set(memory[: line + offset]) | set(memory[line + offset + 24 * size :]) == {0xA5}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_mean_is_within_an_ulp_of_the_exact_one(dtype: str) -> None:
    rng = np.random.default_rng(9)
    for spread in (0, 6):
        vectors = draw_updates(rng, dtype, 200, 7, spread)
        weights = [float(rng.integers(1, 5000)) for _ in vectors]
        acc = accumulator(200)
        binned.add(acc, [], vectors, weights, keep=False)
        out = np.empty(200, np.float64 if dtype == "float64" else np.float32)
        assert binned.mean(out, acc, sum(weights))
        for index, number in enumerate(out):
            exact = exact_mean([vector[index] for vector in vectors], weights)
            largest = max(abs(float(vector[index])) for vector in vectors)  # of float64 the products are rounded, too
            ulp = float(np.spacing(largest if dtype == "float64" else np.abs(np.float32(float(exact)))))
            assert abs(Fraction(float(number)) - exact) <= Fraction(ulp)


def exact_mean(numbers: list[Any], weights: list[float]) -> Fraction:
    total = sum((Fraction(float(number)) * Fraction(weight) for number, weight in zip(numbers, weights, strict=True)))
    return total / Fraction(sum(weights))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [*FLOATS[1:], "int64", "uint8"])
def test_the_model_is_within_an_ulp_of_its_own_type_of_the_exact_mean_and_integers_are_exact(dtype: str) -> None:
    rng, order, kind = np.random.default_rng(11), random.Random(11), numpy_dtype(dtype)
    for draw in range(6):
        if kind.kind in "iu":
            low, high = np.iinfo(kind).min, np.iinfo(kind).max
            vectors = [rng.integers(low, high, 60, kind, endpoint=True) for _ in range(7)]
        else:
            vectors = draw_updates(rng, dtype, 60, 6, (0, 4, 9)[draw % 3])
            vectors.append((-sum(vector.astype(np.float64) for vector in vectors)).astype(kind))  # most of it cancels
        weights = [float(rng.integers(1, 5000)) if draw % 2 else 3.0 for _ in vectors]
        updates, out = list(zip(vectors, weights, strict=True)), np.empty(60, kind)
        partials = [(tree(order, updates[:4]), sum(weights[:4]))]
        if kind.kind in "iu":
            partials = [partial_of(Rule(RuleOptions()), vectors[:4], weights[:4])]
        finish_segment(Rule(RuleOptions()), np.zeros(60, kind), partials, updates[4:], out, {}, {}, reproducible=True)
        for index, number in enumerate(out):
            if kind.kind in "iu":
                total = sum(int(vector[index]) * int(weight) for vector, weight in updates)
                assert int(number) == round(Fraction(total, int(sum(weights))))
                continue
            exact = exact_mean([vector[index] for vector in vectors], weights)
            near = np.array(float(exact)).astype(kind)
            assert abs(Fraction(float(number)) - exact) <= Fraction(float(np.spacing(np.abs(near))))


@pytest.mark.usefixtures("way")
def test_what_cancels_leaves_what_is_left() -> None:
    """Where plain sums lose every digit: 1 + 2^-40, less 1."""
    small, acc = 2.0**-40 * 3, accumulator(1)
    vectors = [np.array([number], np.float32) for number in (1.0, small, -1.0)]
    binned.add(acc, [], vectors, [7.0, 1.0, 7.0], keep=False)
    out = np.empty(1, np.float32)
    assert binned.mean(out, acc, 15.0)
    assert out[0] == np.float32(small / 15.0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_equal_numbers_stay_what_they_are(dtype: str) -> None:
    info = kernels.ml_dtypes.finfo(numpy_dtype(dtype))
    numbers = [0.0, float(info.smallest_subnormal), float(info.tiny), 1 / 3, float(info.max), -float(info.max)]
    vector, acc = np.array(numbers, numpy_dtype(dtype)), accumulator(len(numbers))
    binned.add(acc, [], [vector] * 3, [1.0, WHOLE_WEIGHT_MAX, 7.0], keep=False)
    out = np.empty(len(numbers), np.float32)
    assert binned.mean(out, acc, WHOLE_WEIGHT_MAX + 8.0)
    assert out.astype(numpy_dtype(dtype)).tobytes() == vector.tobytes()


@pytest.mark.usefixtures("way")
def test_as_many_updates_as_a_round_can_have() -> None:
    """All of them as large as a bin takes, of one sign: the high accumulator is at its end."""
    vector, acc = np.array([2.0**31 - 2.0**7, -(2.0**31) + 2.0**7], np.float32), accumulator(2)
    binned.add(acc, [], [vector], [1.0], keep=False)
    for _ in range(14):
        again = accumulator(2)
        binned.add(again, [acc, acc], [], [], keep=False)
        acc = again
    out = np.empty(2, np.float32)
    assert binned.mean(out, acc, 2.0**14)
    assert out.tobytes() == vector.tobytes()


@pytest.mark.usefixtures("way")
def test_nothing_beside_the_accumulator_is_touched() -> None:
    for size in (1, 7, 255, 256, 257):
        memory = accumulator(size + 2)
        before = memory.copy()
        binned.add(memory[1:-1], [], [np.ones(size, np.float32)], [1.0], keep=False)
        assert memory[[0, -1]].tobytes() == before[[0, -1]].tobytes()


NUMBERS = hnp.arrays(np.float32, 3, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(NUMBERS, st.integers(1, 2**39).map(float)), min_size=1, max_size=6), st.integers(0, 999))
def test_whatever_the_numbers_are(updates: list[tuple[Vector, float]], seed: int) -> None:
    whole, order = sum(weight for _, weight in updates), random.Random(seed)
    out = {result(tree(order, updates), whole, "float32") for _ in range(3)}
    compiled, kernels.COMPILED = kernels.COMPILED, None
    try:
        out.add(result(tree(order, updates), whole, "float32"))
    finally:
        kernels.COMPILED = compiled
    assert len(out) == 1

"""Means of floats beside exact ones: one rounding, in any tree, whatever cancels, whatever the weights.

The exact mean is a fraction; its float64 error is that of float64 sums of the same terms.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import mean_of

from lifl.rules import kernels

NARROW = ("float32", "float16", "bfloat16")
PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TREE = {
    "fan_in": st.integers(1, 64),
    "middle_fan_in": st.integers(2, 8),
    "batches": st.integers(1, 9),
    "tail": st.integers(0, 6),
    "ahead": st.integers(0, 3),
}
WEIGHTS: dict[str, Any] = {
    "equal": lambda rng, n: np.ones(n),
    "counts": lambda rng, n: rng.integers(1, 10_000, n),
    "near": lambda rng, n: rng.uniform(0.5, 2.0, n),
    "any": lambda rng, n: 10.0 ** rng.uniform(-300, 300, n),
}


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "COMPILED", None)
    else:
        assert kernels.COMPILED is not None


def even(rng: np.random.Generator, dtype: str, count: int, size: int) -> np.ndarray:
    return rng.uniform(-1, 1, (count, size))


def spread(rng: np.random.Generator, dtype: str, count: int, size: int) -> np.ndarray:
    """Over all exponents of the type."""
    info = ml_dtypes.finfo(kernels.numpy_dtype(dtype))
    exponents = rng.uniform(math.log2(float(info.smallest_subnormal)), math.log2(float(info.max)) - 0.01, (count, size))
    return rng.choice([-1.0, 1.0], (count, size)) * 2.0**exponents


def cancelling(rng: np.random.Generator, dtype: str, count: int, size: int) -> np.ndarray:
    """Each with its opposite, nearly; what is left is a little of the last."""
    half = rng.uniform(0.5, 1.0, (-(-count // 2), size))
    both = np.concatenate([half, -half * (1.0 + 2.0 ** rng.uniform(-24, -4, half.shape))])
    return rng.permutation(both[:count])


def ulp(exact: Fraction, dtype: str) -> Fraction:
    """The distance of the type's numbers there."""
    info = ml_dtypes.finfo(kernels.numpy_dtype(dtype))
    if abs(exact) <= Fraction(float(info.tiny)):
        return Fraction(float(info.smallest_subnormal))
    return Fraction(2) ** (math.frexp(float(abs(exact)))[1] - 1 - info.nmant)


def exact_means(updates: list[np.ndarray], weights: list[float]) -> tuple[list[Fraction], list[Fraction]]:
    """The weighted means, and those of the magnitudes, which say how much cancels."""
    scales = [Fraction(weight) for weight in weights]
    whole = sum(scales)
    columns = [[Fraction(float(number)) for number in column] for column in zip(*updates, strict=True)]
    means = [sum(s * x for s, x in zip(scales, column, strict=True)) / whole for column in columns]
    sizes = [sum(s * abs(x) for s, x in zip(scales, column, strict=True)) / whole for column in columns]
    return means, sizes


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("numbers", [even, spread, cancelling])
@PROPERTY
@given(count=st.integers(1, 200), weighing=st.sampled_from(list(WEIGHTS)), seed=st.integers(0, 2**32 - 1), **TREE)
def test_a_mean_is_rounded_once(dtype: str, numbers: Any, count: int, weighing: str, seed: int, **tree: int) -> None:
    rng = np.random.default_rng(seed)
    updates = list(numbers(rng, dtype, count, 3).astype(kernels.numpy_dtype(dtype)))
    weights = [float(weight) for weight in WEIGHTS[weighing](rng, count)]
    made = mean_of(list(zip(updates, weights, strict=True)), **tree)
    for number, exact, size in zip(made, *exact_means(updates, weights), strict=True):
        one = ulp(exact, dtype)
        once = one / 2 + (one / 2**12 if dtype != "float32" else 0)  # these are rounded by way of float32
        float64_own = size * (8 * count + 64) / 2**53
        assert abs(Fraction(float(number)) - exact) <= once + float64_own


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "tree",
    [
        {"fan_in": 2, "middle_fan_in": 2},
        {"fan_in": 4, "middle_fan_in": 8, "tail": 4, "ahead": 1},
        {"fan_in": 64, "middle_fan_in": 8, "batches": 8},
        {"fan_in": 1, "middle_fan_in": 3, "batches": 3, "tail": 3},
    ],
)
def test_within_an_ulp_of_the_mean_in_float64(dtype: str, tree: dict[str, int]) -> None:
    """Of the mean itself, not of what went in."""
    rng, info = np.random.default_rng(7), ml_dtypes.finfo(kernels.numpy_dtype(dtype))
    updates = list(rng.uniform(-1, 1, (200, 4000)).astype(kernels.numpy_dtype(dtype)))
    weights = rng.uniform(1, 1000, 200)
    exact = weights @ np.array(updates, np.float64) / weights.sum()
    unit = 2.0 ** np.maximum(np.frexp(exact)[1] - 1 - info.nmant, info.minexp - info.nmant)
    made = mean_of([(u, float(w)) for u, w in zip(updates, weights, strict=True)], **tree)
    assert (np.abs(made.astype(np.float64) - exact) / unit).max() <= 0.501

"""The calibration of a node: what it measures stands within what is possible, and folds do contend."""

from __future__ import annotations

import numpy as np
import pytest

from lifl.rules import calibration


def test_where_one_fold_is_all_that_is_allowed_the_capacity_is_one() -> None:
    assert calibration.capacity(1) == 1.0


def test_it_is_between_one_and_what_is_asked_for() -> None:
    assert 1.0 <= calibration.capacity(3) <= 3.0


def test_in_service_are_as_many_as_fold() -> None:
    memory = [(np.ones(1 << 16), list(np.ones((calibration.INPUTS, 1 << 16), np.float32))) for _ in range(2)]
    rate_per_s, execution_s = calibration._step(memory)
    assert rate_per_s > 0 and execution_s > 0
    assert rate_per_s * execution_s == pytest.approx(2)


@pytest.mark.parametrize(("cores", "last"), [(1, 2), (3, 6), (5, 8), (10, 16), (64, 32)])
def test_it_ends_when_folds_slow_each_other_down(monkeypatch: pytest.MonkeyPatch, cores: int, last: int) -> None:
    """So many cores, and nothing else to contend for: the first step that is too much is the last."""
    monkeypatch.setattr(calibration, "VECTOR_BYTES", 64)

    def step(memory: list[object]) -> tuple[float, float]:
        execution_s = 0.01 * max(1.0, len(memory) / cores)
        return len(memory) / execution_s, execution_s

    monkeypatch.setattr(calibration, "_step", step)
    samples = list(calibration._samples(10_000))
    steps = [round(rate_per_s * execution_s) for rate_per_s, execution_s in samples]
    assert steps == list(calibration.STEPS[: len(steps)])
    assert steps[-1] == last
    assert calibration.capacity(10_000) == (last if cores > 32 else steps[-2])

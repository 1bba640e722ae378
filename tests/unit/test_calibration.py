"""The calibration of a node: what it measures stands within what is possible, and folds do contend."""

from __future__ import annotations

import os

import pytest

from lifl.rules import calibration


def test_where_one_fold_is_all_that_is_allowed_the_capacity_is_one() -> None:
    assert calibration.capacity(1) == 1.0


def test_it_is_between_one_and_what_is_asked_for() -> None:
    assert 1.0 <= calibration.capacity(3) <= 3.0


def test_it_ends_when_folds_slow_each_other_down() -> None:
    cores = len(os.sched_getaffinity(0))
    if cores > 16:
        pytest.skip(f"NOT TESTED: {cores} cores are more than a third of the folds that the calibration tries")
    samples = list(calibration._samples(10_000))
    steps = [round(rate_per_s * execution_s) for rate_per_s, execution_s in samples]
    assert steps == list(calibration.STEPS[: len(steps)]), "in service are as many as fold"
    assert steps[-1] <= 3 * cores, "more than two folds for each core cannot run without waiting"

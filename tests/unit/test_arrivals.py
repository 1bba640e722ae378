"""The steps of `lifl calibrate`: how the rate rises, what ends it, and what MC is then."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lifl.simulation.arrivals import (
    CLIENTS,
    FASTER,
    LAST_STEP,
    NO_FASTER,
    ROUNDS_OF_STEP,
    SLOWER,
    STEP_S_MAX,
    STEPS_MAX,
    UNLOADED,
    Course,
    Step,
)

E_S = 0.01


def run(node: Callable[[float], Step], before_s: float = E_S) -> Course:
    """All steps at a node that answers to the rate that it is asked for."""
    course = Course()
    while not course.ended:
        rate_per_s = course.next_rate(before_s)
        while not course.note(node(rate_per_s)):
            pass
    return course


def contended(cores: float) -> Callable[[float], Step]:
    """A node whose folds slow each other down as soon as more are in service than it has cores."""
    return lambda asked: Step(asked, asked, E_S * max(1.0, asked * E_S / cores))


@pytest.mark.parametrize("cores", [0.5, 2.0, 8.0])
def test_mc_is_the_load_before_folds_take_longer(cores: float) -> None:
    course = run(contended(cores))
    found = course.found()
    assert found.ended == SLOWER
    assert cores / FASTER <= found.capacity <= cores * 1.5**2  # within a step, and what still counts as unloaded
    assert [step.asked_per_s for step in found.steps] == sorted(step.asked_per_s for step in found.steps)


def test_what_comes_no_faster_ends_it() -> None:
    course = run(lambda asked: Step(asked, min(asked, 180.0), E_S))
    assert course.found().ended == NO_FASTER and course.found().capacity == pytest.approx(1.8)


def test_one_update_always_fits() -> None:
    """On two cores the clients, and not the folds, are what ends the steps; a node with less is never planned for."""
    course = run(lambda asked: Step(asked, min(asked, 80.0), E_S))
    assert course.found().ended == NO_FASTER and course.found().capacity == 1


def test_without_a_limit_there_is_a_last_step() -> None:
    course = run(lambda asked: Step(asked, asked, E_S))
    assert course.found().ended == LAST_STEP and len(course.found().steps) == STEPS_MAX
    assert course.found().capacity == pytest.approx(UNLOADED * FASTER ** (STEPS_MAX - 1), abs=0.01)


def test_a_step_that_was_disturbed_ends_nothing_and_is_made_again() -> None:
    calls = 0

    def disturbed(asked: float) -> Step:
        nonlocal calls
        calls += 1
        slow = 3 * ROUNDS_OF_STEP < calls <= 4 * ROUNDS_OF_STEP
        return Step(asked, asked, 5 * E_S if slow else contended(2.0)(asked).execution_s)

    course, calm = run(disturbed), run(contended(2.0))
    assert course.found() == calm.found()


def test_of_the_rounds_of_a_step_the_median_counts() -> None:
    course = Course()
    times_s = [E_S, 9 * E_S, E_S / 9]
    assert [course.note(Step(1.0, 1.0, time_s)) for time_s in times_s] == [False, False, True]
    assert course.steps == [Step(1.0, 1.0, E_S)]


def test_the_first_rounds_last_no_longer_than_that_however_slow_the_folds_before_were() -> None:
    course = Course()
    assert course.next_rate(100.0) == CLIENTS / STEP_S_MAX
    while not course.note(Step(4.0, 4.0, E_S)):
        pass
    assert course.next_rate(100.0) == UNLOADED / E_S  # and then it is at once where a node is unloaded

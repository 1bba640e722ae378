"""The smoothed load of a node: what it converges to, how it forgets, and what it refuses."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.config.node import Smoothing
from lifl.core.errors import LocalFault
from lifl.core.planning.capacity import (
    EXECUTION_HALF_INPUTS,
    RATE_HALF_LIFE_S,
    NodeLoad,
    alpha,
    saturation,
)


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def fed(rate_per_s: float, times_s: list[float]) -> NodeLoad:
    """A node that was read at these times while updates came evenly."""
    load = NodeLoad(capacity=8.0, at_s=0.0)
    for time_s in times_s:
        load = load.counted(round(rate_per_s * time_s), ns(time_s))
    return load


def test_a_steady_rate_is_found() -> None:
    load = fed(5.0, [10.0 * step for step in range(1, 100)])
    assert load.rate_at(load.at_s) == pytest.approx(5.0, rel=1e-3)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_how_often_one_looks_makes_no_difference(steps: list[int]) -> None:
    times_s = [float(sum(steps[: n + 1])) for n in range(len(steps))]
    often = fed(4.0, times_s)
    assert often.rate_per_s == pytest.approx(fed(4.0, times_s[-1:]).rate_per_s)
    assert often.rate_per_s == pytest.approx(4.0 * alpha(times_s[-1], RATE_HALF_LIFE_S))


def test_silence_halves_the_rate_and_leaves_the_execution_time() -> None:
    load = fed(5.0, [300.0]).done(1.0, 10)
    later_s = load.at_s + RATE_HALF_LIFE_S
    assert load.rate_at(later_s) == pytest.approx(load.rate_at(load.at_s) / 2)
    assert load.execution_s == 0.1
    assert load.queue(later_s) == pytest.approx(load.rate_at(later_s) * 0.1)
    assert load.residual(later_s) == pytest.approx(8.0 - load.queue(later_s))
    assert load.rate_at(load.at_s - 5) == load.rate_per_s, "a clock read before the last message gives no growth"


def test_reading_the_same_counters_again_changes_nothing() -> None:
    load = fed(5.0, [300.0])
    assert load.counted(load.messages, load.last_ns) == load


def test_all_at_the_moment_of_the_last_reading() -> None:
    load = NodeLoad(capacity=1.0, at_s=3.0).counted(6, ns(3.0))
    assert load.rate_per_s == pytest.approx(6 * math.log(2) / RATE_HALF_LIFE_S)
    nearly = NodeLoad(capacity=1.0, at_s=3.0).counted(6, ns(3.0) + 1)
    assert nearly.rate_per_s == pytest.approx(load.rate_per_s, rel=1e-6)


def test_counters_that_begin_again_count_from_zero() -> None:
    before = fed(5.0, [60.0])
    after = before.counted(10, ns(61.0))
    assert after.messages == 10
    assert after.rate_per_s == pytest.approx(before.counted(before.messages + 10, ns(61.0)).rate_per_s)
    reset = before.counted(0, 0)
    assert reset.messages == 0 and reset.rate_per_s == before.rate_per_s and reset.at_s == before.at_s


def test_execution_time_is_a_mean_over_inputs() -> None:
    load = NodeLoad(capacity=1.0, at_s=0.0).done(2.0, 4)
    assert load.execution_s == 0.5, "the first receipt is all there is"
    load = load.done(1.0 * EXECUTION_HALF_INPUTS, EXECUTION_HALF_INPUTS)
    assert load.execution_s == pytest.approx(0.75), "half is forgotten after that many inputs"
    assert load.done(0.0, 0) == load


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.integers(1, 50), min_size=1, max_size=8), mean_s=st.floats(1e-4, 10))
def test_one_receipt_or_several_for_the_same_work(parts: list[int], mean_s: float) -> None:
    start = NodeLoad(capacity=1.0, at_s=0.0).done(1.0, 1)
    several = start
    for inputs in parts:
        several = several.done(mean_s * inputs, inputs)
    assert several.execution_s == pytest.approx(start.done(mean_s * sum(parts), sum(parts)).execution_s)


def test_an_overloaded_node_has_negative_residual_capacity() -> None:
    load = fed(100.0, [600.0]).done(1.0, 1)
    assert load.residual(load.at_s) < 0


def test_it_travels() -> None:
    load = fed(5.0, [60.0]).done(1.0, 3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(load), type=NodeLoad) == load


@pytest.mark.parametrize(("messages", "last_ns"), [(-1, 0), (0, -1)])
def test_negative_counters_are_refused(messages: int, last_ns: int) -> None:
    with pytest.raises(LocalFault, match="negative"):
        NodeLoad(capacity=1.0, at_s=0.0).counted(messages, last_ns)


@pytest.mark.parametrize(("busy_s", "inputs"), [(-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, -1)])
def test_impossible_receipts_are_refused(busy_s: float, inputs: int) -> None:
    with pytest.raises(LocalFault, match="busy"):
        NodeLoad(capacity=1.0, at_s=0.0).done(busy_s, inputs)


def test_capacity_is_where_the_execution_time_begins_to_climb() -> None:
    samples = [(1.0, 0.10), (10.0, 0.10), (20.0, 0.12), (30.0, 0.14), (40.0, 0.30), (50.0, 0.10)]
    assert saturation(samples) == pytest.approx(30.0 * 0.14)
    assert saturation([(2.0, 0.5)]) == 1.0
    with pytest.raises(LocalFault, match="at least one"):
        saturation([])
    with pytest.raises(LocalFault, match="positive"):
        saturation([(0.0, 0.5)])


def served(load: NodeLoad, queue: float, from_s: float, to_s: float) -> NodeLoad:
    """A node that has folds of a second in service, so many at a time."""
    for second in range(round(from_s), round(to_s)):
        load = load.passed(second + 0.5).done(queue, 4)
    return load


def test_the_papers_smoothing_keeps_seven_tenths_of_q_at_each_interval() -> None:
    load = served(NodeLoad(capacity=8.0, at_s=0.0, smoothing="queue"), 2.0, 0, 120)
    assert load.queue(119.0) == 0.0, "before the first interval is over it is k * E, and none was counted"
    assert load.queue(120.0) == pytest.approx(2.0)
    load = served(load, 4.0, 120, 240)
    assert load.queue(239.0) == pytest.approx(2.0)
    assert load.queue(240.0) == pytest.approx(0.7 * 2.0 + 0.3 * 4.0)
    assert load.residual(240.0) == 8.0 - load.queue(240.0)
    assert load.queue(480.0) == pytest.approx(0.7**2 * load.queue(240.0)), "in two intervals nothing came"


@settings(max_examples=50, deadline=None)
@given(looks_s=st.lists(st.floats(0, 2000), max_size=20))
def test_how_often_an_interval_is_looked_at_makes_no_difference(looks_s: list[float]) -> None:
    load = served(NodeLoad(capacity=8.0, at_s=0.0, smoothing="queue"), 3.0, 0, 300)
    looked = load
    for at_s in sorted(looks_s):
        looked = looked.passed(at_s)
    assert looked.queue(2000.0) == pytest.approx(load.queue(2000.0))


@pytest.mark.parametrize("smoothing", ["queue", "rate-and-time"])
def test_what_a_node_tells_others_is_its_queue_whatever_the_smoothing(smoothing: Smoothing) -> None:
    load = served(fed(5.0, [300.0]).done(1.0, 10), 2.0, 300, 600)
    load = msgspec.structs.replace(load, smoothing=smoothing)
    assert load.told_rate(600.0) * load.execution_s == pytest.approx(load.queue(600.0))
    assert NodeLoad(capacity=1.0, at_s=0.0, smoothing=smoothing).told_rate(9.0) == 0.0

"""A round is closed, and its model does not come: what is late is given up as if its node were dead, or the round."""

from __future__ import annotations

import math

import pytest
from coordinator_scene import (
    ARRIVED,
    CLOSED,
    EPOCH,
    FORGETTING,
    HOME,
    NUMBER,
    OPEN,
    B,
    C,
    Led,
    Scene,
    members,
)

from lifl.core.coordinator.branch_record import BranchState
from lifl.core.coordinator.round import Phase
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o

LIMIT_S = 630.0
"""Twice the five minutes of a task, and half a minute."""


def closed(scene: Scene, updates: int = 1) -> None:
    """The home's branch tells that it is closed."""
    scene.handle(o.BranchClosed(NUMBER, EPOCH, 0, updates))


@pytest.mark.parametrize("state", [OPEN, CLOSED])
def test_a_branch_that_does_not_come_in_time_is_given_up_and_its_node_drops_it(state: BranchState) -> None:
    scene = Scene(goal=3, nodes=(HOME, B, C))
    branches = [(HOME, 1, CLOSED), (B, 1, state), (C, 1, ARRIVED)]
    scene.has_round(Phase.AGGREGATING, branches, accepted={"c1": 0, "c2": 1, "c3": 2})
    closed(scene)
    assert scene.coordinator.next_timer() == LIMIT_S
    assert scene.do(scene.coordinator.tick, at=LIMIT_S - 1.0) == Led()
    led = scene.do(scene.coordinator.tick, at=LIMIT_S)
    assert led.orders == [(HOME, o.ForgetBranch(NUMBER, EPOCH, 1)), (B, o.DropBranch(NUMBER, EPOCH, 1))]
    assert scene.states() == {0: CLOSED, 1: FORGETTING, 2: ARRIVED}
    scene.here("c2")
    led = scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1))
    assert [conn for conn, _ in led.said(cm.Selected)] == [2]
    assert scene.round.phase is Phase.COLLECTING


def test_what_comes_meanwhile_gives_the_rest_more_time() -> None:
    scene = Scene(goal=3, nodes=(HOME, B, C))
    branches = [(HOME, 1, CLOSED), (B, 1, CLOSED), (C, 1, CLOSED)]
    scene.has_round(Phase.AGGREGATING, branches, accepted={"c1": 0, "c2": 1, "c3": 2})
    closed(scene)
    scene.handle(o.BranchSealed(NUMBER, EPOCH, 1, {}), node=B, at=300.0)
    assert scene.coordinator.next_timer() == 300.0 + LIMIT_S
    scene.handle(o.PartialArrived(NUMBER, EPOCH, 1, members("c2"), 0), at=500.0)
    assert scene.coordinator.next_timer() == 500.0 + LIMIT_S
    led = scene.do(scene.coordinator.tick, at=500.0 + LIMIT_S)
    assert led.ordered(o.DropBranch) == [(C, o.DropBranch(NUMBER, EPOCH, 2))]


def test_without_a_branch_that_is_late_the_round_fails_and_is_tried_again() -> None:
    scene = Scene(goal=2, nodes=(HOME, B), attempts=2, aggregation={"task_deadline_s": 10.0})
    scene.here("c1", "c2")
    branches = [(HOME, 2, CLOSED), (B, 0, CLOSED)]
    scene.has_round(Phase.AGGREGATING, branches, accepted={"c1": 0, "c2": 0})
    closed(scene, 2)
    led = scene.do(scene.coordinator.tick, at=50.0)
    (fields,) = led.named("round.failed")
    assert fields["reason"] == (
        "no model was made within 50 s of what had come (twice aggregation.task_deadline_s, and 30 s)"
    )
    assert (scene.round.phase, scene.round.attempt) == (Phase.COLLECTING, 2)


def test_a_round_that_collects_has_no_such_deadline() -> None:
    scene = Scene(goal=2, nodes=(HOME, B))
    round_ = scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, OPEN)], accepted={"c1": 0})
    scene.handle(o.BranchSealed(NUMBER, EPOCH, 1, {}), node=B)
    assert round_.aggregate_until_s == math.inf
    assert scene.coordinator.next_timer() == 100.0

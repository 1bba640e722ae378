"""A granted update is sealed, or will not come; a branch's partial is sealed, or cannot be."""

from __future__ import annotations

import pytest
from coordinator_scene import (
    ARRIVED,
    CLOSED,
    EPOCH,
    FORGETTING,
    HOME,
    NUMBER,
    OPEN,
    RECOVERING,
    B,
    Led,
    Scene,
    accepted_event,
    members,
    sealed,
)

from lifl.core.coordinator.branch_record import BranchState
from lifl.core.coordinator.receipt import updates_of
from lifl.core.coordinator.round import Phase
from lifl.core.ids import epoch_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o

TOO_LATE = "the round closed before this update was complete"


def test_an_update_that_is_sealed_is_accepted_and_only_now_its_client_is_told() -> None:
    scene = Scene()
    scene.here("c1")
    round_ = scene.has_round(granted={"c1": 0})
    led = scene.handle(sealed("c1"), at=5.0)
    assert led == Led(told=[(HOME, 1, cm.Accepted("j", 1))], events=[accepted_event("c1")])
    assert (list(round_.accepted), round_.granted, round_.places) == (["c1"], {}, {"c1": 0})
    assert (round_.received_bytes, round_.last_accepted_s, round_.phase) == (10, 5.0, Phase.COLLECTING)


def test_its_digest_is_noted_also_of_one_that_an_earlier_life_has_accepted_and_never_changes() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    round_ = scene.has_round(branches=[(HOME, 2, OPEN), (B, 1, OPEN)], granted={"c1": 0}, accepted={"c2": 0, "c3": 1})
    for client, branch, digest in (("c1", 0, 7), ("c2", 0, 8), ("c2", 0, 9), ("c3", 0, 5)):
        scene.handle(o.UpdateSealed(NUMBER, EPOCH, branch, client, 10, digest))
    assert updates_of(round_) == {"c1": (1.0, 7), "c2": (1.0, 8), "c3": (1.0, 0)}
    assert round_.received_bytes == 10


def test_the_digests_in_a_partial_are_those_of_its_members() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    round_ = scene.has_round(branches=[(HOME, 1, OPEN), (B, 2, OPEN)], accepted={"c1": 1})
    scene.handle(o.PartialArrived(NUMBER, EPOCH, 1, members("c1", "c2"), 0, digests=(6, 0)))
    assert updates_of(round_) == {"c1": (1.0, 6), "c2": (1.0, 0)}


def test_the_last_update_of_the_goal_closes_the_round() -> None:
    scene = Scene()
    scene.has_round(accepted={"c1": 0}, granted={"c2": 0, "c3": 0})
    led = scene.handle(sealed("c2"))
    assert led == Led(orders=[(HOME, o.CloseBranch(NUMBER, EPOCH, 0))], events=[accepted_event("c2")])
    assert scene.round.phase is Phase.AGGREGATING


def test_a_round_on_several_nodes_closes_each_branch_that_is_not_closed() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    branches = [(HOME, 1, OPEN), (B, 1, CLOSED), (B, 1, FORGETTING), (B, 1, RECOVERING)]
    scene.has_round(branches=branches, accepted={"c1": 1, "c2": 3}, granted={"c3": 0})
    led = scene.handle(sealed("c3"))
    closed = [(HOME, o.CloseBranch(NUMBER, EPOCH, 0)), (B, o.CloseBranch(NUMBER, EPOCH, 3))]
    assert led.ordered(o.CloseBranch) == closed == led.orders


@pytest.mark.parametrize("why", ["another epoch", "not granted", "another branch"])
def test_what_is_said_of_another_update_changes_nothing(why: str) -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 1, OPEN)], granted={"c1": 0})
    epoch = EPOCH if why != "another epoch" else epoch_of(1, 2)
    client, branch = ("c1" if why != "not granted" else "c2"), int(why == "another branch")
    assert scene.handle(sealed(client, branch, epoch)) == Led()
    assert scene.handle(o.UpdateAborted(NUMBER, epoch, branch, client)) == Led()
    assert list(scene.round.granted) == ["c1"]
    assert not scene.round.accepted


def test_a_report_on_a_job_that_does_not_run_or_from_a_node_that_is_gone_is_dropped() -> None:
    scene = Scene()
    scene.has_round(granted={"c1": 0})
    assert scene.handle(sealed("c1"), node=B) == Led()
    assert scene.handle(o.UpdateSealed(NUMBER + 1, EPOCH, 0, "c1", 10)) == Led()
    assert list(scene.round.granted) == ["c1"]


def test_an_update_that_will_not_come_leaves_its_place_to_another() -> None:
    scene = Scene()
    scene.here("c1")
    round_ = scene.has_round(granted={"c1": 0})
    assert scene.handle(o.UpdateAborted(NUMBER, EPOCH, 0, "c1")) == Led()
    assert (round_.granted, round_.places, list(round_.selected)) == ({}, {}, ["c1"])


def test_one_that_will_not_come_to_a_closed_round_is_told_so() -> None:
    scene = Scene()
    scene.here("c1", "c2")
    scene.has_round(Phase.AGGREGATING, accepted={"c1": 0}, granted={"c2": 0})
    led = scene.handle(o.UpdateAborted(NUMBER, EPOCH, 0, "c2"))
    assert led == Led(told=[(HOME, 2, cm.RoundOver("j", 1, TOO_LATE))])


def test_a_branch_that_is_closed_has_what_it_says() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.has_round(Phase.AGGREGATING, [(HOME, 2, OPEN), (B, 2, OPEN)], accepted={"c1": 0, "c2": 1})
    assert scene.handle(o.BranchClosed(NUMBER, EPOCH, 1, 1), node=B) == Led()
    assert (scene.branch(1).state, scene.branch(1).updates) == (BranchState.CLOSED, 1)  # OPEN -> CLOSED


def test_when_all_are_closed_the_top_is_told_how_many_partials_come() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    branches = [(HOME, 2, OPEN), (B, 1, CLOSED), (B, 0, CLOSED), (B, 1, ARRIVED)]
    scene.has_round(Phase.AGGREGATING, branches, accepted={"c1": 0, "c2": 1, "c3": 3})
    led = scene.handle(o.BranchClosed(NUMBER, EPOCH, 0, 1))
    assert led == Led(orders=[(HOME, o.ExpectPartials(NUMBER, EPOCH, 2))])
    assert (scene.round.expected, scene.round.others_max) == (2, 2)
    assert scene.handle(o.BranchClosed(NUMBER, EPOCH, 0, 1)) == Led()  # it was told


@pytest.mark.parametrize("state", [RECOVERING, FORGETTING])
def test_of_a_branch_that_is_asked_about_it_does_not_matter_that_it_is_closed(state: BranchState) -> None:
    scene = Scene(nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, state)])
    assert scene.handle(o.BranchClosed(NUMBER, EPOCH, 1, 0), node=B) == Led()
    assert (scene.branch(1).state, scene.branch(1).updates) == (state, 1)


@pytest.mark.parametrize("report", [o.BranchClosed(NUMBER, EPOCH, 4, 0), o.BranchForgotten(NUMBER, EPOCH, 4)])
def test_a_branch_that_is_not_there_is_not_minded(report: o.Report) -> None:
    scene = Scene()
    scene.has_round()
    assert scene.handle(report) == Led()
    assert scene.handle(o.BranchAdopted(NUMBER, EPOCH, 4, ())) == Led()
    assert scene.handle(o.PartialArrived(NUMBER, EPOCH, 4, (), 0)) == Led()
    assert scene.handle(o.BranchSealed(NUMBER, EPOCH, 4, {})) == Led()
    assert scene.handle(o.BranchSealed(NUMBER, epoch_of(3, 1), 0, {})) == Led()


def test_the_cost_of_a_partial_is_kept_for_the_receipt() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, CLOSED)])
    assert scene.handle(o.BranchSealed(NUMBER, EPOCH, 1, {"sent_bytes": 7}), node=B) == Led()
    assert scene.branch(1).cost == {"sent_bytes": 7}


@pytest.mark.parametrize("state", [OPEN, CLOSED, RECOVERING, FORGETTING])
def test_a_partial_that_the_top_has_counts_whatever_became_of_its_branch(state: BranchState) -> None:
    scene = Scene(goal=4, nodes=(HOME, B))
    scene.here("c1", "c2", "c3", node=B)
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 3, state)], accepted={"c1": 1}, granted={"c2": 1, "c3": 1})
    led = scene.handle(o.PartialArrived(NUMBER, EPOCH, 1, members("c1", "c2"), 500), at=3.0)
    assert led == Led(told=[(B, 2, cm.Accepted("j", 1))], events=[accepted_event("c2")])
    assert (scene.branch(1).state, scene.branch(1).updates) == (ARRIVED, 2)
    assert (sorted(scene.round.accepted), scene.round.granted) == (["c1", "c2"], {})  # c3 is not in it
    assert scene.round.between_bytes == 500
    assert scene.handle(o.PartialArrived(NUMBER, EPOCH, 1, members("c1", "c2"), 500)) == Led()  # told twice
    assert scene.round.between_bytes == 500


def test_a_partial_may_bring_the_goal() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, CLOSED), (B, 1, CLOSED)], accepted={"c1": 0}, granted={"c2": 1})
    led = scene.handle(o.PartialArrived(NUMBER, EPOCH, 1, members("c2"), 0))
    assert scene.round.phase is Phase.AGGREGATING
    assert led.orders == [(HOME, o.ExpectPartials(NUMBER, EPOCH, 1))]


def test_a_branch_that_arrived_before_it_was_told_closed_keeps_what_the_top_has() -> None:
    scene = Scene(goal=4, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 2, ARRIVED)], accepted={"c1": 1, "c2": 1})
    assert scene.handle(o.BranchClosed(NUMBER, EPOCH, 1, 2), node=B) == Led()
    assert (scene.branch(1).state, scene.branch(1).updates) == (ARRIVED, 2)


def test_a_branch_that_cannot_be_finished_fails_the_round_or_the_job() -> None:
    scene = Scene()
    scene.here("c1")
    scene.has_round(accepted={"c1": 0})
    assert scene.handle(o.BranchFailed(NUMBER, epoch_of(1, 9), "another attempt's", retry=True)) == Led()
    led = scene.handle(o.BranchFailed(NUMBER, EPOCH, "no memory", retry=True))
    assert led.orders[0] == (HOME, o.DropBranch(NUMBER, EPOCH))
    assert led.told[0] == (HOME, 1, cm.RoundOver("j", 1, "no memory"))
    assert (scene.round.attempt, scene.round.phase) == (2, Phase.WAITING)
    led = scene.handle(o.BranchFailed(NUMBER, epoch_of(1, 2), "the rule raised", retry=False))
    assert (scene.job.status, scene.job.reason) == ("failed", "the rule raised")
    assert led.ordered(o.CloseJob) == [(HOME, o.CloseJob(NUMBER))]
    assert scene.handle(o.BranchFailed(NUMBER, EPOCH, "too late", retry=True)) == Led()

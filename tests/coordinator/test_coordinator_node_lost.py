"""A node is silent, dead, about to go, or lost its gateway: what it had is asked for again, elsewhere."""

from __future__ import annotations

import pytest
from coordinator_scene import (
    ARRIVED,
    B,
    C,
    CLOSED,
    EPOCH,
    FORGETTING,
    HOME,
    NUMBER,
    OPEN,
    RECOVERING,
    Led,
    Scene,
    members,
    sealed,
)

from lifl.core.coordinator.branch_record import BranchState
from lifl.core.coordinator.round import Phase
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm


def forget(branch: int) -> tuple[int, o.ForgetBranch]:
    return HOME, o.ForgetBranch(NUMBER, EPOCH, branch)


@pytest.mark.parametrize("state", [OPEN, CLOSED, RECOVERING])
def test_the_top_is_asked_whether_it_has_what_a_dead_node_made(state: BranchState) -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.here("c2", node=B)
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 1, state)], accepted={"c2": 1})
    led = scene.do(scene.coordinator.node_gone, B)
    assert led == Led(orders=[forget(1)])
    assert scene.states() == {0: OPEN, 1: FORGETTING}
    assert list(scene.round.accepted) == ["c2"]  # until the top has said so
    assert (B in scene.coordinator.nodes, dict(scene.job.present)) == (False, {})


@pytest.mark.parametrize("state", [ARRIVED, FORGETTING])
def test_what_the_top_has_or_is_asked_about_is_not_asked_again(state: BranchState) -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 1, state)], accepted={"c2": 1})
    assert scene.do(scene.coordinator.node_gone, B) == Led()


def test_a_node_that_is_not_there_cannot_go() -> None:
    scene = Scene()
    scene.has_round()
    assert scene.do(scene.coordinator.node_gone, B) == Led()
    assert scene.do(scene.coordinator.node_suspect, B, True) == Led()
    assert scene.handle(p.Draining(), node=B) == Led()


def test_a_dead_node_without_a_round_changes_nothing() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.running()
    assert scene.do(scene.coordinator.node_gone, B) == Led()


def test_what_is_lost_is_asked_for_again_from_clients_that_are_here_into_another_branch() -> None:
    scene = Scene(goal=4, nodes=(HOME,))
    scene.here("c2", "c3")
    branches = [(HOME, 1, OPEN), (B, 3, FORGETTING)]
    scene.has_round(branches=branches, accepted={"c1": 0, "c2": 1, "c4": 1}, granted={"c3": 1}, others_max=5)
    led = scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1), at=20.0)
    assert led.named("branch.lost") == [{"round": 1, "node": f"{B:016x}", "updates": 2}]
    assert led.orders == [
        (HOME, o.AwaitBranch(NUMBER, EPOCH, 2)),
        (HOME, o.OpenBranch(NUMBER, EPOCH, 2, 3)),
    ]
    assert [conn for conn, _message in led.said(cm.Selected)] == [2, 3]
    assert led.said(cm.Selected)[0][1].deadline_s == 80.0
    assert [row.fields["parts"] for row in led.rows] == [[[0, f"{HOME:016x}", 1], [2, f"{HOME:016x}", 3]]]
    assert (list(scene.round.accepted), scene.round.granted) == (["c1"], {})
    assert scene.states() == {0: OPEN, 2: OPEN}  # FORGETTING -> DROPPED


def test_a_round_that_was_closed_collects_once_more() -> None:
    scene = Scene(goal=2)
    scene.here("c2")
    branches = [(HOME, 1, CLOSED), (B, 1, FORGETTING)]
    scene.has_round(Phase.AGGREGATING, branches, accepted={"c1": 0, "c2": 1}, others_max=5)
    led = scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1), at=20.0)
    assert scene.round.phase is Phase.COLLECTING  # AGGREGATING -> COLLECTING
    assert scene.round.deadline_at_s == 100.0
    assert led.ordered(o.OpenBranch) == [(HOME, o.OpenBranch(NUMBER, EPOCH, 2, 1))]
    assert [conn for conn, _message in led.said(cm.Selected)] == [2]


def test_after_its_deadline_it_gets_another_one() -> None:
    scene = Scene(goal=2)
    branches = [(HOME, 1, CLOSED), (B, 1, FORGETTING)]
    scene.has_round(Phase.AGGREGATING, branches, accepted={"c1": 0, "c2": 1}, others_max=5)
    scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1), at=150.0)
    assert (scene.round.phase, scene.round.deadline_at_s) == (Phase.COLLECTING, 250.0)


@pytest.mark.parametrize("why", ["a quorum is there", "none was accepted"])
def test_a_closed_round_goes_on_without_what_is_lost_when_it_can(why: str) -> None:
    scene = Scene(goal=2, quorum=1)
    accepted = {"c1": 0, "c2": 1} if why == "a quorum is there" else {"c1": 0}
    scene.has_round(Phase.AGGREGATING, [(HOME, 1, CLOSED), (B, 1, FORGETTING)], accepted=accepted)
    led = scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1), at=150.0)
    assert scene.round.phase is Phase.AGGREGATING
    assert led.orders == [(HOME, o.ExpectPartials(NUMBER, EPOCH, 0))]


def test_a_branch_that_was_not_given_up_is_not_forgotten() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, OPEN)])
    assert scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1)) == Led()
    assert scene.states() == {0: OPEN, 1: OPEN}


def test_an_update_that_was_given_up_and_is_on_its_way_elsewhere_is_not_accepted_where_it_was() -> None:
    scene = Scene(goal=3, nodes=(HOME, B, C))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, OPEN), (C, 1, OPEN)], granted={"c1": 2})
    assert scene.handle(sealed("c1", branch=1), node=B) == Led()
    assert list(scene.round.granted) == ["c1"]


def test_without_a_node_that_can_take_it_the_round_says_that_it_is_short() -> None:
    scene = Scene(goal=4, nodes=(HOME, B), arena_bytes={HOME: 1000, B: 1000})
    scene.here("c2")
    branches = [(HOME, 1, OPEN), (C, 3, FORGETTING)]
    scene.has_round(branches=branches, accepted={"c1": 0, "c2": 1}, others_max=5)
    scene.branch(0).updates_max = 3
    led = scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1))
    ((fields),) = led.named("round.short")
    assert (fields["round"], fields["missing"]) == (1, 3)
    assert not led.ordered(o.OpenBranch)
    assert scene.branch(0).updates == 3  # its tree has leaves for so many


def test_a_silent_node_gets_nothing_new_until_it_is_heard() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.here("c1", "c2")
    scene.has_round(Phase.WAITING, [])
    assert scene.do(scene.coordinator.node_suspect, B, True) == Led()
    assert [facts.node for facts in scene.coordinator.nodes.facts(0.0)] == [f"{HOME:016x}"]
    led = scene.do(scene.coordinator.node_suspect, B, False)
    assert len(scene.coordinator.nodes.facts(0.0)) == 2
    assert led.named("round.opened")  # it waited


def test_a_node_that_is_about_to_go_closes_with_what_it_has_and_the_rest_goes_elsewhere() -> None:
    scene = Scene(goal=5, nodes=(HOME, B))
    branches = [(HOME, 1, OPEN), (B, 3, OPEN), (B, 1, CLOSED)]
    scene.has_round(branches=branches, accepted={"c1": 1, "c3": 2}, granted={"c2": 1}, others_max=6)
    led = scene.handle(p.Draining(), node=B)
    assert led.orders == [
        (HOME, o.AwaitBranch(NUMBER, EPOCH, 3)),
        (HOME, o.OpenBranch(NUMBER, EPOCH, 3, 1)),
        (B, o.CloseBranch(NUMBER, EPOCH, 1)),
    ]
    assert (scene.branch(1).updates, scene.branch(1).state) == (2, OPEN)
    assert scene.coordinator.nodes.get(B).leaving
    assert [facts.node for facts in scene.coordinator.nodes.facts(0.0)] == [f"{HOME:016x}"]


@pytest.mark.parametrize("round_", [True, False])
def test_a_node_that_is_about_to_go_from_a_closed_round_just_closes(round_: bool) -> None:
    scene = Scene(nodes=(HOME, B))
    scene.running()
    if round_:
        scene.has_round(Phase.AGGREGATING, [(HOME, 1, CLOSED), (B, 1, OPEN)], accepted={"c1": 0, "c2": 1})
    led = scene.handle(p.Draining(), node=B)
    assert led == Led(orders=[(B, o.CloseBranch(NUMBER, EPOCH, 1))] if round_ else [])


def test_a_lost_gateway_takes_its_connections_along_and_others_are_selected() -> None:
    scene = Scene(goal=2, nodes=(HOME, B))
    scene.here("c1", "c2", node=B)
    scene.here("c3")
    scene.has_round(branches=[(HOME, 2, OPEN)], accepted={"c1": 0}, selected=["c2"])
    led = scene.handle(gm.GatewayLost(), node=B)
    assert dict(scene.job.present).keys() == {"c3"}
    assert [conn for conn, _message in led.said(cm.Selected)] == [3]
    assert list(scene.round.accepted) == ["c1"]


def test_members_of_a_partial_that_arrives_late_are_believed_in_the_round_that_gave_it_up() -> None:
    scene = Scene(goal=3, nodes=(HOME,))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 1, FORGETTING)], granted={"c1": 1})
    scene.handle(o.PartialArrived(NUMBER, EPOCH, 1, members("c1"), 0))
    assert scene.states() == {0: OPEN, 1: ARRIVED}  # FORGETTING -> ARRIVED
    assert list(scene.round.accepted) == ["c1"]

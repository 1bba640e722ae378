"""The plan of a round is made, and renewed while it collects: what is not granted yet moves."""

from __future__ import annotations

import pytest
from coordinator_scene import ARRIVED, CLOSED, EPOCH, FORGETTING, HOME, LAYOUT, NUMBER, OPEN, B, C, Led, Scene, joined

from lifl.core import effects as fx
from lifl.core.coordinator import round_planner
from lifl.core.coordinator.round import Phase
from lifl.core.coordinator.round_planner import SPARE_PARTIALS
from lifl.core.errors import Refused
from lifl.core.planning.arena_need import beside_bytes_min, model_bytes, round_bytes_min
from lifl.core.planning.plan import Plan, PlanRequest
from lifl.core.protocol import commands as o

WORST = {"placement": "worst-fit"}


def test_a_round_on_several_nodes_is_planned_saved_and_opened_with_spare_places_at_the_top() -> None:
    scene = Scene(goal=4, nodes=(HOME, B), capacity={HOME: 2.0, B: 2.0}, aggregation=WORST)
    scene.here("c1", "c2", "c3")
    scene.has_round(Phase.WAITING, [])
    led = scene.handle(joined("c4"), at=5.0)
    top = o.OpenBranch(NUMBER, EPOCH, 0, 2, (1,), 4)
    assert led.orders == [(HOME, top), (B, o.OpenBranch(NUMBER, EPOCH, 1, 2, parent="home:1"))]
    parts = [[0, f"{HOME:016x}", 2], [1, f"{B:016x}", 2]]
    assert led.rows == [fx.SaveRound("j", 1, 1, "open", {"parts": parts, "next_part": 2})]
    assert led.plans == 1
    round_ = scene.round
    assert (round_.phase, round_.others_max, round_.opened_at_s, round_.deadline_at_s) == (
        Phase.COLLECTING,
        5,
        5.0,
        105.0,
    )
    assert round_.replan_at_s == 1005.0


def test_where_spare_places_would_not_fit_there_are_none() -> None:
    need = round_bytes_min(LAYOUT, Scene(goal=4).spec.config.aggregation, 4, 0, 1 + SPARE_PARTIALS)
    for arena_bytes, spare in ((need - 1, 0), (need, SPARE_PARTIALS)):
        capacity = {HOME: 2.0, B: 2.0}
        scene = Scene(goal=4, nodes=(HOME, B), capacity=capacity, arena_bytes={HOME: arena_bytes}, aggregation=WORST)
        scene.here("c1", "c2", "c3", "c4")
        scene.has_round(Phase.WAITING, [])
        led = scene.do(scene.coordinator.node_suspect, B, False)
        assert led.ordered(o.OpenBranch)[0][1].spare == spare


def test_the_next_renewal_has_its_time() -> None:
    scene = Scene(goal=4, nodes=(HOME, B))
    round_ = scene.has_round(branches=[(HOME, 4, OPEN)], others_max=4)
    round_.replan_at_s = 10.0
    assert scene.coordinator.next_timer() == 10.0
    led = scene.do(scene.coordinator.tick, at=10.0)
    assert led == Led(plans=1)  # and nothing moves
    assert round_.replan_at_s == 1010.0


def test_alone_nothing_is_planned_anew() -> None:
    scene = Scene(goal=4)
    scene.has_round(branches=[(HOME, 4, OPEN)]).replan_at_s = 10.0
    assert scene.do(scene.coordinator.tick, at=10.0) == Led()


def test_a_top_without_places_takes_no_other_branch() -> None:
    scene = Scene(goal=4, nodes=(HOME, B))
    branches = [(HOME, 2, OPEN), (B, 2, OPEN)]
    scene.has_round(branches=branches, others_max=1).replan_at_s = 10.0
    assert scene.do(scene.coordinator.tick, at=10.0) == Led()


def test_what_is_not_granted_goes_to_the_node_that_has_room_now_and_clients_are_told_anew() -> None:
    scene = Scene(goal=4, nodes=(HOME, B, C), capacity={HOME: 1.0, B: 1.0, C: 8.0}, aggregation=WORST)
    round_ = scene.has_round(branches=[(HOME, 2, OPEN), (B, 2, OPEN)], accepted={"c1": 0}, others_max=5)
    for client in ("c2", "c3"):
        round_.selected[client] = None
        round_.assign(client, HOME)
    round_.replan_at_s = 10.0
    led = scene.do(scene.coordinator.tick, at=10.0)
    assert led.orders == [
        (HOME, o.AwaitBranch(NUMBER, EPOCH, 2)),
        (C, o.OpenBranch(NUMBER, EPOCH, 2, 3, parent="home:1")),
    ]
    assert {number: record.updates for number, record in round_.branches.items()} == {0: 1, 1: 0, 2: 3}
    assert led.events == [("round.replanned", {"round": 1, "parts": 3})]
    assert round_.assigned == {}


def _held_at_home(scene: Scene, places: int) -> int:
    """What the top and a branch of four updates need beside each other, when no other node sends a partial."""
    section = scene.spec.config.aggregation
    branch = beside_bytes_min(LAYOUT, section, 4, 4)
    return max(model_bytes(LAYOUT) + branch, round_bytes_min(LAYOUT, section, 0, 0, places, 4, coming=1))


@pytest.mark.parametrize("lacks", [0, 1])
def test_what_moves_comes_only_where_all_branches_of_the_round_fit_beside_each_other(lacks: int) -> None:
    """A round failed for want of room in an arena that held each of its branches, and not all."""
    capacity = {HOME: 8.0, B: 0.0}
    scene = Scene(goal=4, nodes=(HOME, B), capacity=capacity, aggregation=WORST)
    section = scene.spec.config.aggregation
    with_b = round_bytes_min(LAYOUT, section, 0, 0, 5, 4, coming=1) + beside_bytes_min(LAYOUT, section, 4, 4)
    need = max(with_b, round_bytes_min(LAYOUT, section, 0, 0, 5, 4, coming=2))
    scene.coordinator.nodes.get(HOME).arena_bytes = need - lacks
    round_ = scene.has_round(branches=[(HOME, 0, OPEN), (B, 4, OPEN)], others_max=5)
    round_.replan_at_s = 10.0
    led = scene.do(scene.coordinator.tick, at=10.0)
    opened = [] if lacks else [(HOME, o.OpenBranch(NUMBER, EPOCH, 2, 4))]
    assert led.ordered(o.OpenBranch) == opened
    assert scene.branch(1).updates == (4 if lacks else 0)


@pytest.mark.parametrize("lacks", [0, 1])
def test_what_is_lost_waits_for_room_rather_than_have_no_place(lacks: int) -> None:
    scene = Scene(goal=4, nodes=(HOME, B), capacity={B: 0.0}, aggregation=WORST)
    scene.coordinator.nodes.get(HOME).arena_bytes = _held_at_home(scene, 5) - lacks
    scene.coordinator.nodes.get(B).leaving = True
    scene.has_round(branches=[(HOME, 0, OPEN), (B, 4, FORGETTING)], others_max=5)
    led = scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1))
    assert led.ordered(o.OpenBranch) == [(HOME, o.OpenBranch(NUMBER, EPOCH, 2, 4))]


def test_an_open_branch_is_widened_as_far_as_its_tree_has_leaves() -> None:
    scene = Scene(goal=6, nodes=(HOME, B), capacity={HOME: 0.5, B: 8.0}, aggregation=WORST)
    branches = [(HOME, 3, OPEN), (B, 3, OPEN)]
    round_ = scene.has_round(branches=branches, accepted={"c1": 0}, granted={"c2": 1}, others_max=5)
    round_.branches[1].updates_max = 4
    round_.replan_at_s = 10.0
    led = scene.do(scene.coordinator.tick, at=10.0)
    assert {number: record.updates for number, record in round_.branches.items()} == {0: 1, 1: 4, 2: 1}
    assert led.orders[1] == (B, o.OpenBranch(NUMBER, EPOCH, 2, 1, parent="home:1"))


def test_with_more_nodes_than_places_the_first_new_branch_takes_the_rest() -> None:
    capacity = {HOME: 0.0, B: 2.0, C: 2.0}
    scene = Scene(goal=4, nodes=(HOME, B, C), capacity=capacity, aggregation=WORST)
    round_ = scene.has_round(branches=[(HOME, 4, OPEN)], others_max=1)
    round_.replan_at_s = 10.0
    led = scene.do(scene.coordinator.tick, at=10.0)
    ((node, opened),) = led.ordered(o.OpenBranch)
    assert (node, opened.updates) == (B, 4)
    assert (round_.branches[1].updates, round_.branches[1].updates_max) == (4, 4)


def test_a_branch_that_is_closed_with_nothing_leaves_its_place_and_one_that_arrived_does_not() -> None:
    scene = Scene(goal=4, nodes=(HOME, B, C), capacity={HOME: 0.0, B: 0.0, C: 8.0}, aggregation=WORST)
    branches = [(HOME, 3, OPEN), (B, 0, CLOSED), (B, 1, ARRIVED)]
    scene.has_round(branches=branches, accepted={"c1": 2}, others_max=2).replan_at_s = 10.0
    led = scene.do(scene.coordinator.tick, at=10.0)
    assert led.ordered(o.OpenBranch) == [(C, o.OpenBranch(NUMBER, EPOCH, 3, 3, parent="home:1"))]


def test_a_branch_that_closes_with_less_leaves_the_rest_to_others() -> None:
    scene = Scene(goal=4, nodes=(HOME, B))
    branches = [(HOME, 2, OPEN), (B, 2, OPEN)]
    scene.has_round(branches=branches, accepted={"c1": 1}, others_max=5)
    scene.branch(0).updates_max = 4
    scene.coordinator.nodes.get(B).leaving = True
    led = scene.handle(o.BranchClosed(NUMBER, EPOCH, 1, 1), node=B)
    assert led == Led(plans=1)
    assert (scene.branch(0).updates, scene.branch(1).updates) == (3, 1)


def test_a_closed_branch_that_is_full_leaves_nothing() -> None:
    scene = Scene(goal=4, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 2, OPEN)], accepted={"c1": 1, "c2": 1})
    assert scene.handle(o.BranchClosed(NUMBER, EPOCH, 1, 2), node=B) == Led()


def test_alone_a_tree_that_fits_is_enough_whatever_the_planner_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_request: PlanRequest) -> Plan:
        raise Refused("too-large", "model", "it would like more")

    monkeypatch.setattr(round_planner, "make_plan", refuse)
    scene = Scene(goal=4)
    scene.here("c1", "c2", "c3", "c4")
    scene.has_round(Phase.WAITING, [])
    led = scene.do(scene.coordinator.node_suspect, HOME, False)
    assert led.ordered(o.OpenBranch) == [(HOME, o.OpenBranch(NUMBER, EPOCH, 0, 4))]
    assert led.plans == 0


def test_alone_one_that_does_not_fit_waits() -> None:
    scene = Scene(goal=4, arena_bytes={HOME: 1000})
    scene.here("c1", "c2", "c3", "c4")
    scene.has_round(Phase.WAITING, [])
    led = scene.do(scene.coordinator.node_suspect, HOME, False)
    assert led.named("round.waiting")
    assert led.orders == []

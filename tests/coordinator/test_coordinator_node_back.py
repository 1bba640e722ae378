"""A node is connected, for the first time or again, and says what it has."""

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
    C,
    Led,
    Scene,
    accepted_event,
    held,
    members,
)

from lifl.core.coordinator.branch_record import BranchState
from lifl.core.coordinator.round import Phase
from lifl.core.ids import epoch_of
from lifl.core.planning.capacity import NodeLoad
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o


def inventory(*branches: p.BranchHeld, jobs: tuple[int, ...] = (NUMBER,)) -> p.Inventory:
    """What a node in the same life says."""
    return p.Inventory(jobs, branches)


FRESH = p.Inventory()
"""What a node in a new life says."""


GIVEN_UP = [(HOME, o.ForgetBranch(NUMBER, EPOCH, 1)), (B, o.DropBranch(NUMBER, EPOCH, 1))]
"""The node is to free branch 1, and the top to say whether it has its partial."""


def beyond_opening(led: Led) -> list[tuple[int, object]]:
    """The orders beside those that tell the node of the job."""
    assert len(led.ordered(o.OpenJob)) == len(led.ordered(o.ModelAt)) == 1
    return [(node, order) for node, order in led.orders if not isinstance(order, o.OpenJob | o.ModelAt)]


def test_a_new_node_takes_part_when_it_has_said_what_it_has() -> None:
    scene = Scene(states=("m",))
    scene.here("c1", "c2")
    scene.running(1)
    scene.has_round(Phase.WAITING, [], number=2)
    assert scene.do(scene.coordinator.node_up, scene.node(B)) == Led()
    assert len(scene.coordinator.nodes.facts(0.0)) == 1
    led = scene.handle(FRESH, node=B)
    aggregation, tensors = scene.spec.config.aggregation, scene.spec.layout.tensors
    assert [(node, order) for node, order in led.orders if node == B] == [
        (B, o.OpenJob(NUMBER, "j", aggregation, 2, tensors, ("m",), 1)),
        (B, o.ModelAt(NUMBER, 1, "home:1")),
    ]
    assert led.named("round.opened")
    assert len(scene.coordinator.nodes.facts(0.0)) == 2


def test_a_node_that_takes_no_part_says_nothing() -> None:
    scene = Scene()
    scene.running()
    assert scene.handle(FRESH, node=B) == Led()


def test_jobs_that_do_not_run_are_closed_at_the_node() -> None:
    scene = Scene(nodes=(HOME, B))
    led = scene.handle(p.Inventory((7, 8), (), (9,)), node=B)
    assert led == Led(orders=[(B, o.CloseJob(7)), (B, o.CloseJob(8)), (B, o.CloseJob(9))])


def test_a_connection_that_is_made_anew_keeps_the_load_and_loses_the_clients() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.here("c1", node=B)
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, OPEN)], accepted={"c1": 1})
    load = scene.coordinator.nodes.get(B).load = NodeLoad(8.0, 1.0, 2.0, 3.0)
    assert scene.do(scene.coordinator.node_up, scene.node(B)) == Led()
    assert scene.coordinator.nodes.get(B).load is load
    assert not scene.coordinator.nodes.get(B).known
    assert dict(scene.job.present) == {}
    assert scene.states() == {0: OPEN, 1: OPEN}


@pytest.mark.parametrize("state", [OPEN, CLOSED])
def test_a_node_in_a_new_life_may_have_what_was_sealed(state: BranchState) -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, state), (B, 1, ARRIVED)], accepted={"c1": 1, "c2": 2})
    assert scene.do(scene.coordinator.node_up, scene.node(B, incarnation=2)) == Led()
    assert scene.states() == {0: OPEN, 1: RECOVERING, 2: ARRIVED}
    led = scene.handle(FRESH, node=B)
    assert led.ordered(o.OpenJob)[0][1].adopt
    # It has what is in another branch, too: for that all would be given up, and what was accepted asked for again.
    again = o.OpenBranch(NUMBER, EPOCH, 1, 1, parent="home:1", adopt=True, without=("c2",))
    assert beyond_opening(led) == [(B, again)]
    assert scene.states() == {0: OPEN, 1: RECOVERING, 2: ARRIVED}
    assert scene.handle(adopted("c1"), node=B).orders == []
    assert (scene.states(), scene.round.places) == ({0: OPEN, 1: OPEN, 2: ARRIVED}, {"c1": 1, "c2": 2})


def test_a_node_in_a_new_life_whose_branch_had_nothing_has_nothing() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 0, RECOVERING)])
    led = scene.handle(FRESH, node=B)
    assert beyond_opening(led) == [(HOME, o.ForgetBranch(NUMBER, EPOCH, 1))]
    assert scene.states() == {0: OPEN, 1: FORGETTING}


@pytest.mark.parametrize("state", [OPEN, CLOSED, RECOVERING])
@pytest.mark.parametrize("jobs", [(), (NUMBER,)])
def test_a_branch_that_the_node_has_not_is_given_up(state: BranchState, jobs: tuple[int, ...]) -> None:
    if state is RECOVERING and not jobs:
        return  # a new life: see above
    scene = Scene(goal=3, nodes=(HOME, B))
    branches = [(HOME, 1, OPEN), (B, 1, state), (B, 1, FORGETTING)]
    scene.has_round(branches=branches, accepted={"c1": 1})
    led = scene.handle(inventory(jobs=jobs), node=B)
    assert beyond_opening(led) == [(HOME, o.ForgetBranch(NUMBER, EPOCH, 1))]
    assert scene.states() == {0: OPEN, 1: FORGETTING, 2: FORGETTING}


def test_a_node_is_believed_about_an_open_branch() -> None:
    scene = Scene(goal=6, nodes=(HOME, B))
    scene.here("c2", "c4", node=B)
    scene.has_round(branches=[(HOME, 3, OPEN), (B, 3, OPEN)], accepted={"c1": 1}, granted={"c2": 1, "c3": 1})
    led = scene.handle(inventory(held(1, ["c1", "c2"], ["c4"])), node=B)
    assert led.told == [(B, 2, cm.Accepted("j", 1))]
    assert led.events == [accepted_event("c2")]
    assert beyond_opening(led) == []
    assert (sorted(scene.round.accepted), list(scene.round.granted)) == (["c1", "c2"], ["c4"])
    assert (scene.branch(1).updates, scene.branch(1).updates_max) == (3, 3)


def test_a_branch_that_takes_more_than_its_row_said_has_leaves_for_that() -> None:
    scene = Scene(goal=6, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 3, OPEN), (B, 1, RECOVERING)])
    scene.handle(inventory(held(1, ["c1"], ["c2", "c3"])), node=B)
    assert scene.states()[1] is OPEN  # RECOVERING -> OPEN
    assert (scene.branch(1).updates, scene.branch(1).updates_max) == (3, 3)


@pytest.mark.parametrize("state", [OPEN, CLOSED, RECOVERING])
def test_a_branch_that_was_closed_meanwhile_is_closed_with_what_it_has(state: BranchState) -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 2, state)], accepted={"c1": 1}, granted={"c2": 1})
    led = scene.handle(inventory(held(1, ["c1"], ["c2"], closed=True)), node=B)
    assert beyond_opening(led) == []
    assert (scene.branch(1).state, scene.branch(1).updates) == (CLOSED, 1)  # OPEN, RECOVERING -> CLOSED
    assert not scene.round.granted


def test_in_a_round_that_is_closed_the_branch_is_to_be_closed_too() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    branches = [(HOME, 1, CLOSED), (B, 2, OPEN)]
    scene.has_round(Phase.AGGREGATING, branches, accepted={"c1": 0, "c2": 1})
    led = scene.handle(inventory(held(1, ["c2"])), node=B)
    assert beyond_opening(led) == [(B, o.CloseBranch(NUMBER, EPOCH, 1))]


def test_what_a_node_has_may_bring_the_goal() -> None:
    scene = Scene(goal=2, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, OPEN)], accepted={"c1": 0}, granted={"c2": 1})
    led = scene.handle(inventory(held(1, ["c2"])), node=B)
    assert scene.round.phase is Phase.AGGREGATING
    assert beyond_opening(led) == [(HOME, o.CloseBranch(NUMBER, EPOCH, 0)), (B, o.CloseBranch(NUMBER, EPOCH, 1))]


@pytest.mark.parametrize("state", [ARRIVED, FORGETTING])
def test_of_a_branch_that_the_top_has_or_is_asked_about_the_node_is_not_asked(state: BranchState) -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 1, state)], accepted={"c1": 1})
    led = scene.handle(inventory(held(1, ["c1", "c2"])), node=B)
    assert beyond_opening(led) == []
    assert scene.states() == {0: OPEN, 1: state}
    assert list(scene.round.accepted) == ["c1"]


@pytest.mark.parametrize("state", [OPEN, CLOSED, RECOVERING])
def test_a_branch_whose_partial_is_at_home_already_is_dropped_and_its_places_are_filled(state: BranchState) -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, state), (B, 1, ARRIVED)], accepted={"c1": 0, "c2": 2})
    scene.branch(0).updates_max = 2
    led = scene.handle(inventory(held(1, ["c1"])), node=B)
    assert beyond_opening(led) == GIVEN_UP
    led = scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1))
    assert scene.states() == {0: OPEN, 2: ARRIVED}  # FORGETTING -> DROPPED
    assert scene.branch(0).updates == 2
    assert [number for number, *_ in led.rows[-1].fields["parts"]] == [0, 2]


@pytest.mark.parametrize("state", [OPEN, CLOSED, RECOVERING])
def test_a_branch_whose_update_has_come_to_another_top_since_its_node_said_so_is_dropped(state: BranchState) -> None:
    """The connection broke behind its word; who coordinated before had its partial by then, and has said so."""
    scene = Scene(goal=3, nodes=(HOME, B, C))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 1, state), (C, 1, OPEN)], accepted={"c1": 2})
    led = scene.handle(inventory(held(1, [], ["c1"])), node=B)
    assert beyond_opening(led) == GIVEN_UP
    scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1))
    assert scene.states().get(2) is OPEN and 1 not in scene.states()
    assert (list(scene.round.accepted), scene.round.granted) == (["c1"], {})
    scene.coordinator.validate()


@pytest.mark.parametrize("state", [OPEN, CLOSED, RECOVERING])
def test_of_a_branch_with_an_update_that_is_elsewhere_too_the_others_are_not_forgotten(state: BranchState) -> None:
    """One client has heard nothing of its update, and has sent it to another node; the other one waits."""
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 1, state)], accepted={"c2": 1}, granted={"c1": 0})
    led = scene.handle(inventory(held(1, ["c1", "c2"])), node=B)
    assert beyond_opening(led) == GIVEN_UP
    assert scene.states() == {0: OPEN, 1: FORGETTING}
    assert scene.round.places == {"c1": 0, "c2": 1}


@pytest.mark.parametrize("phase", [Phase.COLLECTING, Phase.AGGREGATING])
def test_what_the_top_takes_after_all_of_such_a_branch_counts_and_who_has_the_same_is_given_up(phase: Phase) -> None:
    """Its partial was on its way to the top, of which the node's word says nothing."""
    scene = Scene(goal=3, nodes=(HOME, B, C))
    branches = [(HOME, 1, CLOSED), (B, 1, CLOSED), (C, 2, CLOSED)]
    scene.has_round(phase, branches, accepted={"c1": 0, "c2": 2, "c3": 2})
    led = scene.handle(inventory(held(1, ["c2"], closed=True)), node=B)
    assert beyond_opening(led) == GIVEN_UP
    led = scene.handle(o.PartialArrived(NUMBER, EPOCH, 1, members("c2"), 0))
    assert led.ordered(o.DropBranch) == [(C, o.DropBranch(NUMBER, EPOCH, 2))]
    assert scene.states() == {0: CLOSED, 1: ARRIVED, 2: FORGETTING}
    scene.handle(o.BranchForgotten(NUMBER, EPOCH, 2))
    assert scene.round.places == {"c1": 0, "c2": 1}, "c3 is asked again"


def test_a_branch_that_was_closed_is_opened_again_with_all_the_leaves_that_its_row_names() -> None:
    """The next coordinator knows the row alone, and grants as many; the node's tree had leaves for fewer."""
    scene = Scene(goal=5, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 4, RECOVERING)], accepted={"c1": 1})
    scene.branch(1).updates = 1  # it was closed with that
    led = scene.handle(FRESH, node=B)
    assert beyond_opening(led) == [(B, o.OpenBranch(NUMBER, EPOCH, 1, 4, parent="home:1", adopt=True))]
    scene.handle(o.BranchAdopted(NUMBER, EPOCH, 1, members("c1")), node=B)
    assert scene.branch(1).updates_max == 4 and list(scene.round.accepted) == ["c1"]


def test_branches_that_are_none_of_the_round_are_dropped_unless_their_round_is_being_saved() -> None:
    scene = Scene(nodes=(HOME, B, C))
    scene.running()
    scene.is_saving(1, ["c1"])
    scene.has_round(branches=[(HOME, 1, OPEN), (C, 1, OPEN)], number=2)
    scene.job.rounds.committed = 0
    of_another_node = p.BranchHeld(NUMBER, epoch_of(2, 1), 1, (), (), False)
    other_attempt = p.BranchHeld(NUMBER, epoch_of(2, 7), 1, (), (), False)
    other_job = p.BranchHeld(9, epoch_of(2, 7), 1, (), (), False)
    led = scene.handle(inventory(of_another_node, other_attempt, held(1, ["c1"]), other_job), node=B)
    dropped = [(B, o.DropBranch(NUMBER, epoch_of(2, 1), 1)), (B, o.DropBranch(NUMBER, epoch_of(2, 7), 1))]
    assert beyond_opening(led) == dropped


def test_without_a_running_round_all_of_it_is_dropped() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.running(2)
    led = scene.handle(inventory(held(1, ["c1"])), node=B)
    assert beyond_opening(led) == [(B, o.DropBranch(NUMBER, EPOCH, 1))]


# ---- a new life adopts what the one before it had sealed -----------------------------------------------------------


def adopted(*clients: str) -> o.BranchAdopted:
    return o.BranchAdopted(NUMBER, EPOCH, 1, members(*clients))


def test_what_is_adopted_counts_and_what_was_on_its_way_is_asked_for_again() -> None:
    scene = Scene(goal=5, nodes=(HOME, B))
    scene.here("c2", "c3", node=B)
    branches = [(HOME, 2, OPEN), (B, 3, RECOVERING)]
    scene.has_round(branches=branches, accepted={"c1": 1}, granted={"c2": 1, "c3": 1})
    led = scene.handle(adopted("c1", "c2"), node=B)
    assert led.said(cm.Accepted) == [(2, cm.Accepted("j", 1))]
    assert [conn for conn, _message in led.said(cm.Selected)] == [3]
    assert led.orders == []
    assert scene.states() == {0: OPEN, 1: OPEN}
    assert (sorted(scene.round.accepted), scene.round.granted) == (["c1", "c2"], {})
    assert (scene.branch(1).updates, scene.branch(1).updates_max) == (3, 3)


def test_in_a_round_that_is_closed_what_is_adopted_is_closed_at_once() -> None:
    scene = Scene(goal=2, nodes=(HOME, B))
    branches = [(HOME, 1, CLOSED), (B, 1, RECOVERING)]
    scene.has_round(Phase.AGGREGATING, branches, accepted={"c1": 0, "c2": 1})
    led = scene.handle(adopted("c2"), node=B)
    assert led == Led(orders=[(B, o.CloseBranch(NUMBER, EPOCH, 1))])
    assert scene.round.phase is Phase.AGGREGATING


@pytest.mark.parametrize("why", ["nothing", "less than was accepted", "at home", "in another partial"])
def test_what_does_not_fit_the_books_is_dropped_and_the_branch_given_up(why: str) -> None:
    scene = Scene(goal=5, nodes=(HOME, B, C))
    scene.here("c1", node=B)
    branches = [(HOME, 2, OPEN), (B, 2, RECOVERING), (C, 1, ARRIVED)]
    scene.has_round(branches=branches, accepted={"c1": 1, "c2": 0, "c3": 2})
    clients = {"nothing": [], "less than was accepted": ["c9"], "at home": ["c1", "c2"]}.get(why, ["c1", "c3"])
    led = scene.handle(adopted(*clients), node=B)
    dropped = [(HOME, o.ForgetBranch(NUMBER, EPOCH, 1)), (B, o.DropBranch(NUMBER, EPOCH, 1))]
    assert led == Led(orders=dropped)
    assert scene.states()[1] is FORGETTING
    assert sorted(scene.round.accepted) == ["c1", "c2", "c3"]


@pytest.mark.parametrize("state", [OPEN, CLOSED, FORGETTING, ARRIVED])
def test_a_branch_that_is_not_recovering_adopts_nothing(state: BranchState) -> None:
    scene = Scene(goal=4, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 2, state)], accepted={"c1": 1})
    assert scene.handle(adopted("c1", "c2"), node=B) == Led()
    assert scene.states()[1] is state

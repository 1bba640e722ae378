"""A node is drained: it finishes what it has, gets nothing new, and may be taken back."""

from __future__ import annotations

import pytest
from coordinator_scene import CLOSED, EPOCH, HOME, NUMBER, OPEN, RECOVERING, B, C, Led, Scene, admit, held, joined

from lifl.core.coordinator import drains
from lifl.core.coordinator.branch_record import BranchState
from lifl.core.coordinator.nodes import Node
from lifl.core.coordinator.round import Phase
from lifl.core.errors import LocalFault, Refused
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm

ARRIVED, FORGETTING = BranchState.ARRIVED, BranchState.FORGETTING
DRAIN, UNDO = o.DrainNode(), o.DrainNode(undo=True)


def scene_of(goal: int = 2, **more: object) -> Scene:
    """Three nodes, which all know of drains."""
    scene = Scene(goal=goal, nodes=(HOME, B, C), **more)  # type: ignore[arg-type]
    for number in (B, C):
        node_of(scene, number).knows |= {p.DRAIN}
    return scene


def node_of(scene: Scene, number: int) -> Node:
    node = scene.coordinator.nodes.get(number)
    assert node is not None
    return node


def drain(scene: Scene, number: int = B, undo: bool = False) -> Led:
    return scene.do(drains.drain, scene.coordinator, number, undo)


def planned_with(scene: Scene) -> set[int]:
    return {int(facts.node, 16) for facts in scene.coordinator.nodes.facts(0.0)}


def state(scene: Scene, number: int = B) -> str:
    return drains.state_of(scene.coordinator, number)


def test_what_a_drained_node_was_still_to_get_goes_elsewhere_and_it_closes_behind_what_is_under_way() -> None:
    scene = scene_of(goal=5)
    branches = [(HOME, 1, OPEN), (B, 3, OPEN), (B, 1, CLOSED)]
    scene.has_round(branches=branches, accepted={"c1": 1, "c3": 2}, granted={"c2": 1}, others_max=6)
    led = drain(scene)
    assert led.orders[0] == (HOME, o.AwaitBranch(NUMBER, EPOCH, 3)) and led.ordered(o.DrainNode) == [(B, DRAIN)]
    assert all(node != B for node, _ in led.ordered(o.OpenBranch)) and len(led.ordered(o.OpenBranch)) == 1
    assert not led.ordered(o.CloseBranch)
    assert scene.branch(1).updates == 2, "what is under way still comes"
    assert planned_with(scene) == {HOME, C}
    led = scene.handle(o.UpdateSealed(NUMBER, EPOCH, 1, "c2", 10))
    assert led.ordered(o.CloseBranch) == [(B, o.CloseBranch(NUMBER, EPOCH, 1))]
    assert list(scene.round.accepted) == ["c1", "c3", "c2"]


def test_what_was_under_way_there_in_vain_goes_elsewhere() -> None:
    scene = scene_of(goal=3)
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 2, OPEN)], accepted={"c1": 1}, granted={"c2": 1}, others_max=5)
    assert not drain(scene).ordered(o.CloseBranch)
    led = scene.handle(o.UpdateAborted(NUMBER, EPOCH, 1, "c2"))
    assert led.ordered(o.CloseBranch) == [(B, o.CloseBranch(NUMBER, EPOCH, 1))]
    assert len(led.ordered(o.OpenBranch)) == 1 and led.ordered(o.OpenBranch)[0][0] != B
    assert scene.branch(1).updates == 1


def test_a_branch_with_nothing_under_way_closes_at_once() -> None:
    scene = scene_of(goal=3)
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 2, OPEN)], accepted={"c1": 1}, others_max=5)
    assert drain(scene).ordered(o.CloseBranch) == [(B, o.CloseBranch(NUMBER, EPOCH, 1))]
    assert scene.branch(1).updates == 1


@pytest.mark.parametrize("places", [0, 3])
def test_its_clients_are_sent_elsewhere_and_only_what_has_no_place_there_is_still_granted(places: int) -> None:
    """Where the top has room for no other partial, the round could not end without it."""
    scene = scene_of(goal=3)
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 1, OPEN)], selected=["c1", "c2", "c3"], others_max=1 + places)
    scene.here("c1", "c2", "c3", node=B)
    led = drain(scene)
    assert bool(led.ordered(o.CloseBranch)) is bool(places)
    led = scene.handle(admit("c1"), node=B)
    assert bool(led.ordered(o.Grant)) is not bool(places)
    if places:
        ((_, refusal),) = led.said(cm.Refusal)
        assert refusal.code == cm.USE_GATEWAY and refusal.field != "b:1"
        # Who comes back because it could not reach that is not taken here either.
        led = scene.handle(admit("c1"), node=B)
        assert led.said(cm.Refusal) and not led.orders


def test_what_it_has_counts() -> None:
    scene = scene_of(goal=2)
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, OPEN)], accepted={"c1": 1}, granted={"c2": 0})
    drain(scene)
    scene.handle(o.BranchClosed(NUMBER, EPOCH, 1, 1), node=B)
    scene.handle(o.UpdateSealed(NUMBER, EPOCH, 0, "c2", 10))
    assert scene.round.phase is Phase.AGGREGATING and list(scene.round.accepted) == ["c1", "c2"]
    scene.handle(o.PartialArrived(NUMBER, EPOCH, 1, (("c1", 1.0, {}),), 10))
    assert scene.states() == {0: OPEN, 1: ARRIVED}


def test_its_clients_that_go_have_broken_no_word() -> None:
    scene = scene_of(goal=2)
    scene.here("c1", "c2", node=B)
    scene.has_round(branches=[(HOME, 2, OPEN)], selected=["c1", "c2"])
    drain(scene)
    scene.handle(gm.ClientLeft(1), node=B)
    assert not scene.round.left
    scene.handle(joined("c1"), node=C)
    assert scene.job.present["c1"].node == C


def test_taken_back_it_is_planned_with_and_rounds_that_waited_for_it_begin() -> None:
    scene = scene_of(goal=2)
    scene.here("c1", "c2")
    drain(scene)
    drain(scene, C)
    assert planned_with(scene) == {HOME}
    scene.has_round(Phase.WAITING, [])
    led = drain(scene, undo=True)
    assert led.ordered(o.DrainNode) == [(B, UNDO)] and led.named("round.opened")
    assert planned_with(scene) == {HOME, B}


def test_to_drain_twice_and_to_take_back_what_is_not_drained_is_no_harm() -> None:
    scene = scene_of()
    assert drain(scene, undo=True) == Led(orders=[(B, UNDO)])
    assert drain(scene) == drain(scene) == Led(orders=[(B, DRAIN)])
    assert planned_with(scene) == {HOME, C}


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(9, "unknown-node", "takes no part"), (HOME, "coordinator", "coordinates"), (C, "earlier-version", "lifl down")],
)
@pytest.mark.parametrize("undo", [False, True])
def test_what_cannot_be_drained_is_said_and_nothing_changes(number: int, code: str, told: str, undo: bool) -> None:
    scene = scene_of()
    node_of(scene, C).knows -= {p.DRAIN}
    with pytest.raises(Refused, match=told) as refused:
        drain(scene, number, undo)
    assert refused.value.code == code and scene.led() == Led()
    assert planned_with(scene) == {HOME, B, C}


def up(scene: Scene, number: int, incarnation: int = 1) -> None:
    """The node is connected (again), and has not said yet what it has."""
    node = scene.node(number, incarnation)
    node.knows = frozenset({p.QUOTAS, p.DRAIN})
    scene.do(scene.coordinator.node_up, node)


@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_of_a_node_that_comes_back_the_last_word_counts(wanted: bool, said: bool) -> None:
    """An order to a node that is not connected is lost."""
    scene = scene_of()
    drain(scene, undo=not wanted)
    up(scene, B)
    led = scene.handle(p.Inventory(drains=said), node=B)
    assert led.ordered(o.DrainNode) == ([] if wanted is said else [(B, o.DrainNode(undo=not wanted))])
    assert planned_with(scene) == ({HOME, C} if wanted else {HOME, B, C})


@pytest.mark.parametrize("said", [False, True])
def test_a_coordinator_that_has_not_heard_of_it_believes_the_node(said: bool) -> None:
    scene = scene_of()
    scene.here("c1", "c2")
    scene.coordinator.nodes.remove(B)
    up(scene, B)
    scene.has_round(Phase.WAITING, [])
    led = scene.handle(p.Inventory(drains=said), node=B)
    assert not led.ordered(o.DrainNode)
    assert planned_with(scene) == ({HOME, C} if said else {HOME, B, C})
    assert led.named("round.opened"), "and not with the node, which would get a branch before it is heard"
    assert bool([node for node, _ in led.ordered(o.OpenBranch) if node == B]) <= (not said)


def test_the_next_life_of_a_node_takes_part() -> None:
    scene = scene_of()
    drain(scene)
    up(scene, B, incarnation=2)
    scene.handle(p.Inventory(), node=B)
    assert planned_with(scene) == {HOME, B, C}


def test_an_earlier_coordinators_round_goes_on_and_a_drained_node_closes_when_all_is_known() -> None:
    """Not before: a closed branch would tell that the round was being closed."""
    scene = scene_of(goal=3)
    scene.has_round(Phase.RECOVERING, [(HOME, 3, OPEN), (B, 2, RECOVERING), (C, 1, RECOVERING)], others_max=4)
    node_of(scene, B).drains = None
    led = scene.handle(p.Inventory((NUMBER,), (held(1, ["c1"]),), drains=True), node=B)
    assert not led.ordered(o.CloseBranch) and scene.branch(1).open
    led = scene.handle(p.Inventory((NUMBER,), (held(2),)), node=C)
    assert scene.round.phase is Phase.COLLECTING
    assert led.ordered(o.CloseBranch) == [(B, o.CloseBranch(NUMBER, EPOCH, 1))]
    assert scene.branch(1).updates == 1


def test_it_is_drained_when_neither_clients_nor_updates_are_left() -> None:
    scene = scene_of(goal=3)
    assert state(scene) == state(scene, 9) == ""
    scene.here("c1", node=B)
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 2, OPEN), (C, 1, OPEN)], accepted={"c2": 1}, others_max=4)
    drain(scene)
    assert state(scene) == "draining" and state(scene, C) == ""
    scene.handle(gm.ClientLeft(1), node=B)
    assert state(scene) == "draining"
    scene.handle(o.BranchClosed(NUMBER, EPOCH, 1, 1), node=B)
    assert state(scene) == "draining"
    scene.handle(o.PartialArrived(NUMBER, EPOCH, 1, (("c2", 1.0, {}),), 10))
    assert state(scene) == "drained"
    drain(scene, undo=True)
    assert state(scene) == ""


@pytest.mark.parametrize(("branch", "found"), [((B, 0, CLOSED), "drained"), ((B, 0, OPEN), "draining")])
def test_a_closed_branch_without_updates_sends_nothing(branch: tuple[int, int, BranchState], found: str) -> None:
    scene = scene_of()
    scene.has_round(branches=[(HOME, 2, OPEN), branch])
    node_of(scene, B).drains = True
    assert state(scene) == found


def test_the_books_tell_of_a_coordinator_that_is_drained_itself() -> None:
    scene = scene_of()
    node_of(scene, HOME).drains = True
    with pytest.raises(LocalFault, match="drained"):
        scene.coordinator.validate()

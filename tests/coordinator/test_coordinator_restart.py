"""The coordinator starts again: what it finds in its database, in its own arena, and at the nodes that come back."""

from __future__ import annotations

from typing import Any

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

from lifl.core import effects as fx
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.recovery import NODE_RETURN_S
from lifl.core.coordinator.round import Phase
from lifl.core.ids import epoch_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o

OPENED = o.JobOpened(NUMBER)


def row(*parts: tuple[int, int, int]) -> dict[str, Any]:
    """A round's row: its branches by number, node and updates."""
    return {"parts": [[number, f"{node:016x}", updates] for number, node, updates in parts], "next_part": 5}


def resumed(scene: Scene, rows: dict[int, tuple[int, str, dict[str, Any]]], committed: int = 0, **more: Any) -> Job:
    """A job of an earlier life, whose model is being loaded."""
    job = scene.coordinator.make(scene.spec)
    job.resume(committed, {}, rows, more.get("adopting", False))
    scene.coordinator.start(job)
    scene.led()
    return job


def adopted(*clients: str, branch: int = 0) -> o.BranchAdopted:
    return o.BranchAdopted(NUMBER, EPOCH, branch, members(*clients))


# ---- the model is loaded ---------------------------------------------------------------------------------------------


def test_the_last_checkpoint_is_loaded_with_the_rules_state() -> None:
    scene = Scene(states=("m",))
    job = scene.coordinator.make(scene.spec)
    job.resume(2, {}, {}, True)
    led = scene.do(scene.coordinator.start, job)
    ((node, order),) = led.orders
    assert (node, order.round, order.adopt) == (HOME, 2, True)
    assert order.path == "/f/round-00002.safetensors"
    assert order.state_path == "/f/round-00002.state.safetensors"


def test_a_round_that_was_collecting_alone_adopts_what_is_sealed() -> None:
    scene = Scene()
    resumed(scene, {1: (1, "open", {})}, adopting=True)
    led = scene.handle(OPENED, at=3.0)
    assert led == Led(
        orders=[(HOME, o.OpenBranch(NUMBER, EPOCH, 0, 2, adopt=True))], events=[("job.running", {"rounds": 2})]
    )
    assert (scene.round.phase, scene.states()) == (Phase.RECOVERING, {0: RECOVERING})  # WAITING -> RECOVERING
    assert scene.coordinator.next_timer() == 3.0 + NODE_RETURN_S


def test_a_round_on_several_nodes_waits_for_them_and_the_top_has_places_for_theirs() -> None:
    scene = Scene(goal=5, nodes=(HOME, B))
    resumed(scene, {1: (1, "open", row((0, HOME, 1), (1, B, 2), (2, HOME, 1), (4, C, 1)))})
    led = scene.handle(OPENED)
    assert led.ordered(o.OpenBranch) == [(HOME, o.OpenBranch(NUMBER, EPOCH, 0, 5, (1, 4), 4, adopt=True))]
    assert led.ordered(o.OpenJob)[0][1].adopt  # B keeps what it has
    assert scene.states() == {0: RECOVERING, 1: RECOVERING, 4: RECOVERING}
    assert (scene.round.next_branch, scene.round.others_max) == (5, 6)


@pytest.mark.parametrize(
    ("rows", "adopting", "attempt", "why"),
    [
        ({}, True, 1, "it had not begun"),
        ({1: (1, "open", {})}, False, 1, "nothing is sealed"),
        ({1: (1, "failed", {})}, True, 2, "it had failed"),
        ({1: (3, "failed", row((0, HOME, 1)))}, False, 4, "it had failed on several nodes"),
    ],
)
def test_a_round_that_left_nothing_begins_anew(rows: dict[int, Any], adopting: bool, attempt: int, why: str) -> None:
    scene = Scene()
    resumed(scene, rows, adopting=adopting)
    led = scene.handle(OPENED)
    assert led.rows == [fx.SaveRound("j", 1, attempt, "open", {})], why
    assert (scene.round.phase, scene.round.attempt) == (Phase.WAITING, attempt)


def test_a_later_round_on_several_nodes_that_began_before_the_one_before_was_durable_begins_under_another_epoch() -> (
    None
):
    scene = Scene(nodes=(HOME, B))
    resumed(scene, {1: (1, "open", {}), 2: (1, "open", row((0, HOME, 1), (1, B, 1)))})
    scene.handle(OPENED)
    scene.has_round(Phase.AGGREGATING, [(HOME, 2, CLOSED)], accepted={"c1": 0, "c2": 0})
    led = scene.handle(o.ModelSealed(NUMBER, EPOCH, {}))
    assert led.rows == [fx.SaveRound("j", 2, 2, "open", {})]


def test_a_node_that_is_in_the_row_keeps_what_it_has_before_the_round_is_there() -> None:
    scene = Scene(nodes=(HOME, B, C))
    resumed(scene, {1: (1, "open", row((0, HOME, 1), (1, B, 1)))})
    led = scene.handle(OPENED)
    assert [(node, order.adopt) for node, order in led.ordered(o.OpenJob)] == [(B, True), (C, False)]


# ---- home, then the others -------------------------------------------------------------------------------------------


def recovering(scene: Scene, *others: tuple[int, int], quorum: int | None = None) -> None:
    """The round waits for its own arena and for branches 1, ... of (node, updates)."""
    branches = [(HOME, scene.spec.config.selection.clients_per_round, RECOVERING)]
    scene.has_round(Phase.RECOVERING, branches + [(node, updates, RECOVERING) for node, updates in others])
    scene.round.deadline_at_s = NODE_RETURN_S


def test_what_is_sealed_at_home_counts_and_the_round_goes_on() -> None:
    scene = Scene(goal=3)
    scene.here("c1", "c9")
    recovering(scene)
    led = scene.handle(adopted("c1", "c2"), at=4.0)
    assert led.said(cm.Accepted) == [(1, cm.Accepted("j", 1))]
    assert led.events == [accepted_event("c1"), accepted_event("c2"), ("round.adopted", {"round": 1, "accepted": 2})]
    assert [conn for conn, _message in led.said(cm.Selected)] == [9]
    assert led.rows == led.orders == []
    assert scene.states() == {0: OPEN}  # RECOVERING -> OPEN
    round_ = scene.round
    assert (round_.phase, round_.opened_at_s, round_.last_accepted_s) == (Phase.COLLECTING, 4.0, 4.0)
    assert (round_.deadline_at_s, round_.replan_at_s) == (104.0, 1004.0)


def test_where_nothing_was_sealed_the_round_waits_for_clients_as_at_its_beginning() -> None:
    scene = Scene(goal=3)
    recovering(scene)
    assert scene.handle(adopted(), at=4.0) == Led()
    assert (scene.round.phase, scene.round.deadline_at_s) == (Phase.WAITING, 104.0)  # RECOVERING -> WAITING
    assert scene.round.branches == {}  # OPEN -> DROPPED


def test_all_that_is_sealed_counts_even_beyond_the_goal() -> None:
    scene = Scene(goal=2, over_provision=2.0)
    recovering(scene)
    led = scene.handle(adopted("c1", "c2", "c3"))
    assert (scene.round.goal, scene.round.phase) == (3, Phase.AGGREGATING)
    assert led.ordered(o.CloseBranch) == [(HOME, o.CloseBranch(NUMBER, EPOCH, 0))]


def test_home_may_have_more_than_the_goal_while_the_others_are_waited_for() -> None:
    """Its branch was said to take no more than the goal: the books contradicted each other until all was known."""
    scene = Scene(goal=2, nodes=(HOME, B), over_provision=2.0)
    recovering(scene, (B, 1))
    scene.handle(adopted("c1", "c2", "c3"))
    assert (scene.round.phase, scene.branch(0).updates) == (Phase.RECOVERING, 3)
    scene.handle(p.Inventory((NUMBER,), (held(1, []),)), node=B)
    assert (scene.round.goal, scene.round.phase) == (3, Phase.AGGREGATING)


def test_home_says_it_once() -> None:
    scene = Scene(goal=3)
    recovering(scene)
    scene.handle(adopted("c1"))
    assert scene.handle(adopted("c1", "c2")) == Led()


def test_the_others_are_waited_for_and_what_they_have_counts() -> None:
    scene = Scene(goal=4, nodes=(HOME, B, C))
    recovering(scene, (B, 2), (C, 1))
    scene.handle(adopted("c1"))
    assert scene.round.phase is Phase.RECOVERING
    scene.handle(p.Inventory((NUMBER,), (held(1, ["c2"]),)), node=B)
    assert (scene.round.phase, scene.states()) == (Phase.RECOVERING, {0: OPEN, 1: OPEN, 2: RECOVERING})
    led = scene.handle(p.Inventory((NUMBER,), (held(2, ["c3"]),)), node=C)
    assert scene.round.phase is Phase.COLLECTING  # RECOVERING -> COLLECTING
    assert sorted(scene.round.accepted) == ["c1", "c2", "c3"]
    parts = [[0, f"{HOME:016x}", 1], [1, f"{B:016x}", 2], [2, f"{C:016x}", 1]]
    assert led.rows == [fx.SaveRound("j", 1, 1, "open", {"parts": parts, "next_part": 3})]
    assert (scene.branch(0).updates, scene.branch(0).updates_max) == (1, 1)


def test_a_round_that_was_being_closed_is_closed_with_a_quorum() -> None:
    scene = Scene(goal=4, quorum=2, nodes=(HOME, B))
    recovering(scene, (B, 2))
    scene.handle(adopted("c1"))
    led = scene.handle(p.Inventory((NUMBER,), (held(1, ["c2"], closed=True),)), node=B)
    assert scene.states()[1] is CLOSED  # RECOVERING -> CLOSED
    assert scene.round.phase is Phase.AGGREGATING
    assert led.ordered(o.CloseBranch) == [(HOME, o.CloseBranch(NUMBER, EPOCH, 0))]


def test_without_a_quorum_it_collects_on() -> None:
    scene = Scene(goal=4, quorum=3, nodes=(HOME, B))
    recovering(scene, (B, 2))
    scene.handle(adopted("c1"))
    scene.handle(p.Inventory((NUMBER,), (held(1, ["c2"], closed=True),)), node=B)
    assert scene.round.phase is Phase.COLLECTING


def test_a_node_in_a_new_life_is_asked_what_it_has_sealed() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    recovering(scene, (B, 2))
    scene.handle(adopted())
    led = scene.handle(p.Inventory(orphans=(NUMBER,)), node=B)
    assert led.ordered(o.OpenBranch) == [(B, o.OpenBranch(NUMBER, EPOCH, 1, 2, parent="home:1", adopt=True))]
    led = scene.handle(adopted("c1", branch=1), node=B)
    assert scene.round.phase is Phase.COLLECTING
    assert list(scene.round.accepted) == ["c1"]


def test_what_a_node_says_before_home_is_known_waits_for_that() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    recovering(scene, (B, 2))
    led = scene.handle(p.Inventory((NUMBER,), (held(1, ["c2"]),)), node=B)
    assert not led.told
    assert scene.states()[1] is RECOVERING
    led = scene.handle(adopted("c1"))
    assert sorted(scene.round.accepted) == ["c1", "c2"]
    assert scene.round.phase is Phase.COLLECTING


@pytest.mark.parametrize("books", ["no round", "a round"])
def test_what_becomes_of_updates_meanwhile_is_not_forgotten(books: str) -> None:
    """Else one that is sealed there would count as on its way for as long as the round collects."""
    scene = Scene(goal=6, nodes=(HOME, B))
    scene.here("c1", "c2", node=B)
    if books == "no round":
        resumed(scene, {1: (1, "open", row((0, HOME, 1), (1, B, 4)))})
    else:
        recovering(scene, (B, 4))
    on_their_way = held(1, ["c4"], ["c1", "c2", "c3"])
    for report in (
        p.Inventory((NUMBER,), (held(2, [], ["c1"]), on_their_way)),
        o.UpdateSealed(NUMBER, EPOCH, 1, "c1", 5),
        o.UpdateAborted(NUMBER, EPOCH, 1, "c2"),
        o.UpdateSealed(NUMBER, EPOCH, 1, "c9", 5),  # of whom it has not said anything
        o.BranchClosed(NUMBER, EPOCH, 1, 2),
        o.BranchSealed(NUMBER, EPOCH, 1, {}),
    ):
        led = scene.handle(report, node=B)
        assert not led.told and not led.rows and not led.ordered(o.DropBranch)
    if books == "no round":
        scene.handle(OPENED)
    led = scene.handle(adopted())
    assert (sorted(scene.round.accepted), scene.round.granted) == (["c1", "c4"], {})
    assert led.said(cm.Accepted) == [(1, cm.Accepted("j", 1))]
    assert (scene.branch(1).state, scene.branch(1).updates) == (CLOSED, 2)


def test_what_a_node_says_while_the_model_is_loaded_waits_for_the_round() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    resumed(scene, {})
    assert scene.handle(p.Inventory((NUMBER,), (held(1, ["c2"]),)), node=B) == Led()
    led = scene.handle(OPENED)
    assert led.ordered(o.DropBranch) == [(B, o.DropBranch(NUMBER, EPOCH, 1))]
    assert scene.round.phase is Phase.WAITING


def test_of_a_node_that_is_gone_before_the_round_is_there_nothing_is_known() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    resumed(scene, {1: (1, "open", row((0, HOME, 1), (1, B, 2)))})
    scene.handle(p.Inventory((NUMBER,), (held(1, ["c2"]),)), node=B)
    assert scene.do(scene.coordinator.node_gone, B) == Led()
    scene.handle(OPENED)
    scene.handle(adopted())
    assert (scene.round.phase, scene.states()) == (Phase.RECOVERING, {0: OPEN, 1: RECOVERING})


def test_nodes_that_do_not_come_back_in_time_are_given_up() -> None:
    scene = Scene(goal=3)
    recovering(scene, (B, 2), (C, 1))
    scene.handle(adopted("c1"))
    scene.round.branches[2].state = ARRIVED
    led = scene.do(scene.coordinator.tick, at=NODE_RETURN_S)
    assert led == Led(orders=[(HOME, o.ForgetBranch(NUMBER, EPOCH, 1))])
    led = scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1))
    assert led.named("branch.lost")
    assert scene.round.phase is Phase.COLLECTING


def test_a_top_that_has_not_said_what_it_has_is_asked_then() -> None:
    scene = Scene(goal=3)
    recovering(scene, (B, 2))
    assert scene.do(scene.coordinator.tick, at=NODE_RETURN_S) == Led()
    assert scene.states() == {0: RECOVERING, 1: FORGETTING}
    led = scene.handle(adopted("c1"))
    assert led.orders == [(HOME, o.ForgetBranch(NUMBER, EPOCH, 1))]
    assert scene.round.phase is Phase.RECOVERING


def test_a_partial_that_comes_while_the_round_recovers_settles_its_branch() -> None:
    scene = Scene(goal=3)
    recovering(scene, (B, 2))
    scene.handle(adopted("c1"))
    scene.handle(o.PartialArrived(NUMBER, EPOCH, 1, members("c2"), 0))
    assert (scene.round.phase, scene.states()) == (Phase.COLLECTING, {0: OPEN, 1: ARRIVED})


def test_a_round_that_cannot_recover_is_tried_again() -> None:
    scene = Scene()
    recovering(scene)
    scene.handle(o.BranchFailed(NUMBER, EPOCH, "arena damaged", retry=True))
    assert (scene.round.attempt, scene.round.phase) == (2, Phase.WAITING)  # RECOVERING -> FAILED
    assert scene.job.rounds.at(epoch_of(1, 2)) is scene.round

"""An update is announced: it is granted, or its client is told why not, where, or when."""

from __future__ import annotations

import pytest
from coordinator_scene import CLOSED, EPOCH, HOME, NUMBER, OPEN, RECOVERING, B, Led, Scene, admit

from lifl.core.coordinator.round import Phase
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol.contribution import Contribution


def refused(led: Led) -> cm.Refusal:
    """The one thing that was led to."""
    ((_node, _conn, message),) = led.told
    assert isinstance(message, cm.Refusal)
    assert led == Led(told=led.told)
    return message


def test_a_selected_client_is_granted_a_place_in_the_branch_where_it_is() -> None:
    scene = Scene()
    round_ = scene.has_round(selected=["c1", "c2"])
    led = scene.handle(admit("c1", metrics={"loss": 2.0}, direct=True))
    grant = o.Grant(NUMBER, EPOCH, 0, 1, "c1", 1.0, {"loss": 2.0}, True)
    assert led == Led(orders=[(HOME, grant)])
    assert round_.granted == {"c1": Contribution("c1", 1.0, {"loss": 2.0})}
    assert round_.places == {"c1": 0}


def test_one_that_comes_is_not_awaited_any_more_and_is_again_when_its_update_will_not_come() -> None:
    scene = Scene(nodes=(HOME, B))
    round_ = scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, OPEN)], selected=["c1"])
    round_.assign("c1", B)
    scene.handle(admit("c1"))  # it comes to another node than it was told
    assert (round_.places, round_.assigned, +round_._awaited) == ({"c1": 0}, {"c1": B}, {})
    scene.handle(o.UpdateAborted(NUMBER, EPOCH, 0, "c1"))
    assert (round_.places, round_.assigned, +round_._awaited) == ({}, {"c1": B}, {B: 1})


def test_one_that_is_granted_already_is_to_ask_again() -> None:
    scene = Scene()
    scene.has_round(granted={"c1": 0})
    assert scene.handle(admit("c1", conn=7)) == Led(told=[(HOME, 7, cm.Busy("j", 1, 1.0))])


@pytest.mark.parametrize("where", ["running", "saving", "counted"])
def test_one_that_is_in_the_round_already_gets_the_first_ones_answer(where: str) -> None:
    scene = Scene()
    if where == "running":
        scene.has_round(accepted={"c1": 0})
    else:
        scene.running()
        scene.is_saving(1, ["c1"])
    if where == "counted":
        scene.job.rounds.commit(scene.job.rounds.saving.pop())
    assert scene.handle(admit("c1")) == Led(told=[(HOME, 1, cm.Accepted("j", 1))])


def test_while_the_model_is_loaded_or_a_node_may_have_the_update_it_is_to_ask_again() -> None:
    scene = Scene()
    scene.loading()
    busy = Led(told=[(HOME, 1, cm.Busy("j", 1, 0.2))])
    assert scene.handle(admit("c1")) == busy
    scene.running()
    scene.has_round(Phase.RECOVERING, [(HOME, 2, RECOVERING)])
    assert scene.handle(admit("c1")) == busy


def test_a_round_that_is_over_or_has_not_begun_is_refused() -> None:
    scene = Scene()
    scene.running(1)
    assert refused(scene.handle(admit("c1"))).text == "round 1 of job 'j' is over; wait for the next selection"
    scene.has_round(number=2, selected=["c1"])
    assert refused(scene.handle(admit("c1", round_=1))).code == "round-over"
    ahead = refused(scene.handle(admit("c1", round_=3)))
    assert (ahead.code, ahead.field) == ("wrong-round", "round")
    assert ahead.text == "round 3 of job 'j' has not begun: the job is at round 2"


def test_one_that_is_not_selected_is_refused() -> None:
    scene = Scene()
    scene.has_round(selected=["c1"])
    refusal = refused(scene.handle(admit("c9")))
    assert (refusal.code, refusal.field, refusal.job, refusal.round) == ("not-selected", "client", "j", 1)


def test_a_round_that_is_closed_takes_no_more() -> None:
    scene = Scene()
    scene.has_round(Phase.AGGREGATING, accepted={"c1": 0}, selected=["c2"])
    refusal = refused(scene.handle(admit("c2")))
    assert (refusal.code, refusal.text) == (
        "round-over",
        "round 1 of job 'j' takes no more updates; wait for the next selection",
    )


def test_an_unknown_job_is_refused() -> None:
    refusal = refused(Scene().handle(admit("c1")))
    assert (refusal.code, refusal.job, refusal.round) == ("unknown-job", "j", 1)


def test_of_one_branch_alone_the_first_ones_count_whoever_comes() -> None:
    scene = Scene(over_provision=2.0)
    scene.has_round(granted={"c1": 0, "c2": 0}, selected=["c3"])
    assert scene.handle(admit("c3")).ordered(o.Grant)


@pytest.mark.parametrize("leaves", [0, 1])
def test_the_last_branch_takes_no_more_than_its_tree_has_leaves_for_when_the_others_are_lost(leaves: int) -> None:
    scene = Scene(goal=2, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, leaves, OPEN)], granted={"c1": 0} if leaves else {}, selected=["c2"])
    assert scene.handle(admit("c2")) == Led(told=[(HOME, 2, cm.Busy("j", 1, 1.0))])


def test_where_the_branch_is_full_or_there_is_none_another_gateway_is_named() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, OPEN)], granted={"c1": 0}, selected=["c2"])
    refusal = refused(scene.handle(admit("c2")))
    assert (refusal.code, refusal.field) == ("use-gateway", "b:1")
    assert refusal.text == "round 1 of job 'j' takes this update at another node: submit to b:1"


def test_the_one_branch_elsewhere_takes_it_full_or_not() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.has_round(granted={"c1": 0, "c2": 0}, selected=["c3"])
    refusal = refused(scene.handle(admit("c3"), node=B))
    assert (refusal.code, refusal.field) == ("use-gateway", "home:1")


def test_where_nothing_is_free_anywhere_it_is_to_ask_again() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, CLOSED)], granted={"c1": 0}, accepted={"c3": 1}, selected=["c2"])
    assert scene.handle(admit("c2")) == Led(told=[(HOME, 2, cm.Busy("j", 1, 1.0))])


@pytest.mark.parametrize("why", ["unknown", "leaving", "gone"])
def test_a_node_that_takes_no_grants_sends_its_clients_elsewhere(why: str) -> None:
    scene = Scene(nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 1, OPEN)], selected=["c2"])
    node = scene.coordinator.nodes.get(B)
    node.known, node.leaving = why != "unknown", why == "leaving"
    if why == "gone":
        scene.coordinator.nodes.remove(B)
    assert refused(scene.handle(admit("c2"), node=B)).field == "home:1"
    assert not scene.round.granted


def test_one_that_asks_over_another_connection_ends_what_it_left_behind_on_the_first() -> None:
    """That may be at a node which it cannot reach any more, and whose gateway waits for the rest of its update."""
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 2, OPEN)], selected=["c1"])
    assert scene.handle(admit("c1", conn=5), node=B).ordered(o.Grant)
    again = scene.handle(admit("c1", conn=5), node=B)
    assert [type(message) for *_, message in again.told] == [cm.Busy]
    led = scene.handle(admit("c1", conn=7))
    assert {(node, conn, type(message)) for node, conn, message in led.told} == {
        (B, 5, cm.Refusal),
        (HOME, 7, cm.Busy),
    }
    assert led.said(cm.Refusal)[0][1].code == "replaced"
    assert [type(message) for *_, message in scene.handle(admit("c1", conn=7)).told] == [cm.Busy]  # it is told once


def test_one_that_cannot_reach_the_node_that_is_named_is_taken_where_it_is() -> None:
    scene = Scene(goal=4, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 2, OPEN)], granted={"c1": 0, "c3": 0, "c4": 1}, others_max=3)
    scene.round.selected["c2"] = None
    scene.round.assign("c2", HOME)
    assert scene.round.assigned == {"c2": B}
    assert refused(scene.handle(admit("c2"))).field == "b:1"
    led = scene.handle(admit("c2"))
    assert led.orders == [
        (HOME, o.AwaitBranch(NUMBER, EPOCH, 2)),
        (HOME, o.OpenBranch(NUMBER, EPOCH, 2, 1)),
        (HOME, o.Grant(NUMBER, EPOCH, 2, 2, "c2", 1.0, {})),
    ]
    assert [(record.node, record.updates) for record in scene.round.branches.values()] == [(HOME, 2), (B, 1), (HOME, 1)]
    assert led.named("round.replanned") and len(led.rows) == 1


def test_it_is_taken_into_a_branch_that_is_there_when_that_has_the_leaves() -> None:
    scene = Scene(goal=4, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 3, OPEN)], granted={"c1": 0, "c4": 1}, selected=["c2"])
    scene.branch(0).updates_max = 2
    assert refused(scene.handle(admit("c2"))).field == "b:1"
    led = scene.handle(admit("c2"))
    assert led.orders == [(HOME, o.Grant(NUMBER, EPOCH, 0, 2, "c2", 1.0, {}))]
    assert [record.updates for record in scene.round.branches.values()] == [2, 2]


def test_where_the_top_takes_no_more_branches_it_is_sent_again() -> None:
    scene = Scene(goal=4, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 2, OPEN), (B, 2, OPEN)], granted={"c1": 0, "c3": 0}, selected=["c2"])
    for _ in range(3):
        assert refused(scene.handle(admit("c2"))).field == "b:1"
    assert [record.updates for record in scene.round.branches.values()] == [2, 2]

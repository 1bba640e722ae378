"""Clients come and go: who is invited, and what one that comes (again) is told."""

from __future__ import annotations

import pytest
from coordinator_scene import ARENA_BYTES, CLOSED, EPOCH, HOME, NUMBER, OPEN, B, C, Led, Scene, joined

from lifl.core.coordinator import presence
from lifl.core.coordinator.presence import Connection
from lifl.core.coordinator.round import Phase
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm


def invited(led: Led) -> list[int]:
    return [conn for conn, _message in led.said(cm.Selected)]


# ---- who is selected -------------------------------------------------------------------------------------------------


def test_with_the_goals_number_of_clients_the_round_opens_and_all_are_invited() -> None:
    scene = Scene()
    scene.has_round(Phase.WAITING, [])
    assert scene.handle(joined("c1")) == Led()
    led = scene.handle(joined("c2"), at=2.0)
    spec = scene.spec
    selected = cm.Selected("j", 1, 100.0, (), spec.layout.data_bytes)  # the gateways add the rest
    assert led == Led(
        orders=[(HOME, o.OpenBranch(NUMBER, EPOCH, 0, 2))],
        told=[(HOME, 1, selected), (HOME, 2, selected)],
        events=[("round.opened", {"round": 1, "selected": 2, "goal": 2})],
        plans=1,
    )
    assert list(scene.round.selected) == ["c1", "c2"]
    assert scene.round.assigned == {"c1": HOME, "c2": HOME}


def test_more_than_the_goal_are_selected_where_the_job_wants_so() -> None:
    scene = Scene(over_provision=1.5)
    scene.here("c1", "c2", "c3", "c4")
    scene.has_round(Phase.WAITING, [])
    led = scene.do(scene.coordinator.node_suspect, HOME, False)
    assert len(invited(led)) == 3


def test_who_is_drawn_depends_on_the_seed_and_the_round_alone() -> None:
    drawn = []
    for seed, number in ((1, 1), (1, 1), (2, 1), (1, 2)):
        scene = Scene(goal=3, seed=seed)
        scene.here(*(f"c{index}" for index in range(1, 30)))
        scene.has_round(Phase.WAITING, [], number=number)
        drawn.append(invited(scene.do(scene.coordinator.node_suspect, HOME, False)))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[0] != drawn[3]


def test_in_the_place_of_one_that_left_another_is_selected() -> None:
    scene = Scene()
    scene.here("c1", "c2", "c3")
    scene.has_round(selected=["c1", "c2"])
    led = scene.handle(gm.ClientLeft(2))
    assert invited(led) == [3]
    assert "c2" not in scene.job.present


@pytest.mark.parametrize("who", ["accepted", "not selected", "before"])
def test_for_one_that_is_not_missed_no_other_is_selected(who: str) -> None:
    scene = Scene()
    scene.here("c1", "c2", "c3", "c4")
    if who == "before":
        scene.running()
        assert scene.handle(gm.ClientLeft(1)) == Led()
        return
    scene.has_round(accepted={"c1": 0}, selected=["c2"])
    assert scene.handle(gm.ClientLeft(1 if who == "accepted" else 4)) == Led()


def test_one_that_leaves_one_job_keeps_its_connection_for_the_others() -> None:
    scene = Scene()
    scene.here("c1")
    scene.running()
    other = Connection(HOME, 1)
    scene.coordinator.presence.add("k", "c1", other)
    assert scene.handle(gm.ClientLeft(1, "j")) == Led()
    assert dict(scene.coordinator.presence.of("k")) == {"c1": other}
    assert scene.handle(gm.ClientLeft(9)) == Led()


def test_a_late_client_is_selected_while_the_round_lacks_one() -> None:
    scene = Scene()
    scene.has_round(selected=["c1", "c2"])
    scene.here("c1")
    assert invited(scene.handle(joined("c3"), at=60.0)) == [3]
    assert scene.handle(joined("c4")) == Led()


def test_clients_are_told_the_node_that_has_room_for_them() -> None:
    scene = Scene(goal=3, nodes=(HOME, B, C))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 2, OPEN)], granted={"c1": 0})
    led = scene.handle(joined("c2"), node=B)
    assert led.said(cm.Selected)[0][1].gateway == ""  # where it is
    led = scene.handle(joined("c3"), node=C)
    assert led.said(cm.Selected)[0][1].gateway == "b:1"
    assert scene.round.assigned == {"c2": B, "c3": B}


# ---- who comes again -------------------------------------------------------------------------------------------------


def test_one_that_is_selected_and_comes_again_is_invited_again_with_the_seconds_that_are_left() -> None:
    scene = Scene()
    scene.here("c1", "c9")
    scene.has_round(selected=["c1"])
    led = scene.handle(joined("c1", conn=7), at=60.0)
    ((conn, selected),) = led.said(cm.Selected)
    assert (conn, selected.deadline_s) == (7, 40.0)
    assert "c9" not in scene.round.selected


def test_one_whose_update_is_on_its_way_is_not_sent_to_another_node() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.has_round(branches=[(HOME, 1, OPEN), (B, 2, OPEN)], granted={"c1": 1})
    led = scene.handle(joined("c1"))
    assert led.said(cm.Selected)[0][1].gateway == ""
    assert scene.round.assigned == {}


def test_one_that_holds_an_update_of_the_running_round_is_asked_for_it_while_there_is_room() -> None:
    scene = Scene()
    scene.here("c1")
    scene.has_round(selected=["c1"])
    assert invited(scene.handle(joined("c2", holding=1))) == [2]
    assert scene.handle(joined("c3", holding=1)) == Led()


def test_one_whose_update_is_accepted_already_is_told_nothing_new() -> None:
    scene = Scene()
    scene.here("c2")
    scene.has_round(accepted={"c1": 0}, selected=["c2"])
    assert scene.handle(joined("c1", holding=1)) == Led()


def test_one_that_still_holds_updates_learns_what_became_of_each() -> None:
    scene = Scene(rounds=9)
    scene.running(3)
    scene.job.rounds.counted = {2: frozenset({"c1"}), 3: frozenset({"c2"})}
    scene.is_saving(4, ["c1"])
    told = [message for _node, _conn, message in scene.handle(joined("c1", holding=1)).told]
    assert told == [
        cm.Committed("j", 1, counted=False),  # who was in it is not remembered
        cm.Committed("j", 2, counted=True),
        cm.RoundOver("j", 3, "the round was committed without this update"),
    ]
    assert scene.handle(joined("c1", holding=4)) == Led()  # it is being saved
    assert scene.handle(joined("c1", holding=8)) == Led()  # it has not been


def test_a_name_belongs_to_the_newest_connection_by_the_clients_own_clock() -> None:
    scene = Scene()
    scene.running()
    text = "client 'c1' has joined job 'j' from another connection; names must differ"
    refusal = cm.Refusal("replaced", "client", text, "j")
    assert scene.handle(joined("c1", conn=5, connected_ns=50)) == Led()
    assert scene.handle(joined("c1", conn=6, connected_ns=60)) == Led(told=[(HOME, 5, refusal)])
    assert scene.handle(joined("c1", conn=4, connected_ns=40)) == Led(told=[(HOME, 4, refusal)])
    assert dict(scene.job.present) == {"c1": Connection(HOME, 6)}
    assert scene.handle(gm.ClientLeft(5)) == Led()
    assert scene.handle(joined("c1", conn=6, connected_ns=60)) == Led()  # the same one says it again
    assert scene.handle(gm.ClientLeft(6)) == Led()
    assert scene.handle(joined("c1", conn=4, connected_ns=40)) == Led()  # it is still known to be older
    assert dict(scene.job.present) == {}


def test_a_connection_stands_for_one_client_of_a_job() -> None:
    scene = Scene()
    scene.running()
    scene.handle(joined("c1", conn=5))
    scene.handle(joined("c2", conn=5))
    assert dict(scene.job.present) == {"c2": Connection(HOME, 5)}


def test_the_newest_connections_of_so_many_clients_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "CONNECTIONS_REMEMBERED", 2)
    scene = Scene()
    scene.running()
    for number in (1, 2, 3):
        scene.handle(joined(f"c{number}", connected_ns=10))
        scene.handle(gm.ClientLeft(number))
    scene.handle(joined("c2", connected_ns=5))
    scene.handle(joined("c1", connected_ns=5))
    assert list(scene.job.present) == ["c1"]  # which was forgotten


def test_a_client_of_an_unknown_job_is_refused() -> None:
    ((node, conn, refusal),) = Scene().handle(joined("c1"), node=B).told
    assert (node, conn, refusal.code, refusal.round) == (B, 1, "unknown-job", -1)


# ---- a round that cannot open ----------------------------------------------------------------------------------------


def test_a_round_that_the_nodes_cannot_hold_waits_and_says_so_once() -> None:
    scene = Scene(nodes=(HOME, B), arena_bytes={HOME: 1000, B: 1000})
    scene.here("c1")
    scene.has_round(Phase.WAITING, [])
    led = scene.handle(joined("c2"))
    ((fields),) = led.named("round.waiting")
    assert (fields["round"], fields["reason"]) == (1, scene.round.reason)
    assert led == Led(events=led.events)
    assert scene.handle(joined("c3")) == Led()
    scene.coordinator.nodes.get(HOME).arena_bytes = ARENA_BYTES
    assert scene.handle(joined("c4")).named("round.opened")
    assert scene.round.reason == ""


def test_while_a_round_is_aggregated_no_one_is_selected() -> None:
    scene = Scene()
    scene.has_round(Phase.AGGREGATING, [(HOME, 2, CLOSED)], accepted={"c1": 0, "c2": 0})
    assert scene.handle(joined("c3")) == Led()

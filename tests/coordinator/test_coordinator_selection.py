"""Clients come and go: who is invited, and what one that comes (again) is told."""

from __future__ import annotations

from typing import Any

import pytest
from coordinator_scene import ARENA_BYTES, CLOSED, EPOCH, HOME, NUMBER, OPEN, B, C, Led, Scene, admit, joined

from lifl.core.coordinator.presence import Connection
from lifl.core.coordinator.round import Phase
from lifl.core.ids import epoch_of
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


def replaced(conn: int, node: int = HOME) -> tuple[int, int, cm.Refusal]:
    text = "client 'c1' has joined job 'j' from another connection; names must differ"
    return node, conn, cm.Refusal("replaced", "client", text, "j")


def test_a_name_belongs_to_the_connection_that_joined_last_whatever_its_clock_says() -> None:
    scene = Scene()
    scene.running()
    assert scene.handle(joined("c1", conn=5, connected_ns=1 << 62)) == Led()
    assert scene.handle(joined("c1", conn=6, connected_ns=60)) == Led(told=[replaced(5)])
    assert scene.handle(joined("c1", conn=6, connected_ns=60)) == Led()  # the same one says it again
    assert dict(scene.job.present) == {"c1": Connection(HOME, 6)}
    assert scene.handle(gm.ClientLeft(5)) == Led()  # its end says nothing of the name
    assert dict(scene.job.present) == {"c1": Connection(HOME, 6)}


def test_a_device_whose_clock_was_set_back_takes_part_at_once() -> None:
    """Only a connection that lives can be in the way."""
    scene = Scene()
    scene.has_round(Phase.WAITING, [])
    scene.handle(joined("c1", conn=5, connected_ns=1 << 62))
    scene.handle(gm.ClientLeft(5))
    assert scene.handle(joined("c1", conn=6, connected_ns=1)) == Led()
    assert dict(scene.job.present) == {"c1": Connection(HOME, 6)}
    assert invited(scene.handle(joined("c2"))) == [6, 2]


def test_one_that_moved_to_another_node_and_is_overtaken_by_its_own_past_joins_once_more() -> None:
    scene = Scene(nodes=(HOME, B, C))
    scene.running()
    scene.handle(joined("c1", conn=2), node=C)  # where it is now
    assert scene.handle(joined("c1", conn=1), node=B).told == [replaced(2, C)]  # what it said at B comes later
    assert scene.handle(joined("c1", conn=3), node=C).told == [replaced(1, B)]  # so it joins again
    assert scene.handle(gm.ClientLeft(1), node=B) == Led()
    assert dict(scene.job.present) == {"c1": Connection(C, 3)}


# ---- who declines ----------------------------------------------------------------------------------------------------


def declined(client: str, round_: int = 1, reason: str = "out of memory", conn: int | None = None) -> gm.ClientDeclined:
    return gm.ClientDeclined(conn if conn is not None else int(client[1:]), client, "j", round_, reason)


def test_in_the_place_of_one_that_declines_another_is_selected_at_once() -> None:
    scene = Scene()
    scene.here("c1", "c2", "c3")
    scene.has_round(selected=["c1", "c2"])
    led = scene.handle(declined("c2"))
    assert invited(led) == [3]
    assert led.named("client.declined") == [{"round": 1, "client": "c2", "reason": "out of memory"}]
    assert "c2" in scene.job.present
    assert scene.handle(declined("c2")) == Led()


def test_one_that_declined_is_not_asked_again_in_this_attempt_and_another_that_comes_is() -> None:
    scene = Scene()
    scene.here("c1", "c2")
    scene.has_round(selected=["c1", "c2"])
    assert invited(scene.handle(declined("c2"))) == []
    assert invited(scene.handle(joined("c2", conn=7))) == []  # over another connection
    assert scene.handle(admit("c2", conn=7)).said(cm.Refusal)[0][1].code == "not-selected"
    assert invited(scene.handle(joined("c3"))) == [3]


def test_it_is_asked_again_when_the_round_is_tried_again() -> None:
    scene = Scene()
    scene.here("c1", "c2")
    scene.has_round(selected=["c1", "c2"])
    scene.handle(declined("c2"))
    scene.do(scene.coordinator.tick, at=100.0)
    assert sorted(scene.round.selected) == ["c1", "c2"]


def test_a_round_whose_clients_declined_says_how_many_and_why() -> None:
    scene = Scene()
    names = [f"c{number}" for number in range(1, 9)]
    scene.here(*names)
    scene.has_round(selected=names)
    whys = ["out of memory"] * 3 + ["no data"] * 2 + ["x" * 1_000, "battery", ""]
    for name, why in zip(names, whys, strict=True):
        scene.handle(declined(name, reason=why))
    led = scene.do(scene.coordinator.tick, at=100.0)
    (reason,) = [fields["reason"] for fields in led.named("round.failed")]
    assert "8 of 8 selected clients declined (3: out of memory; 2: no data; 1: " in reason
    assert "2: other reasons" in reason and "0 updates were accepted" in reason
    assert "raise selection.deadline_s" not in reason and len(reason) < 400, "all of it reaches the clients"


@pytest.mark.parametrize(
    "word",
    [declined("c3"), declined("c2", round_=2), declined("c2", conn=3), declined("c1"), declined("c4"), declined("c9")],
    ids=["not selected", "another round", "another's connection", "accepted", "on its way", "not here"],
)
def test_a_word_that_one_may_not_say_changes_nothing(word: gm.ClientDeclined) -> None:
    scene = Scene(goal=3)
    scene.here("c1", "c2", "c3", "c4", "c5")
    scene.has_round(branches=[(HOME, 3, OPEN)], accepted={"c1": 0}, granted={"c4": 0}, selected=["c2"])
    assert scene.handle(word) == Led()
    assert scene.round.declined == {}


# ---- a round that is tried again -------------------------------------------------------------------------------------


def failed(goal: int = 2, accepted: tuple[str, ...] = (), selected: tuple[str, ...] = (), **more: Any) -> Scene:
    """The first attempt has failed at its deadline, and the next one is open."""
    scene = Scene(goal=goal, attempts=3, **more)
    scene.here(*(f"c{number}" for number in range(1, 9)))
    scene.has_round(branches=[(HOME, goal, OPEN)], accepted=dict.fromkeys(accepted, 0), selected=list(selected))
    scene.do(scene.coordinator.tick, at=100.0)
    if scene.round.phase is Phase.WAITING:
        scene.do(scene.coordinator.node_suspect, HOME, False)
    assert (scene.round.attempt, scene.round.phase) == (2, Phase.COLLECTING)
    return scene


def test_those_whose_updates_were_accepted_are_asked_first_and_those_who_may_still_train_last() -> None:
    scene = failed(3, accepted=("c7", "c8"), selected=("c1",))
    chosen = list(scene.round.selected)
    assert chosen[:2] == ["c7", "c8"] and chosen[2] in ("c2", "c3", "c4", "c5", "c6")


def test_where_no_others_are_those_who_still_train_are_asked_again() -> None:
    scene = failed(8, accepted=("c7",), selected=tuple(f"c{number}" for number in (1, 2, 3, 4, 5, 6, 8)))
    assert sorted(scene.round.selected) == [f"c{number}" for number in range(1, 9)]


def test_what_comes_late_from_an_earlier_attempt_is_taken() -> None:
    scene = failed(2, selected=("c1", "c2"))
    assert not {"c1", "c2"} & scene.round.selected.keys()
    ((node, grant),) = scene.handle(admit("c1")).ordered(o.Grant)
    assert (node, grant.client, grant.epoch) == (HOME, "c1", epoch_of(1, 2))
    assert "c1" in scene.round.selected
    (stranger, *_) = {f"c{number}" for number in range(3, 9)} - scene.round.selected.keys()
    assert scene.handle(admit(stranger)).said(cm.Refusal)[0][1].code == "not-selected"


def spoilt(suspects: tuple[str, ...], goal: int = 2) -> tuple[Scene, Led]:
    """Of three accepted updates those of `suspects` are why the first attempt fails."""
    scene = Scene(goal=goal, attempts=3)
    scene.here(*(f"c{number}" for number in range(1, 9)))
    scene.has_round(branches=[(HOME, 3, OPEN)], accepted=dict.fromkeys(("c6", "c7", "c8"), 0))
    return scene, scene.handle(o.BranchFailed(NUMBER, EPOCH, "not finite", retry=True, suspects=suspects))


def test_who_made_an_attempt_fail_is_told_and_the_next_one_is_made_without_its_update() -> None:
    scene, led = spoilt(("c7", "c1"))  # c1 has sent nothing
    text = "this update cannot be aggregated: not finite"
    assert led.said(cm.Refusal) == [(7, cm.Refusal(cm.SPOILT, "update", text, "j", 1))]
    assert [conn for conn, _ in led.said(cm.RoundOver)] == [6, 7, 8]
    scene.do(scene.coordinator.node_suspect, HOME, False)
    assert (scene.round.attempt, list(scene.round.selected)) == (2, ["c6", "c8"])
    assert scene.handle(admit("c7")).said(cm.Refusal)[0][1].code == "not-selected"
    led = scene.handle(joined("c7", holding=1, conn=20))
    assert (20, cm.SPOILT) in [(conn, refusal.code) for conn, refusal in led.said(cm.Refusal)], "it may not have heard"


def test_where_no_others_are_who_made_it_fail_is_asked_to_train_again() -> None:
    scene, _ = spoilt(("c7",), goal=8)
    scene.do(scene.coordinator.node_suspect, HOME, False)
    assert list(scene.round.selected)[-1] == "c7" and len(scene.round.selected) == 8


def test_where_none_is_named_any_may_be_why() -> None:
    scene, led = spoilt(())
    assert [conn for conn, _ in led.said(cm.Refusal)] == [6, 7, 8]
    scene.do(scene.coordinator.node_suspect, HOME, False)
    assert not {"c6", "c7", "c8"} & scene.round.selected.keys()


def test_what_comes_late_is_taken_while_the_round_lacks_it() -> None:
    scene = failed(2, selected=("c1", "c2"))
    for client in scene.round.selected:
        scene.handle(admit(client))
    assert scene.handle(admit("c1")).said(cm.Refusal)[0][1].code == "not-selected"


def test_one_that_holds_an_update_of_an_earlier_attempt_and_comes_again_is_asked_for_it() -> None:
    scene = failed(2, selected=("c1", "c2"))
    assert invited(scene.handle(joined("c1", holding=1, conn=20))) == [20]


def test_attempts_later_the_first_ones_update_is_still_known() -> None:
    scene = failed(3, accepted=("c7",), selected=("c1", "c2"))
    scene.do(scene.coordinator.tick, at=200.0)
    if scene.round.phase is Phase.WAITING:
        scene.do(scene.coordinator.node_suspect, HOME, False)
    assert scene.round.attempt == 3
    assert scene.round.trained == {"c7"} and {"c1", "c2"} <= scene.round.training


def test_a_connection_stands_for_one_client_of_a_job() -> None:
    scene = Scene()
    scene.running()
    scene.handle(joined("c1", conn=5))
    scene.handle(joined("c2", conn=5))
    assert dict(scene.job.present) == {"c2": Connection(HOME, 5)}


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

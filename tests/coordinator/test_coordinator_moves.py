"""Another node coordinates: what it goes on from, and what becomes of the top that was at the last one."""

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
    held,
    members,
)

from lifl.core import effects as fx
from lifl.core.coordinator.recovery import LAST_HOME_S, NODE_RETURN_S
from lifl.core.coordinator.round import Phase
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o

OPENED = o.JobOpened(NUMBER)
TERM = 7


def row(*parts: tuple[int, int, int]) -> dict[str, Any]:
    """A round's row: its branches by number, node and updates."""
    return {"parts": [[number, f"{node:016x}", updates] for number, node, updates in parts], "next_part": 3}


def moved(goal: int = 4, nodes: tuple[int, ...] = (HOME, B, C), **selection: Any) -> Scene:
    """A coordinator that may move, under a term of its own."""
    scene = Scene(goal=goal, nodes=nodes, **selection)
    scene.turn.term = TERM
    scene.coordinator.nodes.moves = True
    return scene


def took_over(scene: Scene, *parts: tuple[int, int, int], adopting: bool = True) -> Led:
    """The model is loaded; round 1 had these branches under the last coordinator."""
    job = scene.coordinator.make(scene.spec)
    job.resume(0, {}, {1: (1, "open", row(*parts))}, adopting)
    scene.coordinator.start(job)
    scene.led()
    return scene.handle(OPENED)


def adopted(*clients: str, branch: int = 0) -> o.BranchAdopted:
    return o.BranchAdopted(NUMBER, EPOCH, branch, members(*clients))


def inventory(*branches: p.BranchHeld) -> p.Inventory:
    return p.Inventory((NUMBER,), branches)


NEW_LIFE = p.Inventory((), (), (NUMBER,))
"""What a node says that begins anew with what is sealed."""


# ---- rows and files --------------------------------------------------------------------------------------------------


def test_a_round_has_one_row_when_it_opens_with_its_branches_also_on_one_node() -> None:
    scene = moved(goal=1, nodes=(HOME,))
    scene.running()
    led = scene.do(scene.job._begin_round)
    assert led.rows == [], "nothing is granted yet that whoever coordinates next must know of"
    scene.here("c1")
    led = scene.do(scene.job.runner.try_open)
    assert led.rows == [
        fx.SaveRound("j", 1, 1, "open", {"parts": [[0, f"{HOME:016x}", 1]], "next_part": 1}),
    ]


def test_files_are_written_under_the_term_and_read_under_the_one_that_wrote_them() -> None:
    scene = moved(goal=1)
    job = scene.coordinator.make(scene.spec)
    job.resume(2, {}, {}, False, {1: (1, ()), 2: (1, ("d",))}, {2: 5})
    led = scene.do(scene.coordinator.start, job)
    ((_node, order),) = led.orders
    assert (order.path, order.digests) == ("/f/round-00002.5.safetensors", ("d",))
    led = scene.handle(o.JobFailed(NUMBER, "lost"))
    assert led.ordered(o.LoadJob)[0][1].path == "/f/round-00001.safetensors", "before the coordinator could move"
    scene.handle(OPENED)
    led = scene.do(job._replicas.save, 2, EPOCH)
    assert led.ordered(o.SaveModel)[0][1].path == f"/f/round-00002.{TERM}.safetensors"


def test_a_commit_s_row_tells_the_term_of_its_files() -> None:
    scene = moved(goal=1)
    scene.running()
    scene.is_saving(1, ["c1"])
    led = scene.handle(o.ModelSaved(NUMBER, EPOCH, ("d",)))
    fields = led.rows[0].fields
    assert (fields["term"], fields["path"]) == (TERM, f"/f/round-00001.{TERM}.safetensors")


def test_the_states_lie_beside_their_model() -> None:
    scene = Scene(states=("m",))
    assert scene.spec.state_path_of(3, 5) == "/f/round-00003.5.state.safetensors"


@pytest.mark.parametrize("phase", [Phase.COLLECTING, Phase.AGGREGATING])
def test_a_lost_branch_is_in_no_row_before_its_updates_are_asked_for_again(phase: Phase) -> None:
    """The next coordinator would count what its node, which lives after all, still has of it."""
    scene = Scene(goal=4)
    scene.here("c2")
    branches = [(HOME, 1, OPEN), (B, 1, FORGETTING), (C, 2, CLOSED)]
    scene.has_round(phase, branches, accepted={"c1": 0, "c2": 1, "c3": 2, "c4": 2}, others_max=2)
    scene.branch(0).updates_max = 4
    led = scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1))
    (written,) = led.rows
    assert [part[0] for part in written.fields["parts"]] == [0, 2]
    assert led.said(cm.Selected), "and it is asked for again"


def test_so_it_is_when_the_round_ends_without_it() -> None:
    scene = Scene(goal=3, quorum=1)
    scene.has_round(Phase.AGGREGATING, [(HOME, 1, CLOSED), (B, 1, FORGETTING)], accepted={"c1": 0, "c2": 1})
    scene.round.deadline_at_s = 0.0
    led = scene.handle(o.BranchForgotten(NUMBER, EPOCH, 1))
    assert [[part[0] for part in each.fields["parts"]] for each in led.rows] == [[0]]


# ---- the last top ----------------------------------------------------------------------------------------------------


def test_what_the_last_coordinator_has_becomes_a_branch_like_any_other_and_comes_first() -> None:
    scene = moved()
    led = took_over(scene, (0, B, 1), (1, HOME, 2), (2, C, 1))
    assert not led.ordered(o.OpenBranch)
    assert {record.number: record.node for record in scene.round.branches.values()} == {0: HOME, 3: B, 2: C}
    assert not scene.handle(inventory(held(2, ["c3"])), node=C).told, "all others wait for it"
    led = scene.handle(NEW_LIFE, node=B)
    assert led.ordered(o.OpenBranch) == [(B, o.OpenBranch(NUMBER, EPOCH, 3, 1, parent="home:1", adopt=True))]
    led = scene.handle(adopted("c1", branch=3), node=B)
    home = o.OpenBranch(NUMBER, EPOCH, 0, 4, (3, 2), 4, adopt=True, without=("c1",))
    assert led.ordered(o.OpenBranch) == [(HOME, home)]
    assert list(scene.round.accepted) == ["c1"]
    scene.handle(adopted("c2"))
    assert sorted(scene.round.accepted) == ["c1", "c2", "c3"]
    assert scene.round.phase is Phase.COLLECTING


def test_one_that_had_said_what_it_has_while_the_model_was_loaded_is_not_waited_for() -> None:
    scene = moved(nodes=(HOME, B))
    job = scene.coordinator.make(scene.spec)
    job.resume(0, {}, {1: (1, "open", row((0, B, 4)))}, True)
    scene.coordinator.start(job)
    scene.handle(NEW_LIFE, node=B)
    led = scene.handle(OPENED)
    assert [node for node, _order in led.ordered(o.OpenBranch)] == [B]


def test_the_row_of_a_round_that_was_taken_over_is_written_before_anything_is_granted() -> None:
    scene = moved(nodes=(HOME, B))
    took_over(scene, (0, HOME, 4))
    led = scene.handle(adopted("c1"))
    assert led.rows == [fx.SaveRound("j", 1, 1, "open", {"parts": [[0, f"{HOME:016x}", 4]], "next_part": 3})]


def test_partials_go_to_the_new_top_when_all_is_known() -> None:
    scene = moved(nodes=(HOME, B, C))
    took_over(scene, (0, HOME, 1), (1, B, 2), (2, C, 1))
    led = scene.handle(adopted("c1"))
    led = scene.handle(inventory(held(1, ["c2"])), node=B)
    assert not led.ordered(o.MovePartial)
    led = scene.handle(inventory(held(2, ["c3"])), node=C)
    moves = led.ordered(o.MovePartial)
    assert moves == [(node, o.MovePartial(NUMBER, EPOCH, branch, "home:1")) for branch, node in ((1, B), (2, C))]


def test_a_coordinator_that_has_started_again_has_partials_brought_again() -> None:
    """What had come may have gone with its arena; the node thinks that it is there."""
    scene = Scene(goal=4, nodes=(HOME, B))
    took_over(scene, (0, HOME, 1), (1, B, 3))
    scene.handle(adopted("c1"))
    led = scene.handle(inventory(held(1, ["c2"])), node=B)
    assert scene.round.phase is Phase.COLLECTING
    assert led.ordered(o.MovePartial) == [(B, o.MovePartial(NUMBER, EPOCH, 1, "home:1"))]


def test_the_last_coordinator_is_waited_for_shortly() -> None:
    scene = moved(nodes=(HOME, C))
    scene.turn.now = 1.5
    took_over(scene, (0, B, 1), (1, HOME, 2), (2, C, 1))
    assert scene.coordinator.next_timer() == 1.5 + LAST_HOME_S
    led = scene.do(scene.coordinator.tick, at=1.5 + LAST_HOME_S)
    assert led.ordered(o.OpenBranch) == [(HOME, o.OpenBranch(NUMBER, EPOCH, 0, 4, (3, 2), 4, adopt=True))]
    assert scene.states() == {0: RECOVERING, 3: FORGETTING, 2: RECOVERING}
    assert scene.coordinator.next_timer() == 1.5 + LAST_HOME_S + NODE_RETURN_S


def test_a_deadline_that_has_come_is_due_though_another_event_comes_first() -> None:
    """A heartbeat that is handled after the deadline, and before the clock's own event, must not undo that."""
    scene = moved(nodes=(HOME, C))
    took_over(scene, (0, B, 1), (1, HOME, 2), (2, C, 1))
    scene.do(lambda: None, at=LAST_HOME_S + 0.01)
    assert scene.coordinator.next_timer() == LAST_HOME_S
    scene.do(scene.coordinator.tick)
    assert scene.states()[3] is FORGETTING
    led = scene.handle(adopted("c2"))
    assert led.ordered(o.ForgetBranch) == [(HOME, o.ForgetBranch(NUMBER, EPOCH, 3))]
    scene.handle(o.BranchForgotten(NUMBER, EPOCH, 3))
    led = scene.handle(inventory(held(2, ["c3"])), node=C)
    assert scene.round.phase is Phase.COLLECTING
    assert [part[0] for part in led.rows[0].fields["parts"]] == [0, 2], "what it says later does not count"


@pytest.mark.parametrize("how", ["gone", "has nothing", "has another life's"])
def test_one_that_has_nothing_is_not_waited_for(how: str) -> None:
    scene = moved(nodes=(HOME, B))
    took_over(scene, (0, B, 1), (1, HOME, 2))
    if how == "gone":
        led = scene.do(scene.coordinator.node_gone, B)
    elif how == "has nothing":
        led = scene.handle(inventory(), node=B)
    else:
        scene.handle(NEW_LIFE, node=B)
        led = scene.handle(adopted(branch=3), node=B)
    assert [node for node, _order in led.ordered(o.OpenBranch)] == [HOME]
    assert scene.states() == {0: RECOVERING, 3: FORGETTING}


def test_of_a_node_that_the_row_does_not_name_nothing_is_adopted() -> None:
    """It was given up, and what it has was asked for again; now it coordinates itself."""
    scene = moved(nodes=(HOME, B))
    job = scene.coordinator.make(scene.spec)
    job.resume(0, {}, {1: (1, "open", row((0, B, 4)))}, adopting=True)
    led = scene.do(scene.coordinator.start, job)
    assert [order.adopt for _node, order in led.orders] == [False]


def test_a_later_round_that_had_begun_begins_under_another_epoch() -> None:
    scene = moved(goal=1, nodes=(HOME,))
    job = scene.coordinator.make(scene.spec)
    job.resume(0, {}, {1: (1, "open", row((0, HOME, 1))), 2: (1, "open", row((0, HOME, 1)))}, True)
    scene.coordinator.start(job)
    scene.handle(OPENED)
    scene.handle(adopted("c1"))
    scene.handle(o.ModelSealed(NUMBER, EPOCH, {}))
    assert (scene.round.number, scene.round.attempt) == (2, 2)


# ---- an update in two branches ---------------------------------------------------------------------------------------


def test_what_the_last_top_took_over_counts_there() -> None:
    """It is merged with what is nowhere else."""
    scene = moved()
    took_over(scene, (0, B, 1), (1, HOME, 1), (2, C, 1))
    scene.handle(inventory(held(2, ["c3"], closed=True)), node=C)
    scene.handle(NEW_LIFE, node=B)
    led = scene.handle(adopted("c1", "c2", "c3", branch=3), node=B)
    assert led.ordered(o.OpenBranch)[0][1].without == ("c1", "c2", "c3")
    led = scene.handle(adopted())
    assert led.ordered(o.DropBranch) == [(C, o.DropBranch(NUMBER, EPOCH, 2))]
    assert led.ordered(o.ForgetBranch) == [(HOME, o.ForgetBranch(NUMBER, EPOCH, 2))]
    assert scene.round.phase is Phase.RECOVERING
    scene.handle(o.BranchForgotten(NUMBER, EPOCH, 2))
    assert scene.round.phase is Phase.COLLECTING
    assert scene.states() == {0: OPEN, 3: OPEN}
    assert sorted(scene.round.accepted) == ["c1", "c2", "c3"]


def test_a_node_in_a_new_life_that_has_what_counts_elsewhere_is_given_up() -> None:
    scene = moved()
    took_over(scene, (0, B, 1), (1, HOME, 1), (2, C, 1))
    scene.handle(NEW_LIFE, node=B)
    scene.handle(adopted("c2", "c3", branch=3), node=B)
    scene.handle(adopted("c1"))
    scene.handle(NEW_LIFE, node=C)
    led = scene.handle(adopted("c3", branch=2), node=C)
    assert led.ordered(o.DropBranch) == [(C, o.DropBranch(NUMBER, EPOCH, 2))]
    assert scene.states() == {0: OPEN, 3: OPEN, 2: FORGETTING}


def test_a_partial_that_is_at_the_top_already_counts_and_who_has_the_same_is_given_up() -> None:
    scene = moved()
    took_over(scene, (0, B, 1), (1, HOME, 1), (2, C, 1))
    scene.handle(NEW_LIFE, node=B)
    scene.handle(adopted("c2", "c3", branch=3), node=B)
    scene.handle(adopted("c1"))
    led = scene.handle(o.PartialArrived(NUMBER, EPOCH, 2, members("c3"), 0))
    assert led.ordered(o.DropBranch) == [(B, o.DropBranch(NUMBER, EPOCH, 3))]
    assert led.ordered(o.ForgetBranch) == [(HOME, o.ForgetBranch(NUMBER, EPOCH, 3))]
    assert scene.states() == {0: OPEN, 3: FORGETTING, 2: ARRIVED}
    scene.handle(o.BranchForgotten(NUMBER, EPOCH, 3))
    assert sorted(scene.round.accepted) == ["c1", "c3"]


def test_one_that_is_given_up_already_is_not_given_up_twice() -> None:
    scene = moved()
    took_over(scene, (0, B, 1), (1, HOME, 1), (2, C, 1))
    scene.handle(NEW_LIFE, node=B)
    scene.handle(adopted("c2", "c3", branch=3), node=B)
    scene.handle(adopted("c1"))
    scene.do(scene.coordinator.node_gone, B)
    assert scene.states()[3] is FORGETTING
    led = scene.handle(o.PartialArrived(NUMBER, EPOCH, 2, members("c3"), 0))
    assert not led.ordered(o.ForgetBranch)


def test_a_node_that_was_away_for_a_moment_is_told_of_the_top_again() -> None:
    scene = moved(nodes=(HOME, B))
    scene.has_round(Phase.COLLECTING, [(HOME, 2, OPEN), (B, 2, RECOVERING)])
    led = scene.handle(inventory(held(1, ["c2"])), node=B)
    assert led.ordered(o.MovePartial) == [(B, o.MovePartial(NUMBER, EPOCH, 1, "home:1"))]

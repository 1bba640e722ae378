"""The connection to the coordinator: what a node tells when it comes, what it does without one, how it leaves."""

from __future__ import annotations

from typing import Any

import pytest
from agent_scene import EPOCH, NUMBER, Scene, inventory, members, orphan

from lifl.core import events as ev
from lifl.core.agent import inventory as inventory_module
from lifl.core.ids import Kind
from lifl.core.limits import JOIN_HELD_S, TEXT_CHARS_MAX
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution, pack_contribution

JOIN = gm.ClientJoined(5, "c5", "j")
ADMIT = gm.Admit(5, "c5", "j", 1, 1.0)


def branches_of(scene: Scene) -> tuple[p.BranchHeld, ...]:
    """What an inventory tells."""
    (told,) = scene.handle(ev.CoordinatorUp(stranger=False))
    assert told.jobs == (NUMBER,)
    return told.branches


def test_a_new_node_has_nothing() -> None:
    scene = Scene(connected=False)
    assert scene.handle(ev.CoordinatorUp(stranger=False)) == [inventory()]


def test_a_node_that_is_back_tells_of_jobs_branches_what_is_sealed_and_what_was_granted() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(8)
    scene.has_branch(2, branch=1)
    scene.upload("c1")
    scene.grant("c2")
    scene.arena.nbytes = scene.arena.used_bytes
    scene.grant("c3")
    scene.handle(ev.CoordinatorDown())
    scene.handle(o.CloseBranch(NUMBER, EPOCH, 1))
    assert branches_of(scene) == (
        p.BranchHeld(NUMBER, EPOCH, 0, members("c1"), members("c2", "c3"), closed=False),
        p.BranchHeld(NUMBER, EPOCH, 1, (), (), closed=True),
    )


def test_what_an_inventory_cannot_hold_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.has_model()
    size = len(pack_contribution(Contribution("c1", 1.0)))
    for branch in range(3):
        scene.has_branch(8, branch=branch)
        scene.upload(f"c{branch}", branch)
    monkeypatch.setattr(inventory_module, "INVENTORY_BYTES_MAX", 2 * size)
    assert [held.branch for held in branches_of(scene)] == [0, 1], "at the limit"
    monkeypatch.setattr(inventory_module, "INVENTORY_BYTES_MAX", 2 * size - 1)
    assert [held.branch for held in branches_of(scene)] == [0]


def test_a_job_of_which_something_fits_no_frame_is_reported_as_failed() -> None:
    """By its number or by its name; of other jobs, and of one that is not here, nothing is said."""
    scene = Scene()
    scene.has_model()
    scene.has_job(2, "k")
    long = "x" * (2 * TEXT_CHARS_MAX)
    assert scene.handle(ev.JobBroken(NUMBER, "too long")) == [o.JobFailed(NUMBER, "too long")]
    assert scene.handle(ev.JobBroken("k", long)) == [o.JobFailed(2, long[:TEXT_CHARS_MAX])]
    assert scene.handle(ev.JobBroken("nowhere", "too long")) == []


def test_without_a_coordinator_clients_are_sent_to_other_nodes() -> None:
    scene = Scene()
    assert scene.handle(JOIN) == [JOIN]
    assert scene.handle(ADMIT) == [ADMIT]
    assert scene.handle(ev.CoordinatorDown()) == [gm.HangUp()]
    assert scene.handle(ADMIT) == [gm.HangUp(5)]
    assert scene.handle(JOIN) == []
    assert scene.handle(ev.Tick(), at=scene.engine.next_timer()) == [gm.HangUp(5)], "it has waited here for long enough"
    scene.handle(ev.CoordinatorUp(stranger=False))
    assert scene.handle(JOIN) == [JOIN]


def test_before_the_first_connection_too() -> None:
    scene = Scene(connected=False)
    scene.handle(JOIN)
    assert scene.handle(ev.Tick(), at=JOIN_HELD_S) == [gm.HangUp(5)]


def test_who_waits_for_a_coordinator_takes_part_as_soon_as_one_is_there() -> None:
    scene = Scene()
    scene.handle(ev.CoordinatorDown())
    other = gm.ClientJoined(6, "c6", "j")
    assert scene.handle(JOIN) == [] == scene.handle(other)
    inventory, *led = scene.handle(ev.CoordinatorUp(stranger=False))
    assert isinstance(inventory, p.Inventory) and led == [JOIN, other]
    assert scene.handle(ev.Tick(), at=10 * JOIN_HELD_S) == []


LEFT = gm.ClientLeft(5)


@pytest.mark.parametrize("ended", [LEFT, gm.ClientLeft(5, "j"), gm.GatewayLost(), ev.CoordinatorDown(), ADMIT, JOIN])
def test_who_is_gone_meanwhile_is_not_let_in(ended: Any) -> None:
    """It has left, its connection is ended, or it asks for more than to take part in one job: then it is sent away."""
    scene = Scene()
    scene.handle(ev.CoordinatorDown())
    scene.handle(JOIN)
    assert LEFT not in scene.handle(ended), "no coordinator knows of it"
    assert JOIN not in scene.handle(ev.CoordinatorUp(stranger=False))
    assert scene.handle(ev.Tick(), at=10 * JOIN_HELD_S) == []


def test_who_leaves_another_job_than_it_waits_for_waits_on() -> None:
    scene = Scene()
    scene.handle(ev.CoordinatorDown())
    scene.handle(JOIN)
    scene.handle(gm.ClientLeft(5, "k"))
    assert JOIN in scene.handle(ev.CoordinatorUp(stranger=False))


@pytest.mark.parametrize("stranger", [False, True])
def test_what_an_earlier_life_left_is_a_stranger_s_never(stranger: bool) -> None:
    scene = Scene(connected=False)
    key = scene.arena.alloc(Kind.UPDATE, 7, EPOCH, 100)
    scene.arena.seal(key, "c1")
    scene.handle(ev.ArenaAdopted({7: (orphan(key, Kind.UPDATE, "c1"),)}, ()))
    led = scene.handle(ev.CoordinatorUp(stranger))
    assert led == [inventory(orphans=() if stranger else (7,))]
    assert (key in scene.arena.objects) is not stranger


def test_a_node_that_leaves_takes_no_clients_and_stays_until_its_partials_are_at_the_top() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(1, branch=1)
    scene.upload("c1", branch=1)
    assert scene.handle(ev.Leaving()) == [p.Draining(), gm.HangUp()]
    assert scene.handle(JOIN) == [gm.HangUp(5)]
    assert scene.engine.busy()
    scene.all_ready()
    carry = scene.done(scene.tasks(1)[0], "c1")[-1]
    assert scene.engine.busy()
    scene.handle(gm.CarryEnded(carry.key, "", 10))
    assert not scene.engine.busy()


def test_a_drained_node_takes_no_clients_finishes_what_it_has_and_says_so_until_it_is_taken_back() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(1, branch=1)
    scene.upload("c1", branch=1)
    assert scene.handle(o.DrainNode()) == [gm.HangUp(after_updates=True)]
    assert scene.handle(JOIN) == [gm.HangUp(5)]
    assert scene.handle(ADMIT) == [ADMIT], "what is planned here may still come"
    assert scene.engine.busy()
    scene.all_ready()
    carry = scene.done(scene.tasks(1)[0], "c1")[-1]
    scene.handle(gm.CarryEnded(carry.key, "", 10))
    assert not scene.engine.busy()
    scene.handle(ev.CoordinatorDown())
    (told,) = scene.handle(ev.CoordinatorUp(stranger=False))
    assert told.drains
    assert scene.handle(JOIN) == [gm.HangUp(5)]
    assert scene.handle(o.DrainNode(undo=True)) == []
    assert scene.handle(JOIN) == [JOIN]
    scene.handle(ev.CoordinatorDown())
    (told,) = scene.handle(ev.CoordinatorUp(stranger=False))
    assert not told.drains


def test_who_comes_to_coordinate_takes_part() -> None:
    scene = Scene()
    scene.handle(o.DrainNode())
    scene.handle(ev.Promoted(1, b"seed", ()))
    assert not scene.engine.agent.drains
    scene.engine.validate()


def test_a_node_that_is_not_connected_leaves_without_a_word() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(1, branch=1)
    scene.upload("c1", branch=1)
    scene.handle(ev.CoordinatorDown())
    assert scene.handle(ev.Leaving()) == []
    assert not scene.engine.busy(), "nobody waits for what it has"
    assert scene.handle(ev.Stopping()) == []


def test_the_coordinator_hears_of_clients_that_leave_and_of_the_gateway() -> None:
    scene = Scene()
    assert scene.handle(gm.ClientLeft(5)) == [gm.ClientLeft(5)]
    assert scene.handle(gm.GatewayLost()) == [gm.GatewayLost()]


@pytest.mark.parametrize(
    "said",
    [gm.ClientDeclined(5, "c5", "j", 1, "out of memory"), gm.ClientEvaluated(5, "c5", "j", 1, 1.0, {"loss": 0.5})],
    ids=lambda said: type(said).__name__,
)
def test_the_coordinator_hears_what_clients_answer_and_where_there_is_none_they_come_again(said: Any) -> None:
    scene = Scene()
    assert scene.handle(said) == [said]
    scene.handle(ev.CoordinatorDown())
    assert scene.handle(said) == [gm.HangUp(5)]

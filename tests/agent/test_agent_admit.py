"""A granted update gets a slot, waits for room, or is told to ask again."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, NUMBER, Scene, aborted, granted, told, too_late

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.uploads import BUSY_RETRY_S
from lifl.core.ids import Kind, epoch_of
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm

OPEN, PLANNED = TaskState.OPEN, TaskState.PLANNED
BUSY = cm.Busy("j", 1, BUSY_RETRY_S)


def full(waiting: int = 0, **more: object) -> Scene:
    """An arena that has no room for an update beside the model and the top's output; some wait for it."""
    scene = Scene(**more)
    scene.has_model()
    scene.has_branch(8)
    scene.upload("c1")
    scene.arena.nbytes = scene.arena.used_bytes
    for number in range(2, 2 + waiting):
        assert scene.grant(f"c{number}") == []
    return scene


def test_a_granted_update_gets_a_slot_and_its_leaf_an_output_with_all_above_it() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(8)
    led = scene.grant("c1")
    assert led == [granted("c1", scene.keys["c1"]), fx.ForkWorker(1)]
    assert scene.tell() == [OPEN, PLANNED, OPEN]  # PLANNED -> OPEN
    leaf, _, top = scene.tasks()
    assert (leaf.address, top.address) == (1, 2)
    assert scene.arena.of(Kind.UPDATE) == [scene.keys["c1"]]
    assert scene.arena.of(Kind.PARTIAL) == [leaf.output]
    assert scene.arena.extent_bytes(leaf.output) == scene.partial_bytes(2)
    assert scene.arena.of(Kind.MODEL) == [scene.slot.model, top.output]


def test_the_next_update_of_a_leaf_needs_no_more_than_its_slot_and_no_other_worker() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(8)
    scene.grant("c1")
    before = len(scene.arena.objects)
    assert scene.grant("c2") == [granted("c2", scene.keys["c2"])]
    assert len(scene.arena.objects) == before + 1
    assert scene.grant("c3") == [granted("c3", scene.keys["c3"]), fx.ForkWorker(2)]
    assert scene.tell() == [OPEN, OPEN, OPEN]


def test_no_worker_is_prepared_when_all_are_there_or_none_is_kept() -> None:
    scene = Scene(workers_max=1)
    scene.has_model()
    scene.has_branch(8)
    assert scene.grant("c1")[1:] == [fx.ForkWorker(1)]
    for client in ("c2", "c3"):
        assert scene.grant(client)[1:] == []
    other = Scene(idle_timeout_s=0.0)
    other.has_model()
    other.has_branch(8)
    assert other.grant("c1")[1:] == []


@pytest.mark.parametrize("objects", [0, 1, 2])
def test_without_room_for_all_that_it_needs_an_update_waits_and_takes_nothing(objects: int) -> None:
    """For the slot, for the leaf's output, for the top's."""
    scene = Scene()
    scene.has_model()
    scene.has_branch(8)
    before = dict(scene.arena.objects)
    scene.arena.allows = objects
    assert scene.grant("c1") == []
    assert scene.arena.objects == before
    assert scene.tell() == [PLANNED, PLANNED, PLANNED]  # OPEN -> PLANNED
    assert [order.client for order in scene.agent.uploads.waiting] == ["c1"]
    assert [member.client for member in scene.agent.uploads.asked(NUMBER, scene.runner().branch)] == ["c1"]
    scene.arena.allows = None
    scene.has_room()
    led = scene.handle(ev.Tick())
    (key,) = scene.arena.of(Kind.UPDATE)
    assert led == [granted("c1", key), fx.ForkWorker(1)]


def test_who_comes_while_others_wait_waits_behind_them_and_beyond_the_limit_is_told_busy() -> None:
    scene = full(waiting=2, wait_queue_max=2)
    led = scene.grant("c4")
    assert led == [aborted("c4"), told(4, BUSY)]
    scene.arena.nbytes += scene.update_bytes
    scene.has_room()
    led = scene.handle(ev.Tick())
    assert [(type(each), each.conn) for each in led if isinstance(each, gm.Granted)] == [(gm.Granted, 2)]
    assert [order.client for order in scene.agent.uploads.waiting] == ["c3"]


@pytest.mark.parametrize("what", ["no such job", "no such branch", "closed"])
def test_a_grant_that_comes_too_late_is_given_up(what: str) -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(8)
    if what == "closed":
        scene.upload("c1")
        scene.handle(o.CloseBranch(NUMBER, EPOCH, 0))
        assert scene.grant("c2") == [aborted("c2"), too_late(2)]
    elif what == "no such branch":
        assert scene.grant("c2", branch=7) == [aborted("c2", branch=7), too_late(2)]
    else:
        led = scene.handle(o.Grant(9, EPOCH, 0, 2, "c2", 1.0, {}))
        assert led == [aborted("c2", number=9)]


def test_who_waits_for_room_in_a_branch_that_is_closed_is_given_up() -> None:
    scene = full(waiting=2)
    led = scene.handle(o.CloseBranch(NUMBER, EPOCH, 0))
    assert [each for each in led if isinstance(each, o.UpdateAborted)] == [aborted("c2"), aborted("c3")]
    assert not scene.agent.uploads.waiting


def test_a_client_that_leaves_does_not_wait_any_more() -> None:
    scene = full(waiting=3)
    assert scene.handle(gm.ClientLeft(3)) == [gm.ClientLeft(3), aborted("c3")]
    assert scene.handle(gm.ClientLeft(4, "j")) == [gm.ClientLeft(4, "j"), aborted("c4")]
    assert scene.handle(gm.ClientLeft(2, "k")) == [gm.ClientLeft(2, "k")]
    assert [order.client for order in scene.agent.uploads.waiting] == ["c2"]


@pytest.mark.parametrize("leaves", ["j", "k", ""])
def test_a_client_that_waits_behind_others_may_leave_a_job_that_is_over(leaves: str) -> None:
    scene = full(waiting=1)
    scene.has_job(2, "k")
    scene.handle(o.OpenBranch(2, EPOCH, 0, 1))
    scene.handle(o.Grant(2, EPOCH, 0, 9, "c9", 1.0, {}))
    assert len(scene.agent.uploads.waiting) == 2
    led = scene.handle(o.CloseJob(2))
    led += scene.handle(gm.ClientLeft(9, leaves))
    text = "round 1 of job 'k' takes no more updates; wait for the next selection"
    refused = told(9, cm.Refusal("round-over", "round", text, "k", 1))
    assert led == [aborted("c9", number=2), refused, gm.JobForget("k"), gm.ClientLeft(9, leaves)]
    assert len(scene.agent.uploads.waiting) == 1


def test_where_the_line_is_full_a_grant_of_a_job_that_is_not_open_is_given_up() -> None:
    scene = full(waiting=1, wait_queue_max=1)
    assert scene.handle(o.Grant(2, EPOCH, 0, 9, "c9", 1.0, {})) == [aborted("c9", number=2)]


def test_the_room_that_other_jobs_are_promised_is_not_given_away() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(1)
    scene.has_job(2, "k", path="/k")
    promised = scene.need() - scene.agent.quota.job_used_bytes(2)
    scene.arena.nbytes = scene.arena.used_bytes + promised + scene.update_bytes + scene.layout.data_bytes - 1
    assert scene.grant("c1") == []
    scene.arena.nbytes += 1
    scene.has_room()
    assert scene.handle(ev.Tick()) != []


def test_an_update_of_another_attempt_is_of_another_branch() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(1)
    assert scene.grant("c1", epoch=epoch_of(1, 2)) == [aborted("c1", epoch=epoch_of(1, 2)), too_late(1)]

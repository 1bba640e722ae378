"""A granted update will not come: its slot is free again, at once or after a rest."""

from __future__ import annotations

import math

import pytest
from agent_scene import EPOCH, NUMBER, Scene, aborted, sealed

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.quota import NO_JOB
from lifl.core.agent.uploads import DIRECT_GRACE_S
from lifl.core.errors import RemoteFault
from lifl.core.ids import Kind
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm

OPEN, PLANNED = TaskState.OPEN, TaskState.PLANNED


def scene_of(*clients: str, updates: int = 8, direct: bool = False) -> Scene:
    """Their updates are granted."""
    scene = Scene()
    scene.has_model()
    scene.has_branch(updates)
    for client in clients:
        scene.grant(client, direct=direct)
    return scene


def abort(client: str, scene: Scene, writing: bool = False) -> gm.Aborted:
    return gm.Aborted(int(client[1:]), scene.keys[client].pack(), "gone", writing)


def test_its_slot_and_the_tasks_that_only_it_would_have_filled_are_free_again() -> None:
    scene = scene_of("c1")
    assert scene.handle(abort("c1", scene)) == [aborted("c1")]
    assert scene.arena.objects.keys() == {scene.slot.model}
    assert scene.tell() == [PLANNED, PLANNED, PLANNED]  # OPEN -> PLANNED
    assert [task.address for task in scene.tasks()] == [0, 0, 0]
    assert scene.agent.tasks.find(1) is None
    led = scene.grant("c1")
    assert isinstance(led[0], gm.Granted), "it may be tried again"


def test_tasks_that_others_fill_stay() -> None:
    scene = scene_of("c1", "c2", "c3")
    assert scene.tell() == [OPEN, OPEN, OPEN]
    scene.handle(abort("c1", scene))
    assert scene.tell() == [OPEN, PLANNED, OPEN], "two come, one leaf takes both"
    scene.seal("c2")
    scene.handle(abort("c3", scene))
    assert scene.tell() == [OPEN, PLANNED, OPEN], "it has an input"


def test_a_top_that_takes_partials_too_stays() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(1, others=(1,))
    scene.grant("c1")
    scene.handle(abort("c1", scene))
    assert scene.tell() == [OPEN]


def test_the_slot_of_a_direct_client_rests() -> None:
    scene = scene_of("c1", direct=True)
    key = scene.keys["c1"]
    assert scene.handle(abort("c1", scene, writing=True), at=10.0) == [aborted("c1")]
    assert key in scene.arena.objects
    assert scene.agent.quota.job_used_bytes(NO_JOB) == scene.update_bytes
    assert scene.agent.uploads.next_timer() == 10.0 + DIRECT_GRACE_S
    scene.handle(ev.Tick(), at=14.9)
    assert key in scene.arena.objects
    scene.handle(ev.Tick(), at=15.0)
    assert key not in scene.arena.objects
    assert scene.agent.uploads.next_timer() == math.inf


def test_one_that_does_not_come_to_a_closed_branch_is_only_freed() -> None:
    scene = scene_of("c1", "c2", updates=2)
    scene.seal("c1")
    scene.handle(o.CloseBranch(NUMBER, EPOCH, 0))
    before = scene.tell()
    assert scene.handle(abort("c2", scene)) == [aborted("c2")]
    assert scene.tell() == before
    assert scene.arena.of(Kind.UPDATE) == [scene.keys["c1"]]


def test_room_that_is_free_again_goes_to_who_waits() -> None:
    scene = scene_of("c1", "c2")
    scene.arena.nbytes = scene.arena.used_bytes
    assert scene.grant("c3") == []
    led = scene.handle(abort("c1", scene))
    (key,) = [key for key in scene.arena.of(Kind.UPDATE) if key != scene.keys["c2"]]
    assert led[0] == aborted("c1")
    assert led[1].key == key.pack() and led[1].conn == 3


def test_an_update_that_is_not_on_its_way_cannot_end() -> None:
    scene = scene_of("c1")
    scene.seal("c1")
    with pytest.raises(RemoteFault, match="which is not in flight"):
        scene.handle(abort("c1", scene))


@pytest.mark.parametrize("direct", [False, True])
def test_with_the_gateway_all_that_was_on_its_way_ends(direct: bool) -> None:
    scene = scene_of("c1", "c2", "c3", direct=direct)
    scene.seal("c1")
    scene.arena.seal(scene.keys["c2"], "c2")  # and the gateway died before it said so
    scene.arena.nbytes = scene.arena.used_bytes
    scene.grant("c4")
    led = scene.handle(gm.GatewayLost(), at=10.0)
    assert led == [gm.GatewayLost(), aborted("c4"), aborted("c2"), aborted("c3")]
    left = [scene.keys["c1"], scene.keys["c3"]] if direct else [scene.keys["c1"]]
    assert scene.arena.of(Kind.UPDATE) == left, "a direct client may still write to its slot"
    assert not scene.agent.uploads.waiting
    scene.handle(ev.Tick(), at=15.0)
    assert scene.arena.of(Kind.UPDATE) == [scene.keys["c1"]]


def test_with_the_gateway_what_was_on_its_way_to_a_branch_that_is_gone_ends_too() -> None:
    scene = scene_of("c1")
    scene.handle(o.DropBranch(NUMBER, EPOCH))
    assert scene.handle(gm.GatewayLost()) == [gm.GatewayLost(), aborted("c1")]
    assert scene.arena.of(Kind.UPDATE) == []


def test_how_far_it_is_does_not_matter_when_it_is_not_followed_or_has_landed() -> None:
    scene = scene_of("c1")
    assert scene.handle(gm.Progress(scene.keys["c1"].pack(), 5)) == []
    scene.seal("c1")
    assert scene.handle(gm.Progress(scene.keys["c1"].pack(), 9)) == []


def test_workers_that_were_prepared_for_it_stay_for_the_next() -> None:
    scene = scene_of("c1")
    scene.all_ready()
    scene.handle(abort("c1", scene))
    assert scene.grant("c1")[1:] == [], "a worker is free"
    scene.grant("c2")
    scene.seal("c1")
    assert scene.seal("c2") == [sealed("c2"), *scene.start(scene.tasks()[0])]
    assert fx.ForkWorker(2) not in scene.grant("c3")[:1]

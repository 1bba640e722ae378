"""A granted update is sealed: it is in the branch, and its task gets it."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, HUGE, LARGE, NUMBER, SMALL, Scene, aborted, conn, sealed

from lifl.core import effects as fx
from lifl.core.errors import RemoteFault
from lifl.core.ids import Kind
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm

OPEN, PLANNED, PLACING, RUNNING = TaskState.OPEN, TaskState.PLANNED, TaskState.PLACING, TaskState.RUNNING


def scene_of(updates: int = 8, *, elements: int = LARGE, running: bool = True, **more: object) -> Scene:
    """A branch with the top, the model is here; with `running` a worker is idle before an update needs it."""
    scene = Scene(elements=elements, **more)
    scene.has_model()
    scene.has_branch(updates)
    if running:
        scene.grant("c1")
        scene.all_ready()
    return scene


def test_a_sealed_update_is_reported_and_starts_its_leaf_at_once() -> None:
    scene = scene_of()
    branch = scene.runner().branch
    leaf = scene.tasks()[0]
    led = scene.seal("c1")
    assert led == [sealed("c1"), *scene.start(leaf)]
    assert leaf.inputs == [scene.keys["c1"]]
    assert scene.tell() == [RUNNING, PLANNED, OPEN]  # OPEN -> PLACING -> RUNNING
    assert (list(branch.accepted), branch.in_flight, branch.given, leaf.taken) == (["c1"], {}, 1, 1)
    assert branch.cost.starts == {"cold": 0, "warm": 1, "promoted": 0, "shared": 0}


def test_the_digest_of_an_update_is_told_and_kept() -> None:
    scene = scene_of()
    scene.arena.seal(scene.keys["c1"], "c1")
    led = scene.handle(gm.Sealed(conn("c1"), scene.keys["c1"].pack(), 10, digest=77))
    assert led[0] == o.UpdateSealed(NUMBER, EPOCH, 0, "c1", 10, digest=77)
    assert scene.runner().branch.accepted["c1"].digest == 77


def test_a_leaf_that_no_worker_was_prepared_for_waits_for_one_to_be_forked() -> None:
    scene = scene_of(running=False, idle_timeout_s=0.0)
    scene.grant("c1")
    assert scene.seal("c1") == [sealed("c1"), fx.ForkWorker(1)]
    leaf = scene.tasks()[0]
    assert leaf.state is PLACING
    assert scene.runner().branch.cost.starts["cold"] == 1
    assert scene.ready(1) == scene.start(leaf, worker=1)
    assert (leaf.pid, leaf.attempt) == (101, 1)


def test_the_next_update_of_a_running_leaf_is_sent_to_it() -> None:
    scene = scene_of()
    scene.seal("c1")
    scene.grant("c2")
    leaf = scene.tasks()[0]
    assert scene.seal("c2") == [sealed("c2"), fx.SendKeys(leaf.address, 1, (scene.keys["c2"],))]
    assert leaf.inputs == [scene.keys["c1"], scene.keys["c2"]]


def test_what_comes_while_its_worker_starts_is_sent_when_it_runs() -> None:
    scene = scene_of(running=False)
    scene.upload("c1")
    scene.upload("c2")
    leaf = scene.tasks()[0]
    assert scene.tell() == [PLACING, PLANNED, OPEN]
    led = scene.ready(1)
    assert led == scene.start(leaf, worker=1)
    assert led[-1] == fx.SendKeys(leaf.address, 1, (scene.keys["c1"], scene.keys["c2"]))


@pytest.mark.parametrize(("elements", "timing"), [(SMALL, "eager"), (SMALL, "lazy"), (LARGE, "lazy")])
def test_small_updates_and_lazy_ones_are_given_to_a_leaf_all_together(elements: int, timing: str) -> None:
    scene = scene_of(elements=elements, timing=timing)
    assert scene.seal("c1") == [sealed("c1")]
    assert scene.tell() == [OPEN, PLANNED, OPEN]
    scene.grant("c2")
    led = scene.seal("c2")
    leaf = scene.tasks()[0]
    assert led == [sealed("c2"), *scene.start(leaf)]
    assert led[1].message.eager is (timing == "eager")


def test_the_updates_after_those_of_the_leaves_are_the_top_s() -> None:
    scene = scene_of(8)
    scene.seal("c1")
    for number in range(2, 5):
        scene.upload(f"c{number}")
    scene.all_ready()
    led = scene.grant("c5")
    assert led == [gm.Granted(5, scene.keys["c5"].pack(), led[0].member), fx.ForkWorker(3)]
    scene.ready(3)
    led = scene.seal("c5")
    top = scene.tasks()[-1]
    assert led == [sealed("c5"), *scene.start(top)]
    assert led[1].message.model == scene.slot.model.pack()
    assert top.inputs == [scene.keys["c5"]]


def test_a_top_is_not_started_before_it_is_known_how_many_partials_come() -> None:
    scene = Scene(elements=LARGE)
    scene.has_model()
    scene.has_branch(1, others=(1,))
    scene.grant("c1")
    scene.all_ready()
    assert scene.seal("c1") == [sealed("c1")]
    (top,) = scene.tasks()
    assert (top.state, top.expect) == (OPEN, 2)
    led = scene.handle(o.ExpectPartials(NUMBER, EPOCH, 1))
    assert led == scene.start(top)


def test_the_states_of_a_rule_go_with_the_top() -> None:
    scene = Scene(elements=HUGE, states=("m", "v"))
    scene.has_model()
    scene.has_branch(1)
    scene.grant("c1")
    states = scene.arena.of(Kind.STATE)
    assert len(states) == 4
    scene.all_ready()
    led = scene.seal("c1")
    (top,) = scene.tasks()
    assert led == [sealed("c1"), *scene.start(top)]
    assert led[1].message.states == {name: key.pack() for name, key in scene.slot.states.items()}
    assert list(led[1].message.new_states.values()) == [key.pack() for key in states[2:]]


def test_an_update_that_is_sealed_after_its_branch_was_closed_is_freed() -> None:
    scene = scene_of(2, running=False)
    scene.grant("c1")
    scene.grant("c2")
    scene.seal("c1")
    scene.handle(o.CloseBranch(NUMBER, EPOCH, 0))
    assert scene.seal("c2") == [aborted("c2")]
    assert scene.arena.of(Kind.UPDATE) == [scene.keys["c1"]]


def test_the_load_counts_what_comes() -> None:
    scene = scene_of(2, running=False)
    scene.upload("c1")
    scene.grant("c2")
    scene.arena.seal(scene.keys["c2"], "c2")
    scene.handle(gm.Sealed(2, scene.keys["c2"].pack(), 10), at=1.0)
    assert scene.agent.load.rate_per_s > 0


def test_an_object_that_is_not_on_its_way_is_the_gateway_s_fault() -> None:
    scene = scene_of(2)
    scene.seal("c1")
    key = scene.keys["c1"]
    with pytest.raises(RemoteFault, match=r"the gateway has sealed .*, which was not granted"):
        scene.handle(gm.Sealed(1, key.pack(), 10))

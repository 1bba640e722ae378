"""No more updates, or partials, come: tasks expect fewer, and those that nothing reaches are dropped."""

from __future__ import annotations

from agent_scene import EPOCH, LARGE, NUMBER, Scene, aborted

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.ids import Kind, epoch_of
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import worker as wm

OPEN, PLANNED, RUNNING, DROPPED = TaskState.OPEN, TaskState.PLANNED, TaskState.RUNNING, TaskState.DROPPED
CLOSE = o.CloseBranch(NUMBER, EPOCH, 0)


def scene_of(updates: int, sealed: int, elements: int = LARGE, **more: object) -> Scene:
    """So many of a branch's updates are sealed, and the workers run."""
    scene = Scene(elements=elements)
    scene.has_model()
    scene.has_branch(updates, **more)
    for number in range(1, 1 + sealed):
        scene.upload(f"c{number}")
        scene.all_ready()
    return scene


def closed(updates: int) -> o.BranchClosed:
    return o.BranchClosed(NUMBER, EPOCH, 0, updates)


def test_a_running_task_is_told_to_expect_fewer_and_tasks_without_inputs_are_dropped() -> None:
    scene = scene_of(8, 1)
    leaf, other, top = scene.tasks()
    led = scene.handle(CLOSE)
    assert led == [closed(1), fx.SendWorker(leaf.worker, wm.Expect(leaf.address, 1, 1))]
    assert scene.tell() == [RUNNING, DROPPED, OPEN]  # PLANNED -> DROPPED
    assert (leaf.expect, other.expect, top.expect) == (1, 0, 1)


def test_a_task_that_waited_for_more_starts_with_what_it_has() -> None:
    scene = scene_of(8, 1, elements=1024)
    leaf, _, _ = scene.tasks()
    assert leaf.state is OPEN
    led = scene.handle(CLOSE)
    assert led == [closed(1), *scene.start(leaf)]


def test_an_open_task_that_only_updates_in_flight_would_have_reached_is_dropped() -> None:
    scene = scene_of(8, 2)
    scene.grant("c3")
    other = scene.tasks()[1]
    assert other.state is OPEN
    output = other.output
    assert scene.handle(CLOSE) == [closed(2)]
    assert scene.tell() == [RUNNING, DROPPED, OPEN]  # OPEN -> DROPPED
    assert output not in scene.arena.objects
    assert scene.seal("c3") == [aborted("c3")]


def test_a_branch_that_took_nothing_has_nothing_to_make() -> None:
    scene = scene_of(8, 0)
    assert scene.handle(CLOSE) == [closed(0)]
    assert scene.tell() == [DROPPED, DROPPED, DROPPED]
    assert scene.handle(o.CommitBranch(NUMBER, EPOCH)) == []
    assert scene.replica.runners == {}


def test_a_branch_that_is_asked_again_says_the_same() -> None:
    scene = scene_of(2, 1)
    scene.handle(CLOSE)
    assert scene.handle(CLOSE) == [closed(1)]


def test_of_a_branch_that_an_earlier_life_had_nothing_is_said() -> None:
    scene = scene_of(2, 1)
    assert scene.handle(o.CloseBranch(NUMBER, EPOCH, 7)) == []
    assert scene.handle(o.CloseBranch(NUMBER, epoch_of(1, 2), 0)) == []


def test_a_top_that_expected_more_partials_starts_without_them() -> None:
    scene = scene_of(1, 1, others=(1, 2))
    (top,) = scene.tasks()
    assert (top.state, top.expect) == (OPEN, 3)
    assert scene.handle(CLOSE) == [closed(1)]
    led = scene.handle(o.ExpectPartials(NUMBER, EPOCH, 0))
    assert led == scene.start(top)
    assert (top.expect, top.adopted) == (1, 0)


def test_middles_that_would_have_taken_partials_that_do_not_come_are_dropped() -> None:
    scene = scene_of(1, 0, others=(1, 2, 3))
    assert [task.role for task in scene.tasks()] == ["middle", "top"]
    assert scene.handle(o.ExpectPartials(NUMBER, EPOCH, 0)) == []
    assert scene.tell() == [DROPPED, PLANNED]
    scene.upload("c1")
    assert scene.tell()[-1] is TaskState.PLACING


def test_a_running_top_s_expectation_falls_with_the_updates_that_do_not_come() -> None:
    scene = scene_of(2, 1)
    (top,) = scene.tasks()
    led = scene.handle(CLOSE)
    assert led == [closed(1), fx.SendWorker(top.worker, wm.Expect(top.address, 1, 1))]


def test_partials_of_an_attempt_that_is_not_here_are_not_expected() -> None:
    scene = scene_of(2, 1)
    assert scene.handle(o.ExpectPartials(NUMBER, epoch_of(1, 2), 1)) == []
    assert scene.handle(ev.Tick()) == []
    assert scene.arena.of(Kind.UPDATE)

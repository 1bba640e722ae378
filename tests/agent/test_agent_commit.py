"""A round is committed, or ends without a model; what was kept for it is freed, and late words harm nothing."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, Scene, aborted

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.ids import Kind, epoch_of
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm

DROPPED, DONE = TaskState.DROPPED, TaskState.DONE
COMMIT = o.CommitBranch(NUMBER, EPOCH)
DROP = o.DropBranch(NUMBER, EPOCH)


def scene_of(updates: int, sealed: int, branch: int = 0, *, ready: bool = True, **more: object) -> Scene:
    """So many of a branch's updates are sealed; with `ready` the workers run."""
    scene = Scene(elements=LARGE, **more)
    scene.has_model()
    scene.has_branch(updates, branch)
    for number in range(1, 1 + sealed):
        scene.upload(f"c{number}", branch)
        if ready:
            scene.all_ready()
    return scene


def test_a_commit_frees_what_the_top_kept_for_a_restart() -> None:
    scene = scene_of(8, 8, workers_max=8)
    one, two, top = scene.tasks()
    for task in (one, two, top):
        scene.done(task)
    assert len(top.inputs) == 6 and set(top.inputs) <= scene.arena.objects.keys()
    assert scene.handle(COMMIT) == []
    assert list(scene.arena.objects) == [scene.slot.model]
    assert scene.replica.runners == {}
    assert all(scene.agent.tasks.find(task.address) is None for task in (one, two, top))


def test_a_commit_frees_the_partial_that_was_brought_to_the_top() -> None:
    scene = scene_of(1, 1, branch=1)
    (root,) = scene.tasks(1)
    scene.done(root, "c1")
    assert scene.handle(COMMIT) == []
    assert list(scene.arena.objects) == [scene.slot.model]


def test_a_commit_finds_nothing_of_a_partial_that_the_top_here_has_taken() -> None:
    scene = scene_of(1, 1, branch=1)
    scene.has_branch(0, others=(1,))
    scene.runner(1).branch.parent = ""
    scene.anew()
    scene.done(scene.tasks(1)[0], "c1")
    scene.handle(o.ExpectPartials(NUMBER, EPOCH, 1))
    scene.all_ready()
    scene.done(scene.tasks(0)[0], "c1")
    assert scene.handle(COMMIT) == []
    assert list(scene.arena.objects) == [scene.slot.model]


def test_a_branch_that_is_committed_without_having_made_anything_is_dropped() -> None:
    """It was adopted, and the top had its partial already."""
    scene = scene_of(8, 1, branch=1)
    assert scene.handle(COMMIT)[0] == fx.Route(scene.agent.tasks._open[1].task.address, None)
    assert scene.replica.runners == {}


def test_a_commit_of_another_round_changes_nothing() -> None:
    scene = scene_of(8, 1)
    before = dict(scene.arena.objects)
    assert scene.handle(o.CommitBranch(NUMBER, epoch_of(2, 1))) == []
    assert scene.arena.objects == before and scene.replica.runners


def test_a_dropped_branch_frees_what_no_worker_writes_to_at_once_and_the_rest_later() -> None:
    scene = scene_of(8, 1)
    leaf, _, top = scene.tasks()
    leaf_output = leaf.output
    scene.grant("c2")
    led = scene.handle(DROP)
    assert led == [fx.Route(leaf.address, None), fx.SendWorker(leaf.worker, wm.Drop(leaf.address, 1))]
    assert [leaf.state, top.state] == [DROPPED, DROPPED]  # RUNNING -> DROPPED, OPEN -> DROPPED
    assert scene.arena.objects.keys() == {scene.slot.model, scene.keys["c2"], leaf_output}
    assert scene.agent.tasks.find(leaf.address) is not None, "its address is not free yet"
    assert scene.handle(ev.FromWorker(leaf.worker, wm.TaskDropped(leaf.address, 1))) == []
    assert list(scene.arena.objects) == [scene.slot.model, scene.keys["c2"]]
    assert scene.agent.tasks.find(leaf.address) is None
    assert scene.seal("c2") == [aborted("c2")]
    assert list(scene.arena.objects) == [scene.slot.model]


@pytest.mark.parametrize("word", ["done", "failed", "gone"])
def test_a_worker_that_ends_a_dropped_task_otherwise_lets_go_of_it_too(word: str) -> None:
    scene = scene_of(8, 1)
    leaf = scene.tasks()[0]
    scene.handle(DROP)
    messages = {
        "done": ev.FromWorker(1, wm.TaskDone(leaf.address, 1, 1.0, 1, 1, 0.1, 0.1)),
        "failed": ev.FromWorker(1, wm.TaskFailed(leaf.address, 1, "it raised")),
        "gone": ev.WorkerGone(1),
    }
    assert scene.handle(messages[word]) == []
    assert list(scene.arena.objects) == [scene.slot.model]
    assert scene.agent.tasks.find(leaf.address) is None


def test_a_dropped_task_whose_worker_still_starts_is_never_given_to_it() -> None:
    scene = scene_of(8, 1, ready=False)
    leaf = scene.tasks()[0]
    assert scene.handle(DROP) == [fx.Route(leaf.address, None)]
    assert leaf.state is DROPPED  # PLACING -> DROPPED
    assert list(scene.arena.objects) == [scene.slot.model]
    assert scene.ready(1) == []


def test_a_task_that_failed_is_dropped_without_a_word_to_its_worker() -> None:
    scene = scene_of(8, 1)
    leaf = scene.tasks()[0]
    scene.handle(ev.FromWorker(1, wm.TaskFailed(leaf.address, 1, "it raised")))
    assert scene.handle(DROP) == [fx.Route(leaf.address, None)]
    assert list(scene.arena.objects) == [scene.slot.model]


@pytest.mark.parametrize("branch", [0, 1])
def test_a_branch_that_has_made_its_object_may_be_dropped(branch: int) -> None:
    scene = scene_of(2, 2, branch)
    (root,) = scene.tasks(branch)
    scene.done(root, "c1", "c2")
    assert scene.handle(DROP) == []
    assert list(scene.arena.objects) == [scene.slot.model]


def test_a_branch_that_was_merged_in_part_may_be_dropped() -> None:
    scene = scene_of(8, 8, branch=1, workers_max=9)
    one, two, three, four, left, _right, _root = scene.tasks(1)
    for task in (one, two, three):
        scene.done(task)
    scene.done(left)
    led = scene.handle(DROP)
    told = [each.message for each in led if isinstance(each, fx.SendWorker)]
    assert [each.address for each in told] == [four.address, _right.address, _root.address]
    for message in told:
        at = next(w.number for w in scene.agent.pool.workers.values() if message.address in w.tasks)
        scene.handle(ev.FromWorker(at, wm.TaskDropped(message.address, message.attempt)))
    assert list(scene.arena.objects) == [scene.slot.model]


def test_one_branch_of_several_is_dropped_alone() -> None:
    scene = scene_of(2, 1)
    scene.has_branch(1, branch=1)
    scene.grant("c5", branch=1)
    assert scene.handle(o.DropBranch(NUMBER, EPOCH, 1)) == []
    assert list(scene.replica.runners) == [(EPOCH, 0)]
    assert scene.handle(gm.Aborted(5, scene.keys["c5"].pack(), "gone")) == [aborted("c5", branch=1)]
    assert scene.arena.of(Kind.UPDATE) == [scene.keys["c1"]]
    assert DONE not in scene.tell()

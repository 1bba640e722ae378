"""Workers that owe something are looked at; stopped ones are killed at once, others at the deadline; forks back off."""

from __future__ import annotations

from typing import Any

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, Scene, at

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.file_tasks import FILE_DEADLINE_S
from lifl.core.agent.pool import FORK_PAUSE_MAX_S, FORK_PAUSE_MIN_S, WorkerState
from lifl.core.agent.worker_watch import DROP_GRACE_S, LOOK_S, START_S
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm

LOOK = fx.LookAtChildren()


def computing(scene: Scene, **more: Any) -> Task:
    """A leaf that has all its inputs, and runs."""
    scene.has_model()
    scene.has_branch(2, branch=1, **more)
    scene.upload("c1", branch=1)
    scene.upload("c2", branch=1)
    scene.all_ready()
    (leaf,) = scene.tasks(1)
    assert leaf.state is TaskState.RUNNING and leaf.complete
    return leaf


def tick(scene: Scene, after_s: float = LOOK_S) -> list[Any]:
    return scene.handle(ev.Tick(), at=scene.now + after_s)


def kills(led: list[Any]) -> list[int]:
    return [each.worker for each in led if isinstance(each, fx.KillWorker)]


# ---- what is stopped -------------------------------------------------------------------------------------------------


def test_a_worker_that_has_all_it_needs_is_looked_at_and_killed_when_it_is_stopped() -> None:
    scene = Scene()
    leaf = computing(scene)
    first = at(leaf)
    assert scene.engine.next_timer() == LOOK_S
    assert tick(scene) == [LOOK, fx.LookAtWorker(first)]
    assert scene.handle(ev.WorkerSeen(first, stopped=False)) == []
    assert kills(scene.handle(ev.WorkerSeen(first, stopped=True))) == [first]
    assert scene.agent.pool.workers[first].state is WorkerState.KILLED  # BUSY -> KILLED
    assert scene.handle(ev.WorkerSeen(first, stopped=True)) == []
    led = scene.handle(ev.WorkerGone(first))
    assert fx.ForkWorker(at(leaf)) in led or scene.agent.pool.running(at(leaf))
    scene.all_ready()
    assert (leaf.state, leaf.attempt) == (TaskState.RUNNING, 2)
    assert o.BranchSealed in map(type, scene.done(leaf, "c1", "c2"))


def test_one_that_waits_for_inputs_is_left_alone_whatever_its_state() -> None:
    scene = Scene(elements=LARGE)
    scene.has_model()
    scene.has_branch(4, branch=1)
    scene.upload("c1", branch=1)
    scene.all_ready()
    assert tick(scene) == [LOOK]
    assert scene.engine.next_timer() == 2 * LOOK_S


def test_a_worker_that_does_not_start_is_looked_at_and_killed_when_it_takes_too_long() -> None:
    scene = Scene(idle_timeout_s=0.0)
    scene.has_model()
    scene.has_branch(2, branch=1)
    scene.upload("c1", branch=1)
    scene.upload("c2", branch=1)
    (leaf,) = scene.tasks(1)
    first = at(leaf)
    assert tick(scene) == [LOOK, fx.LookAtWorker(first)]
    assert kills(tick(scene, START_S)) == [first]  # STARTING -> KILLED
    assert kills(tick(scene)) == [first]  # it may have had no process
    scene.handle(ev.FromWorker(first, wm.WorkerReady(first, 7, 0)))  # it was on its way
    scene.handle(ev.WorkerGone(first))
    scene.all_ready()
    assert leaf.state is TaskState.RUNNING and at(leaf) != first


def test_at_rest_nothing_is_looked_at() -> None:
    scene = Scene()
    scene.has_model()
    assert scene.engine.next_timer() is None
    scene.has_branch(2)
    assert tick(scene) == [LOOK]  # the gateway may be stopped: then no update comes
    scene.handle(o.DropBranch(NUMBER, EPOCH))
    tick(scene)
    assert scene.engine.next_timer() is None


# ---- what takes too long ---------------------------------------------------------------------------------------------


def test_a_task_that_does_not_end_in_time_fails_its_round_and_is_run_by_nobody_else() -> None:
    scene = Scene(task_deadline_s=60.0)
    leaf = computing(scene)
    worker = at(leaf)
    assert tick(scene) == [LOOK, fx.LookAtWorker(worker)]
    assert kills(tick(scene, 59.9)) == []
    led = tick(scene, 0.2 + LOOK_S)
    assert kills(led) == [worker]
    (failed,) = [each for each in led if isinstance(each, o.BranchFailed)]
    assert (failed.epoch, failed.retry) == (EPOCH, True)
    assert failed.text == (
        "the leaf task of round 1 failed: it did not end within 60 s (aggregation.task_deadline_s); "
        "its worker was killed"
    )
    output = leaf.output
    scene.handle(o.DropBranch(NUMBER, EPOCH))
    assert output in scene.arena.objects, "the process may not have ended yet"
    assert scene.handle(ev.WorkerGone(worker)) == []
    assert output not in scene.arena.objects
    assert leaf.state is TaskState.DROPPED


def test_without_a_deadline_of_the_jobs_own_it_is_five_minutes() -> None:
    scene = Scene()
    leaf = computing(scene)
    tick(scene)
    assert kills(tick(scene, 299.0)) == []
    assert kills(tick(scene, 2.0)) == [at(leaf)]


def test_the_other_tasks_of_a_worker_that_is_killed_are_placed_again() -> None:
    scene = Scene(workers_max=1, elements=LARGE, task_deadline_s=10.0)
    scene.has_model()
    scene.has_branch(4, branch=1)
    for client in ("c1", "c2", "c3"):
        scene.upload(client, branch=1)
    scene.all_ready()
    late, other, _middle = scene.tasks(1)
    assert (at(late), at(other), late.complete, other.complete) == (1, 1, True, False)
    tick(scene)
    assert kills(tick(scene, 10.0)) == [1]
    scene.handle(ev.WorkerGone(1))
    scene.all_ready()
    assert (other.state, at(other) != 1, late.failed, late.state) == (TaskState.RUNNING, True, True, TaskState.RUNNING)


def test_a_task_that_is_not_wanted_any_more_has_a_short_grace() -> None:
    scene = Scene()
    leaf = computing(scene)
    worker, output = at(leaf), leaf.output
    scene.handle(o.CloseJob(NUMBER))
    assert tick(scene) == [LOOK, fx.LookAtWorker(worker)]
    assert kills(tick(scene, DROP_GRACE_S)) == [worker]
    assert output in scene.arena.objects
    assert scene.handle(ev.WorkerGone(worker)) == []
    assert scene.arena.objects == {}


def test_a_file_that_is_read_has_as_long_as_a_disk_may_take_and_is_read_again() -> None:
    scene = Scene()
    scene.has_job(path="/m")
    scene.ready(1)
    tick(scene)
    assert kills(tick(scene, FILE_DEADLINE_S - 1.0)) == []
    led = tick(scene, 2.0)
    assert kills(led) == [1] and not [each for each in led if isinstance(each, o.JobFailed)]
    scene.handle(ev.WorkerGone(1))
    assert fx.SendWorker in map(type, scene.ready(2))


def test_a_stopped_worker_that_reads_a_file_for_a_job_that_is_over_is_killed() -> None:
    scene = Scene()
    scene.has_job(path="/m")
    scene.ready(1)
    scene.handle(o.CloseJob(NUMBER))
    assert kills(tick(scene, DROP_GRACE_S + LOOK_S)) == []
    assert kills(scene.handle(ev.WorkerSeen(1, stopped=True))) == [1]
    scene.handle(ev.WorkerGone(1))
    assert scene.arena.objects == {}


# ---- forks that are refused ------------------------------------------------------------------------------------------


def test_a_refused_fork_is_made_again_after_a_pause_that_grows() -> None:
    scene = Scene()
    assert scene.handle(scene.open_job(path="/m")) == [fx.ForkWorker(1)]
    pause_s = FORK_PAUSE_MIN_S
    for worker in range(1, 12):
        assert not [each for each in scene.handle(ev.WorkerGone(worker)) if isinstance(each, fx.ForkWorker)]
        assert not [each for each in tick(scene, 0.0) if isinstance(each, fx.ForkWorker)]
        assert scene.engine.next_timer() <= scene.now + pause_s
        led = [each for each in tick(scene, pause_s) if isinstance(each, fx.ForkWorker)]
        assert led == [fx.ForkWorker(worker + 1)]
        pause_s = min(2 * pause_s, FORK_PAUSE_MAX_S)
    assert fx.SendWorker in map(type, scene.ready(12))


def test_meanwhile_a_worker_that_runs_takes_the_task() -> None:
    scene = Scene(elements=LARGE)
    scene.has_model()
    scene.has_branch(4, branch=1)
    scene.upload("c1", branch=1)
    scene.all_ready()
    running = at(scene.tasks(1)[0])
    for worker in list(scene.agent.pool.workers):
        if worker != running:
            scene.handle(ev.WorkerGone(worker))
    (refused,) = scene.agent.pool.prepare(9)[:1]
    scene.agent.pool.workers = {n: w for n, w in scene.agent.pool.workers.items() if n in (running, refused)}
    scene.anew()
    scene.handle(ev.WorkerGone(refused))
    scene.upload("c2", branch=1)
    scene.upload("c3", branch=1)
    assert at(scene.tasks(1)[1]) == running


def test_one_that_waits_to_be_forked_for_a_task_that_is_over_is_not() -> None:
    scene = Scene()
    scene.has_job(path="/m")
    scene.handle(ev.WorkerGone(1))
    assert [worker.new for worker in scene.agent.pool.workers.values()] == [True]
    scene.handle(o.CloseJob(NUMBER))
    assert [each for each in tick(scene, 1.0) if isinstance(each, fx.ForkWorker)] == []
    assert scene.agent.pool.workers == {}


# ---- a failure that nobody heard of ----------------------------------------------------------------------------------


@pytest.mark.parametrize("heard", [False, True])
def test_a_task_that_fails_is_told_of_again_with_the_next_connection(heard: bool) -> None:
    scene = Scene()
    leaf = computing(scene)
    if not heard:
        scene.handle(ev.CoordinatorDown())
    failed = o.BranchFailed(NUMBER, EPOCH, "the leaf task of round 1 failed: no", False)
    said = scene.handle(ev.FromWorker(at(leaf), wm.TaskFailed(leaf.address, 1, "no")))
    assert failed in said  # lost when there is no connection
    if heard:
        scene.handle(ev.CoordinatorDown())
    led = scene.handle(ev.CoordinatorUp(stranger=False))
    assert [type(each) for each in led] == [p.Inventory, o.BranchFailed]
    assert led[1] == failed
    scene.handle(o.DropBranch(NUMBER, EPOCH))
    scene.handle(ev.CoordinatorDown())
    assert o.BranchFailed not in map(type, scene.handle(ev.CoordinatorUp(stranger=False)))


def test_the_gateway_is_told_nothing_of_all_that() -> None:
    scene = Scene()
    computing(scene)
    assert not [each for each in tick(scene) if isinstance(each, gm.ToGateway)]

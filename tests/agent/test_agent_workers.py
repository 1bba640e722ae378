"""Workers are forked, given tasks, lost, reused and retired; tasks go on with the next one."""

from __future__ import annotations

import math

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, Scene, sealed

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.pool import FORK_PAUSE_MIN_S, Worker, WorkerState
from lifl.core.agent.task_table import output_of, worker_of
from lifl.core.agent.worker_deaths import EXITS_KEPT, OWN_CODE_ATTEMPTS_MAX, TASK_ATTEMPTS_MAX
from lifl.core.errors import LocalFault, RemoteFault
from lifl.core.ids import Key, epoch_of
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import worker as wm

OPEN, PLACING, RUNNING, DONE = TaskState.OPEN, TaskState.PLACING, TaskState.RUNNING, TaskState.DONE
IDLE, BUSY, STARTING, RETIRING = WorkerState.IDLE, WorkerState.BUSY, WorkerState.STARTING, WorkerState.RETIRING


def scene_of(updates: int, sealed_: int, branch: int = 0, **more: object) -> Scene:
    """So many of a branch's updates are sealed, and the workers run."""
    scene = Scene(elements=LARGE, **more)
    scene.has_model()
    scene.has_branch(updates, branch)
    for number in range(1, 1 + sealed_):
        scene.upload(f"c{number}", branch)
        scene.all_ready()
    return scene


def workers(scene: Scene) -> dict[int, Worker]:
    return scene.agent.pool.workers


# ---- it runs ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_runs_and_has_no_task_is_idle_and_one_with_a_task_is_given_it() -> None:
    scene = scene_of(8, 0)
    scene.grant("c1")
    scene.grant("c2")
    scene.grant("c3")
    assert scene.ready(1) == []
    assert workers(scene)[1].state is IDLE  # STARTING -> IDLE
    scene.seal("c1")
    assert workers(scene)[1].state is BUSY  # IDLE -> BUSY
    scene.seal("c2")
    scene.seal("c3")
    other = scene.tasks()[1]
    assert (other.state, other.worker) == (PLACING, 2)
    assert scene.ready(2) == scene.start(other)
    assert workers(scene)[2].state is BUSY  # STARTING -> BUSY
    assert workers(scene)[2].pid == 102


def test_a_worker_that_was_lost_before_it_said_that_it_runs_is_not_known_any_more() -> None:
    scene = scene_of(8, 0)
    scene.grant("c1")
    assert scene.handle(ev.WorkerGone(1)) == []
    assert scene.ready(1) == []
    assert workers(scene) == {}


def test_one_that_says_so_twice_or_of_another_ends_itself_alone() -> None:
    scene = scene_of(8, 1)
    scene.upload("c2")
    scene.grant("c3")  # a second one is forked, which does not run yet
    assert workers(scene)[2].state is STARTING
    for says in (1, 2):
        with pytest.raises(RemoteFault, match=rf"worker 1, which is busy, says that worker {says} runs"):
            scene.handle(ev.FromWorker(1, wm.WorkerReady(says, 101, 0)))
    with pytest.raises(RemoteFault, match="worker 2, which is starting, says that worker 1 runs"):
        scene.handle(ev.FromWorker(2, wm.WorkerReady(1, 101, 0)))
    assert [worker.state for worker in workers(scene).values()] == [BUSY, STARTING]


def test_what_one_says_of_anothers_task_changes_nothing() -> None:
    scene = scene_of(8, 4)
    mine, others = scene.tasks()[:2]
    assert (mine.state, others.state) == (RUNNING, RUNNING) and mine.worker != others.worker
    before = scene.agent.load
    assert output_of(others) is not None
    scene.arena.seal(output_of(others), "c3", "c4")
    for said in (
        wm.TaskDone(others.address, others.attempt, 1.0, 1, 2, 0.25, 0.5),
        wm.TaskFailed(others.address, others.attempt, "no"),
        wm.TaskDropped(others.address, others.attempt),
    ):
        assert scene.handle(ev.FromWorker(worker_of(mine), said)) == []
    assert (others.state, workers(scene)[worker_of(others)].state) == (RUNNING, BUSY)
    assert scene.agent.load == before


def test_one_that_is_done_with_what_is_over_is_free() -> None:
    """Its output was taken before it said so, and the round has ended meanwhile."""
    scene = scene_of(8, 2)
    leaf = scene.tasks()[0]
    scene.arena.seal(output_of(leaf), "c1", "c2")
    scene.runner()._overtaken(leaf)
    scene.agent.tasks._close(leaf.address)
    done = wm.TaskDone(leaf.address, leaf.attempt, 1.0, 1, 2, 0.25, 0.5)
    scene.agent.tasks.heard(ev.FromWorker(1, done))
    assert workers(scene)[1].state is IDLE


def test_what_one_lets_go_of_that_another_still_writes_to_is_not_freed() -> None:
    scene = scene_of(8, 4)
    mine, others = scene.tasks()[:2]
    output = output_of(others)
    scene.agent.tasks.abandon(others, [output])
    scene.agent._turn.effects.clear()
    scene.anew()
    scene.handle(ev.FromWorker(worker_of(mine), wm.TaskDropped(others.address, others.attempt)))
    assert output in scene.arena.objects
    scene.handle(ev.FromWorker(worker_of(others), wm.TaskDropped(others.address, others.attempt)))
    assert output not in scene.arena.objects


def test_one_that_says_it_is_done_and_has_sealed_nothing_ends_and_its_task_goes_on() -> None:
    scene = scene_of(8, 2)
    leaf = scene.tasks()[0]
    before = scene.agent.load
    with pytest.raises(RemoteFault, match="whose output is not sealed"):
        scene.handle(ev.FromWorker(worker_of(leaf), wm.TaskDone(leaf.address, 1, 1.0, 1, 2, 0.25, 0.5)))
    assert (leaf.state, leaf.worker, scene.agent.load) == (RUNNING, 1, before)
    scene.handle(ev.WorkerGone(1))
    assert leaf.worker != 1


# ---- whom a task is given to -----------------------------------------------------------------------------------------


def test_a_worker_whose_leaf_is_done_takes_the_middle_above_it() -> None:
    scene = scene_of(6, 6, branch=1, workers_max=8)
    first, _, _, middle, _ = scene.tasks(1)
    scene.done(first)
    assert middle.worker == first.worker
    assert scene.runner(1).branch.cost.starts == {"cold": 3, "warm": 0, "promoted": 1, "shared": 0}


def test_where_no_more_may_be_forked_the_one_with_the_fewest_tasks_is_shared() -> None:
    scene = scene_of(8, 3, workers_max=1)
    first, second, _ = scene.tasks()
    assert (first.worker, second.worker) == (1, 1)
    assert list(workers(scene)[1].tasks) == [first.address, second.address]
    assert scene.runner().branch.cost.starts["shared"] == 1
    scene.done(first)
    assert workers(scene)[1].state is BUSY, "it has another"


# ---- it is lost ------------------------------------------------------------------------------------------------------


def test_a_task_whose_worker_is_lost_is_given_to_another_with_all_its_inputs() -> None:
    scene = scene_of(8, 2)
    leaf = scene.tasks()[0]
    led = scene.handle(ev.WorkerGone(1))
    assert led == [fx.Route(leaf.address, None), fx.ForkWorker(2)]
    assert leaf.state is PLACING  # RUNNING -> PLACING
    assert scene.ready(2) == scene.start(leaf, attempt=2)
    assert leaf.inputs == [scene.keys["c1"], scene.keys["c2"]]


def test_a_task_whose_worker_is_lost_before_it_ran_is_given_to_another() -> None:
    scene = scene_of(8, 0)
    scene.upload("c1")
    led = scene.handle(ev.WorkerGone(1))
    leaf = scene.tasks()[0]
    assert led == [fx.Route(leaf.address, None)]
    assert scene.handle(ev.Tick(), at=FORK_PAUSE_MIN_S) == [fx.ForkWorker(2)]
    assert (leaf.state, leaf.attempt) == (PLACING, 0)
    assert scene.ready(2) == scene.start(leaf)


def test_a_task_whose_worker_sealed_its_output_before_it_was_lost_is_done() -> None:
    scene = scene_of(8, 8, workers_max=8)
    leaf, _, top = scene.tasks()
    scene.arena.seal(leaf.output, "c1", "c2")
    led = scene.handle(ev.WorkerGone(leaf.worker))
    assert led == [fx.Route(leaf.address, None), fx.SendKeys(top.address, 1, (leaf.output,))]
    assert leaf.state is DONE
    assert scene.runner().branch.cost.worker_cpu_s == 0, "nobody told what it took"


def test_a_top_that_is_started_again_writes_to_new_objects() -> None:
    scene = scene_of(2, 1, states=("m",))
    (top,) = scene.tasks()
    old = [top.output, *scene.runner()._outputs.states.values()]
    sizes = [scene.arena.extent_bytes(key) for key in old]
    scene.handle(ev.WorkerGone(1))
    new = [top.output, *scene.runner()._outputs.states.values()]
    assert not set(old) & scene.arena.objects.keys()
    assert [scene.arena.extent_bytes(key) for key in new] == sizes
    assert scene.ready(2) == scene.start(top, attempt=2)


def test_a_key_that_the_first_worker_took_with_it_is_sent_again() -> None:
    scene = scene_of(8, 8, workers_max=8)
    leaf, _, top = scene.tasks()
    scene.handle(ev.WorkerGone(top.worker))
    scene.all_ready()
    assert (top.state, top.attempt) == (RUNNING, 2)
    led = scene.done(leaf, "c1", "c2")
    assert led == [fx.Route(leaf.address, None), fx.SendKeys(top.address, 2, (leaf.output,))]


def test_a_round_whose_workers_die_one_after_the_other_fails() -> None:
    scene = scene_of(8, 1)
    leaf = scene.tasks()[0]
    for attempt in range(1, TASK_ATTEMPTS_MAX):
        assert leaf.attempt == attempt
        scene.handle(ev.WorkerGone(leaf.worker))
        scene.all_ready()
    (report,) = scene.handle(ev.WorkerGone(leaf.worker))
    text = f"the leaf task of round 1 failed: {TASK_ATTEMPTS_MAX} workers died in turn while they ran it"
    assert report == o.BranchFailed(NUMBER, EPOCH, text, retry=True)
    led = scene.handle(o.DropBranch(NUMBER, EPOCH))
    assert led == [fx.Route(leaf.address, None)]
    assert list(scene.arena.objects) == [scene.slot.model]


def test_a_round_whose_own_code_ends_its_workers_fails_soon_and_says_how_they_ended() -> None:
    scene = scene_of(8, 1, rule="mine:Rule")
    leaf = scene.tasks()[0]
    for attempt, how in ((1, "signal SIGSEGV"), (2, "exit code 0")):
        assert leaf.attempt == attempt
        worker = leaf.worker
        scene.handle(ev.WorkerGone(worker))
        assert scene.handle(ev.WorkerExited(worker, how)) == []
        scene.all_ready()
    (report,) = scene.handle(ev.WorkerGone(leaf.worker))
    text = (
        f"the leaf task of round 1 failed: {OWN_CODE_ATTEMPTS_MAX} workers died in turn while they ran it with rule "
        "mine:Rule (aggregation.rule), with exit code 0 or signal SIGSEGV"
    )
    assert report == o.BranchFailed(NUMBER, EPOCH, text, retry=True)


def test_how_workers_ended_is_remembered_of_the_last_ones() -> None:
    scene = scene_of(8, 1, rule="mine:Rule")
    for worker in range(1, EXITS_KEPT + 2):
        scene.handle(ev.WorkerExited(worker, "exit code 1"))
    assert list(scene.agent.tasks.deaths._exits) == list(range(2, EXITS_KEPT + 2))


def test_a_worker_that_is_lost_after_its_task_was_found_done_takes_nothing_with_it() -> None:
    scene = scene_of(8, 8, workers_max=8)
    leaf, other, top = scene.tasks()
    scene.done(other)
    scene.arena.seal(leaf.output, "c1", "c2")
    scene.done(top)
    assert scene.handle(ev.WorkerGone(leaf.worker)) == []
    assert scene.handle(o.CommitBranch(NUMBER, EPOCH)) == []
    assert list(scene.arena.objects) == [scene.slot.model]


def test_one_that_is_lost_after_the_round_was_committed_had_a_task_that_is_gone() -> None:
    scene = scene_of(8, 8, workers_max=8)
    leaf, other, top = scene.tasks()
    scene.done(other)
    scene.arena.seal(leaf.output, "c1", "c2")
    scene.done(top)
    scene.handle(o.CommitBranch(NUMBER, EPOCH))
    assert scene.handle(ev.WorkerGone(leaf.worker)) == []
    assert scene.handle(ev.WorkerGone(99)) == []


# ---- records without a route -----------------------------------------------------------------------------------------


def test_a_record_for_a_running_task_is_passed_on() -> None:
    scene = scene_of(8, 1)
    leaf = scene.tasks()[0]
    key = Key(50, 1, 2)
    assert scene.handle(ev.Bounced(leaf.address, key)) == [fx.SendKeys(leaf.address, 1, (key,))]


@pytest.mark.parametrize("state", [OPEN, PLACING])
def test_a_record_for_a_task_that_does_not_run_yet_is_kept_for_it(state: TaskState) -> None:
    scene = scene_of(8, 2, workers_max=8)
    scene.grant("c3")
    task = scene.tasks()[1]
    if state is PLACING:
        scene.seal("c3")
    assert task.state is state
    key = Key(50, 1, 2)
    assert scene.handle(ev.Bounced(task.address, key)) == []
    assert scene.handle(ev.Bounced(task.address, key)) == []
    scene.all_ready()
    if state is OPEN:
        scene.seal("c3")
        scene.all_ready()
    assert task.bounced == {}
    shapes = [shape for entry in scene.engine.recording().entries for shape in entry.shapes]
    sent = [each for each in shapes if isinstance(each, fx.SendKeys) and each.address == task.address]
    assert [each.keys for each in sent] == [(scene.keys["c3"], key)]


def test_a_record_for_a_task_that_is_done_or_gone_finds_nothing() -> None:
    scene = scene_of(8, 8, workers_max=8)
    leaf = scene.tasks()[0]
    scene.done(leaf)
    assert scene.handle(ev.Bounced(leaf.address, Key(50, 1, 2))) == []
    assert scene.handle(ev.Bounced(999, Key(50, 1, 2))) == []


def test_a_task_that_needs_no_keys_sends_none() -> None:
    scene = scene_of(1, 0)
    scene.grant("c1")
    scene.all_ready()
    (top,) = scene.tasks()
    led = scene.seal("c1")
    assert led == [sealed("c1"), *scene.start(top)]
    assert isinstance(led[-1], fx.SendKeys)
    top.inputs = []
    assert scene.start(top)[-1] == fx.Route(top.address, top.worker)
    top.inputs = [scene.keys["c1"]]


# ---- it is not needed any more ---------------------------------------------------------------------------------------


def test_a_worker_that_was_idle_for_long_is_retired() -> None:
    scene = scene_of(8, 0, idle_timeout_s=30.0)
    scene.grant("c1")
    scene.handle(ev.FromWorker(1, wm.WorkerReady(1, 101, 0)), at=5.0)
    assert scene.agent.pool.next_timer() == 35.0
    assert scene.handle(ev.Tick(), at=34.9) == [fx.LookAtChildren()]
    assert scene.handle(ev.Tick(), at=35.0) == [fx.SendWorker(1, wm.Retire())]
    assert workers(scene)[1].state is RETIRING  # IDLE -> RETIRING
    assert scene.agent.pool.next_timer() == math.inf
    assert scene.seal("c1") == [sealed("c1"), fx.ForkWorker(2)]
    assert scene.handle(ev.WorkerGone(1)) == []
    assert list(workers(scene)) == [2]


def test_one_that_lets_go_of_what_it_has_not_changes_nothing() -> None:
    scene = scene_of(8, 1)
    assert scene.handle(ev.FromWorker(9, wm.TaskDropped(1, 1))) == []
    assert scene.handle(ev.FromWorker(1, wm.TaskDropped(77, 1))) == []
    assert workers(scene)[1].state is BUSY


def test_the_load_counts_how_long_leaves_take() -> None:
    scene = scene_of(8, 2)
    leaf = scene.tasks()[0]
    before = scene.agent.load
    scene.done(leaf)
    assert scene.agent.load.execution_s > before.execution_s == 0
    scene.handle(ev.Calibrated(3.5))
    assert scene.agent.load.capacity == 3.5


def test_what_only_other_tasks_have_is_asked_of_none() -> None:
    task = Task(0, "leaf", 0)
    with pytest.raises(LocalFault, match=r"<leaf 0 planned 0/0> has no worker"):
        worker_of(task)
    with pytest.raises(LocalFault, match="has no output"):
        output_of(task)
    with pytest.raises(LocalFault, match="no task is open at address 5"):
        Scene().agent.tasks.at(5)
    assert epoch_of(1, 1) == EPOCH

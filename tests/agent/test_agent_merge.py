"""Tasks end one after the other: leaves, middles, the root; its partial goes to the top, whose model is the next."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, PARENT, Scene, costs, members

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.model_slot import SlotState
from lifl.core.ids import Kind
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm

OPEN, RUNNING, DONE = TaskState.OPEN, TaskState.RUNNING, TaskState.DONE


def uploaded(updates: int, branch: int = 0, **more: object) -> Scene:
    """All updates of a branch are sealed, and their workers run."""
    scene = Scene(elements=LARGE, **more)
    scene.has_model()
    scene.has_branch(updates, branch)
    for number in range(1, updates + 1):
        scene.upload(f"c{number}", branch)
        scene.all_ready()
    return scene


def test_a_leaf_that_is_done_frees_its_updates_and_starts_its_middle() -> None:
    scene = uploaded(6, branch=1)
    first, second, third, middle, root = scene.tasks(1)
    assert [task.role for task in scene.tasks(1)] == ["leaf", "leaf", "leaf", "middle", "middle"]
    updates = list(first.inputs)
    led = scene.done(first, "c1", "c2")
    assert led == [fx.Route(first.address, None), *scene.start(middle)]
    assert (first.state, middle.state, middle.inputs) == (DONE, RUNNING, [first.output])
    assert not set(updates) & scene.arena.objects.keys()
    led = scene.done(second, "c3", "c4")
    assert led == [fx.Route(second.address, None)], "the leaf's worker has sent the key itself"
    assert middle.inputs == [first.output, second.output]
    assert (third.state, root.state) == (RUNNING, OPEN)


def test_a_branch_s_one_partial_is_brought_to_the_top_on_another_node() -> None:
    scene = uploaded(2, branch=1)
    (root,) = scene.tasks(1)
    branch = scene.runner(1).branch
    led = scene.done(root, "c1", "c2")
    cost = costs(branch, worker_cpu_s=0.25, busy_s=0.5)
    assert led == [
        fx.Route(root.address, None),
        o.BranchSealed(NUMBER, EPOCH, 1, cost),
        gm.Carry(root.output.pack(), PARENT, NUMBER, EPOCH, 1),
    ]
    assert (branch.sealed, branch.carried) == (True, False)
    assert scene.arena.of(Kind.PARTIAL) == [root.output], "it stays until the commit"
    assert scene.engine.busy()


def test_a_partial_of_the_top_s_own_node_is_taken_where_it_lies() -> None:
    scene = uploaded(2, branch=1)
    top_branch = scene.has_branch(0, others=(1,))
    branch = scene.runner(1).branch
    branch.parent = ""
    scene.anew()
    (root,) = scene.tasks(1)
    key = root.output
    led = scene.done(root, "c1", "c2")
    (top,) = scene.tasks(0)
    cost = costs(branch, worker_cpu_s=0.25, busy_s=0.5)
    assert led == [
        fx.Route(root.address, None),
        o.BranchSealed(NUMBER, EPOCH, 1, cost),
        o.PartialArrived(NUMBER, EPOCH, 1, members("c1", "c2"), 0),
    ]
    assert (root.output, branch.carried, top.inputs) == (None, True, [key])
    assert top_branch.arrived == {1: members("c1", "c2")}
    assert scene.handle(o.ExpectPartials(NUMBER, EPOCH, 1)) == scene.start(top)


@pytest.mark.parametrize("why", ["no top", "not awaited"])
def test_a_partial_that_the_top_here_does_not_want_is_freed(why: str) -> None:
    scene = uploaded(2, branch=1)
    if why == "not awaited":
        scene.has_branch(0, others=(2,))
    scene.runner(1).branch.parent = ""
    scene.anew()
    (root,) = scene.tasks(1)
    led = scene.done(root, "c1", "c2")
    assert [type(each) for each in led] == [fx.Route, o.BranchSealed]
    assert scene.arena.of(Kind.PARTIAL) == []


def test_a_top_that_is_done_has_made_the_next_model() -> None:
    scene = uploaded(2, states=("m",))
    (top,) = scene.tasks()
    old, states = scene.slot.model, scene.runner()._outputs.states
    branch = scene.runner().branch
    led = scene.done(top, "c1", "c2")
    assert led == [
        fx.Route(top.address, None),
        o.ModelSealed(NUMBER, EPOCH, costs(branch, worker_cpu_s=0.25, busy_s=0.5)),
    ]
    assert (scene.slot.model, scene.slot.states, scene.slot.round) == (top.output, states, 1)
    assert scene.slot.state is SlotState.READY  # READY -> READY
    assert old not in scene.arena.objects
    assert scene.arena.of(Kind.UPDATE) == top.inputs, "they stay until the commit"
    assert (branch.sealed, top.state) == (True, DONE)


def test_who_waits_for_the_next_model_is_sent_it() -> None:
    scene = uploaded(2)
    scene.handle(gm.WantModel(7, "j", 1))
    old = scene.slot.model
    (top,) = scene.tasks()
    scene.done(top, "c1", "c2")
    assert old in scene.arena.objects, "it is being sent"
    assert scene.handle(gm.WantModel(8, "j", 2)) == [gm.ModelGranted(8, "j", 2, top.output.pack())]


def test_the_receipt_tells_the_tree_and_what_it_cost() -> None:
    scene = uploaded(2, branch=1)
    (root,) = scene.tasks(1)
    (_, report, _) = scene.done(root, "c1", "c2")
    (line,) = report.cost["tree"]
    assert line == {
        "address": root.address,
        "role": "leaf",
        "parent": 0,
        "branch": 1,
        "number": 0,
        "parent_number": None,
        "state": "sealed",
        "inputs": 0,
        "expect": 2,
        "updates": 2,
        "updates_expect": 2,
        "pid": 101,
        "attempt": 1,
        "cpu_s": 0.25,
        "began_s": 0.0,
        "ended_s": 0.0,
    }
    assert report.cost["starts"] == {"cold": 0, "warm": 0, "promoted": 0, "shared": 0} | {"cold": 1}
    assert report.cost["peak_bytes"] == scene.agent.quota.peaks[NUMBER] > 0


def test_a_child_that_its_parent_has_folded_in_before_it_said_so_is_done() -> None:
    scene = uploaded(8, workers_max=8)
    leaf, other, top = scene.tasks()
    scene.done(other, "c3", "c4")
    scene.arena.seal(leaf.output, "c1", "c2")
    led = scene.done(top, *(f"c{number}" for number in range(1, 9)))
    assert led[:2] == [fx.Route(top.address, None), fx.Route(leaf.address, None)]
    assert (leaf.state, leaf.inputs) == (DONE, [])
    assert leaf.output in top.inputs, "kept as all that the top has"
    late = ev.FromWorker(leaf.worker, wm.TaskDone(leaf.address, 1, 1.0, 1, 2, 0.25, 0.5))
    assert scene.handle(late) == []
    assert scene.handle(o.CommitBranch(NUMBER, EPOCH)) == []
    assert list(scene.arena.objects) == [scene.slot.model]


def test_so_are_those_below_it_and_what_they_made_is_freed() -> None:
    scene = uploaded(8, branch=1, workers_max=9)
    one, two, three, four, left, right, root = scene.tasks(1)
    for task in (three, four):
        scene.done(task)
    scene.done(right)
    for task in (one, two, left):
        scene.arena.seal(task.output)
    scene.done(one)
    assert (two.state, left.state) == (RUNNING, RUNNING)
    led = scene.done(root)
    assert [each.address for each in led if isinstance(each, fx.Route)] == [root.address, left.address, two.address]
    assert [task.state for task in scene.tasks(1)] == [DONE] * 7
    assert scene.arena.of(Kind.PARTIAL) == [root.output]
    assert scene.arena.of(Kind.UPDATE) == []


@pytest.mark.parametrize("suspects", [("c1",), ()])
def test_of_a_number_that_is_not_finite_its_tensor_and_who_may_be_why_are_told(suspects: tuple[str, ...]) -> None:
    scene = uploaded(2)
    (top,) = scene.tasks()
    led = scene.handle(ev.FromWorker(1, wm.TaskFailed(top.address, 1, "not finite", True, "float32", 0, suspects)))
    text = "the top task of round 1 failed: tensor 'w': not finite"
    assert led == [o.BranchFailed(NUMBER, EPOCH, text, True, suspects)]


@pytest.mark.parametrize("retry", [False, True])
def test_a_task_that_cannot_be_done_fails_its_branch(retry: bool) -> None:
    scene = uploaded(2)
    (top,) = scene.tasks()
    led = scene.handle(ev.FromWorker(1, wm.TaskFailed(top.address, 1, "the rule raised", retry)))
    assert led == [o.BranchFailed(NUMBER, EPOCH, "the top task of round 1 failed: the rule raised", retry)]
    stale = ev.FromWorker(1, wm.TaskFailed(top.address, 7, "of another attempt"))
    assert scene.handle(stale) == []
    assert scene.handle(ev.FromWorker(1, wm.TaskDone(top.address, 7, 1.0, 1, 2, 0.1, 0.1))) == []
    assert scene.handle(ev.FromWorker(1, wm.TaskDone(99, 1, 1.0, 1, 2, 0.1, 0.1))) == []
    assert scene.handle(o.DropBranch(NUMBER, EPOCH)) == [fx.Route(top.address, None)]
    assert list(scene.arena.objects) == [scene.slot.model]

"""The shape of a tree of tasks: every update has one place, whatever the fan-ins, and closing early leaves no hole."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifl.core.errors import LocalFault
from lifl.core.ids import Key
from lifl.core.planning.tree import TAIL_MAX, Task, TaskState, Tree, middles_of, tail_of, top_partials_max

SHAPES = {
    "updates": st.integers(0, 60),
    "fan_in": st.integers(1, 70),
    "middle_fan_in": st.integers(2, 9),
    "partials": st.integers(0, 12),
    "top": st.booleans(),
}


def run(tree: Tree, updates: int, partials: int) -> None:
    """Gives each task what it is to get, in order, and checks that it ends with exactly that."""
    got = Counter(tree.taker_of(position) for position in range(updates))
    got.update(tree.adopting[:partials])
    sealed: list[Task] = []
    for task in tree.tasks:
        assert got[task] == task.expect
        if task.expect and task.parent is not None:
            got[task.parent] += 1
        sealed += [task] * (task.expect > 0)
    assert sealed[-1] is tree.root


@given(**SHAPES, data=st.data())
def test_every_update_and_partial_has_one_place_also_when_fewer_come(
    updates: int, fan_in: int, middle_fan_in: int, partials: int, top: bool, data: st.DataObject
) -> None:
    if updates + partials == 0:
        with pytest.raises(LocalFault):
            Tree(updates, fan_in, middle_fan_in, partials, top)
        return
    tree = Tree(updates, fan_in, middle_fan_in, partials, top)
    run(tree, updates, partials)
    for task in tree.tasks:
        assert task.updates <= {"leaf": fan_in, "top": TAIL_MAX}.get(task.role, 0)
        most = {"leaf": 0, "middle": middle_fan_in, "top": top_partials_max(middle_fan_in)}[task.role]
        assert task.expect - task.updates <= most
    assert [task.role for task in tree.takers[:-1]] == ["leaf"] * max(0, len(tree.takers) - 1)
    fewer, fewer_partials = data.draw(st.integers(0, updates)), data.draw(st.integers(0, partials))
    if fewer + fewer_partials:
        tree.close(fewer)
        tree.close_partials(fewer_partials)
        run(tree, fewer, fewer_partials)


@given(**SHAPES)
def test_the_first_updates_need_the_tasks_that_take_them_and_no_others(
    updates: int, fan_in: int, middle_fan_in: int, partials: int, top: bool
) -> None:
    tree = Tree(max(1, updates), fan_in, middle_fan_in, partials, top)
    for count in range(updates + 3):
        takers = {tree.taker_of(position) for position in range(min(count, max(1, updates)))}
        assert takers == set(tree.takers[: tree.takers_of(count)])


def test_the_shape_that_is_shown() -> None:
    tree = Tree(16, 2, 8)
    assert [task.role for task in tree.tasks] == ["leaf"] * 6 + ["middle", "top"]
    assert (tree.root.expect, tree.root.updates) == (8, 4)
    assert [len(task.children) for task in tree.tasks if task.role == "middle"] == [3], "the last leaves feed the top"
    flat = Tree(32, 32, 8)
    assert [(task.role, task.expect) for task in flat.tasks] == [("leaf", 28), ("top", 5)]
    assert [(task.role, task.expect) for task in Tree(4, 2, 8).tasks] == [("top", 4)]
    eight = [("leaf", 2), ("leaf", 2), ("top", 6)]
    assert [(task.role, task.expect) for task in Tree(8, 2, 8).tasks] == eight, "no middle for what the top can take"
    assert [(t.role, t.expect) for t in Tree(0, 2, 2, 4).tasks] == [("middle", 2), ("middle", 2), ("top", 2)]


@given(st.integers(0, 400), st.integers(2, 9), st.integers(1, 5))
def test_as_few_levels_of_middles_as_can_do_it_and_the_fewer_the_later_a_partial_comes(
    partials: int, middle_fan_in: int, left_max: int
) -> None:
    levels = middles_of(partials, middle_fan_in, left_max)
    waiting = [[number] for number in range(partials)]
    above = [0] * partials  # of each partial: how many middles are between it and the top
    for whole, rest in levels:
        groups = [middle_fan_in] * whole + [rest] * (rest > 0)
        assert all(2 <= size <= middle_fan_in for size in groups)
        assert sum(groups) <= len(waiting)
        together = []
        for size in groups:
            together.append([number for group in waiting[:size] for number in group])
            waiting = waiting[size:]
        for group in together:
            for number in group:
                above[number] += 1
        waiting = together + waiting
    assert len(waiting) <= left_max
    assert sorted(above, reverse=True) == above, "a partial that comes later has no longer way"
    assert max(above, default=0) == len(levels)
    assert left_max * middle_fan_in ** len(levels) >= partials
    assert not levels or left_max * middle_fan_in ** (len(levels) - 1) < partials, "a level too many"


def test_the_top_takes_the_last_updates_but_leaves_no_leaf_with_one() -> None:
    assert [tail_of(updates, 2) for updates in range(8)] == [0, 1, 2, 3, 4, 3, 4, 3]
    assert [tail_of(updates, 3) for updates in range(9)] == [0, 1, 2, 3, 4, 3, 4, 4, 3]
    assert [tail_of(updates, 64) for updates in range(4, 8)] == [4, 3, 4, 4]
    assert [tail_of(updates, 1) for updates in range(3, 7)] == [3, 4, 4, 4]


def test_a_task_moves_along_the_table_and_is_complete_with_what_it_expects() -> None:
    (task,) = Tree(2, 2, 8).tasks
    assert (repr(task), task.complete) == ("<top 0 planned 0/2>", False)
    task.inputs = [Key(1, 1, 1), Key(2, 1, 1)]
    assert task.complete
    task.expect = 0
    assert not task.complete, "it is not needed"
    task.move(TaskState.OPEN)
    with pytest.raises(LocalFault, match=r"task 0 \(top\) cannot go from open to done"):
        task.move(TaskState.DONE)
    assert task.state is TaskState.OPEN


def test_a_task_s_path_leads_to_the_root() -> None:
    tree = Tree(16, 2, 8)
    assert [task.role for task in tree.path(tree.tasks[0])] == ["leaf", "middle", "top"]
    assert list(tree.path(tree.root)) == [tree.root]


@given(**SHAPES)
def test_the_partials_of_one_path_are_those_that_its_widest_tasks_wait_for(
    updates: int, fan_in: int, middle_fan_in: int, partials: int, top: bool
) -> None:
    tree = Tree(max(1, updates), fan_in, middle_fan_in, partials, top)
    levels = {task.level for task in tree.tasks if task.role != "leaf"}
    most = max(middle_fan_in, TAIL_MAX)
    assert tree.partials_held_max() <= most * len(levels)
    for task in tree.tasks:
        assert len(task.children) + task.adopted <= tree.partials_held_max()

"""Aggregation trees: of a running round, as its tasks are, and of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.tree import Tree

from lifl.core.planning.plan import NodePlan, Plan
from lifl_cli.render.figures import printable, seconds_text
from lifl_cli.render.tables import cell

TREE_TASKS_MAX = 40
"""A larger tree is cut in the view (never in JSON)."""
_STYLES = {"running": "bold", "sealed": "green", "failed": "red"}


def round_text(now: Mapping[str, Any]) -> str:
    """Return the running round in one line."""
    drained = now.get("draining") or ()
    without = f"; nothing new goes to {', '.join(drained)} (lifl drain)" if drained else ""
    left = "" if now["time_left_s"] is None else f", {seconds_text(now['time_left_s'])} left"
    waits = f": {printable(now['reason'])}" if now.get("reason") else ""
    return (
        f"round {now['round']}: {now['selected']} selected, {now['accepted']} accepted, "
        f"{now['counted']} counted; commits at {now['goal']} (quorum {now['quorum']})"
        f"{left}{without}{waits}"
    )


def tree_view(tasks: Sequence[Mapping[str, Any]], total: int = 0) -> Tree:
    """Return the aggregation tree, its root above; tasks whose parent is not known yet stand beside each other.

    Where several nodes take part each has a branch of its own; those whose partial goes to the node with the top hang
    below it.  `total` is how many tasks there are, where `tasks` are not all of them.
    """
    tree = Tree("aggregation tree", hide_root=True)
    branches: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for task in tasks:
        branches.setdefault((task.get("node") or "", task.get("branch", 0)), []).append(task)
    if len(branches) < 2:
        shown = _add_tasks(tree, tasks, TREE_TASKS_MAX)
    else:
        shown = 0
        above = tree
        for (node, _), branch in sorted(branches.items(), key=lambda item: not _has_top(item[1])):
            place = above.add(cell(_branch_text(node, branch)), style="none")
            shown += _add_tasks(place, branch, TREE_TASKS_MAX - shown)
            above = place if _has_top(branch) else above
    if (more := max(total, len(tasks)) - shown) > 0:
        tree.add(f"... {more} more tasks", style="dim")
    return tree


def _add_tasks(tree: Tree, tasks: Sequence[Mapping[str, Any]], tasks_max: int) -> int:
    """Draw the tasks of one node below `tree`, at most so many; return how many."""
    # A task has its number from the plan, its address only while it is open.
    known = {task["number"] for task in tasks}
    below: dict[int | None, list[Mapping[str, Any]]] = {}
    for task in tasks:
        parent = task["parent_number"] if task["parent_number"] in known else None
        below.setdefault(parent, []).append(task)
    waiting = [(tree, task) for task in reversed(below.get(None, []))]
    shown = 0
    while waiting and shown < tasks_max:
        branch, task = waiting.pop()
        place = branch.add(cell(_task_text(task)), style=_STYLES.get(task["state"], ""))
        waiting += [(place, child) for child in reversed(below.get(task["number"], []))]
        shown += 1
    return shown


def _has_top(branch: Sequence[Mapping[str, Any]]) -> bool:
    return any(task["role"] == "top" for task in branch)


def _branch_text(node: str, branch: Sequence[Mapping[str, Any]]) -> str:
    leaves = [task for task in branch if task["role"] == "leaf"]
    sealed = sum(task["state"] == "sealed" for task in leaves)
    updates = f"{sum(t['updates'] for t in branch)}/{sum(t['updates_expect'] for t in branch)} updates"
    return f"node {node or '-'}  {updates}, {sealed} of {len(leaves)} leaves sealed"


def _task_text(task: Mapping[str, Any]) -> str:
    pid = f"  pid {task['pid']}" if task.get("pid") else ""
    return f"{task['role']} {task['number']}  {task['inputs']}/{task['expect']}  {task['state']}{pid}"


def plan_tree(made: Plan) -> Tree:
    """Return the tree of the plan: the top, and below it each node's branch."""
    parts = {part.node: part for part in made.nodes}
    tree = Tree(cell(f"top on {made.top}"), style="bold")
    working = [part for part in made.nodes if part.leaf_tasks]
    for part in sorted(working, key=lambda part: part.node != made.top):
        here = tree
        if part.middle or part.node != made.top:
            what = f"middle of {part.leaf_tasks} partials" if part.leaf_tasks > 1 else "one partial"
            here = tree.add(cell(f"{part.node}: {what}"), style="not bold")
        here.add(_leaves_text(part), style="not bold")
    assert made.top in parts
    return tree


def _leaves_text(part: NodePlan) -> str:
    spilled = f" ({part.spilled} beyond its capacity)" if part.spilled else ""
    return f"{part.leaves} leaves at a time, {part.leaf_tasks} leaf tasks, {part.updates} updates{spilled}"

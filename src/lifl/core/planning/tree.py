"""The tree of one round's aggregation tasks on one node, and how it shrinks.

Leaves take up to `fan_in` updates in the order of their acceptance; middles take up to `middle_fan_in` partials, in
as many levels as bring them to `TOP_PARTIALS_MAX`, and no more of them than that needs, the first ones first
(`middles_of`): the later a partial, the fewer tasks lie between it and the top.  The top takes what is left and the
*tail*: the last updates themselves (`tail_of`).  So leaves and middles are done by the time that all wait for
the last update, and one pass over it and what has been summed before makes the model.  Partials that are there already
(a restarted node found them in its arena) enter beside the leaves.  Because at most `middle_fan_in` partials of a level
wait for their middle, memory grows with the depth of the tree, not with the number of updates.

The tree is closed early, when the deadline passes with a quorum, by lowering what its tasks expect.
Source: LIFL (MLSys 2024), section 5: hierarchy of leaf, middle and top aggregators.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import lru_cache

from lifl.core.errors import LocalFault
from lifl.core.ids import Key

TAIL_MAX = 4
"""Updates that the top takes itself, at most.  It goes along with them while they arrive; meanwhile leaves and middles
finish."""
TOP_PARTIALS_MAX = 4
"""Partials that the top takes, at most; with the tail as many vectors as a pass of the kernel reads.  To bring them to
one first would be a task more to wait for, and a partial more to write and read."""


def tail_of(updates: int, fan_in: int) -> int:
    """Return how many of a round's updates the top takes; one less than it may where a leaf would only copy one."""
    most = min(updates, TAIL_MAX)
    return most - ((updates - most) % fan_in == 1)


def top_partials_max(middle_fan_in: int) -> int:
    """Return how many partials a top takes itself where a middle takes so many."""
    return min(TOP_PARTIALS_MAX, middle_fan_in)


@lru_cache(1024)  # a planner asks for the same few shapes again and again
def middles_of(partials: int, middle_fan_in: int, left_max: int) -> tuple[tuple[int, int], ...]:
    """Return the middles of each level, until at most `left_max` partials are left.

    Of each level: how many take all that a middle can, and how many partials one more takes (0: there is no such).

    The groups of a level are of the first of its partials; the others go on to the next level as they are.  There are
    as few levels as can do it, and each leaves as many partials alone as those after it can still bring together.
    """
    depth = 0
    while left_max * middle_fan_in**depth < partials:
        depth += 1
    levels: list[tuple[int, int]] = []
    for after in reversed(range(depth)):
        excess = partials - (left_max - 1 + middle_fan_in**after)
        whole = max(0, min(excess // (middle_fan_in - 1), partials // middle_fan_in))
        rest = min(excess - whole * (middle_fan_in - 1) + 1, partials - whole * middle_fan_in)
        rest = rest if rest > 1 else 0
        levels.append((whole, rest))
        partials -= whole * (middle_fan_in - 1) + max(0, rest - 1)
    return tuple(levels)


class TaskState(Enum):
    """The life of a task; `TRANSITIONS` is the whole of it."""

    PLANNED = "planned"
    OPEN = "open"  # its output is allocated, inputs may come
    PLACING = "placing"  # a worker is wanted
    RUNNING = "running"  # a worker has it
    DONE = "done"
    DROPPED = "dropped"


_S = TaskState
TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    _S.PLANNED: frozenset({_S.OPEN, _S.DROPPED}),
    _S.OPEN: frozenset({_S.PLACING, _S.PLANNED, _S.DROPPED}),
    _S.PLACING: frozenset({_S.RUNNING, _S.DROPPED}),
    _S.RUNNING: frozenset({_S.DONE, _S.PLACING, _S.DROPPED}),
    _S.DONE: frozenset(),
    _S.DROPPED: frozenset(),
}


class Task:
    """One aggregation task: what it expects, what has come, where it runs."""

    def __init__(self, number: int, role: str, level: int) -> None:
        self.number = number
        self.role = role
        self.level = level
        self.parent: Task | None = None
        self.children: list[Task] = []
        self.adopted = 0
        self.updates = 0  # of the inputs that it expects, how many are updates
        self.taken = 0  # updates that have come
        self.expect = 0
        self.state = TaskState.PLANNED
        self.inputs: list[Key] = []
        self.bounced: dict[Key, None] = {}  # inputs whose keys came to the daemon before the task ran
        self.output: Key | None = None
        self.address = 0
        self.attempt = 0
        self.worker: int | None = None
        self.pid = 0
        self.died: list[int] = []  # workers that died while they ran it
        self.failed = False  # it did not end in time: nobody runs it any more

    def move(self, state: TaskState) -> None:
        """Change the state.  Raise `LocalFault`, and change nothing, when the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise LocalFault(f"task {self.number} ({self.role}) cannot go from {self.state.value} to {state.value}")
        self.state = state

    @property
    def complete(self) -> bool:
        """All inputs that will come are here."""
        return len(self.inputs) >= self.expect > 0

    def __repr__(self) -> str:
        return f"<{self.role} {self.number} {self.state.value} {len(self.inputs)}/{self.expect}>"


class Tree:
    """The tasks for `updates` updates and `partials` partials that are there already, or come from other nodes.

    Its `root` is the top; without `top` it is the task whose partial leaves the node.
    """

    is_chain = False
    """Whether each leaf takes the partial of the one before (`chain.py`)."""

    def __init__(self, updates: int, fan_in: int, middle_fan_in: int, partials: int = 0, top: bool = True) -> None:
        if updates < 0 or updates + partials < 1:
            raise LocalFault("a tree needs at least one update or partial")
        self.tasks: list[Task] = []
        self.fan_in = fan_in
        self._updates = updates
        self._tail_from = updates - (tail_of(updates, fan_in) if top else 0)
        leaves = [self._task("leaf", 0) for _ in range(-(-self._tail_from // fan_in))]
        self.adopting: list[Task] = []  # one entry for each partial: the task that takes it
        self.root = self._grow(leaves, middle_fan_in, partials, top)
        self.takers = [*leaves, self.root] if top and updates else leaves
        """The tasks that take updates, in the order of acceptance: the leaves, then the top."""
        self.close(updates)

    def _task(self, role: str, level: int) -> Task:
        task = Task(len(self.tasks), role, level)
        self.tasks.append(task)
        return task

    def _grow(self, leaves: list[Task], middle_fan_in: int, partials: int, top: bool) -> Task:
        level = 0
        waiting: list[Task | None] = [None] * partials + list(leaves)  # None: a partial that is there
        left_max = top_partials_max(middle_fan_in) if top else 1
        for whole, rest in middles_of(len(waiting), middle_fan_in, left_max):
            level += 1
            above: list[Task | None] = []
            start = 0
            for size in [middle_fan_in] * whole + [rest] * (rest > 0):
                above.append(self._join(self._task("middle", level), waiting[start : start + size]))
                start += size
            waiting = above + waiting[start:]
        if not top and waiting[0] is not None:
            return waiting[0]
        return self._join(self._task("top" if top else "middle", level + 1), waiting)

    def _join(self, parent: Task, group: list[Task | None]) -> Task:
        for child in group:
            if child is None:
                parent.adopted += 1
                self.adopting.append(parent)
            else:
                child.parent = parent
                parent.children.append(child)
        return parent

    def close(self, updates: int) -> list[Task]:
        """Expect exactly `updates` updates; return the tasks whose expectation fell (those at 0 are not needed)."""
        for position, task in enumerate(self.takers):
            begin, end = self._places(position)
            task.updates = min(max(updates - begin, 0), end - begin)
        return self._recount()

    def close_partials(self, partials: int) -> list[Task]:
        """Expect exactly `partials` partials, which fill the places of `adopting` in order; return as `close`."""
        for task in self.adopting[partials:]:
            task.adopted -= 1
        del self.adopting[partials:]
        return self._recount()

    def _places(self, taker: int) -> tuple[int, int]:
        """Return the numbers of the updates that go to this one of `takers`."""
        if self.takers[taker].role == "top":
            return self._tail_from, self._updates
        return taker * self.fan_in, min((taker + 1) * self.fan_in, self._tail_from)

    def _recount(self) -> list[Task]:
        changed: list[Task] = []
        for task in self.tasks:  # children come before their parents
            live = sum(child.expect > 0 for child in task.children)
            expect = task.updates + live + task.adopted
            if expect < task.expect:
                changed.append(task)
            task.expect = expect
        return changed

    def takers_of(self, updates: int) -> int:
        """Return how many of `takers`, in order, the first `updates` updates go to."""
        leaves = -(-min(updates, self._tail_from) // self.fan_in)
        return leaves + (self._tail_from < min(updates, self._updates))

    def taker_of(self, position: int) -> Task:
        """Return the task that takes the update accepted as number `position` (from 0)."""
        return self.takers[self.takers_of(position + 1) - 1]

    def path(self, task: Task) -> Iterator[Task]:
        """Yield the task and all above it, to the top."""
        step: Task | None = task
        while step is not None:
            yield step
            step = step.parent

    def opened_for(self, takers: int) -> int:
        """Return how many of `takers`, in order, are to be open when updates come for so many: these."""
        return takers

    def is_idle(self, task: Task) -> bool:
        """Return whether nothing has come to an open task, and nothing is on its way to it."""
        idle = task.state is TaskState.OPEN and not task.inputs and not task.adopted
        return idle and all(child.state is TaskState.PLANNED for child in task.children)

    def members_max(self, task: Task, most: int) -> int:
        """Return how many updates the task's output may stand for, of `most` in all."""
        if task.role == "leaf":
            return self.fan_in
        if task.adopted:
            return most
        return min(most, sum(self.members_max(child, most) for child in task.children))

    def partials_held_max(self) -> int:
        """Return the most partials that one path of the tree holds: each level's fan-in and its own outputs.

        Of a tree that was closed with fewer: those that it expects.
        """
        widest: dict[int, int] = {}
        for task in self.tasks:
            if task.role != "leaf":
                widest[task.level] = max(widest.get(task.level, 0), _partials_of(task))
        return sum(widest.values())


def _partials_of(task: Task) -> int:
    """Return how many partials the task expects."""
    return sum(child.expect > 0 for child in task.children) + task.adopted

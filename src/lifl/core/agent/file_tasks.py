"""The tasks that read a job's files into the arena, and write them from it.

A file that cannot be read or written now, for its disk is full, read-only or not there, is tried again by itself, after
a while that doubles from `FILE_RETRY_S` to `FILE_RETRY_S_MAX`; what it is written from stays in the arena meanwhile.
"""

from __future__ import annotations

import math
from collections import Counter

from lifl.core.agent.model_slot import ModelSlot
from lifl.core.agent.outcomes import (
    CheckpointWritten,
    CopyEnded,
    FileFailed,
    FilePaused,
    ModelLoaded,
    NotFiniteAt,
    Outcome,
)
from lifl.core.agent.replica_spec import ReplicaSpec
from lifl.core.agent.task_table import TaskTable
from lifl.core.errors import LocalFault
from lifl.core.fields import Message
from lifl.core.ids import Key, round_of
from lifl.core.limits import FILE_RETRY_S, FILE_RETRY_S_MAX
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol.commands import CopyModel, SaveModel, ServeCopy
from lifl.core.protocol.worker import Checkpoint, Load, TaskDone
from lifl.core.turn import Turn

FILE_DEADLINE_S = 1800.0
"""To read a file, or to write one durably: a disk may be slow, or away for a while."""


class FileTasks:
    """The load and checkpoint tasks of one job on this node (`task_table.Runner`)."""

    def __init__(self, spec: ReplicaSpec, slot: ModelSlot, tasks: TaskTable, turn: Turn) -> None:
        self.job = spec.number
        self.deadline_s = FILE_DEADLINE_S
        self.workers = 0
        self.tie = 0  # a worker that ran a user's rule may write no file
        self.code = spec.code
        self._spec = spec
        self._slot = slot
        self._tasks = tasks
        self._turn = turn
        self._orders: dict[int, SaveModel | CopyModel | ServeCopy | None] = {}  # by address; None: a load
        self._tries: Counter[int] = Counter()  # by address: how often in turn it could not be done
        self._retry_at_s: dict[int, float] = {}  # by address: of those that wait to be tried again

    def load(self) -> None:
        """Have model and states read from the job's files."""
        task = Task(0, "load", 0)
        task.output = self._slot.model  # its seal tells that the task is done
        self._place(task, None)

    def save(self, order: SaveModel) -> None:
        """Have the current model and states written; they stay until they are."""
        task = Task(0, "checkpoint", 0)
        task.inputs = self._slot.keys()
        if not task.inputs:
            raise LocalFault(f"job {self._spec.name!r} has no model to save")
        self._slot.pin(task.inputs)
        self._place(task, order)

    def copy(self, order: CopyModel, keys: list[Key]) -> None:
        """Have a copy written of what is in these objects, which go when that is done."""
        task = Task(0, "checkpoint", 0)
        task.inputs = keys
        self._slot.pin(keys)
        self._slot.doomed |= dict.fromkeys(keys, self._turn.now)  # no model of this slot's
        self._place(task, order)

    def serve(self, order: ServeCopy) -> None:
        """Have model and states read from this node's copy."""
        task = Task(0, "load", 0)
        task.output = self._slot.model
        self._place(task, order)

    def _place(self, task: Task, order: SaveModel | CopyModel | ServeCopy | None) -> None:
        task.move(TaskState.OPEN)
        self._tasks.open(self, task)
        self._orders[task.address] = order
        task.move(TaskState.PLACING)
        self._tasks.place(task)

    @property
    def due_s(self) -> float:
        """When `tick` is due; infinity: nothing waits to be tried again."""
        return min(self._retry_at_s.values(), default=math.inf)

    def tick(self) -> None:
        """Try again what is due."""
        for address in [address for address, at_s in self._retry_at_s.items() if at_s <= self._turn.now]:
            del self._retry_at_s[address]
            self._tasks.place(self._tasks.at(address).task)

    def written(self) -> Counter[Key]:
        """Return the objects that checkpoints are being written from, each as often as it is read."""
        return Counter(key for address in self._orders for key in self._tasks.at(address).task.inputs)

    def close(self) -> Counter[Key]:
        """Give up all tasks and the model: the job is over.  Return what the gateway is still at, each as often.

        What a worker writes to, or reads, is freed when it has let go of it: else a file would get another's bytes.
        """
        given_up: list[tuple[Task, list[Key]]] = []
        for address, order in self._orders.items():
            task = self._tasks.at(address).task
            given_up.append((task, self._slot.take() if _reads(order) else task.inputs))
        at_gateway = self._slot.close(self.written())
        for task, objects in given_up:
            task.move(TaskState.DROPPED)
            self._tasks.abandon(task, objects)
        self._orders, self._retry_at_s = {}, {}
        return at_gateway

    # ---- task_table.Runner -----------------------------------------------------------------------------------------

    def served(self, task: Task) -> tuple[str, int]:
        """Return what a worker of this task has served, so that a later task of the same may be its promotion."""
        order = self._orders[task.address]
        return self._spec.name, -1 if order is None else order.epoch

    def placed(self, task: Task, how: str) -> None:
        """Take note of how a worker was found: no receipt counts it."""

    def message(self, task: Task) -> Message:
        """Return what the worker is told."""
        spec, order = self._spec, self._orders[task.address]
        tensors = spec.layout.packed
        if isinstance(order, SaveModel | CopyModel):
            model, *states = [key.pack() for key in task.inputs]
            # The initial model has no states yet.
            named = dict(zip(spec.state_names, states, strict=False))
            at = (task.address, task.attempt, spec.name, round_of(order.epoch), order.path)
            node = order.node if isinstance(order, CopyModel) else 0
            return Checkpoint(*at, tensors, model, order.state_path, named, spec.number, order.epoch, node)
        if self._slot.model is None:
            raise LocalFault(f"job {spec.name!r} loads no model")
        named = {name: key.pack() for name, key in self._slot.states.items()}
        if order is not None:
            at_copy = (task.address, task.attempt, spec.name, order.path, tensors, self._slot.model.pack())
            facts = (spec.number, round_of(order.epoch), order.digests, spec.patterns)
            return Load(*at_copy, order.state_path, named, *facts)
        at_load = (task.address, task.attempt, spec.name, spec.path, tensors, self._slot.model.pack())
        return Load(*at_load, spec.state_path, named, spec.number, spec.own_round, spec.digests, spec.patterns)

    def restarting(self, task: Task) -> None:
        """Prepare a task whose worker died for the next one: it reads or writes all anew."""

    def done(self, task: Task, cost: TaskDone | None) -> list[Outcome]:
        """End a task whose file is read, or written durably."""
        task.move(TaskState.DONE)
        order = self._orders.pop(task.address)
        self._tasks.close(task)
        del self._tries[task.address]
        if order is None:
            return [ModelLoaded(self.job)]
        if isinstance(order, ServeCopy):
            return [CopyEnded(self.job, order, (), "")]
        for key in task.inputs:
            self._slot.unpin(key)
        if isinstance(order, CopyModel):
            return [CopyEnded(self.job, order, cost.digests if cost is not None else (), "")]
        return [CheckpointWritten(self.job, order.epoch, cost.digests if cost is not None else ())]

    def failed(self, task: Task, text: str, retry: bool, place: NotFiniteAt | None = None) -> list[Outcome]:
        """Report a file that cannot be read or written; with `retry` it is tried again by itself."""
        what = "the model could not be read" if task.role == "load" else "the checkpoint could not be written"
        order = self._orders[task.address]
        if isinstance(order, CopyModel | ServeCopy):
            return [self._copy_failed(task, order, f"{what}: {text}")]
        if not retry:
            return [FileFailed(self.job, f"{what}: {text}")]
        if task.state is TaskState.RUNNING:
            task.move(TaskState.PLACING)
        task.worker = None
        wait_s = min(FILE_RETRY_S * 2.0 ** min(self._tries[task.address], 10), FILE_RETRY_S_MAX)
        self._tries[task.address] += 1
        self._retry_at_s[task.address] = self._turn.now + wait_s
        return [FilePaused(self.job, f"{what}: {text}")]

    def _copy_failed(self, task: Task, order: CopyModel | ServeCopy, text: str) -> Outcome:
        """Give a copy up that could not be written, or read: the coordinator decides what is tried next."""
        task.move(TaskState.DROPPED)
        del self._orders[task.address]
        self._tasks.close(task)
        if isinstance(order, ServeCopy):
            self._slot.free()
        for key in task.inputs:
            self._slot.unpin(key)
        return CopyEnded(self.job, order, (), text)


def _reads(order: SaveModel | CopyModel | ServeCopy | None) -> bool:
    """Return whether a task reads files into the slot's objects."""
    return order is None or isinstance(order, ServeCopy)

"""The objects that the tasks of one branch write to.

A task's output is allocated before any input may come, with the outputs of all tasks above it, so a round that has
taken an update can always finish.  What no update can come to fill any more is given back.
"""

from __future__ import annotations

from lifl.core.agent.branch import Branch
from lifl.core.agent.model_slot import ModelSlot
from lifl.core.agent.quota import Quota
from lifl.core.agent.replica_spec import ReplicaSpec
from lifl.core.agent.task_table import Runner, TaskTable
from lifl.core.errors import ArenaFull
from lifl.core.ids import Key, Kind
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.tree import Task, TaskState


class TaskOutputs:
    """Opens and shuts the tasks of a branch, each with its output."""

    def __init__(self, branch: Branch, spec: ReplicaSpec, slot: ModelSlot, quota: Quota, tasks: TaskTable) -> None:
        self._branch = branch
        self._spec = spec
        self._slot = slot
        self._quota = quota
        self._tasks = tasks
        self.states: dict[str, Key] = {}  # the rule's state that the top makes, by name
        self._sums: Key | None = None  # where the top sums up what is there before the last updates come

    def open_takers(self, runner: Runner) -> None:
        """Open the tasks that the coming updates and one more can fill, each with its path.

        All or nothing: `ArenaFull`.
        """
        branch = self._branch
        needed = branch.tree.opened_for(branch.takers_needed_for(1))
        self.open_paths(runner, branch.tree.takers[branch.takers_opened : needed])
        branch.takers_opened = max(branch.takers_opened, needed)

    def open_paths(self, runner: Runner, tasks: list[Task]) -> None:
        """Open tasks with all above them.  All or nothing: `ArenaFull`."""
        opened: list[Task] = []
        try:
            for bottom in tasks:
                for task in self._branch.tree.path(bottom):
                    if task.state is TaskState.PLANNED:
                        self._open(runner, task)
                        opened.append(task)
        except ArenaFull:
            for task in opened:
                self._shut(task)
            raise

    def _open(self, runner: Runner, task: Task) -> None:
        if task.role == "top":
            task.output, self.states = self._slot.alloc(self._branch.epoch, self._spec.state_names, *self._meta_bytes)
        else:
            most = self._branch.members_max
            meta_bytes = self._spec.records_bytes(self._branch.tree.members_max(task, most), most)
            number, size = self._spec.number, self._spec.accumulator_bytes
            slab = None if self._branch.tree.is_chain else (number, task.level)
            task.output = self._quota.alloc(Kind.PARTIAL, number, self._branch.epoch, size, meta_bytes, slab)
        try:
            self._tasks.open(runner, task)
        except ArenaFull:
            self.free(task)
            raise
        task.move(TaskState.OPEN)

    def renew_top(self, top: Task) -> None:
        """Give the top fresh outputs; a worker that died may have sealed some of the rule's state."""
        epoch, spec = self._branch.epoch, self._spec
        of_model, of_state = self._meta_bytes
        for name, key in self.states.items():
            self.states[name] = self._quota.renew(key, Kind.STATE, epoch, spec.state_bytes, of_state)
        if top.output is not None:
            top.output = self._quota.renew(top.output, Kind.MODEL, epoch, spec.layout.data_bytes, of_model)

    @property
    def _meta_bytes(self) -> tuple[int, int]:
        """The room for what is told with a model, and with a state: a later life goes on from those of a fold."""
        if not self._spec.fold:
            return 0, 0
        return self._branch.members_max * CONTRIBUTION_BYTES_MAX, CONTRIBUTION_BYTES_MAX

    def sums(self) -> Key | None:
        """Return an object in which the top can sum up what is there, if there is room for one.

        To be asked for when nothing else of the branch is to be allocated any more: no round needs it.
        """
        if self._sums is None:
            number, size = self._spec.number, self._spec.accumulator_bytes
            try:
                self._sums = self._quota.alloc(Kind.PARTIAL, number, self._branch.epoch, size, 0, (number, "sums"))
            except ArenaFull:
                return None
        return self._sums

    def take_states(self) -> dict[str, Key]:
        """Return the states that the top has made, for their new owner; what it summed up in is freed."""
        if self._sums is not None:
            self._quota.free(self._sums)
        states, self.states, self._sums = self.states, {}, None
        return states

    def of(self, task: Task) -> list[Key]:
        """Return the objects that the task writes to."""
        own = [*self.states.values(), self._sums] if task.role == "top" else []
        return [key for key in (*own, task.output) if key is not None]

    def free(self, task: Task) -> None:
        """Free the task's outputs, that no worker can write to."""
        for key in self.of(task):
            self._quota.free(key)
        self.forget(task)

    def forget(self, task: Task) -> None:
        """Let go of the task's outputs: another owner has them, or they are freed."""
        task.output = None
        if task.role == "top":
            self.states, self._sums = {}, None

    def _shut(self, task: Task) -> None:
        self.free(task)
        self._tasks.close(task)
        task.address = 0
        task.move(TaskState.PLANNED)

    def shut_takers(self) -> None:
        """Shut the tasks that the updates still coming cannot fill, so that others may use the room."""
        branch = self._branch
        needed, opened = branch.takers_needed, branch.takers_opened
        branch.takers_opened = min(opened, needed)
        for place in range(needed, opened):  # beyond, none is open
            for task in branch.tree.path(branch.tree.takers[place]):
                if branch.tree.is_idle(task):
                    self._shut(task)
                else:
                    break

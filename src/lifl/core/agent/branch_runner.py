"""How the updates of one branch become its partial, or the round's model: the tasks of its tree.

A task starts when it has what it needs (`_consider`), and its inputs are freed when its output is sealed.  The inputs
of a top stay until the round is committed: they are what a restarted node would go on from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeVar

from lifl.core import effects as fx
from lifl.core.agent.branch import Branch, contribution_of
from lifl.core.agent.last_updates import LastUpdates
from lifl.core.agent.model_slot import ModelSlot
from lifl.core.agent.outcomes import BranchFailed, ModelSealed, NotFiniteAt, Outcome, PartialSealed
from lifl.core.agent.quota import Quota
from lifl.core.agent.replica_spec import ReplicaSpec
from lifl.core.agent.task_outputs import TaskOutputs
from lifl.core.agent.task_table import TaskTable, is_at, output_of, worker_of
from lifl.core.errors import ArenaFull
from lifl.core.fields import Message
from lifl.core.ids import Key, Kind, round_of
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.contribution import pack_contribution
from lifl.core.turn import Turn

T = TypeVar("T")
TOGETHER_BYTES = 1 << 20
"""A leaf whose updates are no more than this, all together, gets them when all are there: to wake its worker for each
takes longer than to fold it."""


class BranchRunner:
    """Runs the tasks of one branch (`task_table.Runner`)."""

    def __init__(
        self,
        branch: Branch,
        spec: ReplicaSpec,
        slot: ModelSlot,
        turn: Turn,
        quota: Quota,
        tasks: TaskTable,
        beside: Mapping[tuple[int, int], BranchRunner],
    ) -> None:
        self.durable = spec.durable
        self.branch = branch
        self.beside = beside  # the job's branches on this node, this one among them
        self.need_bytes = 0  # of the arena, at the least
        self.job = spec.number
        self.deadline_s = spec.aggregation.task_limit_s
        self.tie = spec.tie
        self.code = spec.code
        self.workers = spec.quota.workers
        self._spec = spec
        self._slot = slot
        self._turn = turn
        self._quota = quota
        self._tasks = tasks
        self._outputs = TaskOutputs(branch, spec, slot, quota, tasks)
        self.last_updates = LastUpdates(branch, spec.layout.data_bytes, turn, self._outputs)

    # ---- updates ---------------------------------------------------------------------------------------------------

    def admit(self, grant: o.Grant) -> tuple[Key, bytes]:
        """Return the slot for a granted update, and the bytes of its contribution.  Raise `ArenaFull`."""
        packed = pack_contribution(contribution_of(grant))
        return self.room_for(self.branch.in_flight, grant), packed

    def room_for(self, coming: dict[Key, T], what: T) -> Key:
        """Return the slot for an update that is noted as `coming`, with its tasks open.  Raise `ArenaFull`.

        The tasks' outputs, which are longer, come first: an update fits into what is left, but not they around it.
        """
        number, size = self._spec.number, self._spec.layout.data_bytes
        self._outputs.open_takers(self)
        try:
            key = self._quota.alloc(Kind.UPDATE, number, self.branch.epoch, size, CONTRIBUTION_BYTES_MAX, number)
        except ArenaFull:
            self._outputs.shut_takers()
            raise
        coming[key] = what
        self._turn.touch(self.job)
        return key

    def sealed(self, key: Key, event: gm.Sealed) -> list[Outcome]:
        """Take an update that is sealed into the branch, unless that is closed."""
        self._turn.touch(self.job)
        branch = self.branch
        at = (self._spec.number, branch.epoch, branch.number)
        if branch.closed:
            grant = branch.land(key)
            self._quota.free(key)
            self._turn.report(o.UpdateAborted(*at, grant.client))
            return []
        grant = branch.accept(key, event.digest)
        self._turn.report(o.UpdateSealed(*at, grant.client, event.received_bytes, event.digest))
        return self.feed_waiting()

    def aborted(self, key: Key) -> None:
        """Give up an update that will not come; the caller frees its slot."""
        self._turn.touch(self.job)
        branch = self.branch
        grant = branch.land(key)
        if not branch.closed:
            self._outputs.shut_takers()
        self._turn.report(o.UpdateAborted(self._spec.number, branch.epoch, branch.number, grant.client))

    # ---- inputs ----------------------------------------------------------------------------------------------------

    def feed_waiting(self) -> list[Outcome]:
        """Give accepted updates (and adopted partials) to their tasks, in order, as far as there is room for outputs.

        There always is for updates that were admitted; a restarted node may have to go step by step.
        """
        branch = self.branch
        while branch.unfed:
            key, taker = branch.unfed[0]
            task = taker or branch.tree.taker_of(branch.given)
            try:
                self._outputs.open_paths(self, [task])
            except ArenaFull as full:
                return no_room(self, full)
            branch.unfed.popleft()
            branch.given += taker is None
            task.taken += taker is None
            self._feed(task, key)
        return []

    def _feed(self, task: Task, key: Key, sent: bool = False) -> None:
        """Take a sealed input of the task.  `sent`: its maker has sent the key to the task's address itself."""
        task.inputs.append(key)
        # After a task was started again its first worker may have taken the key with it: send it once more.
        if task.state is TaskState.RUNNING and (not sent or task.attempt > 1):
            self._turn.emit(fx.SendKeys(task.address, task.attempt, (key,)))
        self._consider(task)

    def _consider(self, task: Task) -> None:
        together = self.branch.tree.is_chain or task.expect * self._spec.layout.data_bytes <= TOGETHER_BYTES
        eager = self._spec.aggregation.timing == "eager" and not (task.role == "leaf" and together)
        ready = task.complete or (eager and task.inputs)
        lacks_model = self._slot.model is None and self._spec.reads_model
        if task.role == "top" and (lacks_model or not self.branch.final):
            return  # the model is on its way from another node, or a branch may still be open
        if task.state is TaskState.OPEN and ready:
            task.move(TaskState.PLACING)
            self._tasks.place(task)

    def consider_all(self) -> None:
        """Start the tasks that have got what they waited for."""
        for task in self.branch.tree.tasks:
            self._consider(task)

    def prepare(self) -> None:
        """Have workers forked for the tasks that the updates in flight will start."""
        self._tasks.prepare(self, self.branch.takers_unplaced)

    # ---- expectations ----------------------------------------------------------------------------------------------

    def close(self) -> list[Outcome]:
        """Count no more updates: lower what the tasks expect, drop those that nothing will reach."""
        branch = self.branch
        branch.closed = True
        lowered = branch.tree.close(branch.to_take)
        if branch.tree.is_chain:
            _move_to_top(self, [task for task in lowered if task.expect == 0])
        self._lowered(lowered)
        return self.feed_waiting()

    def expect_partials(self, partials: int) -> list[Outcome]:
        """Expect so many partials of other branches, no more."""
        self.branch.final = True
        self._lowered(self.branch.tree.close_partials(self.branch.adopted + partials))
        return self.feed_waiting()

    def _lowered(self, tasks: list[Task]) -> None:
        for task in tasks:
            if task.expect == 0:
                self._drop(task)
            elif task.state is TaskState.RUNNING:
                self._turn.emit(fx.SendWorker(worker_of(task), wm.Expect(task.address, task.attempt, task.expect)))
        self.consider_all()

    # ---- task_table.Runner -----------------------------------------------------------------------------------------

    def served(self, task: Task) -> tuple[str, int]:
        """Return what a worker of this task has served, so that a later task of the same is its promotion."""
        return self._spec.name, self.branch.epoch

    def placed(self, task: Task, how: str) -> None:
        """Count how a worker was found."""
        self.branch.cost.starts[how] += 1
        self.branch.cost.began_s[task.number] = self._turn.now - self.branch.opened_s

    def message(self, task: Task) -> Message:
        """Return what the worker is told."""
        spec, aggregation = self._spec, self._spec.aggregation
        top = task.role == "top"
        segments, accumulators = spec.layout.segments, spec.layout.accumulators
        # Where no model is read, what is to be made stands for it: another may be put meanwhile.
        model = (self._slot.model if spec.reads_model else task.output) if top else None
        return wm.TaskStart(
            task.address,
            task.attempt,
            task.role,
            spec.name,
            round_of(self.branch.epoch),
            aggregation.rule,
            aggregation.options,
            aggregation.rule_folder,
            aggregation.timing == "eager",
            task.expect,
            task.parent.address if task.parent and not self.branch.tree.is_chain else 0,
            output_of(task).pack(),
            segments if task.role == "leaf" else accumulators,
            segments if top else accumulators,
            segments,
            model.pack() if model is not None else b"",
            {name: key.pack() for name, key in self._slot.states.items()} if top else {},
            {name: key.pack() for name, key in self._outputs.states.items()} if top else {},
            spec.treated,
            spec.places,
        )

    def restarting(self, task: Task) -> None:
        """Prepare a task whose worker died for the next one."""
        if task.role == "top":
            self._outputs.renew_top(task)

    def done(self, task: Task, cost: wm.TaskDone | None) -> list[Outcome]:
        """Go on from a task whose output is sealed.  `cost` is None when its worker died before it said so."""
        task.move(TaskState.DONE)
        self.branch.cost.ended_s[task.number] = self._turn.now - self.branch.opened_s
        if cost is not None:
            self.branch.cost.add(task.number, cost.cpu_s, cost.busy_s)
        self._tasks.unroute(task)
        for child in task.children:
            if child.state is TaskState.RUNNING:
                self._overtaken(child)
        if task.role == "top":
            return [ModelSealed(self.job, self.branch, task, self._outputs.take_states())]
        self._free_inputs(task)
        if task.parent is None:
            return [PartialSealed(self.job, self.branch)]
        if self.branch.tree.is_chain:
            with suppress(ArenaFull):  # then the next link is opened when its updates are fed
                self._outputs.open_paths(self, [task.parent])
        self._feed(task.parent, output_of(task), sent=cost is not None and not self.branch.tree.is_chain)
        return []

    def _overtaken(self, task: Task) -> None:
        """End a task whose output was folded in before we heard that it is sealed: its word for it changes nothing."""
        task.move(TaskState.DONE)
        self.branch.cost.ended_s[task.number] = self._turn.now - self.branch.opened_s
        self._tasks.unroute(task)
        for child in task.children:
            if child.state is TaskState.RUNNING:
                self._overtaken(child)
        self._free_inputs(task)
        if task.parent is not None and task.parent.role == "top":
            task.parent.inputs.append(output_of(task))  # kept, as all that the top has
        else:
            self._quota.free(output_of(task))

    def _free_inputs(self, task: Task) -> None:
        for key in task.inputs:
            self._quota.free(key)
        task.inputs = []

    def failed(self, task: Task, text: str, retry: bool, place: NotFiniteAt | None = None) -> list[Outcome]:
        """Report a task that cannot be done: its round fails, and with it the job unless `retry` may help.

        `place` is the model's number that is not finite.
        """
        found = self._spec.layout.tensor_at(place.dtype, place.element) if place is not None else None
        if found is not None:
            text = f"tensor {found[0].name!r}: {text}"
        said = f"the {task.role} task of round {round_of(self.branch.epoch)} failed: {text}"
        return [BranchFailed(self.job, self.branch, said, retry, None if place is None else place.suspects)]

    # ---- the end of a round ----------------------------------------------------------------------------------------

    def _drop(self, task: Task) -> None:
        """End a task that is not needed; a placed one's output is freed when its worker has let go of it."""
        if task.state in (TaskState.DONE, TaskState.DROPPED):
            return
        placed = task.state in (TaskState.PLACING, TaskState.RUNNING)
        task.move(TaskState.DROPPED)
        if placed:
            self._tasks.abandon(task, self._outputs.of(task))
            self._outputs.forget(task)
        else:
            self._outputs.free(task)
            self._tasks.close(task)

    def forget(self) -> None:
        """Free what was kept for a restart, and all addresses: the round is committed."""
        for task in self.branch.tree.tasks:
            if task.parent is None and task.state is TaskState.DONE:
                self._free_kept(task)
            self._tasks.close(task)

    def _free_kept(self, root: Task) -> None:
        """Free what a done root kept until the commit: a top its inputs, another root its output."""
        if root.role == "top":
            self._free_inputs(root)
        elif root.output is not None:  # else the top has taken it
            self._quota.free(root.output)

    def discard(self) -> None:
        """Free every object of the branch and drop every task: the round ends without it.

        Updates still in flight are freed when the gateway is through with them.
        """
        self.branch.closed = True
        for task in self.branch.tree.tasks:
            if task.state is not TaskState.DONE:
                self._free_inputs(task)
                self._drop(task)
            elif task.parent is None:
                self._free_kept(task)  # else its inputs are freed, and its output is an input of its parent
        for task in self.branch.tree.tasks:
            if task.state is TaskState.DONE:
                self._tasks.close(task)
        while self.branch.unfed:
            self._quota.free(self.branch.unfed.popleft()[0])
        self.branch.stored.clear()  # what is being loaded is freed when it is


def room_for_partial(runner: BranchRunner, data_bytes: int, meta_bytes: int, others: int) -> Key:
    """Return the slot for a partial that comes, behind `others` that are on their way.  Raise `ArenaFull`.

    The tasks that take it are open then, as an update's are: what has been let in can always be folded.
    """
    branch, spec, quota = runner.branch, runner._spec, runner._quota
    meta_bytes = max(meta_bytes, spec.records_bytes(0, branch.members_max))
    key = quota.alloc(Kind.PARTIAL, spec.number, branch.epoch, data_bytes, meta_bytes, (spec.number, 0))
    place = branch.adopted + len(branch.arrived) + others
    try:
        runner._outputs.open_paths(runner, branch.tree.adopting[place : place + 1])
    except ArenaFull:
        quota.free(key)
        raise
    return key


def no_room(runner: BranchRunner, full: ArenaFull) -> list[Outcome]:
    """Wait for room, or fail the attempt at the round when nothing ends that would make some.

    What is the job's alone may end: a branch beside this one, a round that is saved, a task that was given up, a model
    that somebody still reads.  So this fails only what would wait for nothing but itself.
    """
    quota = runner._quota
    alone = quota.used_bytes == quota.job_used_bytes(runner.job)
    leaves = bool(runner._slot.doomed) or is_at(runner._tasks, runner.job)
    if not alone or leaves or any(_makes_room(each, runner.branch.epoch) for each in runner.beside.values()):
        return []
    text = f"the arena has no room to go on with what is here: {full}"
    return [BranchFailed(runner.job, runner.branch, text, retry=True)]


def _makes_room(runner: BranchRunner, epoch: int) -> bool:
    """Return whether something of a branch will end by itself, for one of this epoch that waits for room."""
    branch = runner.branch
    if branch.in_flight or branch.loading or (branch.sealed and branch.epoch != epoch):
        return True
    # A task that runs but lacks inputs ends nothing.
    states = (TaskState.PLACING, TaskState.RUNNING)
    return any(t.state is states[0] or (t.state is states[1] and t.complete) for t in branch.tree.tasks)


def _move_to_top(runner: BranchRunner, given_up: list[Task]) -> None:
    """Have the top do the work of links that are not whole: what they were given, or would be, is its."""
    branch, top = runner.branch, runner.branch.tree.root
    for task in given_up:
        top.taken, task.taken = top.taken + task.taken, 0
        inputs, task.inputs = task.inputs, []
        for key in inputs:
            runner._feed(top, key)
    branch.unfed = deque(
        (key, top if taker is not None and taker.expect == 0 else taker) for key, taker in branch.unfed
    )

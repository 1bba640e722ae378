"""How a job's rounds become models: the tasks of its trees, from the first update to the checkpoint.

A task's output is allocated before any input may come, with the outputs of all tasks above it, so a round that has
taken an update can always finish.  A worker that dies leaves its task's inputs sealed: the task is placed again,
with another attempt number.  If the output was sealed before the worker died, the task is done: its key may have
reached the parent already, so it must not be made a second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lifl.core import effects as fx
from lifl.core import messages as m
from lifl.core.errors import ArenaFull, LocalFault
from lifl.core.ids import Key, Kind
from lifl.core.members import Member
from lifl.core.round import Phase, Round
from lifl.core.tree import Task, TaskState, Tree

if TYPE_CHECKING:
    from lifl.core.job import Job

SHOWN = {
    TaskState.PLANNED: "waiting",
    TaskState.OPEN: "waiting",
    TaskState.PLACING: "waiting",
    TaskState.RUNNING: "running",
    TaskState.DONE: "sealed",
}
TASK_ATTEMPTS_MAX = 16
"""Workers that may die under one task before its round fails."""


Orphan = tuple[Key, Kind, int, list[Member]]
"""A sealed object of a killed daemon: its key, kind, epoch and members."""


class Aggregation:
    """The tasks of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.where: dict[int, tuple[Round, Task]] = {}
        self.new_states: dict[int, dict[str, Key]] = {}  # by the top's address
        self.costs: dict[int, m.TaskDone] = {}  # by address, of the rounds that are not over

    # ---- outputs -------------------------------------------------------------------------------------------------

    def open_leaves(self, round_: Round) -> None:
        """Opens the leaves that the coming updates can fill, each with its whole path.  All or nothing: `ArenaFull`."""
        self._open_paths(round_, _tree(round_).leaves[: round_.leaves_needed])

    def _open_paths(self, round_: Round, tasks: list[Task]) -> None:
        opened: list[Task] = []
        try:
            for bottom in tasks:
                for task in _tree(round_).path(bottom):
                    if task.state is TaskState.PLANNED:
                        self._open(round_, task)
                        opened.append(task)
        except ArenaFull:
            for task in opened:
                self._shut(task)
            raise

    def _open(self, round_: Round, task: Task) -> None:
        job = self.job
        if task.role == "top":
            task.output, states = job.alloc_model(round_.epoch, job.state_names)
        else:
            meta = self._members_max(round_, task) * m.MEMBER_BYTES_MAX
            task.output = job.services.memory.alloc(
                Kind.PARTIAL, job.number, round_.epoch, job.acc_bytes, meta, (job.number, task.level)
            )
            states = {}
        task.address = job.services.open_address(job, task)
        self.where[task.address] = (round_, task)
        self.new_states[task.address] = states
        task.move(TaskState.OPEN)

    def _members_max(self, round_: Round, task: Task) -> int:
        if task.role == "leaf":
            return _tree(round_).fan_in
        return min(round_.goal, sum(self._members_max(round_, child) for child in task.children) or round_.goal)

    def _outputs(self, task: Task) -> list[Key]:
        model = [task.output] if task.output is not None else []
        return [*self.new_states.get(task.address, {}).values(), *model]

    def _shut(self, task: Task) -> None:
        for key in self._outputs(task):
            self.job.services.memory.free(key)
        task.output = None
        self._close_address(task)
        task.address = 0
        task.move(TaskState.PLANNED)

    def shut_leaves(self, round_: Round) -> None:
        """Frees the outputs of leaves that the updates still coming cannot fill, so that others may use the room."""
        tree = _tree(round_)
        for leaf in tree.leaves[round_.leaves_needed :]:
            for task in tree.path(leaf):
                idle = task.state is TaskState.OPEN and not task.inputs and not task.adopted
                if idle and all(child.state is TaskState.PLANNED for child in task.children):
                    self._shut(task)
                else:
                    break

    def _close_address(self, task: Task) -> None:
        if task.address:
            self.where.pop(task.address, None)
            self.new_states.pop(task.address, None)
            self.job.services.close_address(task.address)

    # ---- inputs --------------------------------------------------------------------------------------------------

    def feed_waiting(self, round_: Round) -> None:
        """Gives accepted updates (and adopted partials) to their tasks, in order, as far as there is room for outputs.

        There always is for updates that were admitted; a restarted node may have to go step by step.
        """
        tree = _tree(round_)
        while round_.unfed:
            key, taker = round_.unfed[0]
            task = taker or tree.leaf_of(round_.in_leaves)
            try:
                self._open_paths(round_, [task])
            except ArenaFull as full:
                self._fail_if_stuck(round_, full)
                return
            round_.unfed.popleft()
            round_.in_leaves += taker is None
            self.feed(round_, task, key)

    def _fail_if_stuck(self, round_: Round, full: ArenaFull) -> None:
        active = (TaskState.PLACING, TaskState.RUNNING)
        memory = self.job.services.memory
        alone = memory.used_bytes == memory.job_used_bytes(self.job.number)
        if alone and not round_.inflight and not any(task.state in active for task in _tree(round_).tasks):
            self.job.fail_round(f"the arena has no room to go on after the restart: {full}")

    def feed(self, round_: Round, task: Task, key: Key, sent: bool = False) -> None:
        """An input of the task is sealed.  `sent`: its maker has sent the key to the task's address itself."""
        if task.state is TaskState.DONE:
            self.job.services.memory.free(key)  # it was folded in before we heard that it was sealed
            return
        task.inputs.append(key)
        # After a task was started again its first worker may have taken the key with it: send it once more.
        if task.state is TaskState.RUNNING and (not sent or task.attempt > 1):
            self.job.services.emit(fx.SendKeys(task.address, task.attempt, (key,)))
        self._consider(round_, task)

    def _consider(self, round_: Round, task: Task) -> None:
        eager = self.job.config.aggregation.timing == "eager"
        ready = task.complete or (eager and task.inputs)
        if task.state is TaskState.OPEN and ready:
            task.move(TaskState.PLACING)
            self.job.services.place(self.job, task, round_.number)

    def close(self, round_: Round) -> None:
        """No more updates count: lower what the tasks expect, drop those that nothing will reach."""
        round_.move(Phase.AGGREGATING)
        for task in _tree(round_).close(round_.for_leaves):
            if task.expect == 0:
                self._drop(task)
            elif task.state is TaskState.RUNNING:
                self.job.services.emit(fx.SendWorker(_worker(task), m.Expect(task.address, task.attempt, task.expect)))
        for task in _tree(round_).tasks:
            self._consider(round_, task)

    def placed(self, task: Task, worker: int, how: str) -> None:
        """A worker was found for the task; it is told when it runs (`started`)."""
        task.worker = worker
        found = self.where.get(task.address)
        if found is not None:
            found[0].receipt.starts[how] += 1

    def started(self, task: Task) -> None:
        """The worker runs: hand it the task, then route its address, then send the keys that are there."""
        task.attempt += 1
        task.pid = self.job.services.pid_of(_worker(task))
        task.move(TaskState.RUNNING)
        services = self.job.services
        services.emit(fx.SendWorker(_worker(task), self._message(task)))
        if task.role in ("leaf", "middle", "top"):
            services.emit(fx.Route(task.address, task.worker))
            keys = tuple(dict.fromkeys([*task.inputs, *task.bounced]))
            task.bounced = {}
            if keys:
                services.emit(fx.SendKeys(task.address, task.attempt, keys))

    def _message(self, task: Task) -> m.Message:
        job = self.job
        if task.role == "load":
            return self._load_message(task)
        round_, _ = self.where[task.address]
        if task.role == "checkpoint":
            return m.Checkpoint(
                task.address,
                task.attempt,
                job.name,
                round_.number,
                job.path_of(round_.number),
                job.layout.tensors,
                task.inputs[0].pack(),
                job.state_path_of(round_.number),
                # The initial model has no states yet.
                dict(zip(job.state_names, (key.pack() for key in task.inputs[1:]), strict=False)),
            )
        aggregation = job.config.aggregation
        top = task.role == "top"
        segments = job.layout.segments
        return m.TaskStart(
            task.address,
            task.attempt,
            task.role,
            job.name,
            round_.number,
            aggregation.rule,
            aggregation.options,
            aggregation.rule_folder,
            aggregation.timing == "eager",
            task.expect,
            task.parent.address if task.parent else 0,
            _output(task).pack(),
            segments if task.role == "leaf" else job.layout.accumulators,
            segments if top else job.layout.accumulators,
            segments if top else (),
            job.model.pack() if top and job.model else b"",
            {name: key.pack() for name, key in job.states.items()} if top else {},
            {name: key.pack() for name, key in self.new_states[task.address].items()},
        )

    def _load_message(self, task: Task) -> m.Load:
        job = self.job
        if job.model is None:
            raise LocalFault(f"job {job.name!r} loads no model")
        fresh = job.committed < 0
        return m.Load(
            task.address,
            task.attempt,
            job.name,
            job.config.model.path if fresh else job.path_of(job.committed),
            job.layout.tensors,
            job.model.pack(),
            "" if fresh else job.state_path_of(job.committed),
            {name: key.pack() for name, key in job.states.items()},
        )

    # ---- ends ----------------------------------------------------------------------------------------------------

    def done(self, task: Task, cost: m.TaskDone | None) -> None:
        """The task's output is sealed (or its file written).  `cost` is None when the worker died before it said so."""
        task.move(TaskState.DONE)
        if task.role == "load":
            self.job.services.close_address(task.address)
            self.job.loaded(self.job.now)
            return
        round_, _ = self.where[task.address]
        if cost is not None:
            round_.receipt.worker_cpu_s += cost.cpu_s
            round_.receipt.busy_s += cost.busy_s
            round_.receipt.copied_bytes += cost.copied_bytes
            self.costs[task.address] = cost
        self.job.services.emit(fx.Route(task.address, None))
        for child in task.children:
            if child.state is TaskState.RUNNING:
                self._overtaken(child)
        if task.role == "checkpoint":
            self._close_address(task)
            self.job.checkpointed(round_)
            return
        if task.role == "top":
            # Its input stays until the checkpoint is durable: it is what a restarted node would go on from.
            states = self.new_states[task.address]
            self.new_states[task.address] = {}
            self.job.model_sealed(round_, task, states)
            return
        for key in task.inputs:
            self.job.services.memory.free(key)
        if task.parent is None:
            raise LocalFault(f"{task!r} has no parent")
        self.feed(round_, task.parent, _output(task), sent=cost is not None)

    def _overtaken(self, task: Task) -> None:
        """The task's output was folded in before we heard that it is sealed: its own word for it changes nothing."""
        task.move(TaskState.DONE)
        self.job.services.emit(fx.Route(task.address, None))
        for child in task.children:
            if child.state is TaskState.RUNNING:
                self._overtaken(child)
        for key in (*task.inputs, _output(task)):
            self.job.services.memory.free(key)

    def lost(self, task: Task) -> None:
        """The task's worker died: go on from what it sealed, or place the task again."""
        job = self.job
        if task.state not in (TaskState.PLACING, TaskState.RUNNING):
            return
        if task.role == "checkpoint":
            sealed = False
        else:
            output = job.model if task.role == "load" else task.output
            sealed = output is not None and job.services.memory.sealed(output)
        if sealed and task.state is TaskState.RUNNING:
            self.done(task, None)
            return
        if task.attempt >= TASK_ATTEMPTS_MAX:
            self.failed(task, f"{task.attempt} workers died in turn while they ran it", retry=True)
            return
        if task.role == "top" and task.state is TaskState.RUNNING:
            self._renew_top(task)
        if task.state is TaskState.RUNNING:
            task.move(TaskState.PLACING)
        task.worker = None
        job.services.emit(fx.Route(task.address, None))
        found = self.where.get(task.address)
        job.services.place(job, task, found[0].number if found else -1)

    def _renew_top(self, task: Task) -> None:
        """Fresh outputs for a top: the dead worker may have sealed some of its state objects."""
        round_, _ = self.where[task.address]
        for key in self._outputs(task):
            self.job.services.memory.free(key)
        task.output, self.new_states[task.address] = self.job.alloc_model(round_.epoch, self.job.state_names)

    def failed(self, task: Task, text: str, retry: bool = False) -> None:
        """The task cannot be done: its round fails, and with it the job unless another attempt may help (`retry`)."""
        job = self.job
        if task.role == "load":
            job.end("failed", f"the model could not be read: {text}")
        elif task.role == "checkpoint":
            job.end("failed", f"the checkpoint could not be written: {text}")
        else:
            round_, _ = self.where[task.address]
            reason = f"the {task.role} task of round {round_.number} failed: {text}"
            if retry:
                job.fail_round(reason)
            else:
                job.end("failed", reason)

    def _drop(self, task: Task) -> None:
        """Ends a task that is not needed; a running one's output is freed when its worker has let go of it."""
        if task.state in (TaskState.DONE, TaskState.DROPPED):
            return
        outputs = self._outputs(task)
        before = task.state
        task.move(TaskState.DROPPED)
        if before in (TaskState.PLACING, TaskState.RUNNING):
            self.where.pop(task.address, None)
            self.new_states.pop(task.address, None)
            self.job.services.abandon(self.job, task, outputs)
        else:
            for key in outputs:
                self.job.services.memory.free(key)
            self._close_address(task)
        task.output = None

    # ---- the end of a round ----------------------------------------------------------------------------------------

    def save(self, round_: Round) -> None:
        """Places the task that writes the checkpoint of the job's current model."""
        job = self.job
        if job.model is None:
            raise LocalFault(f"job {job.name!r} has no model to save")
        task = Task(0, "checkpoint", 0)
        task.inputs = [job.model, *job.states.values()]
        # What is written must stay until it is written, also when the next round's model comes sooner.
        job.pins.update(task.inputs)
        task.move(TaskState.OPEN)
        task.address = job.services.open_address(job, task)
        self.where[task.address] = (round_, task)
        round_.checkpoint = task
        task.move(TaskState.PLACING)
        job.services.place(job, task, round_.number)

    def forget(self, round_: Round) -> None:
        """The round is committed: free what was kept for a restart, close its addresses."""
        self._unpin(round_)
        for task in round_.tree.tasks if round_.tree else ():
            if task.role == "top":
                for key in task.inputs:
                    self.job.services.memory.free(key)
            self.costs.pop(task.address, None)
            self._close_address(task)

    def _unpin(self, round_: Round) -> None:
        if round_.checkpoint is not None:
            for key in round_.checkpoint.inputs:
                self.job.unpin(key)

    def discard(self, round_: Round) -> None:
        """The round ends without a model: every object of it is freed, every task of it dropped.

        Updates still in flight are freed when the gateway is through with them.
        """
        if round_.checkpoint is not None and round_.checkpoint.state is not TaskState.DROPPED:
            self._drop_checkpoint(round_.checkpoint)
        self._unpin(round_)
        tasks = round_.tree.tasks if round_.tree else []
        for task in tasks:
            if task.state is TaskState.DONE and task.role != "top":
                continue  # its inputs are freed; its output is an input of its parent
            for key in task.inputs:
                self.job.services.memory.free(key)
            task.inputs = []
            self._drop(task)
        for task in tasks:
            self.costs.pop(task.address, None)
            if task.state is TaskState.DONE:
                self._close_address(task)
        while round_.unfed:
            self.job.services.memory.free(round_.unfed.popleft()[0])

    def _drop_checkpoint(self, task: Task) -> None:
        self.where.pop(task.address, None)
        if task.state in (TaskState.PLACING, TaskState.RUNNING):
            task.move(TaskState.DROPPED)
            self.job.services.abandon(self.job, task, [])

    # ---- after a restart ---------------------------------------------------------------------------------------------

    def adopt(self, round_: Round, orphans: list[Orphan], now: float) -> None:
        """Goes on from the updates and partials that a killed daemon left sealed.

        A partial may stand beside its own inputs, or one of a lower level: the largest wins, what is in it is freed.
        Any two partials are disjoint or one contains the other, for a task's output contains all of its inputs.
        """
        job = self.job
        partials: list[Key] = []
        updates: list[tuple[Key, Member]] = []
        for key, kind, epoch, members in sorted(orphans, key=lambda orphan: -len(orphan[3])):
            if epoch > round_.epoch:
                job.orphans.append((key, kind, epoch, members))  # the next round was open already
                continue
            known = epoch == round_.epoch and not any(member.client in round_.accepted for member in members)
            if not known or not members:
                job.services.memory.free(key)
                continue
            if kind is Kind.PARTIAL:
                partials.append(key)
            else:
                updates.append((key, members[0]))
            for member in members:
                round_.accepted[member.client] = member
                round_.selected[member.client] = None
        if not round_.accepted:
            return
        # More than the goal may have been sealed; which of them were told ACCEPTED is not known, so all count.
        round_.goal = max(round_.goal, len(round_.accepted))
        in_partials = len(round_.accepted) - len(updates)
        aggregation = job.config.aggregation
        round_.tree = Tree(round_.goal - in_partials, aggregation.fan_in, aggregation.middle_fan_in, len(partials))
        round_.move(Phase.COLLECTING)
        round_.opened_at_s = now
        round_.deadline_at_s = now + round_.deadline_s
        job.services.memory.start_peak(job.number)
        round_.unfed.extend(zip(partials, round_.tree.adopting, strict=True))
        round_.unfed.extend((key, None) for key, _ in updates)
        round_.receipt.first_accepted_s = round_.receipt.last_accepted_s = now
        job.publish("round.adopted", round=round_.number, accepted=len(round_.accepted), partials=len(partials))
        if len(round_.accepted) >= round_.goal:
            self.close(round_)
        self.feed_waiting(round_)

    # ---- the receipt -------------------------------------------------------------------------------------------------

    def receipt(self, round_: Round) -> dict[str, Any]:
        """What the round cost, as `lifl status` shows it; the node adds its own processes' CPU and the redirector."""
        job, books = self.job, round_.receipt
        last = books.last_accepted_s
        return {
            "selected": len(round_.selected),
            "accepted": len(round_.accepted),
            "counted": len(round_.accepted) if round_.phase is Phase.COMMITTED else 0,
            "expired": len(round_.selected) - len(round_.accepted),
            "weight": sum(member.weight for member in round_.accepted.values()),
            "bytes_in": books.received_bytes,
            "bytes_copied": books.copied_bytes,
            "bytes_out": books.sent_bytes,
            "cpu_s": {"workers": books.worker_cpu_s},
            "arena_peak_bytes": books.peak_bytes or job.services.memory.peaks.get(job.number, 0),
            "duration_s": job.now - round_.opened_at_s if round_.opened_at_s else 0.0,
            "last_accepted_to_sealed_s": books.sealed_s - last if last is not None and books.sealed_s else None,
            "last_accepted_to_commit_s": job.now - last if last is not None else None,
            "workers_cold": books.starts["cold"],
            "workers_warm": books.starts["warm"],
            "workers_promoted": books.starts["promoted"],
            "workers_shared": books.starts["shared"],
            "tree": self.lines(round_),
        }

    def lines(self, round_: Round) -> list[dict[str, Any]]:
        """The round's tree, a line for each task."""
        return [
            {
                "address": task.address,
                "role": task.role,
                "parent": task.parent.address if task.parent else 0,
                "number": task.number,
                "parent_number": task.parent.number if task.parent else None,
                "state": SHOWN[task.state],
                "inputs": len(task.inputs),
                "expect": task.expect,
                "pid": task.pid or None,
                "attempt": task.attempt,
                "cpu_s": self.costs[task.address].cpu_s if task.address in self.costs else 0.0,
            }
            for task in (round_.tree.tasks if round_.tree else ())
            if task.state is not TaskState.DROPPED
        ]


def _tree(round_: Round) -> Tree:
    if round_.tree is None:
        raise LocalFault(f"round {round_.number} has no tree yet")
    return round_.tree


def _worker(task: Task) -> int:
    if task.worker is None:
        raise LocalFault(f"{task!r} has no worker")
    return task.worker


def _output(task: Task) -> Key:
    if task.output is None:
        raise LocalFault(f"{task!r} has no output")
    return task.output

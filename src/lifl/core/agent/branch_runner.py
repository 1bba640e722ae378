"""How a job's rounds become models: the tasks of its trees, from the first update to the checkpoint.

A task's output is allocated before any input may come, with the outputs of all tasks above it, so a round that has
taken an update can always finish.  A worker that dies leaves its task's inputs sealed: the task is placed again,
with another attempt number.  If the output was sealed before the worker died, the task is done: its key may have
reached the parent already, so it must not be made a second time.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from lifl.core import effects as fx
from lifl.core.agent.branch import Branch
from lifl.core.errors import ArenaFull, LocalFault
from lifl.core.fields import Message
from lifl.core.ids import Key, Kind, round_of
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import worker as wm
from lifl.core.protocol.contribution import Contribution

if TYPE_CHECKING:
    from lifl.core.agent.job_replica import JobSite

SHOWN = {
    TaskState.PLANNED: "waiting",
    TaskState.OPEN: "waiting",
    TaskState.PLACING: "waiting",
    TaskState.RUNNING: "running",
    TaskState.DONE: "sealed",
}
TOGETHER_BYTES = 1 << 20
"""A leaf whose updates are no more than this, all together, gets them when all are there: to wake its worker for each
takes longer than to fold it."""
FOLLOW_BYTES_MIN = 16 * 1024 * 1024
"""A smaller update is read in half a millisecond (at the 33 GB/s of a fold): the top just waits for it."""
TASK_ATTEMPTS_MAX = 16
"""Workers that may die under one task before its round fails."""


class Aggregation:
    """The tasks of one site."""

    def __init__(self, site: JobSite) -> None:
        self.site = site
        self.where: dict[int, tuple[Branch, Task]] = {}
        self.new_states: dict[int, dict[str, Key]] = {}  # by the top's address
        self.costs: dict[int, wm.TaskDone] = {}  # by address, of the rounds that are not over

    # ---- outputs -------------------------------------------------------------------------------------------------

    def open_takers(self, branch: Branch) -> None:
        """Opens the tasks that the coming updates can fill, each with its whole path.  All or nothing: `ArenaFull`."""
        needed = branch.takers_needed
        self._open_paths(branch, branch.tree.takers[branch.takers_opened : needed])
        branch.takers_opened = max(branch.takers_opened, needed)

    def _open_paths(self, branch: Branch, tasks: list[Task]) -> None:
        opened: list[Task] = []
        try:
            for bottom in tasks:
                for task in branch.tree.path(bottom):
                    if task.state is TaskState.PLANNED:
                        self._open(branch, task)
                        opened.append(task)
        except ArenaFull:
            for task in opened:
                self._shut(task)
            raise

    def _open(self, branch: Branch, task: Task) -> None:
        site = self.site
        if task.role == "top":
            task.output, states = site.alloc_model(branch.epoch, site.state_names)
        else:
            meta = self._members_max(branch, task) * CONTRIBUTION_BYTES_MAX
            task.output = site.services.memory.alloc(
                Kind.PARTIAL, site.number, branch.epoch, site.acc_bytes, meta, (site.number, task.level)
            )
            states = {}
        task.address = site.services.open_address(site, task)
        self.where[task.address] = (branch, task)
        self.new_states[task.address] = states
        task.move(TaskState.OPEN)

    def _members_max(self, branch: Branch, task: Task) -> int:
        if task.role == "leaf":
            return branch.tree.fan_in
        if task.adopted:
            return branch.members_max
        return min(branch.members_max, sum(self._members_max(branch, child) for child in task.children))

    def _outputs(self, task: Task) -> list[Key]:
        model = [task.output] if task.output is not None else []
        return [*self.new_states.get(task.address, {}).values(), *model]

    def _shut(self, task: Task) -> None:
        for key in self._outputs(task):
            self.site.services.memory.free(key)
        task.output = None
        self._close_address(task)
        task.address = 0
        task.move(TaskState.PLANNED)

    def shut_takers(self, branch: Branch) -> None:
        """Frees the outputs of tasks that the updates still coming cannot fill, so that others may use the room."""
        tree = branch.tree
        branch.takers_opened = min(branch.takers_opened, branch.takers_needed)
        for taker in tree.takers[branch.takers_needed :]:
            for task in tree.path(taker):
                idle = task.state is TaskState.OPEN and not task.inputs and not task.adopted
                if idle and all(child.state is TaskState.PLANNED for child in task.children):
                    self._shut(task)
                else:
                    break

    def _close_address(self, task: Task) -> None:
        if task.address:
            self.where.pop(task.address, None)
            self.new_states.pop(task.address, None)
            self.site.services.close_address(task.address)

    # ---- inputs --------------------------------------------------------------------------------------------------

    def feed_waiting(self, branch: Branch) -> None:
        """Gives accepted updates (and adopted partials) to their tasks, in order, as far as there is room for outputs.

        There always is for updates that were admitted; a restarted node may have to go step by step.
        """
        tree = branch.tree
        while branch.unfed:
            key, taker = branch.unfed[0]
            task = taker or tree.taker_of(branch.given)
            try:
                self._open_paths(branch, [task])
            except ArenaFull as full:
                self._fail_if_stuck(branch, full)
                return
            branch.unfed.popleft()
            branch.given += taker is None
            task.taken += taker is None
            self.feed(branch, task, key)

    def _fail_if_stuck(self, branch: Branch, full: ArenaFull) -> None:
        memory = self.site.services.memory
        # A task that runs but lacks inputs ends nothing that would make room.
        active = any(
            t.state is TaskState.PLACING or (t.state is TaskState.RUNNING and t.complete) for t in branch.tree.tasks
        )
        alone = memory.used_bytes == memory.job_used_bytes(self.site.number)
        if alone and not branch.inflight and not active:
            self.site.branch_failed(branch, f"the arena has no room to go on after the restart: {full}", retry=True)

    def feed(self, branch: Branch, task: Task, key: Key, sent: bool = False) -> None:
        """An input of the task is sealed.  `sent`: its maker has sent the key to the task's address itself."""
        if task.state is TaskState.DONE:
            self.site.services.memory.free(key)  # it was folded in before we heard that it was sealed
            return
        task.inputs.append(key)
        # After a task was started again its first worker may have taken the key with it: send it once more.
        if task.state is TaskState.RUNNING and (not sent or task.attempt > 1):
            self.site.services.emit(fx.SendKeys(task.address, task.attempt, (key,)))
        self._consider(branch, task)

    def _consider(self, branch: Branch, task: Task) -> None:
        small = task.role == "leaf" and task.expect * self.site.layout.data_bytes <= TOGETHER_BYTES
        eager = self.site.aggregation_config.timing == "eager" and not small
        ready = task.complete or (eager and task.inputs)
        if task.role == "top" and (self.site.model is None or not branch.final):
            return  # the model is on its way from another node, or a branch may still be open
        if task.state is TaskState.OPEN and ready:
            task.move(TaskState.PLACING)
            self.site.services.place(self.site, task, branch.epoch)

    # ---- the last updates, while they arrive -----------------------------------------------------------------------

    def follow(self, branch: Branch) -> None:
        """Has the gateway tell how far the updates are that are all the top still lacks, and tells the top of them."""
        if self.site.layout.data_bytes < FOLLOW_BYTES_MIN:
            return
        lacking = self._lacking(branch)
        new = [key for key, _ in lacking if key not in branch.followed]
        for key in new:
            branch.followed[key] = 0
            self.site.services.follow(key)
        if new:
            self._tell_top(branch, lacking)

    def progress(self, branch: Branch, key: Key, received_bytes: int) -> None:
        """A followed update is so far: the top may make that much of the model."""
        branch.followed[key] = received_bytes
        lacking = self._lacking(branch)
        if lacking and all(branch.followed.get(key) for key, _ in lacking):
            self._tell_top(branch, lacking)

    def _tell_top(self, branch: Branch, lacking: list[tuple[Key, Contribution]]) -> None:
        top = branch.tree.root
        updates = tuple((key.pack(), member.weight, branch.followed.get(key, 0)) for key, member in lacking)
        self.site.services.emit(fx.SendWorker(_worker(top), wm.Arriving(top.address, top.attempt, updates)))

    def _lacking(self, branch: Branch) -> list[tuple[Key, Contribution]]:
        """The updates in flight, the oldest first, with which the running top would have all; none if it lacks more."""
        top = branch.tree.root
        lacking = top.expect - len(top.inputs)
        if not branch.top or top.state is not TaskState.RUNNING or lacking != top.updates - top.taken or branch.unfed:
            return []
        found = list(islice(branch.inflight.values(), lacking))
        return found if len(found) == lacking else []

    # ---- expectations ------------------------------------------------------------------------------------------------

    def close(self, branch: Branch) -> None:
        """No more updates count: lower what the tasks expect, drop those that nothing will reach."""
        branch.closed = True
        self._lowered(branch, branch.tree.close(branch.to_take))

    def expect_partials(self, branch: Branch, partials: int) -> None:
        """So many partials come from other branches, no more."""
        branch.final = True
        self._lowered(branch, branch.tree.close_partials(branch.adopted + partials))

    def _lowered(self, branch: Branch, tasks: list[Task]) -> None:
        for task in tasks:
            if task.expect == 0:
                self._drop(task)
            elif task.state is TaskState.RUNNING:
                self.site.services.emit(
                    fx.SendWorker(_worker(task), wm.Expect(task.address, task.attempt, task.expect))
                )
        self.consider_all(branch)

    def placed(self, task: Task, worker: int, how: str) -> None:
        """A worker was found for the task; it is told when it runs (`started`)."""
        task.worker = worker
        found = self.where.get(task.address)
        if found is not None:
            found[0].cost.starts[how] += 1

    def started(self, task: Task) -> None:
        """The worker runs: hand it the task, then route its address, then send the keys that are there."""
        task.attempt += 1
        task.pid = self.site.services.pid_of(_worker(task))
        task.move(TaskState.RUNNING)
        services = self.site.services
        services.emit(fx.SendWorker(_worker(task), self._message(task)))
        if task.role in ("leaf", "middle", "top"):
            services.emit(fx.Route(task.address, task.worker))
            keys = tuple(dict.fromkeys([*task.inputs, *task.bounced]))
            task.bounced = {}
            if keys:
                services.emit(fx.SendKeys(task.address, task.attempt, keys))

    def _message(self, task: Task) -> Message:
        site = self.site
        if task.role in ("load", "checkpoint"):
            return site.file_message(task)
        branch, _ = self.where[task.address]
        aggregation = site.aggregation_config
        top = task.role == "top"
        segments = site.layout.segments
        return wm.TaskStart(
            task.address,
            task.attempt,
            task.role,
            site.name,
            round_of(branch.epoch),
            aggregation.rule,
            aggregation.options,
            aggregation.rule_folder,
            aggregation.timing == "eager",
            task.expect,
            task.parent.address if task.parent else 0,
            _output(task).pack(),
            segments if task.role == "leaf" else site.layout.accumulators,
            segments if top else site.layout.accumulators,
            segments if top else (),
            site.model.pack() if top and site.model else b"",
            {name: key.pack() for name, key in site.states.items()} if top else {},
            {name: key.pack() for name, key in self.new_states[task.address].items()},
        )

    # ---- ends ----------------------------------------------------------------------------------------------------

    def done(self, task: Task, cost: wm.TaskDone | None) -> None:
        """The task's output is sealed (or its file written).  `cost` is None when the worker died before it said so."""
        task.move(TaskState.DONE)
        if task.role in ("load", "checkpoint"):
            self.site.services.close_address(task.address)
            self.site.file_done(task)
            return
        branch, _ = self.where[task.address]
        if cost is not None:
            branch.cost.worker_cpu_s += cost.cpu_s
            branch.cost.busy_s += cost.busy_s
            branch.cost.copied_bytes += cost.copied_bytes
            self.costs[task.address] = cost
        self.site.services.emit(fx.Route(task.address, None))
        for child in task.children:
            if child.state is TaskState.RUNNING:
                self._overtaken(child)
        if task.role == "top":
            # Its input stays until the checkpoint is durable: it is what a restarted node would go on from.
            states = self.new_states[task.address]
            self.new_states[task.address] = {}
            self.site.model_sealed(branch, task, states)
            return
        for key in task.inputs:
            self.site.services.memory.free(key)
        task.inputs = []
        if task.parent is None:
            self.site.root_sealed(branch)
            return
        self.feed(branch, task.parent, _output(task), sent=cost is not None)

    def _overtaken(self, task: Task) -> None:
        """The task's output was folded in before we heard that it is sealed: its own word for it changes nothing."""
        task.move(TaskState.DONE)
        self.site.services.emit(fx.Route(task.address, None))
        for child in task.children:
            if child.state is TaskState.RUNNING:
                self._overtaken(child)
        for key in task.inputs:
            self.site.services.memory.free(key)
        if task.parent is not None and task.parent.role == "top":
            task.parent.inputs.append(_output(task))  # kept, as all that the top has
        else:
            self.site.services.memory.free(_output(task))

    def lost(self, task: Task) -> None:
        """The task's worker died: go on from what it sealed, or place the task again."""
        site = self.site
        if task.state not in (TaskState.PLACING, TaskState.RUNNING):
            return
        if task.role == "checkpoint":
            sealed = False
        else:
            output = site.model if task.role == "load" else task.output
            sealed = output is not None and site.services.memory.sealed(output)
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
        site.services.emit(fx.Route(task.address, None))
        found = self.where.get(task.address)
        site.services.place(site, task, found[0].epoch if found else -1)

    def _renew_top(self, task: Task) -> None:
        """Fresh outputs for a top: the dead worker may have sealed some of its state objects."""
        branch, _ = self.where[task.address]
        for key in self._outputs(task):
            self.site.services.memory.free(key)
        task.output, self.new_states[task.address] = self.site.alloc_model(branch.epoch, self.site.state_names)

    def failed(self, task: Task, text: str, retry: bool = False) -> None:
        """The task cannot be done: its round fails, and with it the job unless another attempt may help (`retry`)."""
        site = self.site
        if task.role == "load":
            site.failed(f"the model could not be read: {text}")
        elif task.role == "checkpoint":
            site.failed(f"the checkpoint could not be written: {text}")
        else:
            branch, _ = self.where[task.address]
            site.branch_failed(branch, f"the {task.role} task of round {round_of(branch.epoch)} failed: {text}", retry)

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
            self.site.services.abandon(self.site, task, outputs)
        else:
            for key in outputs:
                self.site.services.memory.free(key)
            self._close_address(task)
        task.output = None

    # ---- the end of a round ----------------------------------------------------------------------------------------

    def forget(self, branch: Branch) -> None:
        """The round is committed: free what was kept for a restart, close its addresses."""
        for task in branch.tree.tasks:
            if task.parent is None and task.state is TaskState.DONE:
                self._free_kept(task)
            self.costs.pop(task.address, None)
            self._close_address(task)

    def consider_all(self, branch: Branch) -> None:
        """Something that tasks wait for has come."""
        for task in branch.tree.tasks:
            self._consider(branch, task)

    def _free_kept(self, root: Task) -> None:
        """What a done root kept until the commit: the top its inputs, another root its output."""
        kept = root.inputs if root.role == "top" else [root.output]
        for key in kept:
            if key is not None:  # else the top has taken it
                self.site.services.memory.free(key)
        root.inputs = []

    def discard(self, branch: Branch) -> None:
        """The round ends without a model: every object of it is freed, every task of it dropped.

        Updates still in flight are freed when the gateway is through with them.
        """
        tasks = branch.tree.tasks
        for task in tasks:
            if task.state is TaskState.DONE:
                if task.parent is None:
                    self._free_kept(task)
                continue  # else its inputs are freed, and its output is an input of its parent
            for key in task.inputs:
                self.site.services.memory.free(key)
            task.inputs = []
            self._drop(task)
        for task in tasks:
            self.costs.pop(task.address, None)
            if task.state is TaskState.DONE:
                self._close_address(task)
        while branch.unfed:
            self.site.services.memory.free(branch.unfed.popleft()[0])

    # ---- after a restart ---------------------------------------------------------------------------------------------

    def adopt(self, branch: Branch, updates: list[tuple[Key, Contribution]], partials: list[Key]) -> None:
        """Goes on from the updates and partials that a killed daemon left sealed."""
        branch.unfed.extend(zip(partials, branch.tree.adopting, strict=False))
        branch.unfed.extend((key, None) for key, _ in updates)
        self.feed_waiting(branch)

    # ---- the receipt -------------------------------------------------------------------------------------------------

    def lines(self, branch: Branch) -> list[dict[str, Any]]:
        """The branch's tree, a line for each task."""
        return [
            {
                "address": task.address,
                "role": task.role,
                "parent": task.parent.address if task.parent else 0,
                "branch": branch.number,
                "number": task.number,
                "parent_number": task.parent.number if task.parent else None,
                "state": SHOWN[task.state],
                "inputs": len(task.inputs),
                "expect": task.expect,
                "updates": task.taken,
                "updates_expect": task.updates,
                "pid": task.pid or None,
                "attempt": task.attempt,
                "cpu_s": self.costs[task.address].cpu_s if task.address in self.costs else 0.0,
            }
            for task in branch.tree.tasks
            if task.state is not TaskState.DROPPED
        ]


def _worker(task: Task) -> int:
    if task.worker is None:
        raise LocalFault(f"{task!r} has no worker")
    return task.worker


def _output(task: Task) -> Key:
    if task.output is None:
        raise LocalFault(f"{task!r} has no output")
    return task.output

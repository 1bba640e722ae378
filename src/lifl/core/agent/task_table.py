"""The open tasks of a node: the address of each, the worker that has it, and what becomes of it when that worker dies.

A task is opened (it gets an address, records may come to it), placed (a worker is found, or forked), started (the
worker is told, then the address is routed to it, then the keys that are there are sent), and ends when its worker says
so, or when its output is found sealed after the worker died: then its key may have reached the parent already, so it
must not be made a second time.  Any other task whose worker died is placed again with another attempt number, for its
inputs stay sealed until its output is.

A task that is not wanted any more is *abandoned*: its outputs, and what a file is written from, are freed when its
worker has let go of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from lifl.core import effects as fx
from lifl.core.agent.outcomes import NotFiniteAt, Outcome
from lifl.core.agent.pool import Pool, WorkerState
from lifl.core.agent.quota import Quota
from lifl.core.agent.worker_deaths import WorkerDeaths
from lifl.core.errors import ArenaFull, LocalFault, RemoteFault
from lifl.core.events import Bounced, FromWorker, WorkerGone
from lifl.core.fields import Message
from lifl.core.ids import ADDRESSES_MAX, Key
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import worker as wm
from lifl.core.turn import Turn

STARTING = WorkerState.STARTING
ROUTED = frozenset({"leaf", "middle", "top"})
"""The roles whose inputs come as records."""
FILES = frozenset({"load", "checkpoint"})
"""The roles that are done anew when they are late."""
FILE_ADDRESSES = 1_024
"""Addresses that only tasks of other roles get: a job cannot wait for one to read its model, or to write it."""


class Runner(Protocol):
    """What opens tasks: a branch, or a job's file tasks."""

    job: int
    deadline_s: float
    """How long a task of it may take that has all its inputs."""
    tie: int
    """The job whose own code its workers run (`pool.py`); 0: none's."""
    code: str
    """What that code is called."""
    workers: int
    """How many workers its round's tasks may be in at a time; 0: any number."""

    def served(self, task: Task) -> tuple[str, int]: ...

    def placed(self, task: Task, how: str) -> None: ...

    def message(self, task: Task) -> Message: ...

    def restarting(self, task: Task) -> None: ...

    def done(self, task: Task, cost: wm.TaskDone | None) -> list[Outcome]: ...

    def failed(self, task: Task, text: str, retry: bool, place: NotFiniteAt | None = None) -> list[Outcome]: ...


class OpenTask(NamedTuple):
    """A task with the one that runs it."""

    runner: Runner
    task: Task


class TaskTable:
    """All open tasks of this node by address."""

    def __init__(self, turn: Turn, quota: Quota, pool: Pool) -> None:
        self._turn = turn
        self._quota = quota
        self.pool = pool
        self._new_address = 1  # this one and those above it were never used
        self._addresses: deque[int] = deque()  # of the others, the free ones, the one that is free the longest first
        self._open: dict[int, OpenTask] = {}
        self._abandoned: dict[int, list[Key]] = {}  # by address: objects that a worker may still write to, or read
        self.deaths = WorkerDeaths()

    # ---- what runners ask ------------------------------------------------------------------------------------------

    def open(self, runner: Runner, task: Task) -> None:
        """Give the task an address.  Raise `ArenaFull` when none is free."""
        kept = FILE_ADDRESSES if task.role in ROUTED else 0
        if self.addresses_free <= kept:
            raise ArenaFull(f"all {ADDRESSES_MAX - 1 - kept} addresses of this node are taken by open tasks")
        if self._new_address < ADDRESSES_MAX:
            task.address, self._new_address = self._new_address, self._new_address + 1
        else:
            task.address = self._addresses.popleft()
        self._open[task.address] = OpenTask(runner, task)

    def close(self, task: Task) -> None:
        """Free the task's address, if it has one; records that still come to it find nothing.

        That of an abandoned task is freed when its worker has let go of it.
        """
        found = self._open.get(task.address)
        if found is not None and found.task is task and task.address not in self._abandoned:
            self._close(task.address)

    def _close(self, address: int) -> None:
        if self._open.pop(address, None) is not None:
            self._addresses.append(address)
            self._quota.gains += 1

    @property
    def addresses_free(self) -> int:
        """How many tasks may be opened yet."""
        return ADDRESSES_MAX - self._new_address + len(self._addresses)

    def place(self, task: Task) -> None:
        """Give the task to a worker, which may have to be forked first."""
        runner = self._open[task.address].runner
        among = self._workers_of(runner) if runner.workers else ()
        if len(among) < runner.workers:
            among = ()
        worker, how = self.pool.place(task.address, runner.served(task), self._turn.now, runner.tie, among)
        task.worker = worker.number
        runner.placed(task, how)
        if worker.new:
            self.fork_due()
        elif self.pool.running(worker.number):
            self._start(runner, task)

    def _workers_of(self, runner: Runner) -> set[int]:
        """Return the workers that have tasks of rounds of the same job."""
        mine = (found.task for found in self._open.values() if found.runner.job == runner.job)
        workers = {task.worker for task in mine if task.role in ROUTED}
        return {number for number in workers if number in self.pool.workers and self.pool.workers[number].usable}

    def fork_due(self) -> None:
        """Have the workers forked that wait for it, when they may be."""
        for worker in self.pool.due_forks(self._turn.now):
            self._turn.emit(fx.ForkWorker(self.pool.fork(worker)))

    def prepare(self, runner: Runner, leaves: Callable[[int], int]) -> None:
        """Have workers forked, so that the tasks that are soon to be placed find one.

        `leaves(most)` tells how many these are; it costs nothing where no worker can be added.
        """
        if not self.pool.full:
            most = self.pool.workers_max
            if runner.workers:
                most = min(most, runner.workers - len(self._workers_of(runner)))
            for worker in self.pool.prepare(leaves(most) if most > 0 else 0, self._turn.now):
                self._turn.emit(fx.ForkWorker(worker))

    # ---- what is owed ----------------------------------------------------------------------------------------------

    def is_abandoned(self, address: int) -> bool:
        """Return whether the worker of the task there is to let go of it."""
        return address in self._abandoned

    def is_owed(self, address: int) -> bool:
        """Return whether the worker of the task there has all that it needs."""
        task = self.at(address).task
        return task.state is TaskState.RUNNING and not task.failed and (task.complete or task.role not in ROUTED)

    def overdue(self, address: int, limit_s: float) -> list[Outcome]:
        """Note that a task did not end in time, and its worker is killed: it fails; files are done anew."""
        runner, task = self.at(address)
        if task.role in FILES:
            return []
        task.failed = True
        self._turn.touch(runner.job)
        said = f"it did not end within {limit_s:g} s (aggregation.task_deadline_s); its worker was killed"
        return runner.failed(task, said, True)

    def unroute(self, task: Task) -> None:
        """Send what still comes to the task's address to `lifld`."""
        self._turn.emit(fx.Route(task.address, None))

    def abandon(self, task: Task, objects: list[Key]) -> None:
        """Give a placed task up: free these objects as soon as no worker can write to them, or read them, for it."""
        worker = self.pool.workers.get(task.worker) if task.worker is not None else None
        self.unroute(task)
        if worker is not None and task.address in worker.tasks and task.attempt and worker.state is not STARTING:
            self._abandoned[task.address] = objects
            if not worker.killed:
                self._turn.emit(fx.SendWorker(worker.number, wm.Drop(task.address, task.attempt)))
            return
        if worker is not None:
            self.pool.release(worker.number, task.address, self._turn.now)
        for key in objects:
            self._quota.free(key)
        self.close(task)

    def at(self, address: int) -> OpenTask:
        """Return the task at an address.  Raise `LocalFault` when there is none."""
        found = self._open.get(address)
        if found is None:
            raise LocalFault(f"no task is open at address {address}")
        return found

    def find(self, address: int) -> OpenTask | None:
        """Return the task at an address, or None."""
        return self._open.get(address)

    def _start(self, runner: Runner, task: Task) -> None:
        """Hand the task to its worker, then route its address, then send the keys that are there."""
        self._turn.touch(runner.job)
        worker = worker_of(task)
        task.attempt += 1
        task.pid = self.pool.workers[worker].pid
        task.move(TaskState.RUNNING)
        self._turn.emit(fx.SendWorker(worker, runner.message(task)))
        if task.role in ROUTED:
            self._turn.emit(fx.Route(task.address, worker))
            keys = tuple(dict.fromkeys([*task.inputs, *task.bounced]))
            task.bounced = {}
            if keys:
                self._turn.emit(fx.SendKeys(task.address, task.attempt, keys))

    # ---- events ----------------------------------------------------------------------------------------------------

    def heard(self, event: FromWorker) -> list[Outcome]:
        """Handle what a worker says of itself, and of tasks that it has; what it says of others counts for nothing.

        Raise `RemoteFault`, with nothing changed, for what cannot be true: a user's rule may have taken it over.
        """
        message = event.message
        if isinstance(message, wm.WorkerReady):
            self._worker_ready(event.worker, message)
            return []
        if not self.pool.has(event.worker, message.address):  # it let go of it before
            return []
        if isinstance(message, wm.TaskDone):
            _check_done(self, event.worker, message)
        match message:
            case wm.TaskDone() as done:
                found = self._released(event.worker, done.address)
                if found is not None and found.task.attempt == done.attempt and found.task.state is TaskState.RUNNING:
                    with self._turn.share(found.runner.job):
                        return found.runner.done(found.task, done)
            case wm.TaskFailed() as failed:
                found = self._released(event.worker, failed.address)
                if found is not None and found.task.attempt == failed.attempt:
                    place = NotFiniteAt(failed.dtype, failed.element, failed.suspects) if failed.element >= 0 else None
                    with self._turn.share(found.runner.job):
                        return found.runner.failed(found.task, failed.text, failed.retry, place)
            case wm.TaskDropped() as dropped:
                self._released(event.worker, dropped.address)
        return []

    def _worker_ready(self, worker: int, message: wm.WorkerReady) -> None:
        found = self.pool.workers.get(worker)
        if found is None:
            return
        if message.worker != worker or not (found.killed or found.state is STARTING):
            raise RemoteFault(f"worker {worker}, which is {found.state.value}, says that worker {message.worker} runs")
        for address in self.pool.ready(worker, message.pid, self._turn.now):
            self._start(*self.at(address))

    def _released(self, worker: int, address: int) -> OpenTask | None:
        """Return the wanted task that a worker has let go of; the objects of an abandoned one are freed."""
        self.pool.release(worker, address, self._turn.now)
        found = None if self._let_go(address) else self.find(address)
        if found is not None:
            self._turn.touch(found.runner.job)
        return found

    def _let_go(self, address: int) -> bool:
        """Free the objects of a task that was abandoned, and return whether it was."""
        objects = self._abandoned.pop(address, None)
        if objects is None:
            return False
        for key in objects:
            self._quota.free(key)
        self._close(address)
        return True

    def worker_gone(self, event: WorkerGone) -> list[Outcome]:
        """Go on from what a dead worker has sealed; place its other tasks again."""
        outcomes: list[Outcome] = []
        for address in self.pool.gone(event.worker, self._turn.now):
            found = None if self._let_go(address) else self.find(address)
            if found is not None:  # else its output was folded in before the worker told of it, and the round is over
                with self._turn.share(found.runner.job):
                    outcomes += self._lost(*found)
        return outcomes

    def _lost(self, runner: Runner, task: Task) -> list[Outcome]:
        if task.state not in (TaskState.PLACING, TaskState.RUNNING) or task.failed:
            return []
        self._turn.touch(runner.job)
        if task.state is TaskState.RUNNING and task.output is not None and self._quota.sealed(task.output):
            return runner.done(task, None)
        if verdict := self.deaths.verdict(task, runner.code if runner.tie else ""):
            return runner.failed(task, verdict, True)
        if task.state is TaskState.RUNNING:
            runner.restarting(task)
            task.move(TaskState.PLACING)
        task.worker = None
        self.unroute(task)
        self.place(task)
        return []

    def bounced(self, event: Bounced) -> None:
        """Pass on a record that had no route, or keep it until its task runs."""
        found = self.find(event.address)
        if found is None:
            return
        task = found.task
        if task.state is TaskState.RUNNING:
            self._turn.emit(fx.SendKeys(event.address, task.attempt, (event.key,)))
        elif task.state in (TaskState.OPEN, TaskState.PLACING):
            task.bounced[event.key] = None

    # ---- invariants ------------------------------------------------------------------------------------------------

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the table, a sentence each."""
        for address, (_, task) in self._open.items():
            if address in self._abandoned or task.address == address:
                continue
            yield f"{task!r} is open at address {address} but has {task.address}"
        if len(self._open) + self.addresses_free != ADDRESSES_MAX - 1:
            yield f"{len(self._open)} open and {self.addresses_free} free addresses are not {ADDRESSES_MAX - 1}"
        lost = self._abandoned.keys() - self._open.keys()
        if lost:
            yield f"abandoned tasks at {sorted(lost)} have lost their addresses"


def _check_done(table: TaskTable, worker: int, done: wm.TaskDone) -> None:
    """Raise `RemoteFault` when the output of a task that is awaited is not sealed."""
    found = table.find(done.address)
    if found is None or table.is_abandoned(done.address):
        return
    task = found.task
    awaited = task.attempt == done.attempt and task.state is TaskState.RUNNING and task.output is not None
    if awaited and not table._quota.sealed(output_of(task)):
        raise RemoteFault(f"worker {worker} says that {task!r} is done, whose output is not sealed")


def worker_of(task: Task) -> int:
    """Return the task's worker.  Raise `LocalFault` when it has none."""
    if task.worker is None:
        raise LocalFault(f"{task!r} has no worker")
    return task.worker


def output_of(task: Task) -> Key:
    """Return the task's output.  Raise `LocalFault` when it has none."""
    if task.output is None:
        raise LocalFault(f"{task!r} has no output")
    return task.output


def is_at(tasks: TaskTable, job: int) -> bool:
    """Return whether a worker has yet to let go of something that a job has given up, or of a job that is over."""
    return any(tasks._open[address].runner.job == job for address in tasks._abandoned if address in tasks._open)

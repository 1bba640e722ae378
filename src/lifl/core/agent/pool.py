"""The workers of one node: when to fork one, which one gets a task, when to let go of one.

No worker exists until one is wanted.  A task goes to an idle worker if there is one (warm; *promoted* when its last
task fed this one's round from a lower level), else to one that was prepared and is still starting, or to a new one
while there are fewer than `workers_max` (both cold: the task waits for it), else to the worker with the fewest tasks.
A worker idle for `idle_timeout_s` is retired.

Workers are *prepared* when an update is granted: until its bytes are all there, the leaf that takes it has a process.
Source: LIFL (MLSys 2024), section 5.3, opportunistic reuse.
"""

from __future__ import annotations

import math
from collections import Counter
from enum import Enum

from lifl.core.errors import LocalFault


class WorkerState(Enum):
    """The life of a worker; `TRANSITIONS` is the whole of it."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RETIRING = "retiring"


_W = WorkerState
TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    _W.STARTING: frozenset({_W.IDLE, _W.BUSY}),
    _W.IDLE: frozenset({_W.BUSY, _W.RETIRING}),
    _W.BUSY: frozenset({_W.IDLE}),
    _W.RETIRING: frozenset(),
}


class Worker:
    """One process: its tasks by address, the round that it served last, since when it is idle."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.new = True  # the zygote has not been asked to fork it
        self.state = WorkerState.STARTING
        self.tasks: dict[int, None] = {}
        self.tasks_done = 0
        self.served: tuple[str, int] | None = None
        self.idle_since_s = 0.0
        self.pid = 0

    def move(self, state: WorkerState) -> None:
        """Change the state.  Raise `LocalFault`, and change nothing, when the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise LocalFault(f"worker {self.number} cannot go from {self.state.value} to {state.value}")
        self.state = state


class Pool:
    """Decides; the caller performs: `place` and the others return what to do."""

    def __init__(self, workers_max: int, idle_timeout_s: float) -> None:
        self.workers_max = workers_max
        self.idle_timeout_s = idle_timeout_s
        self.workers: dict[int, Worker] = {}
        self.starts: Counter[str] = Counter()
        self._next = 1

    def place(self, address: int, served: tuple[str, int]) -> tuple[Worker, str]:
        """Give the task to a worker; return it with how it was found.

        That is ``cold`` (fork it when it is `new`), ``warm``, ``promoted`` or ``shared``.
        """
        worker, how = self._choose(served)
        worker.tasks[address] = None
        worker.served = served
        if worker.state is WorkerState.IDLE:
            worker.move(WorkerState.BUSY)
        self.starts[how] += 1
        return worker, how

    @property
    def full(self) -> bool:
        """True when no worker can be added now."""
        return sum(w.state is not WorkerState.RETIRING for w in self.workers.values()) >= self.workers_max

    def prepare(self, leaves: int) -> list[int]:
        """Return the workers to fork so that so many leaves find a free one; none where none are kept warm."""
        if not self.idle_timeout_s:
            return []
        usable = [w for w in self.workers.values() if w.state is not WorkerState.RETIRING]
        free = sum(not w.tasks for w in usable)
        wanted = min(leaves - free, self.workers_max - len(usable))
        return [self.fork(self._new()) for _ in range(wanted)]

    def fork(self, worker: Worker) -> int:
        """Note that the caller forks it; return its number."""
        worker.new = False
        return worker.number

    def _new(self) -> Worker:
        worker = Worker(self._next)
        self._next += 1
        self.workers[worker.number] = worker
        return worker

    def _choose(self, served: tuple[str, int]) -> tuple[Worker, str]:
        idle = [w for w in self.workers.values() if w.state is WorkerState.IDLE]
        for worker in idle:
            if worker.served == served:
                return worker, "promoted"
        if idle:
            return max(idle, key=lambda w: w.idle_since_s), "warm"
        usable = [w for w in self.workers.values() if w.state is not WorkerState.RETIRING]
        for worker in usable:
            if worker.state is WorkerState.STARTING and not worker.tasks:
                return worker, "cold"
        if len(usable) < self.workers_max:
            return self._new(), "cold"
        return min(usable, key=lambda w: len(w.tasks)), "shared"

    def ready(self, number: int, pid: int, now: float) -> list[int]:
        """Note that the worker runs; return the addresses of the tasks that wait for it."""
        worker = self.workers[number]
        worker.pid = pid
        worker.idle_since_s = now
        worker.move(WorkerState.BUSY if worker.tasks else WorkerState.IDLE)
        return list(worker.tasks)

    def release(self, number: int, address: int, now: float) -> None:
        """Note that the worker has ended (or was told to drop) a task."""
        worker = self.workers.get(number)
        if worker is None or address not in worker.tasks:
            return
        del worker.tasks[address]
        worker.tasks_done += 1
        if not worker.tasks and worker.state is WorkerState.BUSY:
            worker.move(WorkerState.IDLE)
            worker.idle_since_s = now

    def gone(self, number: int) -> list[int]:
        """Forget a worker whose process has ended; return the addresses of the tasks that it had."""
        worker = self.workers.pop(number, None)
        return list(worker.tasks) if worker else []

    def running(self, number: int) -> bool:
        """Return whether the worker can be sent messages."""
        worker = self.workers.get(number)
        return worker is not None and worker.state in (WorkerState.IDLE, WorkerState.BUSY)

    def expired(self, now: float) -> list[int]:
        """Return the workers to retire now, marked so."""
        found = [
            w
            for w in self.workers.values()
            if w.state is WorkerState.IDLE and now >= w.idle_since_s + self.idle_timeout_s
        ]
        for worker in found:
            worker.move(WorkerState.RETIRING)
        return [w.number for w in found]

    def next_timer(self) -> float:
        """Return when `expired` is to be asked again; infinity: not before something happens."""
        since_s = [worker.idle_since_s for worker in self.workers.values() if worker.state is WorkerState.IDLE]
        return min(since_s) + self.idle_timeout_s if since_s else math.inf

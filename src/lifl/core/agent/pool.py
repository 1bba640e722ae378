"""The workers of one node: when to fork one, which one gets a task, when to let go of one.

No worker exists until one is wanted.  A task goes to an idle worker if there is one (warm; *promoted* when its last
task fed this one's round from a lower level), else to one that was prepared and is still starting, or to a new one
while there are fewer than `workers_max` (both cold: the task waits for it), else to the worker with the fewest tasks.
A worker idle for `idle_timeout_s` is retired.

A worker that ran a job's own code (a user's rule) is *tied* to that job: whatever the code did to the process, no other
job meets it.  Where all that run are others', one more is forked, also beyond `workers_max`; those that are too many
are retired as soon as they are idle.

Workers are *prepared* when an update is granted: until its bytes are all there, the leaf that takes it has a process.
Where the system refuses a fork (or what was forked does not come to run) the next one waits, `FORK_PAUSE_MIN_S` at
first and twice as long each time; meanwhile workers that run take the tasks.
Source: LIFL (MLSys 2024), section 5.3, opportunistic reuse.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from enum import Enum

from lifl.core.errors import LocalFault

FORK_PAUSE_MIN_S = 0.1
FORK_PAUSE_MAX_S = 5.0


class WorkerState(Enum):
    """The life of a worker; `TRANSITIONS` is the whole of it."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RETIRING = "retiring"
    KILLED = "killed"


_W = WorkerState
TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    _W.STARTING: frozenset({_W.IDLE, _W.BUSY, _W.KILLED}),
    _W.IDLE: frozenset({_W.BUSY, _W.RETIRING}),
    _W.BUSY: frozenset({_W.IDLE, _W.KILLED}),
    _W.RETIRING: frozenset(),
    _W.KILLED: frozenset(),
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
        self.tied = 0  # the number of the job whose own code it ran
        self.idle_since_s = 0.0
        self.pid = 0
        self.killed_because = ""

    @property
    def usable(self) -> bool:
        """True unless it ends."""
        return self.state not in (WorkerState.RETIRING, WorkerState.KILLED)

    def takes(self, tie: int) -> bool:
        """Return whether a task may go to it that is tied to the job `tie` (0: to none)."""
        return self.usable and (self.tied == tie or not (self.tied or self.tasks))

    @property
    def killed(self) -> bool:
        """True from its killing until its end."""
        return self.state is WorkerState.KILLED

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
        self._fork_at_s = -math.inf
        self._fork_pause_s = 0.0

    def place(
        self,
        address: int,
        served: tuple[str, int],
        now: float = 0.0,
        tie: int = 0,
        among: Collection[int] = (),
    ) -> tuple[Worker, str]:
        """Give the task to a worker, and tie that to the job `tie` (0: to none); return it with how it was found.

        It goes to one of those `among` which it is to stay, if there are any.
        That is ``cold`` (fork it when it is `new`, and forks may be made), ``warm``, ``promoted`` or ``shared``.
        """
        shared = [w for w in map(self.workers.get, among) if w is not None and w.takes(tie)]
        if shared:
            worker, how = min(shared, key=lambda w: (len(w.tasks), w.number)), "shared"
        else:
            worker, how = self._choose(served, self.may_fork(now), tie)
        worker.tasks[address] = None
        worker.tied = tie
        worker.served = served
        if worker.state is WorkerState.IDLE:
            worker.move(WorkerState.BUSY)
        self.starts[how] += 1
        return worker, how

    @property
    def full(self) -> bool:
        """True when no worker can be added now."""
        return self._too_many() >= 0

    def prepare(self, leaves: int, now: float = 0.0) -> list[int]:
        """Return the workers to fork so that so many leaves find a free one; none where none are kept warm."""
        if not self.idle_timeout_s or not self.may_fork(now):
            return []
        usable = [w for w in self.workers.values() if w.usable]
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

    def _choose(self, served: tuple[str, int], may_fork: bool, tie: int) -> tuple[Worker, str]:
        takers = [w for w in self.workers.values() if w.takes(tie)]
        idle = [w for w in takers if w.state is WorkerState.IDLE]
        for worker in idle:
            if worker.served == served:
                return worker, "promoted"
        if idle:
            return max(idle, key=lambda w: (w.tied, w.idle_since_s)), "warm"
        for worker in takers:
            if worker.state is WorkerState.STARTING and not worker.tasks:
                return worker, "cold"
        if not takers or (may_fork and not self.full):
            return self._new(), "cold"
        return min(takers, key=lambda w: len(w.tasks)), "shared"

    def ready(self, number: int, pid: int, now: float) -> list[int]:
        """Note that the worker runs; return the addresses of the tasks that wait for it."""
        worker = self.workers[number]
        self._fork_pause_s, self._fork_at_s = 0.0, -math.inf
        worker.pid = pid
        if worker.killed:
            return []
        worker.idle_since_s = now
        worker.move(WorkerState.BUSY if worker.tasks else WorkerState.IDLE)
        return list(worker.tasks)

    def has(self, number: int, address: int) -> bool:
        """Return whether the worker has a task at this address."""
        worker = self.workers.get(number)
        return worker is not None and address in worker.tasks

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

    def may_fork(self, now: float) -> bool:
        """Return whether a worker may be forked now."""
        return now >= self._fork_at_s

    def due_forks(self, now: float) -> list[Worker]:
        """Return the workers that wait to be forked, when they may be; those without a task are not needed any more."""
        waiting = [worker for worker in self.workers.values() if worker.new] if self.may_fork(now) else []
        for worker in waiting:
            if not worker.tasks:
                del self.workers[worker.number]
        return [worker for worker in waiting if worker.tasks]

    def kill(self, worker: Worker, why: str) -> None:
        """Note that the worker's process is to end, whatever it does."""
        worker.move(WorkerState.KILLED)
        worker.killed_because = why

    def gone(self, number: int, now: float = 0.0) -> list[int]:
        """Forget a worker whose process has ended; return the addresses of the tasks that it had."""
        worker = self.workers.pop(number, None)
        if worker is not None and worker.state is WorkerState.STARTING and self.may_fork(now):
            self._fork_pause_s = min(max(2 * self._fork_pause_s, FORK_PAUSE_MIN_S), FORK_PAUSE_MAX_S)
            self._fork_at_s = now + self._fork_pause_s
        return list(worker.tasks) if worker else []

    def running(self, number: int) -> bool:
        """Return whether the worker can be sent messages."""
        worker = self.workers.get(number)
        return worker is not None and worker.state in (WorkerState.IDLE, WorkerState.BUSY)

    def expired(self, now: float) -> list[int]:
        """Return the workers to retire now, marked so."""
        oldest_first = sorted(self._idle(), key=lambda w: w.idle_since_s)
        too_many = self._too_many()
        found = [w for i, w in enumerate(oldest_first) if i < too_many or now >= w.idle_since_s + self.idle_timeout_s]
        for worker in found:
            worker.move(WorkerState.RETIRING)
        return [w.number for w in found]

    def _idle(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.state is WorkerState.IDLE]

    def _too_many(self) -> int:
        """Return how many of the workers that do not end are beyond `workers_max`."""
        return sum(worker.usable for worker in self.workers.values()) - self.workers_max

    def next_timer(self) -> float:
        """Return when `expired` is to be asked again; infinity: not before something happens."""
        due_s, since_s, usable = math.inf, math.inf, 0
        for worker in self.workers.values():
            usable += worker.usable
            if worker.new:
                due_s = self._fork_at_s
            if worker.state is WorkerState.IDLE:
                since_s = min(since_s, worker.idle_since_s)
        return min(due_s, since_s + (0.0 if usable > self.workers_max else self.idle_timeout_s))

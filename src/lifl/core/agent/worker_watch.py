"""Workers that owe something: looked at every `LOOK_S`, and killed when they are stopped, or too late.

A worker *owes* a task that has all its inputs, the word that it has let go of a task that is not wanted any more, or
its own start.  One whose process is stopped is killed as soon as that is seen, and its tasks are placed again.  One
that computes may do so until the task's deadline (`aggregation.task_deadline_s`): then it is killed, and the round
fails, for a rule that does not return would not do so elsewhere.  A task that is not wanted has `DROP_GRACE_S`.

Files are read and written as slowly as a disk is: these tasks have `FILE_DEADLINE_S`, and are placed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lifl.core import effects as fx
from lifl.core.agent.file_tasks import FILE_DEADLINE_S
from lifl.core.agent.outcomes import Outcome
from lifl.core.agent.pool import Pool, Worker, WorkerState
from lifl.core.agent.task_table import TaskTable
from lifl.core.events import WorkerSeen
from lifl.core.turn import Turn

LOOK_S = 2.0
DROP_GRACE_S = 5.0
"""A fold of a large update takes a second; who has not let go of a task by then is in a rule that does not return."""
START_S = 60.0
"""A worker starts in milliseconds, on a machine without memory in seconds."""

Debt = tuple[int, int, bool]
"""The address of a task, its attempt, and whether it is to be let go of."""


class WorkerWatch:
    """Watches the workers of one node."""

    def __init__(self, turn: Turn, tasks: TaskTable, pool: Pool) -> None:
        self._turn = turn
        self._tasks = tasks
        self._pool = pool
        self._look_at_s = math.inf
        self._since_s: dict[int, dict[Debt, float]] = {}  # by worker: what it was seen to owe, and since when

    def settle(self, at_stake: bool) -> None:
        """Look soon if there is anything to look at: a worker with tasks, or (`at_stake`) a branch; else not at all."""
        if not (at_stake or any(worker.tasks for worker in self._pool.workers.values())):
            self._look_at_s = math.inf
        elif self._look_at_s == math.inf:
            self._look_at_s = self._turn.now + LOOK_S

    def next_timer(self) -> float:
        """Return when `tick` is due; infinity: not before there is something to look at."""
        return self._look_at_s

    def tick(self) -> list[Outcome]:
        """Look at the node's long-lived processes, and at those workers that owe something."""
        if self._turn.now < self._look_at_s:
            return []
        self._look_at_s = math.inf
        self._turn.emit(fx.LookAtChildren())
        self._since_s = {number: since for number, since in self._since_s.items() if number in self._pool.workers}
        outcomes: list[Outcome] = []
        for worker in list(self._pool.workers.values()):
            if worker.killed:
                self._turn.emit(fx.KillWorker(worker.number, worker.killed_because))  # before, it may have had no pid
            elif debts := self._debts(worker):
                outcomes += self._late(worker, debts)
        return outcomes

    def _debts(self, worker: Worker) -> dict[Debt, float]:
        """Return what a worker owes, and since when it was seen to."""
        before = self._since_s.get(worker.number, {})
        debts = {debt: before.get(debt, self._turn.now) for debt in self._owed(worker)}
        self._since_s[worker.number] = debts
        return debts

    def _owed(self, worker: Worker) -> Iterator[Debt]:
        for address in worker.tasks:
            found = self._tasks.find(address)
            if found is None or found.task.worker != worker.number:
                continue  # its output was taken before the worker told of it, and the round is over
            attempt = found.task.attempt
            if self._tasks.is_abandoned(address):
                yield address, attempt, True
            elif worker.state is WorkerState.STARTING or self._tasks.is_owed(address):
                yield address, attempt, False

    def _late(self, worker: Worker, debts: dict[Debt, float]) -> list[Outcome]:
        """Kill a worker that is too late with anything; else have it looked at."""
        starts = worker.state is WorkerState.STARTING
        late = [
            debt
            for debt, since_s in debts.items()
            if self._turn.now >= since_s + (START_S if starts else self._limit_s(debt))
        ]
        if not late:
            self._turn.emit(fx.LookAtWorker(worker.number))
            return []
        outcomes: list[Outcome] = []
        for address, _attempt, unwanted in late:
            if not unwanted and not starts:
                outcomes += self._tasks.overdue(address, self._limit_s((address, 0, False)))
        self._kill(worker, f"it owes the tasks at {[address for address, *_ in late]}")
        return outcomes

    def _limit_s(self, debt: Debt) -> float:
        address, _attempt, unwanted = debt
        deadline_s = self._tasks.at(address).runner.deadline_s
        return min(deadline_s, DROP_GRACE_S) if unwanted and deadline_s < FILE_DEADLINE_S else deadline_s

    def seen(self, event: WorkerSeen) -> None:
        """Kill a worker that is stopped: it would never be done."""
        worker = self._pool.workers.get(event.worker)
        if worker is not None and event.stopped and not worker.killed and worker.tasks:
            self._kill(worker, "it is stopped")

    def _kill(self, worker: Worker, why: str) -> None:
        self._pool.kill(worker, why)
        self._turn.emit(fx.KillWorker(worker.number, why))

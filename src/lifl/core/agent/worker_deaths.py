"""How many workers may die under one task, and what is said of it then.

A worker that dies is replaced: its machine, or its user, may have ended it.  Where one after the other dies under the
same task that is not so, least of all where they run a job's own code: then the round fails, and says how they ended.
"""

from __future__ import annotations

from lifl.core.events import WorkerExited
from lifl.core.planning.tree import Task

TASK_ATTEMPTS_MAX = 16
"""Workers that may die under one task before its round fails."""
OWN_CODE_ATTEMPTS_MAX = 3
"""The same where they run the job's own code."""
EXITS_KEPT = 64
"""Workers of which it is known how they ended, the last ones."""


class WorkerDeaths:
    """What is known of the workers of one node that have died."""

    def __init__(self) -> None:
        self._exits: dict[int, str] = {}  # by worker: how its process ended

    def exited(self, event: WorkerExited) -> None:
        """Note how a worker's process has ended; its link's end, which is what counts, may come before or after."""
        self._exits[event.worker] = event.how
        if len(self._exits) > EXITS_KEPT:
            del self._exits[next(iter(self._exits))]

    def verdict(self, task: Task, code: str) -> str:
        """Note that the task's worker has died; return why the task fails, or nothing: another worker may try it.

        `code` is what the job's own code is called that the worker ran, if any.
        """
        if task.worker is not None:
            task.died.append(task.worker)
        if task.attempt < (OWN_CODE_ATTEMPTS_MAX if code else TASK_ATTEMPTS_MAX):
            return ""
        known = sorted({self._exits[worker] for worker in task.died if worker in self._exits})
        what = f" with {code}" if code else ""
        how = f", with {' or '.join(known)}" if known else ""
        return f"{task.attempt} workers died in turn while they ran it{what}{how}"

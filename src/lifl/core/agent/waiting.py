"""The end of each event on a node: whatever waits for room, or for a model, goes on as far as it can.

Only jobs about which something has changed (`Turn.touch`) are looked at, and those that wait for room (bytes of the
arena, or an address) when there may be some: what waits costs nothing until then.
"""

from __future__ import annotations

from collections.abc import Mapping

from lifl.core.agent.job_replica import JobReplica
from lifl.core.agent.model_service import ModelService
from lifl.core.agent.quota import Quota
from lifl.core.agent.task_table import TaskTable
from lifl.core.agent.uploads import Uploads
from lifl.core.errors import LocalFault
from lifl.core.turn import Turn

PASSES_MAX = 100_000
"""Looks at what may go on, within one event: more is a loop that makes no progress."""


class Waiting:
    """Knows which jobs wait for room."""

    def __init__(
        self,
        replicas: Mapping[int, JobReplica],
        turn: Turn,
        quota: Quota,
        tasks: TaskTable,
        uploads: Uploads,
        models: ModelService,
    ) -> None:
        self._replicas = replicas
        self._turn = turn
        self._quota = quota
        self._tasks = tasks
        self._uploads = uploads
        self._models = models
        self._hungry: dict[int, None] = {}  # jobs that wait for room
        self._gains_seen = 0

    def settle(self) -> None:
        """Give those that wait for room, or for a model, what there is now."""
        turn, quota = self._turn, self._quota
        passes = 0
        while turn.touched or quota.gains != self._gains_seen:
            passes += 1
            if passes > PASSES_MAX:
                raise LocalFault(f"jobs {list(turn.touched)} do not come to rest, nor the arena")
            room = quota.gains != self._gains_seen
            jobs, turn.touched = turn.touched, {}
            if room:
                jobs |= self._hungry
            free = self._free()
            for replica in [self._replicas[number] for number in jobs if number in self._replicas]:
                with turn.share(replica.spec.number):
                    self._settle_job(replica)
            self._uploads.settle(jobs, room)
            # What was allocated in vain and given back is no news.
            if self._free() == free:
                self._gains_seen = quota.gains
        if self._hungry or self._uploads.waits:
            self._models.make_room()

    def _free(self) -> tuple[int, int]:
        return self._quota.free_bytes, self._tasks.addresses_free

    def look_again(self) -> None:
        """Have all jobs looked at: a look was not ended."""
        for number in self._replicas:
            self._turn.touch(number)
        self._gains_seen = -1

    def _settle_job(self, replica: JobReplica) -> None:
        number = replica.spec.number
        if replica.settle(self._models.may_fetch):
            self._hungry[number] = None
        else:
            self._hungry.pop(number, None)
        self._models.look_at(replica)

    def forget(self, number: int) -> None:
        """Forget a job that is over."""
        self._hungry.pop(number, None)

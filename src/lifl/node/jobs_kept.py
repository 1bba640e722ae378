"""Forgets the jobs that have been over for longest, where there are more than the node is to know of (`jobs_kept`).

It looks when a job is over, and when the node begins to coordinate.  Each is forgotten as `lifl rm` does it, in its
turn among what users ask for; its models stay.
"""

from __future__ import annotations

import asyncio
import logging

from lifl.core.agent.task_table import is_at
from lifl.core.errors import LiflError
from lifl.core.ids import is_hosted
from lifl.core.planning.jobs_kept import beyond
from lifl.node.job_requests import JobRequests
from lifl.node.outbound.outbound import Outbound
from lifl.node.store import NodeStore, over_jobs
from lifl.node.tasks import start

log = logging.getLogger("lifl.jobs")


class JobsKept:
    """The last `kept` jobs that are over stay in `store`."""

    def __init__(self, changes: JobRequests, store: NodeStore, outbound: Outbound, kept: int) -> None:
        self._changes = changes
        self._engine = changes._engine
        self._store = store
        self._outbound = outbound
        self._kept = kept
        self._wanted = False
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """Forget, soon, what is beyond the limit."""
        self._wanted = True
        if not self._tasks:
            start(self._tasks, self._look(), "to forget jobs")

    async def _look(self) -> None:
        while self._wanted:
            self._wanted = False
            try:
                for number in self.beyond():
                    await self._changes._changing(self._forget(number))
            except LiflError as error:  # as while the disk is full: what is left goes when the next job is over
                log.warning("jobs.not_forgotten %s", error)

    def beyond(self) -> list[int]:
        """Return the numbers of the jobs that go now; none where another node coordinates.  Raise `DatabaseFault`."""
        if self._engine.coordinator is None or len(over := over_jobs(self._store, self._kept)) <= self._kept:
            return []
        needed = {job.spec.number for job in self._engine.jobs.values()}  # they run again, or clients may still ask
        needed |= {job.number for job in over if is_hosted(job.number) or is_at(self._engine.agent.tasks, job.number)}
        needed |= {job.number for job in over if self._outbound.needed(job.number)}
        return beyond(over, self._kept, needed)

    async def _forget(self, number: int) -> dict[str, int]:
        """Forget a job, unless users have had it run, or be forgotten, since it was found.  Raise `LiflError`."""
        await self._changes._goes_on()
        row = next(self._store.jobs(number - 1), None)
        if row is None or row.number != number or row.status == "running" or row.name in self._engine.jobs:
            return {}
        await self._changes._forget(row, "lifld", why=f"{self._kept} others were over later (jobs_kept)")
        log.info("job.forgotten job=%s number=%d; its models stay in %s", row.name, number, row.folder)
        return {"number": number}

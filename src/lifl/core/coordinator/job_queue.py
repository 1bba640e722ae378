"""Jobs that wait until the arenas have room for them, and which of them begins next.

A job is promised what a round of it needs at the least, from its loading to its end (`round_planner.py`): of the arena
at home, where a whole round fits there, else of those of the nodes that its rounds would be planned on.  One whose
promise does not fit beside those of the jobs that have begun is *queued*: the one of the highest `job.priority` begins
first, of equal ones the one that was submitted first.  None overtakes the first, however small it is: a large one would
wait for ever.  Who has begun is not turned out for another.  One that is paused does not stand in line: as soon as
nothing of it is under way it gives its room back, and it enters the line when it is let go on.

What holds: all jobs that have begun are together promised no more of the arena at home than it has, whatever way they
came.  So each enters the line, whether it is new, let go on after it was over or paused, or takes another's place, and
its row says ``queued`` before anything may follow from it.  Only the row that `advance` writes lets the next life give
a job its room at once (`go_on`); there one that has left nothing, and does not fit any more beside those that were
taken up before it, enters the line like any other: the arena may be a smaller one.  Only what was accepted goes before
this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from lifl.core import effects as fx
from lifl.core.coordinator.job import Job, let_go
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.errors import Refused
from lifl.core.turn import Turn

PAUSED, QUEUED, SPREAD = "paused", "queued", "spread"
"""Words in the reason of the row of a job that runs: the user has paused it; it has no room in the arenas; what it has
at home is not a whole round's."""


class Place(NamedTuple):
    """Where a job stands in line, counted from 1, of how many; what it needs of the arena, and what is not reserved.

    `elsewhere` says why other nodes do not help, where there are some.
    """

    position: int
    length: int
    needs_bytes: int
    free_bytes: int
    elsewhere: str = ""


def reason_of(job: Job) -> str:
    """Return the reason that stands in the row of a job that runs."""
    words = ((PAUSED, job.rounds.held), (QUEUED, job.queued), (SPREAD, job.spread and not job.queued))
    return " ".join(word for word, holds in words if holds)


def row_before(name: str) -> fx.SaveJob:
    """Return the row of a job that is to enter the line, which is durable before the coordinator is told of it.

    The life that goes on from it may be the next one, and has others to give room to first.
    """
    return fx.SaveJob(name, "running", QUEUED)


def _keeps_updates(job: Job) -> bool:
    """Return whether updates of an earlier life may be left for a job that is not loaded yet, here or elsewhere."""
    return job._adopting or any(status == "open" and "parts" in fields for _, status, fields in job._rows.values())


class JobQueue:
    """The line; `running` has all jobs that are not over, by number, `total_bytes` the arena at home for objects."""

    def __init__(self, running: Mapping[int, Job], total_bytes: int, turn: Turn, nodes: NodeTable) -> None:
        self.total_bytes = total_bytes
        self._running = running
        self._nodes = nodes
        self._turn = turn

    def enter(self, job: Job) -> None:
        """Let a job begin as soon as there is room, which may be now; one row says which."""
        job.queued = True
        self.advance()
        place = self.place_of(job)
        if job.queued:
            self._turn.emit(fx.SaveJob(job.name, "running", reason_of(job)))
        if place is not None:
            facts = {"position": place.position, "needs_bytes": place.needs_bytes, "free_bytes": place.free_bytes}
            self._turn.emit(fx.Publish("job.queued", job.name, facts))

    def rest(self, job: Job) -> bool:
        """Have a paused job give its room back, if nothing of it is under way; return whether it did."""
        rests = let_go(job)
        if rests:
            self._turn.emit(fx.SaveJob(job.name, "running", reason_of(job)))
            self._turn.emit(fx.Publish("job.rests", job.name, {"committed": job.rounds.committed}))
        return rests

    def advance(self) -> None:
        """Let those begin for whom there is room, in their order."""
        for job in self._line():
            try:
                rooms = job.planner.rooms(self._free_bytes(), self.total_bytes)
            except Refused:
                return
            job.queued, job.spread = False, rooms.get(self._nodes.home, 0) < job.spec.bytes_min()
            self._nodes.promised[job.spec.number] = rooms
            with self._turn.share(job.spec.number):
                self._turn.emit(fx.SaveJob(job.name, "running", reason_of(job)))
                job.start()

    def go_on(self, job: Job) -> None:
        """Let a job begin that had begun in an earlier life: other nodes, which may have room, are not here yet.

        One for which there is no room any more waits in line, unless updates were accepted for it.
        """
        room = min(job.planner.least_at_home if job.spread else job.spec.bytes_min(), self.total_bytes)
        if room > self._free_bytes(but=job) and not _keeps_updates(job):
            self.enter(job)
            return
        self._nodes.promised[job.spec.number] = {self._nodes.home: room}
        job.start()

    def place_of(self, job: Job) -> Place | None:
        """Return where a job stands in line; None: it does not."""
        line = self._line()
        if job not in line:
            return None
        return self._place(job, line.index(job) + 1, len(line))

    def place_for(self, job: Job) -> Place | None:
        """Return where a job that is not here would stand if it came now; None: it would begin at once."""
        line = self._line()
        ahead = sum(other.spec.config.priority >= job.spec.config.priority for other in line)
        with suppress(Refused):
            job.planner.rooms(self._free_bytes(), self.total_bytes)
            if not ahead:
                return None
        return self._place(job, ahead + 1, len(line) + 1)

    def _place(self, job: Job, position: int, length: int) -> Place:
        free, why = self._free_bytes(), ""
        if len(self._nodes) > 1:
            try:
                job.planner.rooms(free, self.total_bytes)
            except Refused as refused:
                why = refused.text
        return Place(position, length, min(job.spec.bytes_min(), self.total_bytes), free, why)

    def _line(self) -> list[Job]:
        waiting = [job for job in self._running.values() if job.queued and not job.rounds.held]
        return sorted(waiting, key=lambda job: (-job.spec.config.priority, job.spec.number))

    def _has(self, job: Job) -> int:
        """Return what the agent at home reserves for a job that has begun (`agent/job_replica.py`)."""
        promised = self._nodes.promised.get(job.spec.number)
        nbytes = job.spec.bytes_min() if promised is None else promised.get(self._nodes.home, 0)
        return min(nbytes, self.total_bytes)

    def _free_bytes(self, but: Job | None = None) -> int:
        begun = (job for job in self._running.values() if not job.queued and job is not but)
        return max(0, self.total_bytes - sum(map(self._has, begun)) - self._nodes.hosted_at_home)

    def faults(self) -> Iterator[str]:
        """Yield what cannot be."""
        for job in self._running.values():
            if job.queued and (job.status != "loading" or job.rounds.live()):
                yield f"job {job.name} is queued, and is {job.status}"

"""Moves the jobs of a cluster, with their rounds, between a node's database and etcd, while no node is up.

A move leads the cluster as a node would, so that none coordinates meanwhile, and notes its command in etcd before its
first row: nobody coordinates by rows of which some are missing.  Only when all of them are there does the other store
forget them.  So a move that was cut off is done again, by the same command, until it is whole.

Jobs keep their numbers: checkpoints, journals and claims of folders name them.  What is over is copied; what the store
keeps no longer stays in the node's copy (`cluster.db`).  The list of jobs that were forgotten with their models goes
along: nodes that were away then still have copies to remove.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

from lifl.core.config.node import NodeConfig
from lifl.core.errors import Refused, ResourceFault
from lifl.node import folders
from lifl.node.etcd.cluster_rows import OVER_KEPT, ClusterRows, take_removed
from lifl.node.etcd.fenced import Deposed
from lifl.node.etcd.leadership import FAILOVER_ETCD_S, Leadership
from lifl.node.etcd.mirror import Mirror
from lifl.node.rows import SHOWN_ONLY, JobRow, UnreadableJob
from lifl.node.store import NodeStore, removed_copies
from lifl.node.succession import COPY, Store, open_store

OWN = "lifl.db"


class Moved(NamedTuple):
    """What was moved: names of jobs that run and that are over, and the folders that every node must reach."""

    running: tuple[str, ...]
    over: tuple[str, ...]
    folders: tuple[str, ...]


async def migrate(config: NodeConfig, folder: Path, to_etcd: bool, command: str) -> Moved:
    """Move the jobs of the database in a state folder to the store of `config`, or back.

    `command` is what to do again if this is cut off.  Raise `Refused`, `ResourceFault`: then both are as they were, or
    the same command goes on.
    """
    store = await open_store(config)
    try:
        with closing(Mirror(folder / OWN)) as own, closing(Mirror(folder / COPY)) as copy:
            async with _led(store, copy) as rows:
                other = rows.moving.get("command", command)
                if other != command:
                    raise Refused("moving", "store", f"another move was not finished; do it again first: {other}")
                move = _Move(own, rows, command, folder)
                return await (move.to_etcd() if to_etcd else move.to_sqlite())
    except Deposed as deposed:
        raise ResourceFault(f"etcd was out of reach for too long ({deposed}); do it again: {command}") from deposed
    finally:
        await store.etcd.close()


class _Leader:
    """Waits to lead (`leadership.LeadershipHandler`)."""

    def __init__(self) -> None:
        self.term: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.other = "etcd has not said who does"

    def elected(self, term: int) -> None:
        if not self.term.done():
            self.term.set_result(term)

    def deposed(self) -> None: ...

    def led_by(self, value: bytes, _term: int) -> bool:
        self.other = value.decode(errors="replace")
        return False


@asynccontextmanager
async def _led(store: Store, copy: Mirror) -> AsyncIterator[ClusterRows]:
    """Lead the cluster, with what it has read into the copy.  Raise `Refused` when a node does."""
    leader = _Leader()
    leadership = Leadership(store.etcd, store.keys, lambda: b"{}", leader)
    leading = asyncio.create_task(leadership.run())
    try:
        try:
            term = await asyncio.wait_for(leader.term, FAILOVER_ETCD_S)
        except TimeoutError:
            text = f"a node of the cluster is up, and coordinates ({leader.other}): `lifl down` all of them first"
            raise Refused("up", "store", text) from None
        rows = ClusterRows(store.etcd, store.keys, store.cluster, copy, lambda: None)
        await rows.begin(term, moving=True)
        yield rows
        await leadership.resign()
    finally:
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)


class _Move:
    """One move between a node's database and the rows in etcd; `rows.mirror` is the node's copy of those."""

    def __init__(self, own: Mirror, rows: ClusterRows, command: str, state: Path) -> None:
        self._state = state
        self._own = own
        self._rows = rows
        self._copy = rows.mirror
        self._command = command
        self._node = own.node_id()

    async def to_etcd(self) -> Moved:
        own, rows = self._own, self._rows
        if not rows.moving.get("copied"):
            await self._copy_to_etcd()
        running, over = self._in_etcd()
        self._pass_on(running, self._node, rows.owner)
        own.give_up(job.number for job in running)
        await rows.moved(own.last_number())
        return _moved(running, over)

    async def _copy_to_etcd(self) -> None:
        own, rows = self._own, self._rows
        if rows.jobs and not rows.moving:
            text = f"there are jobs of another cluster already ({', '.join(sorted(rows.jobs)[:4])}): write another name"
            raise Refused("job-exists", "store", f"{text} behind the last / of etcd://.../NAME")
        jobs = _readable(own)
        over = [job for job in jobs if job.status != "running"][-OVER_KEPT:]
        running = [job for job in jobs if job.status == "running"]
        self._check(running)
        await rows.move(self._command)
        await rows.clear()  # what one has copied that was cut off
        self._copy.replace(*own.whole())
        for job in sorted([*over, *running], key=lambda job: job.number):
            await rows.take_in(job)
        await take_removed(rows, removed_copies(own))
        await rows.move(self._command, copied=True)

    async def to_sqlite(self) -> Moved:
        own, rows = self._own, self._rows
        running, over = self._in_etcd()
        self._check(running)
        jobs, rounds = self._copy.whole()
        names = {job.name for job in (*running, *over)}
        await rows.move(self._command)
        mine = [row for row in jobs if row[1] in names], [row for row in rounds if row[0] in names]
        own.take_in(*mine, rows.last_number, rows.removed_copies)
        self._pass_on(running, rows.owner, self._node)
        await rows.clear()
        await rows.moved(0)
        return _moved(running, over)

    def _in_etcd(self) -> tuple[list[JobRow], list[JobRow]]:
        """Return the jobs in etcd that run, and those that are over."""
        jobs = [job for job in _readable(self._copy) if job.name in self._rows.jobs]
        running = [job for job in jobs if job.status == "running"]
        return running, [job for job in jobs if job.status != "running"]

    def _check(self, running: Sequence[JobRow]) -> None:
        """Raise `Refused` when a job's folder cannot be its own afterwards."""
        for job in running:
            folders.check_own(folders.local(self._state, job.folder), (self._node, self._rows.owner), job.number)

    def _pass_on(self, jobs: Sequence[JobRow], before: int, after: int) -> None:
        for job in jobs:
            folders.pass_on(folders.local(self._state, job.folder), before, after, job.number, job.name)


def _readable(store: NodeStore) -> list[JobRow]:
    """Return the jobs of a database; those that are over and cannot be read are left out.

    Raise `Refused` for one that runs: no row of it would be taken along.
    """
    found: list[JobRow] = []
    for row in store.jobs():
        fault = row.fault if isinstance(row, UnreadableJob) else _fault(store, row)
        if fault and row.status == "running":
            text = f"job {row.name!r} runs, and cannot be read: {fault}; `lifl cancel` it first"
            raise Refused("unreadable", "job", text)
        if isinstance(row, JobRow) and not fault:
            found.append(row)
    return found


def _fault(store: NodeStore, job: JobRow) -> str:
    """Return what cannot be read of the rounds of a job."""
    rows = [*store.odd_rounds(job.name, 1), *store.rounds(job.name)]
    return next((row.fault for row in rows if row.unread - SHOWN_ONLY), "")


def _moved(running: Sequence[JobRow], over: Sequence[JobRow]) -> Moved:
    names = [tuple(job.name for job in jobs) for jobs in (running, over)]
    return Moved(names[0], names[1], tuple(job.folder for job in running))

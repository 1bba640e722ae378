"""How a new daemon takes up what an earlier one left: jobs from the database, updates and partials from the arena.

Updates that were not sealed will not come; but a direct client may still write to one, so their slots rest first.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from lifl.core.agent.job_replica import Orphan
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.rounds import ROUNDS_REMEMBERED
from lifl.core.errors import RemoteFault
from lifl.core.ids import Key, Kind
from lifl.core.protocol.contribution import unpack_contributions
from lifl.core.schema import Layout
from lifl.node.store import JobRow
from lifl.shm.layout import State

if TYPE_CHECKING:
    from lifl.node.daemon import Daemon

log = logging.getLogger("lifl.resume")

OVER_REMEMBERED = 64
"""Jobs that were over already whose clients still get an answer, the last ones."""


def resume_jobs(daemon: Daemon) -> dict[str, int]:
    """Starts the jobs that were not over; returns how many, with how many accepted updates."""
    # Before anything is allocated anew.
    orphans, unsealed = _orphans(daemon), _unsealed(daemon)
    rows = daemon.store.jobs()
    for row in [row for row in rows if row.status != "running"][-OVER_REMEMBERED:]:
        daemon.engine.recall(_job(daemon, row, False), row.status, row.reason)
    jobs = [row for row in rows if row.status == "running"]
    adopted = {"jobs": len(jobs), "updates": 0}
    for row in jobs:
        found = orphans.pop(row.number, [])
        job = _job(daemon, row, bool(found))
        if job.rounds.committed >= row.config.job.rounds:  # killed before it could say so
            daemon.store.save_job(row.name, "finished", "")
            daemon.engine.recall(job, "finished", "")
            adopted["jobs"] -= 1
            for key, *_ in found:
                daemon.arena.free(key)
            continue
        adopted["updates"] += len({member.client for _, _, _, members in found for member in members})
        daemon.engine.resume(job, found, time.monotonic())
    daemon.engine.rest(unsealed, time.monotonic())
    if daemon.config.join:
        daemon.engine.keep(orphans)  # the coordinator says which of it counts
        orphans = {}
    for left in orphans.values():
        for key, *_ in left:
            daemon.arena.free(key)
    if jobs:
        log.info("daemon.resumed jobs=%d updates=%d", adopted["jobs"], adopted["updates"])
    return adopted


def _orphans(daemon: Daemon) -> dict[int, list[Orphan]]:
    """The sealed updates and partials by the number of their job; everything else that is sealed is freed.

    Models and the rule's states are read from the last checkpoint: what made an uncommitted one is still here.
    """
    found: dict[int, list[Orphan]] = {}
    for key, entry in daemon.arena.live():
        if entry.state == State.WRITING:
            continue
        if entry.kind not in (Kind.UPDATE, Kind.PARTIAL):
            daemon.arena.free(key)
            continue
        try:
            with daemon.arena.meta(key) as meta:
                members = unpack_contributions(meta)
        except RemoteFault as error:
            log.error("arena.damaged key=%s %s", key, error)
            daemon.arena.free(key)
            continue
        found.setdefault(entry.job, []).append((key, Kind(entry.kind), entry.round, members))
    return found


def _unsealed(daemon: Daemon) -> list[Key]:
    return [key for key, entry in daemon.arena.live() if entry.state == State.WRITING]


def _job(daemon: Daemon, row: JobRow, adopting: bool) -> Job:
    job = daemon.engine.make_job(row.number, row.config, Layout(row.tensors), row.states, row.folder)
    rounds = daemon.store.rounds(row.name)
    committed = [r for r in rounds if r.status == "committed"]
    counted = {last.round: frozenset(last.fields.get("members", ())) for last in committed[-ROUNDS_REMEMBERED:]}
    number = committed[-1].round if committed else -1
    tried = {r.round: (r.attempt, r.status, r.fields) for r in rounds if r.round > number}
    job.resume(number, counted, tried, adopting)
    return job

"""How a new daemon takes up what an earlier one left: jobs from the database, updates and partials from the arena.

Updates that were not sealed will not come; but a direct client may still write to one, so their slots rest first.
"""

from __future__ import annotations

import logging

from lifl.core import events as ev
from lifl.core.errors import RemoteFault
from lifl.core.ids import Kind
from lifl.core.limits import ROUNDS_REMEMBERED
from lifl.core.protocol.contribution import unpack_contributions
from lifl.node.driver import Handle
from lifl.node.store import JobRow, NodeStore
from lifl.shm.layout import ObjectState
from lifl.shm.owned_arena import OwnedArena

log = logging.getLogger("lifl.resume")

OVER_REMEMBERED = 64
"""Jobs that were over already whose clients still get an answer, the last ones."""


def resume_jobs(handle: Handle, store: NodeStore, arena: OwnedArena, coordinates: bool) -> dict[str, int]:
    """Start the jobs that were not over; return how many, with how many accepted updates."""
    # Before anything is allocated anew.
    orphans = _orphans(arena)
    unsealed = tuple(key for key, entry in arena.live() if entry.state == ObjectState.WRITING)
    rows = store.jobs()
    running = [row for row in rows if row.status == "running"]
    # What was left of a job that is over, or (on the coordinator) of none that is known, is not wanted.
    for number in orphans.keys() - {row.number for row in running} if coordinates else ():
        for key, *_ in orphans.pop(number):
            arena.free(key)
    handle(ev.ArenaAdopted({} if coordinates else orphans, unsealed))
    for row in [row for row in rows if row.status != "running"][-OVER_REMEMBERED:]:
        handle(ev.JobRecalled(_facts(row), _history(store, row), row.status, row.reason))
    adopted = {"jobs": len(running), "updates": 0}
    for row in running:
        found, history = orphans.get(row.number, ()), _history(store, row)
        if history.committed >= row.config.job.rounds:  # killed before it could say so
            store.save_job(row.name, "finished", "")
            for key, *_ in found:
                arena.free(key)
            handle(ev.JobRecalled(_facts(row), history, "finished", ""))
            adopted["jobs"] -= 1
            continue
        adopted["updates"] += len({member.client for _, _, _, members in found for member in members})
        handle(ev.JobResumed(_facts(row), history, found))
    if running:
        log.info("daemon.resumed jobs=%d updates=%d", adopted["jobs"], adopted["updates"])
    return adopted


def _orphans(arena: OwnedArena) -> dict[int, tuple[ev.Orphan, ...]]:
    """Return the sealed updates and partials by the number of their job; free everything else that is sealed.

    Models and the rule's states are read from the last checkpoint: what made an uncommitted one is still here.
    """
    found: dict[int, list[ev.Orphan]] = {}
    for key, entry in arena.live():
        if entry.state == ObjectState.WRITING:
            continue
        if entry.kind not in (Kind.UPDATE, Kind.PARTIAL, Kind.EARLIER_PARTIAL):
            arena.free(key)
            continue
        try:
            with arena.meta(key) as meta:
                members = unpack_contributions(meta)
        except RemoteFault as error:
            log.error("arena.damaged key=%s %s", key, error)
            arena.free(key)
            continue
        kind = Kind.UPDATE if entry.kind == Kind.UPDATE else Kind.PARTIAL
        found.setdefault(entry.job, []).append((key, kind, entry.round, members))
    return {number: tuple(orphans) for number, orphans in found.items()}


def _facts(row: JobRow) -> ev.JobFacts:
    return ev.JobFacts(row.number, row.config, row.tensors, row.states, row.folder)


def _history(store: NodeStore, row: JobRow) -> ev.JobHistory:
    rounds = store.rounds(row.name)
    committed = [r for r in rounds if r.status == "committed"]
    counted = {r.round: frozenset(r.fields.get("members", ())) for r in committed[-ROUNDS_REMEMBERED:]}
    number = committed[-1].round if committed else -1
    tried = {r.round: (r.attempt, r.status, r.fields) for r in rounds if r.round > number}
    return ev.JobHistory(number, tried, counted)

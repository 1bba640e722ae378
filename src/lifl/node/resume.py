"""How a new daemon takes up what an earlier one left: jobs from the database, updates and partials from the arena.

Updates that were not sealed will not come; but a direct client may still write to one, so their slots rest first.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lifl.core import events as ev
from lifl.core.coordinator.evaluation import values_of_evaluation
from lifl.core.coordinator.job_queue import QUEUED
from lifl.core.errors import Refused, RemoteFault
from lifl.core.ids import ATTEMPTS_MAX, Key, Kind, is_hosted
from lifl.core.limits import (
    JOBS_REMEMBERED,
    LOSS_ROUNDS_MAX,
    RELIABILITY_CLIENTS_MAX,
    ROUNDS_REMEMBERED,
    STOP_HISTORY_ROUNDS_MAX,
    TEXT_CHARS_MAX,
)
from lifl.core.protocol.contribution import unpack_contributions
from lifl.core.protocol.journal import DropUpdates, Stored
from lifl.core.schema import Layout
from lifl.node import folders
from lifl.node.driver import Handle
from lifl.node.rows import SHOWN_ONLY, UNREADABLE, JobRow, RoundRow, UnreadableJob
from lifl.node.store import NodeStore
from lifl.shm.layout import ObjectState
from lifl.shm.owned_arena import OwnedArena

log = logging.getLogger("lifl.resume")


class Left(NamedTuple):
    """What earlier lives have left: in the arena, and on the disk, by job and epoch; `forget` drops some of that.
    Models that are `lent` are their clients' until these give them back."""

    arena: OwnedArena
    journals: Mapping[int, Mapping[int, tuple[Stored, ...]]]
    forget: Callable[[DropUpdates], None]
    lent: tuple[Key, ...] = ()


class Resumed(NamedTuple):
    """What a new daemon has taken up: how many jobs, with how many accepted updates; and what it could not."""

    jobs: int
    updates: int
    unreadable: dict[str, str]


def resume_jobs(handle: Handle, store: NodeStore, left: Left, coordinates: bool, state: Path) -> Resumed:
    """Start the jobs that were not over; `state` is the node's folder.

    One that cannot be read, or whose folder is another's, keeps no other and not the node: it waits as it is, until
    `lifl cancel` ends it, or a lifld that can read it comes.
    """
    arena = left.arena
    for number, folder in store.unaccepted():
        if folder:
            folders.release(folders.local(state, folder), arena.node, number)
        store.drop_job(number)
    for number in [row.number for row in store.jobs() if isinstance(row, JobRow) and row.config.is_fold]:
        if is_hosted(number) == coordinates:  # the node was of a cluster and is not any more, or the other way round
            store.drop_job(number)
    # Before anything is allocated anew.
    folds = {row.number for row in store.jobs() if isinstance(row, JobRow) and row.config.is_fold}
    orphans = _orphans(arena, folds, left.lent)
    unsealed = tuple(key for key, entry in arena.live() if entry.state == ObjectState.WRITING)
    running, over, unreadable = known_jobs(store, arena.node, state)
    # What was left of a job that is over, or (of those that this node runs) of none that is known, is not wanted.
    for number in orphans.keys() - {job.number for job, _, _ in running}:
        if coordinates or is_hosted(number):
            for key, *_ in orphans.pop(number):
                arena.free(key)
    ended = {job.number for job, history, _ in running if history.is_all_of(job.config)}
    stored = _wanted(left, store, ended) if coordinates else left.journals
    adopted = {number: tuple(epochs.items()) for number, epochs in stored.items()}
    of_cluster = {number: found for number, found in orphans.items() if not (coordinates or is_hosted(number))}
    handle(ev.ArenaAdopted(of_cluster, unsealed, adopted, left.lent))
    for facts, history, status, reason in over:
        if coordinates or is_hosted(facts.number):  # else it is the cluster's by now, or of a cluster that was left
            handle(ev.JobRecalled(facts, history, status, reason))
    jobs = updates = 0
    for facts, history, reason in running:
        found = orphans.get(facts.number, ())
        if facts.number in ended:  # killed before it could say so
            store.save_job(facts.config.job.name, "finished", "")
            for key, *_ in found:
                arena.free(key)
            handle(ev.JobRecalled(facts, history, "finished", ""))
            continue
        jobs += 1
        here = {(epoch, member.client) for _, _, epoch, members in found for member in members}
        on_disk = stored.get(facts.number, {}).items()
        updates += len(here | {(epoch, each.client) for epoch, journal in on_disk for each in journal})
        handle(ev.JobResumed(facts, history, found, reason))
    if running:
        log.info("daemon.resumed jobs=%d updates=%d", jobs, updates)
    for name, why in unreadable.items():
        log.error("job.unreadable job=%s %s; `lifl cancel %s` ends it", name, why, name)
    return Resumed(jobs, updates, unreadable)


class Known(NamedTuple):
    """The jobs of the database: those that run, the last ones that are over, and why others could not be taken up.

    Of a job that runs the reason says whether it is paused.
    """

    running: list[tuple[ev.JobFacts, ev.JobHistory, str]]
    over: list[tuple[ev.JobFacts, ev.JobHistory, str, str]]
    unreadable: dict[str, str]


def known_jobs(store: NodeStore, owner: int, state: Path, claimed: bool = False) -> Known:
    """Return the jobs that a database knows; their folders are `owner`'s.  `state` is this node's folder.

    Of those that run the ones that had begun come first, then those that wait in line, in the order of that: none is to
    begin in the room of one that is not taken up yet.
    With `claimed` another node may have had them: a job whose folder is not seen here is not taken up, for its rounds
    would count as lost.  Where models are copied each node has a folder of its own, which may not be there yet.
    """
    running: list[tuple[ev.JobFacts, ev.JobHistory, str]] = []
    over: deque[tuple[ev.JobFacts, ev.JobHistory, str, str]] = deque(maxlen=JOBS_REMEMBERED)
    unreadable: dict[str, str] = {}
    for row in store.jobs():
        try:
            if isinstance(row, UnreadableJob):
                raise Refused("unreadable", "job", row.fault)
            facts = ev.JobFacts(row.number, row.config, row.tensors, row.states, row.folder)
            Layout(facts.tensors)  # refuses what is no model
            if row.status != "running":
                over.append((facts, _history(store, row.name), row.status, row.reason))
                continue
            folder = folders.local(state, row.folder)
            if row.config.checkpoint.copies:
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            if row.config.is_fold:
                pass  # it has no folder
            elif claimed and not row.config.checkpoint.copies:
                folders.check_own(folder, (owner,), row.number)
            else:
                _claim(row, folder, owner)
            running.append((facts, _with_measured(_history(store, row.name), store, row), row.reason))
        except Refused as refused:
            why = str(refused)
        except OSError as error:
            why = f"its folder cannot be made: {error}"
        except UNREADABLE as error:
            why = f"what the database has of it cannot be read: {error}"
        else:
            continue
        if row.status == "running":
            unreadable[row.name] = why[:TEXT_CHARS_MAX]
    running.sort(key=lambda job: (QUEUED in job[2].split(), -job[0].config.priority))
    return Known(running, list(over), unreadable)


def _wanted(left: Left, store: NodeStore, ended: Collection[int]) -> dict[int, Mapping[int, tuple[Stored, ...]]]:
    """Return the journals of jobs that are not over, also of those that cannot be read; the others are forgotten."""
    running = {row.number for row in store.jobs() if row.status == "running"} - set(ended)
    for number in left.journals.keys() - running:
        for epoch in left.journals[number]:
            left.forget(DropUpdates(number, epoch))
    return {number: epochs for number, epochs in left.journals.items() if number in running}


def _claim(row: JobRow, folder: Path, node: int) -> None:
    """Claim the folder of a job of an earlier version, or of one that another node had.

    Raise `Refused` when it is another job's.
    """
    try:
        folders.claim(folder, node, row.number, row.name)
    except Refused as refused:
        if refused.code == "folder-in-use":
            raise
        log.warning("folder.unclaimed job=%s %s", row.name, refused)  # its disk may be full, or not there yet


def _orphans(arena: OwnedArena, sessions: Collection[int], lent: Collection[Key]) -> dict[int, tuple[ev.Orphan, ...]]:
    """Return the sealed updates and partials by the number of their job; free all else but what is lent.

    Models and the rule's states are read from the last checkpoint: what made an uncommitted one is still here.  Those
    of `sessions` of folds are in the arena alone.
    """
    found: dict[int, list[ev.Orphan]] = {}
    for key, entry in arena.live():
        if entry.state == ObjectState.WRITING or key in lent:
            continue
        of_session = entry.job in sessions and entry.kind in (Kind.MODEL, Kind.STATE)
        if entry.kind not in (Kind.UPDATE, Kind.PARTIAL, Kind.NARROW_PARTIAL, Kind.EARLIER_PARTIAL) and not of_session:
            arena.free(key)
            continue
        try:
            with arena.meta(key) as meta:
                members = unpack_contributions(meta)
        except RemoteFault as error:
            log.error("arena.damaged key=%s %s", key, error)
            arena.free(key)
            continue
        kind = Kind(entry.kind) if of_session or entry.kind == Kind.UPDATE else Kind.PARTIAL
        found.setdefault(entry.job, []).append((key, kind, entry.round, members))
    return {number: tuple(orphans) for number, orphans in found.items()}


def _history(store: NodeStore, name: str) -> ev.JobHistory:
    """Raise `Refused` when a row that the job would be run on cannot be read."""
    committed = store.committed(name, ROUNDS_REMEMBERED)
    counted = {r.round: frozenset(r.fields.get("members", ())) for r in committed}
    models = {r.round: (r.attempt, tuple(r.fields.get("digests", ()))) for r in committed}
    terms = {r.round: r.fields["term"] for r in committed if "term" in r.fields}
    number = committed[-1].round if committed else -1
    later = store.rounds(name, above=number)
    _check_readable([*store.odd_rounds(name, 1), *committed, *later])
    tried = {r.round: (r.attempt, r.status, r.fields) for r in later}
    holders = {r.round: tuple(int(name, 16) for name in r.fields.get("holders", ())) for r in committed}
    holders = {r: nodes for r, nodes in holders.items() if nodes}
    stopping = tuple(committed[-1].fields.get("stopping", ())) if committed else ()
    # No round begins before the evaluation of the one before it is over.
    evaluated = bool(committed) and ("evaluation" in committed[-1].fields or bool(later))
    keeps = {r.round: r.fields["keep"] for r in committed if "keep" in r.fields}
    return ev.JobHistory(number, tried, counted, models, terms, holders, stopping, evaluated, keeps)


def _with_measured(history: ev.JobHistory, store: NodeStore, row: JobRow) -> ev.JobHistory:
    """Return the history with what clients have measured, as far as selection and a function of the user's look at it.

    What cannot be read of that, and what earlier versions have not written, is left out.
    """
    losses: dict[str, float] = {}
    if row.config.selection.by_loss:
        for line in store.committed(row.name, LOSS_ROUNDS_MAX):
            members, told = line.fields.get("members", ()), line.fields.get("losses", ())
            for client, loss in zip(members, told, strict=True) if len(told) == len(members) else ():
                if loss is not None:
                    losses.pop(client, None)
                    losses[client] = loss
    measured: list[tuple[int, dict[str, float]]] = []
    if "job.stop" in row.config.functions:
        evaluates = isinstance(row.config.evaluation, msgspec.Struct)
        for line in store.committed(row.name, STOP_HISTORY_ROUNDS_MAX):
            if not evaluates and line.round:
                measured.append((line.round, line.fields.get("metrics", {})))
            elif "evaluation" in line.fields:
                with suppress(LookupError, TypeError, AttributeError):  # what is in it was not looked at
                    measured.append((line.round, values_of_evaluation(line.fields["evaluation"])))
    newest = dict(list(losses.items())[-RELIABILITY_CLIENTS_MAX:])
    return msgspec.structs.replace(history, losses=newest, metrics=tuple(measured))


def history_again(store: NodeStore, row: JobRow) -> ev.JobHistory:
    """Return what a job that was over goes on from: what it had begun and not committed begins anew,
    and so does what `job.stop` looks at.

    Raise `Refused` when that cannot be read, or was tried as often as it can be.
    """
    name, history = row.name, _with_measured(_history(store, row.name), store, row)
    tried: dict[int, tuple[int, str, dict[str, Any]]] = {
        number: (attempt, "failed" if status == "open" else status, {})
        for number, (attempt, status, _fields) in history.tried.items()
    }
    attempt, *_ = tried.get(history.committed + 1, (0, "", {}))
    if attempt >= ATTEMPTS_MAX:
        text = f"round {history.committed + 1} of job {name!r} was tried {attempt} times, and cannot be once more"
        raise Refused("too-many-attempts", "job", f"{text}; submit another job from its model (model.from)")
    return msgspec.structs.replace(history, tried=tried, stopping=(), metrics=())


def _check_readable(rows: Iterable[RoundRow]) -> None:
    for row in rows:
        if row.unread - SHOWN_ONLY:
            raise Refused("unreadable", "job", row.fault)

"""What the command line asks of jobs that changes them: one request after the other, each durable when it is answered.

What can refuse a request comes first; then rows, then the event by which the engine goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.task_table import is_at
from lifl.core.config.edits import Edited, edited
from lifl.core.config.job import JobConfig, parse_job, with_listed
from lifl.core.config.keep import check_best
from lifl.core.config.upload_url import check_upload
from lifl.core.coordinator.coordinator import CANCELLED
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.job_life import next_round
from lifl.core.coordinator.job_queue import QUEUED, row_before
from lifl.core.engine import check_cancelled, check_submitted, check_unpaused
from lifl.core.errors import ConfigError, LiflError, Refused
from lifl.core.ids import HOSTED_MIN, is_hosted
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.planning.arena_need import with_fan_in
from lifl.core.planning.treatment import check_patterns, treatment_lines
from lifl.core.protocol import cli as om
from lifl.core.schema import Layout, TensorSpec
from lifl.node import folders, machine, resume
from lifl.node.audit_log import AuditLog
from lifl.node.cli_server import CliServer
from lifl.node.cluster.removed_copies import RemovedCopies
from lifl.node.driver import Driver
from lifl.node.durable_rows import DurableRows, write_now
from lifl.node.keeper import Keeper
from lifl.node.link import Link
from lifl.node.models_there import ModelsThere, disk_need
from lifl.node.outbound.outbound import check_library
from lifl.node.rows import UNREADABLE, AnyJob, JobRow, UnreadableJob
from lifl.node.store import NodeStore
from lifl.node.succession import Succession
from lifl.node.trackers import check_tracker

LET_GO_S = 30.0
"""How long workers may be at files of a job that is over: less than the command line waits for an answer."""


class NewJob(NamedTuple):
    """A job that is being submitted; its row says that its folder is at `where`.

    `source` is the file of another job's model that it starts from.
    """

    config: JobConfig
    tensors: tuple[TensorSpec, ...]
    states: tuple[str, ...]
    where: str
    owner: str
    source: Path | None = None

    def facts(self, number: int) -> ev.JobFacts:
        """Return what the engine is told of it."""
        return ev.JobFacts(number, self.config, self.tensors, self.states, self.where, self.owner)


class JobRequests:
    """Answers them; raises `LiflError` for a "no".  `folder` is the state folder."""

    def __init__(
        self,
        driver: Driver,
        rows: DurableRows,
        store: NodeStore,
        cli: CliServer,
        folder: Path,
        audit: AuditLog,
        models: ModelsThere,
        keeper: Keeper,
    ) -> None:
        self._models = models
        self._keeper = keeper
        self._driver = driver
        self._engine = driver.engine
        self._rows = rows
        self._store = store
        self._cli = cli
        self._folder = folder
        self._audit = audit
        self._in_turn = asyncio.Lock()
        self.unreadable: dict[str, str] = {}  # jobs that could not be taken up, and why
        self.succession: Succession | None = None
        self.on_forgotten: Callable[[int], None] = lambda _number: None
        self._removed: RemovedCopies | None = None

    def belong(self, removed: RemovedCopies) -> None:
        """Have other nodes told of jobs that are forgotten with their models."""
        self._removed, removed.rows = removed, self._rows

    def handle(self, message: Any, link: Link) -> Coroutine[Any, Any, dict[str, Any]] | None:
        """Return the work of a request that changes jobs; None: it is none."""
        who = self._cli.who(link)
        match message:
            case om.SubmitJob():
                return self._changing(self._submit(message, link))
            case om.CancelJob(job):
                return self._changing(self._cancel(job, who))
            case om.PauseJob(job):
                return self._changing(self._pause(job, who))
            case om.ResumeJob():
                return self._changing(self._resume(message, who))
            case om.EditJob(job, overrides):
                return self._changing(self._edit(job, overrides, who))
            case om.RemoveJob(job, models):
                return self._changing(self._remove(job, models, who))
        return None

    async def _changing(self, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Do what changes jobs, when what came before it is done."""
        async with self._in_turn:
            return await work

    # ---- new jobs ----------------------------------------------------------------------------------------------------

    async def _submit(self, message: om.SubmitJob, link: Link) -> dict[str, Any]:
        config = _checked(message)
        name, replace = config.job.name, message.replace is True
        try:
            config, source = self.sourced(config)
            tensors = machine.read_tensors(config)
            check_patterns(tensors, config.aggregation)
        except ConfigError as error:
            raise Refused("bad-config", error.path, str(error)) from error
        layout, folder = Layout(tensors), self._folder_of(config)
        config = with_fan_in(config, layout)
        where = name if config.checkpoint.copies else str(folder)  # below the state folder of each node
        if source is not None:
            model = msgspec.structs.replace(config.model, path=str(folder / folders.INITIAL))
            config = msgspec.structs.replace(config, model=model)
        new = NewJob(config, tensors, message.states, where, self._cli.who(link), source)
        if message.follow:
            self._cli.check_follow(name, link)
        number = await self._accept(new, folder, replace)
        try:
            if message.follow:  # not before: it is no word about the job that was replaced that is waited for
                self._cli.follow(name, link)
            self._driver.handle(ev.JobSubmitted(new.facts(number)))
        except LiflError as error:
            self._cli.unfollow(name, link)
            await self._drop(name, number, folder, error)
            raise
        self._audit.note("job.submitted", new.owner, job=name, number=number)
        job = self._engine.jobs[name]
        return {
            "job": name,
            "rounds": config.job.rounds,
            "model_bytes": layout.data_bytes,
            "folder": str(folder),
            "status": "queued" if job.queued else job.status,
            "queue": place._asdict() if (place := self._engine.coordinating().queue.place_of(job)) else None,
            "peak_bytes": job.spec.bytes_min(),
            "disk": disk_need(config, layout, message.states, folder),
            "treatment": treatment_lines(tensors, config.aggregation, steps=bool(message.states)),
        }

    def _folder_of(self, config: JobConfig) -> Path:
        """Return the folder of a new job's models: one that none is in, unless it says which, or they are copied."""
        if config.checkpoint.folder:
            return Path(str(config.checkpoint.folder))
        folder = folders.local(self._folder, config.job.name)
        return folder if config.checkpoint.copies else folders.free_beside(folder)

    async def _accept(self, new: NewJob, folder: Path, replace: bool) -> int:
        """Make folder and row of a new job, after all that can refuse it has; return its number.

        The row says that the job runs, and stands in line: when this returns it will, whatever happens, and a daemon
        that goes on from this row gives it no room that another job has.  With `replace` one that has the name makes
        room for it.
        """
        name = new.config.job.name
        await self._goes_on()
        before = self._store.job(name)
        if before is not None and not replace:
            raise Refused("job-exists", "job.name", _taken(before))
        check_submitted(self._engine, new.facts(0), replaces=before is not None)
        with folders.made_folder(folder):
            if before is not None:
                await self._replaced(before, new.owner)
            number = await self._rows.new_job(new.config, new.tensors, new.states, new.where)
            try:
                folders.claim(folder, self._rows.owner, number, name)
                if new.source is not None:
                    await asyncio.to_thread(folders.bring_initial, new.source, folder)
                if self.succession is not None and not new.config.checkpoint.copies:
                    await self.succession.check_seen(folder, number)
                await write_now(self._rows, row_before(name))
                await self._goes_on()
            except LiflError as error:
                await self._drop(name, number, folder, error)
                raise
        return number

    async def _replaced(self, before: AnyJob, who: str) -> None:
        """End a job, and forget it; its models stay."""
        if before.status == "running":
            await self._cancel(before.name, who)
            await self._goes_on()
        await self._forget(before, who)

    async def _drop(self, name: str, number: int, folder: Path, why: LiflError) -> None:
        """Forget a job that was refused after all.  Raise `Refused` when it may run all the same, and say so."""
        if await self._rows.forget_job(name, number):
            if folders.release(folder, self._rows.owner, number):
                (folder / folders.INITIAL).unlink(missing_ok=True)
            return
        text = f"{why}; whether job {name!r} runs all the same, `lifl jobs` says: look before you submit it again"
        code, field = (why.code, why.field) if isinstance(why, Refused) else ("paused", "node")
        raise Refused(code, field, text) from why

    async def _goes_on(self) -> None:
        """Wait until an event would be decided on at once.

        Raise `Refused` while rows cannot be written: what the user wants could not be kept.
        """
        if self.succession is not None:
            self._engine.coordinating()  # or say that another node does
        await self._driver.idle()
        if self._driver.fault is not None:
            raise Refused("paused", "node", f"the node is paused, try again later: {self._driver.fault}")

    # ---- their end ---------------------------------------------------------------------------------------------------

    async def _cancel(self, job: str, who: str) -> dict[str, Any]:
        """End a job, also one that could not be taken up.  Its row comes first: what is answered is durable."""
        row = self.row(job)
        if is_hosted(row.number):
            return await self._cancel_session(row, who)
        await self._goes_on()
        if row.name in self._engine.jobs:
            check_cancelled(self._engine, row.name)
            await write_now(self._rows, fx.SaveJob(row.name, "cancelled", CANCELLED))
            await self._driver.idle()
            self._driver.handle(ev.JobCancelled(row.name))
            self._audit.note("job.cancelled", who, job=row.name, number=row.number)
            return {"job": row.name, "status": "cancelled"}
        if row.status != "running":
            raise Refused("job-over", "job", f"job {row.name!r} is {row.status} already")
        reason = f"{CANCELLED}; {self.fault(row)}"[:TEXT_CHARS_MAX]
        await write_now(self._rows, fx.SaveJob(row.name, "cancelled", reason))
        self.unreadable.pop(row.name, None)
        self._audit.note("job.cancelled", who, job=row.name, number=row.number)
        return {"job": row.name, "status": "cancelled"}

    async def _cancel_session(self, row: AnyJob, who: str) -> dict[str, Any]:
        """End a session that the node hosts by itself, whoever coordinates: nothing of it stays."""
        await self._driver.idle()
        if row.name in self._engine.jobs:
            check_cancelled(self._engine, row.name)
            self._driver.handle(ev.JobCancelled(row.name))
        else:  # it could not be taken up
            self._rows.write(fx.DropJob(row.name, row.number))
            self.unreadable.pop(row.name, None)
        self._audit.note("job.cancelled", who, job=row.name, number=row.number)
        return {"job": row.name, "status": "cancelled"}

    async def _remove(self, job: str, models: bool, who: str) -> dict[str, Any]:
        """Forget a job that is over, and (`models`) remove its files, those first: it can be said again."""
        row = self.row(job)
        await self._goes_on()
        if row.status == "running":
            text = f"job {row.name!r} is not over: end it first with `lifl cancel {row.name}`"
            raise Refused("job-runs", "job", text)
        await self._let_go(row)
        folder = folders.local(self._folder, row.folder)
        removed = folders.Removed(0, 0)
        if models and row.folder:
            removed = await asyncio.to_thread(folders.remove_models, folder, self._rows.owner, row.number)
        copied = models and folders.is_copied(row.folder)
        if copied:  # another node may have coordinated, and this one have had a copy alone
            more = await asyncio.to_thread(folders.remove_copies, folder, self._rows.owner, row.number, row.name)
            removed = folders.Removed(removed.files + more.files, removed.nbytes + more.nbytes)
        await self._forget(row, who, copied)
        told = {"job": row.name, "folder": str(folder), "files": removed.files, "bytes": removed.nbytes}
        return told | ({"copies": True} if copied else {})

    async def _forget(self, row: AnyJob, who: str, copies: bool = False, why: str = "") -> None:
        """Forget a job that is over: its rows; `copies`: other nodes' copies of its models go."""
        await write_now(self._rows, fx.DropJob(row.name, row.number, copies))
        if copies and self._removed is not None:
            self._removed.changed()
        await self._driver.idle()
        self._driver.handle(ev.JobRemoved(row.name))
        self._keeper.seen.pop(row.name, None)
        self.on_forgotten(row.number)
        self._audit.note("job.removed", who, why, job=row.name, number=row.number)

    # ---- those that run ----------------------------------------------------------------------------------------------

    async def _pause(self, name: str, who: str) -> dict[str, Any]:
        """Let no further round of a job begin."""
        row = self.row(name)
        await self._goes_on()
        job = self._running(row)
        await self._decided(ev.JobPaused(row.name))
        self._audit.note("job.paused", who, job=row.name, number=row.number)
        round_ = job.round
        finishing = round_.number if round_ is not None and round_.opened_at_s is not None else None
        return {"job": row.name, "finishing": finishing}

    async def _edit(self, name: str, overrides: tuple[str, ...], who: str) -> dict[str, Any]:
        """Change the config of a job from its next round on; of one that is over, for when it is resumed."""
        row = self._readable(self.row(name))
        await self._goes_on()
        try:
            edit = edited(row.config, overrides)
        except ConfigError as error:
            raise Refused("bad-config", error.path, str(error)) from error
        from_round = None
        if row.status != "running":
            await write_now(self._rows, fx.SaveConfig(row.name, edit.config))
        else:
            job = self._running(row)
            await self._decided(ev.JobEdited(row.name, edit))
            from_round = next_round(job)
        self._audit.note("job.edited", who, job=row.name, number=row.number, keys=", ".join(edit.changes))
        return {"job": row.name, "changes": edit.changes, "from_round": from_round}

    async def _resume(self, message: om.ResumeJob, who: str) -> dict[str, Any]:
        """Let a job go on that is paused, or over."""
        row = self._readable(self.row(message.job))
        await self._goes_on()
        edit = _with_rounds(row.config, message)
        if row.status == "running":
            check_unpaused(self._engine, row.name)
            if edit.changes:
                await self._decided(ev.JobEdited(row.name, edit))
            await self._decided(ev.JobUnpaused(row.name))
        else:
            await self._again(row, edit, who)
        self._audit.note("job.resumed", who, job=row.name, number=row.number)
        job = self._engine.jobs[row.name]
        rounds = {"committed": max(job.rounds.committed, 0), "rounds": edit.config.job.rounds}
        return {"job": row.name, "status": "queued" if job.queued else job.status} | rounds

    async def _again(self, row: JobRow, edit: Edited, who: str) -> None:
        """Run a job that was over, from its last committed model."""
        try:
            facts = ev.JobFacts(row.number, edit.config, row.tensors, row.states, row.folder, who)
        except UNREADABLE as error:
            raise Refused("unreadable", "job", f"what the database has of job {row.name!r} cannot be read") from error
        history = resume.history_again(self._store, row)
        if history.committed >= edit.config.job.rounds:
            text = f"job {row.name!r} has committed its {history.committed} rounds: give it more, such as --rounds +10"
            raise Refused("job-over", "--rounds", text)
        check_submitted(self._engine, facts, replaces=True)
        folder = folders.local(self._folder, row.folder)
        if edit.config.checkpoint.copies:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            folders.claim(folder, self._rows.owner, row.number, row.name)
        else:
            folders.check_own(folder, (self._rows.owner,), row.number)
        await self._let_go(row)
        await self._rows.have_job(row.name)
        if edit.changes:
            await write_now(self._rows, fx.SaveConfig(row.name, edit.config))
        await write_now(self._rows, row_before(row.name))
        await self._goes_on()
        self._driver.handle(ev.JobResumed(facts, history, reason=QUEUED))

    async def _let_go(self, row: AnyJob) -> None:
        """Wait until no worker writes a file of a job that is over any more.  Raise `Refused` when that takes long."""
        tasks = self._engine.agent.tasks
        try:
            async with asyncio.timeout(LET_GO_S):
                await self._driver.until(lambda: not is_at(tasks, row.number))
        except TimeoutError:
            text = f"a worker is still at a file of job {row.name!r}; see to its disk, and say it again"
            raise Refused("job-ends", "job", text) from None

    def _running(self, row: AnyJob) -> Job:
        """Return a job that runs.  Raise `Refused` when it does not, or could not be taken up."""
        job = self._engine.jobs.get(row.name)
        if row.status != "running" or (job is not None and job.over):
            text = f"job {row.name!r} is {row.status} already; `lifl resume {row.name}` lets it go on"
            raise Refused("job-over", "job", text)
        if job is None:
            raise Refused("unreadable", "job", f"job {row.name!r} could not be taken up: {self.fault(row)}")
        return job

    def _readable(self, row: AnyJob) -> JobRow:
        """Return a job's row.  Raise `Refused` when it cannot be read."""
        if isinstance(row, UnreadableJob):
            raise Refused("unreadable", "job", row.fault)
        return row

    async def _decided(self, event: ev.Event) -> None:
        """Hand in what the user wants, and wait until it is durable.  Raise `Refused`."""
        self._driver.handle(event)
        await self._driver.idle()
        if self._driver.fault is not None:
            text = f"the node is paused, and does this as soon as it can: {self._driver.fault}"
            raise Refused("paused", "node", text)
        self._engine.coordinating()  # or say that another node does, by now

    def sourced(self, config: JobConfig) -> tuple[JobConfig, Path | None]:
        """Return a config whose model is that of another job with the path of that, and the path; else as it is.

        Raise `Refused` when there is no such model.
        """
        source = config.model.source
        if isinstance(source, msgspec.UnsetType):
            return config, None
        name, _, number = source.partition("@")
        row = self._store.job(name)
        if row is None:
            known = ", ".join(self._store.known_names()) or "none"
            raise Refused("unknown-job", "model.from", f"this node has no job {name!r}; it has: {known}")
        last = next(iter(self._store.committed(name, 1)), None)
        try:
            path = self._models.to_read(row, int(number) if number else last.round if last is not None else 0)
        except Refused as refused:
            raise Refused(refused.code, "model.from", refused.text) from refused
        model = msgspec.structs.replace(config.model, path=str(path), source=msgspec.UNSET)
        return msgspec.structs.replace(config, model=model), path

    # ---- rows --------------------------------------------------------------------------------------------------------

    def row(self, name: str) -> AnyJob:
        """Return a job's row.  Raise `Refused` when there is none."""
        row = known_row(self, name)
        if row is None:
            known = ", ".join(self._store.known_names()) or "none"
            raise Refused("unknown-job", "job", f"this node has no job {name!r}; it has: {known}")
        return row

    def fault(self, row: AnyJob) -> str:
        """Return why a job could not be taken up."""
        return self.unreadable.get(row.name, "") or (row.fault if isinstance(row, UnreadableJob) else "")


def known_row(changes: JobRequests, name: str) -> AnyJob | None:
    """Return a job's row, or that of a session that the node hosts by itself."""
    beside = changes._rows.beside
    return changes._store.job(name) or (beside.job(name) if beside is not None else None)


def all_rows(changes: JobRequests, after: int) -> Iterator[AnyJob]:
    """Yield the rows of jobs with numbers above `after`, and of the sessions that the node hosts by itself."""
    yield from changes._store.jobs(after)
    if changes._rows.beside is not None:
        yield from changes._rows.beside.jobs(max(after, HOSTED_MIN - 1))


def _checked(message: om.SubmitJob) -> JobConfig:
    """Return the config of a job that is submitted, with its list of clients.  Raise `Refused`."""
    try:
        config = parse_job(message.config)
        if config.selection.clients_file:
            config = with_listed(config, machine.read_clients(str(config.selection.clients_file)))
        check_best(config.checkpoint.kept, isinstance(config.evaluation, msgspec.Struct))
    except ConfigError as error:
        raise Refused("bad-config", error.path, str(error)) from error
    if config.is_fold:
        text = "a session of folds is opened by its host, by lifl.Aggregator"
        raise Refused("bad-config", "job.kind", text)
    check_tracker(config)
    if config.checkpoint.upload_url:
        check_library(check_upload(config.checkpoint.upload_url))
    return config


def _with_rounds(config: JobConfig, message: om.ResumeJob) -> Edited:
    """Return the config of a job that is resumed.  Raise `Refused`."""
    rounds = message.rounds if message.more is None else config.job.rounds + message.more
    if rounds is None or rounds == config.job.rounds:
        return Edited(config, {})
    try:
        return edited(config, [f"job.rounds={rounds}"])
    except ConfigError as error:
        raise Refused("bad-config", error.path, str(error)) from error


def _taken(row: AnyJob) -> str:
    """Return what to tell who submits a job under the name of this one."""
    name = row.name
    other = "choose another name (--set job.name=...)"
    if row.status == "running":
        return f"a job named {name!r} is here already; {other}, or end it and take its place with --replace"
    return (
        f"a job named {name!r} is here already, and is {row.status}; {other}, forget it with `lifl rm {name}`, or take "
        "its place with --replace"
    )

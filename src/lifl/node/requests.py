"""What the command line asks of a daemon, one method for each request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.config.job import JobConfig, parse_job, with_listed
from lifl.core.coordinator.coordinator import CANCELLED
from lifl.core.coordinator.job import Job
from lifl.core.engine import check_cancelled, check_submitted
from lifl.core.errors import ConfigError, LiflError, LocalFault, Refused
from lifl.core.limits import ROUNDS_MAX, TEXT_CHARS_MAX
from lifl.core.planning.planner import make_plan
from lifl.core.planning.request import plan_request
from lifl.core.planning.treatment import check_patterns, treatment_lines
from lifl.core.protocol import cli as om
from lifl.core.schema import Layout, TensorSpec
from lifl.node import folders, machine, views
from lifl.node.audit_log import AuditLog
from lifl.node.authority.requests import CredentialRequests
from lifl.node.cli_server import CliServer
from lifl.node.driver import Driver
from lifl.node.durable_rows import DurableRows, write_now
from lifl.node.link import Link
from lifl.node.recordings import write_recording
from lifl.node.rows import AnyJob, JobRow, UnreadableJob
from lifl.node.status import NodeStatus
from lifl.node.store import PLANS_MAX, NodeStore
from lifl.node.succession import Succession
from lifl.node.uploads import ModelUploads, read_piece

ATTEMPTS_SHOWN = 16
"""Attempts at one round that are shown when it is asked for."""
ROWS_READ = 64
"""Rows of rounds that are read at a time."""


class Requests:
    """Answers the command line; raises `LiflError` for a "no".  `shut_down` ends the node, soon."""

    def __init__(
        self,
        driver: Driver,
        rows: DurableRows,
        store: NodeStore,
        cli: CliServer,
        status: NodeStatus,
        credentials: CredentialRequests,
        folder: Path,
        audit: AuditLog,
        shut_down: Callable[[], None],
    ) -> None:
        self._audit = audit
        self._driver = driver
        self._engine = driver.engine
        self._rows = rows
        self._store = store
        self._in_turn = asyncio.Lock()  # what changes jobs: one after the other
        self._cli = cli
        self._status = status
        self._credentials = credentials
        self._folder = folder
        self._shut_down = shut_down
        self._uploads = ModelUploads(folder / "models", status.arena_bytes, self._models_in_use)
        self.unreadable: dict[str, str] = {}  # jobs that could not be taken up, and why
        self.succession: Succession | None = None

    def take_unreadable(self, unreadable: dict[str, str]) -> None:
        """Note which jobs could not be taken up, and why."""
        self.unreadable = unreadable

    def handle(self, message: Any, link: Link) -> dict[str, Any] | Coroutine[Any, Any, dict[str, Any]]:
        """Return the result of one request; what writes rows returns it later."""
        match message:
            case om.SubmitJob():
                return self._changing(self._submit(message, link))
            case om.ListJobs():
                return self._list_jobs(message.after)
            case om.JobStatus():
                return self._job_status(message)
            case om.JobClients():
                return self._job_clients(message)
            case om.CancelJob():
                return self._changing(self._cancel(message.job, self._cli.who(link)))
            case om.PutModel(digest, offset, data, total_bytes):
                return self._uploads.put(digest, offset, data, total_bytes)
            case om.ReadModel(job, number, offset):
                return read_piece(self._model(job, number), offset)
            case om.ListNodes():
                return {"nodes": self._status.nodes()}
            case om.PlanJob():
                return self._plan(message)
            case om.PlansOfRound():
                return self._plans(message)
            case om.Snapshot():
                return self.snapshot()
            case om.Follow():
                return self._follow(message.job, link)
            case om.DebugRecord():
                recording = self._engine.recording()
                path = write_recording(self._folder, recording)
                return {"path": str(path), "events": len(recording.entries)}
            case om.DrainNode():
                return self._drain(message, self._cli.who(link))
            case om.Shutdown():
                self._audit.note("node.down", self._cli.who(link))
                self._shut_down()
                return {}
        if (result := self._credentials.handle(message, self._cli.who(link))) is not None:
            return result
        raise LocalFault(f"no handler for {type(message).__name__}")

    async def _changing(self, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Do what changes jobs, when what came before it is done."""
        async with self._in_turn:
            return await work

    def _model(self, name: str, number: int) -> Path:
        """Return where the model of a committed round is."""
        name = self._row(name).name
        found = next((row for row in self._store.round(name, number) if row.status == "committed"), None)
        if found is None or not found.fields.get("path"):
            raise Refused("unknown-round", "round", f"job {name!r} has no model of round {number}")
        return folders.local(self._folder, found.fields["path"])

    def _models_in_use(self) -> set[str]:
        running = [row for row in self._store.jobs() if isinstance(row, JobRow) and row.status == "running"]
        return {row.config.model.path for row in running}

    async def _submit(self, message: om.SubmitJob, link: Link) -> dict[str, Any]:
        try:
            config = parse_job(message.config)
            if config.selection.clients_file:
                config = with_listed(config, machine.read_clients(str(config.selection.clients_file)))
        except ConfigError as error:
            raise Refused("bad-config", error.path, str(error)) from error
        if config.is_fold:
            text = "a session of folds is opened by its host, by lifl.Aggregator"
            raise Refused("bad-config", "job.kind", text)
        name = config.job.name
        try:
            tensors = machine.read_tensors(config)
            check_patterns(tensors, config.aggregation)
        except ConfigError as error:
            raise Refused("bad-config", error.path, str(error)) from error
        layout = Layout(tensors)
        where = str(config.checkpoint.folder) or str(folders.local(self._folder, name))
        folder = Path(where)
        if config.checkpoint.copies:
            where = name  # below the state folder of each node
        if message.follow:
            self._cli.follow(name, link)
        try:
            number = await self._accept(config, tensors, message.states, folder, where)
        except LiflError:
            self._cli.unfollow(name, link)
            raise
        try:
            facts = ev.JobFacts(number, config, tensors, message.states, where, self._cli.who(link))
            self._driver.handle(ev.JobSubmitted(facts))
        except LiflError:
            self._cli.unfollow(name, link)
            await self._drop(name, number, folder)
            raise
        self._audit.note("job.submitted", self._cli.who(link), job=name, number=number)
        job = self._engine.jobs[name]
        return {
            "job": name,
            "rounds": config.job.rounds,
            "model_bytes": layout.data_bytes,
            "folder": str(folder),
            "status": job.status,
            "peak_bytes": job.spec.bytes_min(),
            "treatment": treatment_lines(tensors, config.aggregation, steps=bool(message.states)),
        }

    async def _accept(
        self, config: JobConfig, tensors: tuple[TensorSpec, ...], states: tuple[str, ...], folder: Path, where: str
    ) -> int:
        """Make folder and row of a new job, after all that can refuse it has; return its number.  The row says `where`.

        The row says that the job runs: when this returns it will, whatever happens.
        """
        name = config.job.name
        await self._goes_on()
        if self._store.job(name) is not None:
            text = f"a job named {name!r} is here already; choose another name (--set job.name=...)"
            raise Refused("job-exists", "job.name", text)
        check_submitted(self._engine, ev.JobFacts(0, config, tensors, states, where))
        with folders.made_folder(folder):
            number = await self._rows.new_job(config, tensors, states, where)
            try:
                folders.claim(folder, self._rows.owner, number, name)
                if self.succession is not None and not config.checkpoint.copies:
                    await self.succession.check_seen(folder, number)
                await write_now(self._rows, fx.SaveJob(name, "running", ""))
                await self._goes_on()
            except LiflError:
                await self._drop(name, number, folder)
                raise
        return number

    async def _drop(self, name: str, number: int, folder: Path) -> None:
        """Forget a job that was refused after all."""
        folders.release(folder, self._rows.owner, number)
        await self._rows.forget_job(name, number)

    async def _goes_on(self) -> None:
        """Wait until an event would be decided on at once.

        Raise `Refused` while rows cannot be written: what the user wants could not be kept.
        """
        if self.succession is not None:
            self._engine.coordinating()  # or say that another node does
        await self._driver.idle()
        if self._driver.fault is not None:
            raise Refused("paused", "node", f"the node is paused, try again later: {self._driver.fault}")

    async def _cancel(self, job: str, who: str) -> dict[str, Any]:
        """End a job, also one that could not be taken up.  Its row comes first: what is answered is durable."""
        row = self._row(job)
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
        reason = f"{CANCELLED}; {self._fault(row)}"[:TEXT_CHARS_MAX]
        await write_now(self._rows, fx.SaveJob(row.name, "cancelled", reason))
        self.unreadable.pop(row.name, None)
        self._audit.note("job.cancelled", who, job=row.name, number=row.number)
        return {"job": row.name, "status": "cancelled"}

    async def _drain(self, message: om.DrainNode, who: str) -> dict[str, Any]:
        """Let a node get nothing new, and answer when it has nothing left; or let it take part again."""
        rows = self._status.nodes()
        found = [row["node"] for row in rows if row["node"].startswith(message.node.lower())]
        if len(found) != 1:
            there = ", ".join(row["node"] for row in rows)[:TEXT_CHARS_MAX] or "none: this node is in no cluster"
            text = f"{message.node!r} names {len(found) or 'none'} of the nodes; there are: {there}"
            raise Refused("unknown-node", "node", text)
        number = int(found[0], 16)
        if self.succession is not None and self.succession.leads and number == self._engine.node and not message.undo:
            await self.succession.drain()
        else:
            self._driver.handle(ev.NodeDrained(number, message.undo))
        self._audit.note("node.undrained" if message.undo else "node.drained", who, node=found[0])
        return {"node": self._status.node(found[0])} if message.undo else await self._drained(found[0])

    async def _drained(self, node: str) -> dict[str, Any]:
        """Return a node's row when nothing is left there, or it is gone, or it takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(om.DRAIN_S):
                await self._driver.until(lambda: self._status.node(node)["drain"] != "draining")
        return {"node": self._status.node(node)}

    def _fault(self, row: AnyJob) -> str:
        """Return why a job could not be taken up."""
        return self.unreadable.get(row.name, "") or (row.fault if isinstance(row, UnreadableJob) else "")

    def _row(self, name: str) -> AnyJob:
        row = self._store.job(name)
        if row is None:
            known = ", ".join(self._store.known_names()) or "none"
            raise Refused("unknown-job", "job", f"this node has no job {name!r}; it has: {known}")
        return row

    def _line(self, row: AnyJob) -> dict[str, Any]:
        paused = str(self._driver.fault or "")
        if isinstance(row, UnreadableJob):
            return views.unreadable_line(row)
        last = next(iter(self._store.committed(row.name, 1)), None)
        elsewhere = self.succession.elsewhere if self.succession is not None else None
        return views.job_line(row, last, self._engine.jobs.get(row.name), paused, self._fault(row), elsewhere)

    def _list_jobs(self, after: int) -> dict[str, Any]:
        """Return a page of the jobs, and the number that the next one comes after."""
        page = views.Page()
        for row in self._store.jobs(after):
            if not page.add(self._line(row)):
                return {"jobs": page.lines, "more": after}
            after = row.number
        return {"jobs": page.lines, "more": None}

    def _job_status(self, message: om.JobStatus) -> dict[str, Any]:
        row = self._row(message.job)
        job = self._engine.jobs.get(row.name)
        lines, more = self._round_lines(row.name, message)
        return {
            "job": self._line(row),
            "config": msgspec.to_builtins(row.config) if isinstance(row, JobRow) else {},
            "now": self._now(job),
            "rounds": lines,
            "more": more,
        }

    def _job_clients(self, message: om.JobClients) -> dict[str, Any]:
        """Return a page of the clients of a job that runs, in the order of their names."""
        row = self._row(message.job)
        job = self._engine.jobs.get(row.name)
        if job is None or job.over:
            raise Refused("job-over", "job", f"job {row.name!r} does not run: its clients are known while it does")
        page, after = views.Page(), message.after
        for line in views.client_lines(job):
            if line["client"] > message.after:
                if not page.add(line):
                    return {"clients": page.lines, "more": after}
                after = line["client"]
        return {"clients": page.lines, "more": None}

    def _round_lines(self, name: str, message: om.JobStatus) -> tuple[list[dict[str, Any]], tuple[int, int] | None]:
        """Return what is asked for of the rounds, as far as it fits, and where the next page goes on."""
        if message.round is not None:
            found = [row for row in self._store.round(name, message.round) if row.status != "open"]
            return [views.round_line(row) for row in found[-ATTEMPTS_SHOWN:]], None
        page, before = views.Page(), message.before
        if message.last and before[0] > ROUNDS_MAX:  # the first page
            for row in self._store.odd_rounds(name, min(ATTEMPTS_SHOWN, message.last)):
                page.add(views.round_line(row))
        while len(page.lines) < message.last:
            rows = self._store.rounds_before(name, before, min(ROWS_READ, message.last - len(page.lines)))
            for row in rows:
                if not page.add(views.round_line(row)):
                    return page.lines[::-1], before
                before = (row.round, row.attempt)
            if not rows:
                break
        return page.lines[::-1], None

    def _now(self, job: Job | None) -> dict[str, Any] | None:
        if job is None:
            return None
        return views.round_now(self._engine, job, time.monotonic(), self._status.trees())

    def _follow(self, name: str, link: Link) -> dict[str, Any]:
        row = self._row(name)
        line = self._line(row)
        self._cli.follow(name, link)
        if line["status"] in ("finished", "failed", "cancelled"):
            fields = {"status": line["status"], "reason": line["reason"]}
            asyncio.get_running_loop().call_soon(self._cli.publish, "job.over", name, fields)
        return {"job": line}

    def _plan(self, message: om.PlanJob) -> dict[str, Any]:
        try:
            config = parse_job(message.config)
            layout = Layout(machine.read_tensors(config))
        except ConfigError as error:
            raise Refused("bad-config", error.path, str(error)) from error
        facts, home = self._engine.facts(time.monotonic())
        request = plan_request(config, layout, len(message.states), facts, model_node=home)
        return {
            "request": msgspec.to_builtins(request),
            "plan": msgspec.to_builtins(make_plan(request)),
            "treatment": treatment_lines(layout.tensors, config.aggregation, steps=bool(message.states)),
        }

    def _plans(self, message: om.PlansOfRound) -> dict[str, Any]:
        name = self._row(message.job).name
        page, last = views.Page(), None
        for number, row in self._store.plans(name, message.round, message.after):
            if not page.add(msgspec.to_builtins(row)):
                return {"decisions": page.lines, "more": last}
            last = number
        if last is None and not message.after:
            text = f"no plan of round {message.round} of job {name!r} is here: it has not begun, or is not one of the "
            raise Refused("no-plan", "round", f"{text}last {PLANS_MAX} that are kept; `lifl status {name}` lists them")
        return {"decisions": page.lines, "more": None}

    def snapshot(self) -> dict[str, Any]:
        """Return what `lifl top` shows."""
        page = views.Page()
        for name in [*self._engine.jobs, *self.unreadable]:
            row = self._store.job(name)
            if row is not None and not page.add({**self._line(row), "now": self._now(self._engine.jobs.get(name))}):
                break
        status = self._status
        return {"node": status.now(), "nodes": status.nodes(), "workers": status.workers(), "jobs": page.lines}

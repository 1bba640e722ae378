"""What the command line asks of a daemon, one method for each request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lifl.core import events as ev
from lifl.core.config.job import parse_job
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.errors import ConfigError, LocalFault, Refused
from lifl.core.limits import ROUNDS_MAX, TEXT_CHARS_MAX
from lifl.core.planning.arena_need import with_fan_in
from lifl.core.planning.planner import make_plan
from lifl.core.planning.request import plan_request
from lifl.core.planning.treatment import treatment_lines
from lifl.core.protocol import cli as om
from lifl.core.schema import Layout
from lifl.node import machine, views
from lifl.node.audit_log import FOLDER as AUDIT_FOLDER
from lifl.node.audit_log import AuditLog, chain_shown, check_files, page_before
from lifl.node.authority.requests import CredentialRequests
from lifl.node.cli_server import CliServer
from lifl.node.driver import Driver
from lifl.node.durable_rows import DurableRows
from lifl.node.job_requests import JobRequests, all_rows, known_row
from lifl.node.jobs_kept import JobsKept
from lifl.node.keeper import Keeper
from lifl.node.link import Link
from lifl.node.log_file import last_log_lines
from lifl.node.models_there import ModelsThere
from lifl.node.outbound.outbound import Outbound
from lifl.node.pages import Pages
from lifl.node.recordings import write_recording
from lifl.node.rows import AnyJob, JobRow, UnreadableJob
from lifl.node.status import NodeStatus
from lifl.node.store import PLANS_MAX, NodeStore, keep_capacity
from lifl.node.uploads import ModelUploads, read_piece

ATTEMPTS_SHOWN = 16
"""Attempts at one round that are shown when it is asked for."""
ROWS_READ = 64
"""Rows of rounds that are read at a time."""


class Requests:
    """Answers the command line; raises `LiflError` for a "no".

    `shut_down` ends the node, soon; `measure` has its capacity measured.  The last `jobs_kept` jobs that are over stay.
    """

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
        keeper: Keeper,
        outbound: Outbound,
        pages: Pages,
        shut_down: Callable[[], None],
        measure: Callable[[], None],
        jobs_kept: int,
    ) -> None:
        self._audit = audit
        self._driver = driver
        self._engine = driver.engine
        self._store = store
        self._cli = cli
        self._status = status
        self._credentials = credentials
        self._folder = folder
        self._shut_down, self._measure = shut_down, measure
        self._keeper, self._outbound = keeper, outbound
        self._models = ModelsThere(folder, store, keeper)
        self._uploads = ModelUploads(folder / "models", status.arena_bytes, self._models_in_use)
        self.changes = JobRequests(driver, rows, store, cli, folder, audit, self._models, keeper)
        self.changes.on_forgotten = outbound.let_go
        self.jobs_kept = JobsKept(self.changes, store, outbound, jobs_kept)
        self.pages = pages
        self._reading = asyncio.Lock()  # of the audit log

    def take_unreadable(self, unreadable: dict[str, str]) -> None:
        """Note which jobs could not be taken up, and why: the others are, and old ones may go."""
        self.changes.unreadable = unreadable
        self.jobs_kept.look()

    def handle(self, message: Any, link: Link) -> dict[str, Any] | Coroutine[Any, Any, dict[str, Any]]:
        """Return the result of one request; what writes rows returns it later."""
        match message:
            case om.ListJobs():
                return self._list_jobs(message.after)
            case om.JobStatus():
                return self._job_status(message)
            case om.JobClients():
                return self._job_clients(message)
            case om.PutModel(digest, offset, data, total_bytes):
                return self._uploads.put(digest, offset, data, total_bytes)
            case om.ReadModel(job, number, offset):
                return read_piece(self._models.to_read(self.changes.row(job), number), offset)
            case om.ListNodes():
                return {"nodes": self._status.nodes()}
            case om.PlanJob():
                return self._plan(message)
            case om.PlansOfRound():
                return self._plans(message)
            case om.UpdatesOfRound():
                return self._updates(message)
            case om.Snapshot():
                return self.snapshot(message.trees)
            case om.OpenPage():
                return self.pages.link(message.role, self._cli.peer(link))
            case om.ReadAudit(before, verify):
                return self._read_audit(before, verify)
            case om.ReadLog():
                return {"lines": last_log_lines(self._folder)}
            case om.Follow():
                return self._follow(message.job, link)
            case om.DebugRecord():
                recording = self._engine.recording()
                path = write_recording(self._folder, recording)
                return {"path": str(path), "events": len(recording.entries)}
            case om.DrainNode():
                return self._drain(message, self._cli.who(link))
            case om.KeepCapacity(capacity):
                return self._keep_capacity(capacity, self._cli.who(link))
            case om.Shutdown():
                self._audit.note("node.down", self._cli.who(link))
                self._shut_down()
                return {}
        if (work := self.changes.handle(message, link)) is not None:
            return work
        if (result := self._credentials.handle(message, self._cli.who(link))) is not None:
            return result
        raise LocalFault(f"no handler for {type(message).__name__}")

    def _models_in_use(self) -> set[str]:
        running = [row for row in self._store.jobs() if isinstance(row, JobRow) and row.status == "running"]
        return {row.config.model.path for row in running}

    async def _drain(self, message: om.DrainNode, who: str) -> dict[str, Any]:
        """Let a node get nothing new, and answer when it has nothing left; or let it take part again."""
        rows = self._status.nodes()
        found = [row["node"] for row in rows if row["node"].startswith(message.node.lower())]
        if len(found) != 1:
            there = ", ".join(row["node"] for row in rows)[:TEXT_CHARS_MAX] or "none: this node is in no cluster"
            text = f"{message.node!r} names {len(found) or 'none'} of the nodes; there are: {there}"
            raise Refused("unknown-node", "node", text)
        number = int(found[0], 16)
        succession = self.changes.succession
        if succession is not None and succession.leads and number == self._engine.node and not message.undo:
            await succession.drain()
        else:
            self._driver.handle(ev.NodeDrained(number, message.undo))
        self._audit.note("node.undrained" if message.undo else "node.drained", who, node=found[0])
        return {"node": self._status.node(found[0])} if message.undo else await self._drained(found[0])

    def _keep_capacity(self, capacity: float, who: str) -> dict[str, Any]:
        """Have the node go by what was found, in this life and the next ones.  Raise `Refused` when it is given."""
        if self._status.capacity_given:
            text = "the node's capacity is given (capacity, or --capacity): start it without that to have one kept"
            raise Refused("capacity-given", "capacity", text)
        keep_capacity(self._store, capacity)
        self._status.capacity_kept = bool(capacity)
        self._audit.note("node.calibrated", who, capacity=f"{capacity:g}")
        if capacity:
            self._driver.handle(ev.Calibrated(capacity))
        else:
            self._measure()
        return {"capacity": capacity}

    async def _drained(self, node: str) -> dict[str, Any]:
        """Return a node's row when nothing is left there, or it is gone, or it takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(om.DRAIN_S):
                await self._driver.until(lambda: self._status.node(node)["drain"] != "draining")
        return {"node": self._status.node(node)}

    def _line(self, row: AnyJob) -> dict[str, Any]:
        paused = str(self._driver.fault or "")
        if isinstance(row, UnreadableJob):
            return views.unreadable_line(row)
        last = next(iter(self._store.committed(row.name, 1)), None)
        succession, fault = self.changes.succession, self.changes.fault(row)
        elsewhere = succession.elsewhere if succession is not None else None
        job = self._engine.jobs.get(row.name)
        place = self._engine.coordinating().queue.place_of(job) if job is not None and job.queued else None
        line = views.job_line(row, last, job, paused, fault, elsewhere, place, self._status.journal.fault)
        return line | {"disk": self._keeper.shown(row.name), "upload": self._outbound.shown(row.number)}

    def _list_jobs(self, after: int) -> dict[str, Any]:
        """Return a page of the jobs, and the number that the next one comes after."""
        page = views.Page()
        for row in all_rows(self.changes, after):
            if not page.add(self._line(row)):
                return {"jobs": page.lines, "more": after}
            after = row.number
        return {"jobs": page.lines, "more": None}

    def _job_status(self, message: om.JobStatus) -> dict[str, Any]:
        row = self.changes.row(message.job)
        job = self._engine.jobs.get(row.name)
        lines, more = self._round_lines(row.name, message)
        return {
            "job": self._line(row),
            "config": msgspec.to_builtins(row.config) if isinstance(row, JobRow) else {},
            "now": self._now(job),
            "models": self._models.shown(row),
            "rounds": lines,
            "more": more,
        }

    def _job_clients(self, message: om.JobClients) -> dict[str, Any]:
        """Return a page of the clients of a job that runs, in the order of their names."""
        row = self.changes.row(message.job)
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
            return [views.round_line(row, message.trees) for row in found[-ATTEMPTS_SHOWN:]], None
        page, before = views.Page(), message.before
        if message.last and before[0] > ROUNDS_MAX:  # the first page
            for row in self._store.odd_rounds(name, min(ATTEMPTS_SHOWN, message.last)):
                page.add(views.round_line(row, message.trees))
        while len(page.lines) < message.last:
            rows = self._store.rounds_before(name, before, min(ROWS_READ, message.last - len(page.lines)))
            for row in rows:
                if not page.add(views.round_line(row, message.trees)):
                    return page.lines[::-1], before
                before = (row.round, row.attempt)
            if not rows:
                break
        return page.lines[::-1], None

    def _now(self, job: Job | None, trees: bool = True) -> dict[str, Any] | None:
        if job is None:
            return None
        now = views.round_now(self._engine, job, time.monotonic(), self._status.trees())
        if now is not None and not trees:
            del now["tree"]
        return now

    async def _read_audit(self, before: int, verify: bool) -> dict[str, Any]:
        """Return lines of the audit log; its files are read in a thread, by one request at a time."""
        folder = self._folder / AUDIT_FOLDER
        async with self._reading:
            page = await asyncio.to_thread(page_before, folder, before)
            if verify:
                page["chain"] = chain_shown(await asyncio.to_thread(check_files, folder), being_written=True)
        return page

    def _follow(self, name: str, link: Link) -> dict[str, Any]:
        row = self.changes.row(name)
        line = self._line(row)
        self._cli.follow(name, link)
        if line["status"] in ("finished", "failed", "cancelled"):
            fields = {"status": line["status"], "reason": line["reason"]}
            asyncio.get_running_loop().call_soon(self._cli.publish, "job.over", name, fields)
        return {"job": line}

    def _plan(self, message: om.PlanJob) -> dict[str, Any]:
        try:
            config = parse_job(message.config)
            config, _source = self.changes.sourced(config)
            layout = Layout(machine.read_tensors(config), config.aggregation.is_reproducible)
            config = with_fan_in(config, layout)
        except ConfigError as error:
            raise Refused("bad-config", error.path, str(error)) from error
        facts, home = self._engine.facts(time.monotonic(), config.node_labels)
        request = plan_request(config, layout, len(message.states), facts, model_node=home)
        plan, coordinator = make_plan(request), self._engine.coordinator
        place = None
        if coordinator is not None:
            spec = JobSpec(0, config, layout, message.states, "")
            place = coordinator.queue.place_for(coordinator.make(spec))
        return {
            "request": msgspec.to_builtins(request),
            "plan": msgspec.to_builtins(plan),
            "queue": place._asdict() if place is not None else None,
            "treatment": treatment_lines(layout.tensors, config.aggregation, steps=bool(message.states)),
        }

    def _plans(self, message: om.PlansOfRound) -> dict[str, Any]:
        name = self.changes.row(message.job).name
        page, last = views.Page(), None
        for number, row in self._store.plans(name, message.round, message.after):
            if not page.add(msgspec.to_builtins(row)):
                return {"decisions": page.lines, "more": last}
            last = number
        if last is None and not message.after:
            text = f"no plan of round {message.round} of job {name!r} is here: it has not begun, or is not one of the "
            raise Refused("no-plan", "round", f"{text}last {PLANS_MAX} that are kept; `lifl status {name}` lists them")
        return {"decisions": page.lines, "more": None}

    def _updates(self, message: om.UpdatesOfRound) -> dict[str, Any]:
        """Return a page of the updates of a committed round, in the order of the clients' names."""
        name = self.changes.row(message.job).name
        found = next((row for row in self._store.round(name, message.round) if row.status == "committed"), None)
        if found is None:
            text = f"job {name!r} has not committed a round {message.round}; `lifl status {name}` lists them"
            raise Refused("unknown-round", "round", text)
        if "updates" not in found.fields or "members" not in found.fields:
            text = f"of round {message.round} of job {name!r} no updates are noted: it is the initial model, or not one"
            raise Refused("no-receipt", "round", f"{text} of the last history.keep.receipts, or an earlier release's")
        page, root = views.Page(), found.fields.get("receipt", {}).get("updates_digest", "")
        answer = {"attempt": found.attempt, "updates": page.lines, "updates_digest": root, "more": None}
        last = message.after
        for client, (weight, digest) in zip(found.fields["members"], found.fields["updates"], strict=False):
            if client > message.after:
                if not page.add({"client": client, "weight": weight, "digest": f"{digest:016x}" if digest else ""}):
                    return answer | {"more": last}
                last = client
        return answer

    def snapshot(self, trees: bool = True) -> dict[str, Any]:
        """Return what `lifl top` shows; without `trees` running rounds come without their tasks."""
        page = views.Page()
        for name in [*self._engine.jobs, *self.changes.unreadable]:
            row, job = known_row(self.changes, name), self._engine.jobs.get(name)
            if row is not None and not page.add({**self._line(row), "now": self._now(job, trees)}):
                break
        status = self._status
        return {"node": status.now(), "nodes": status.nodes(), "workers": status.workers(), "jobs": page.lines}

"""What the command line asks of a daemon, one method for each request."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from lifl.core import events as ev
from lifl.core.config.job import JobConfig, parse_job
from lifl.core.coordinator.job import Job
from lifl.core.errors import ConfigError, LiflError, LocalFault, Refused
from lifl.core.planning.planner import make_plan
from lifl.core.planning.request import plan_request
from lifl.core.protocol import cli as om
from lifl.core.schema import Layout, check_fits
from lifl.node import machine, views
from lifl.node.cli_server import CliServer
from lifl.node.driver import Driver
from lifl.node.link import Link
from lifl.node.recordings import write_recording
from lifl.node.status import NodeStatus
from lifl.node.store import PLANS_MAX, JobRow, NodeStore


class Requests:
    """Answers the command line; raises `LiflError` for a "no".  `shut_down` ends the node, soon."""

    def __init__(
        self,
        driver: Driver,
        store: NodeStore,
        cli: CliServer,
        status: NodeStatus,
        folder: Path,
        shut_down: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._engine = driver.engine
        self._store = store
        self._cli = cli
        self._status = status
        self._folder = folder
        self._shut_down = shut_down

    def handle(self, message: Any, link: Link) -> dict[str, Any]:
        """Return the result of one request."""
        match message:
            case om.SubmitJob():
                return self._submit(message, link)
            case om.ListJobs():
                return {"jobs": [self._line(row) for row in self._store.jobs()]}
            case om.JobStatus():
                return self._job_status(message.job)
            case om.CancelJob():
                name = self._row(message.job).name
                self._driver.handle(ev.JobCancelled(name))
                return {"job": name, "status": self._engine.jobs[name].status}
            case om.ListNodes():
                return {"nodes": self._status.nodes()}
            case om.PlanJob():
                return self._plan(message)
            case om.PlansOfRound():
                return self._plans(message)
            case om.Snapshot():
                return self._snapshot()
            case om.Follow():
                return self._follow(message.job, link)
            case om.DebugRecord():
                recording = self._engine.recording()
                path = write_recording(self._folder, recording)
                return {"path": str(path), "events": len(recording.entries)}
            case om.Shutdown():
                self._shut_down()
                return {}
            case _:
                raise LocalFault(f"no handler for {type(message).__name__}")

    def _submit(self, message: om.SubmitJob, link: Link) -> dict[str, Any]:
        try:
            config = parse_job(message.config)
        except ConfigError as error:
            raise Refused("bad-config", error.path, str(error)) from error
        name = config.job.name
        tensors = machine.read_schema(config.model.path)
        layout = Layout(tensors)
        check_fits(layout)  # before anything is made or stored
        if any(row.name == name for row in self._store.jobs()):
            text = f"a job named {name!r} is here already; choose another name (--set job.name=...)"
            raise Refused("job-exists", "job.name", text)
        folder = Path(config.checkpoint.folder or self._folder / "jobs" / name)
        self._make_folder(folder, config)
        number = self._store.add_job(config, tensors, message.states, str(folder))
        if message.follow:
            self._cli.follow(name, link)
        try:
            facts = ev.JobFacts(number, config, tensors, message.states, str(folder))
            self._driver.handle(ev.JobSubmitted(facts))
        except LiflError:
            self._cli.unfollow(name, link)
            self._store.drop_job(name)
            raise
        job = self._engine.jobs[name]
        return {
            "job": name,
            "rounds": config.job.rounds,
            "model_bytes": layout.data_bytes,
            "folder": str(folder),
            "status": job.status,
            "peak_bytes": job.spec.bytes_min(),
        }

    @staticmethod
    def _make_folder(folder: Path, config: JobConfig) -> None:
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            text = f"folder {folder} cannot be made: {error.strerror}; choose another in checkpoint.folder"
            raise Refused("bad-config", "checkpoint.folder", text) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            text = f"folder {folder} is not writable for lifld; choose another in checkpoint.folder"
            raise Refused("bad-config", "checkpoint.folder", text)
        if (folder / "round-00000.safetensors").exists():
            text = (
                f"folder {folder} holds the models of another job; move them away, or choose another in "
                f"checkpoint.folder (or another job.name than {config.job.name!r})"
            )
            raise Refused("folder-in-use", "checkpoint.folder", text)

    def _row(self, name: str) -> JobRow:
        rows = self._store.jobs()
        for row in rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in rows[-8:]) or "none"
        raise Refused("unknown-job", "job", f"this node has no job {name!r}; it has: {known}")

    def _line(self, row: JobRow) -> dict[str, Any]:
        return views.job_line(row, self._store.rounds(row.name), self._engine.jobs.get(row.name))

    def _job_status(self, name: str) -> dict[str, Any]:
        row = self._row(name)
        rounds = self._store.rounds(name)
        job = self._engine.jobs.get(name)
        return {
            "job": views.job_line(row, rounds, job),
            "config": msgspec.to_builtins(row.config),
            "now": self._now(job),
            "rounds": [views.round_line(r) for r in rounds if r.round > 0 and r.status != "open"],
        }

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
        except ConfigError as error:
            raise Refused("bad-config", error.path, str(error)) from error
        layout = Layout(machine.read_schema(config.model.path))
        facts, home = self._engine.facts(time.monotonic())
        request = plan_request(config, layout, len(message.states), facts, model_node=home)
        return {"request": msgspec.to_builtins(request), "plan": msgspec.to_builtins(make_plan(request))}

    def _plans(self, message: om.PlansOfRound) -> dict[str, Any]:
        name = self._row(message.job).name
        rows = self._store.plans(name, message.round)
        if not rows:
            text = f"no plan of round {message.round} of job {name!r} is here: it has not begun, or is not one of the "
            raise Refused("no-plan", "round", f"{text}last {PLANS_MAX} that are kept; `lifl status {name}` lists them")
        return {"decisions": [msgspec.to_builtins(row) for row in rows]}

    def _snapshot(self) -> dict[str, Any]:
        jobs = [
            {**self._line(row), "now": self._now(self._engine.jobs.get(row.name))}
            for row in self._store.jobs()
            if row.name in self._engine.jobs
        ]
        status = self._status
        return {"node": status.now(), "nodes": status.nodes(), "workers": status.workers(), "jobs": jobs}

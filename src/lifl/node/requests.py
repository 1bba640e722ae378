"""What the command line asks of a daemon, one method for each request."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lifl.core.config.job import JobConfig, parse_job
from lifl.core.coordinator.job import Job
from lifl.core.errors import ConfigError, LiflError, LocalFault, Refused
from lifl.core.planning.planner import make_plan
from lifl.core.planning.request import plan_request
from lifl.core.protocol import cli as om
from lifl.core.protocol import gateway as gm
from lifl.core.schema import Layout
from lifl.node import machine, views
from lifl.node.link import Link
from lifl.node.store import PLANS_MAX, JobRow

if TYPE_CHECKING:
    from lifl.node.daemon import Daemon


class Requests:
    """Answers the control channel; raises `LiflError` for a "no"."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def handle(self, message: Any, link: Link) -> dict[str, Any]:
        """The result of one request."""
        match message:
            case om.SubmitJob():
                return self._submit(message, link)
            case om.ListJobs():
                return {"jobs": [self._line(row) for row in self._daemon.store.jobs()]}
            case om.JobStatus():
                return self._status(message.job)
            case om.CancelJob():
                job = self._daemon.engine.cancel(self._row(message.job).name, time.monotonic())
                self._daemon.perform()
                return {"job": job.name, "status": job.status}
            case om.ListNodes():
                return {"nodes": self._nodes()}
            case om.PlanJob():
                return self._plan(message)
            case om.PlansOfRound():
                return self._plans(message)
            case om.Snapshot():
                return self._snapshot()
            case om.Follow():
                return self._follow(message.job, link)
            case om.Shutdown():
                self._daemon.loop.call_soon(self._daemon.done.set)
                return {}
            case _:
                raise LocalFault(f"no handler for {type(message).__name__}")

    def _submit(self, message: om.SubmitJob, link: Link) -> dict[str, Any]:
        daemon = self._daemon
        try:
            config = parse_job(message.config)
        except ConfigError as error:
            raise Refused("bad-config", error.path, str(error)) from error
        name = config.job.name
        tensors = machine.read_schema(config.model.path)
        layout = Layout(tensors)
        if any(row.name == name for row in daemon.store.jobs()):
            text = f"a job named {name!r} is here already; choose another name (--set job.name=...)"
            raise Refused("job-exists", "job.name", text)
        folder = Path(config.checkpoint.folder or daemon.folder / "jobs" / name)
        self._make_folder(folder, config)
        number = daemon.store.add_job(config, tensors, message.states, str(folder))
        try:
            job = daemon.engine.submit(number, config, layout, message.states, str(folder), time.monotonic())
        except LiflError:
            daemon.store.drop_job(name)
            raise
        if message.follow:
            daemon.control.follow(name, link)
        daemon.perform()
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
        rows = self._daemon.store.jobs()
        for row in rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in rows[-8:]) or "none"
        raise Refused("unknown-job", "job", f"this node has no job {name!r}; it has: {known}")

    def _line(self, row: JobRow) -> dict[str, Any]:
        return views.job_line(row, self._daemon.store.rounds(row.name), self._daemon.engine.jobs.get(row.name))

    def _status(self, name: str) -> dict[str, Any]:
        row = self._row(name)
        rounds = self._daemon.store.rounds(name)
        job = self._daemon.engine.jobs.get(name)
        return {
            "job": views.job_line(row, rounds, job),
            "config": msgspec.to_builtins(row.config),
            "now": self._now(job),
            "rounds": [views.round_line(r) for r in rounds if r.round > 0 and r.status != "open"],
        }

    def _now(self, job: Job | None) -> dict[str, Any] | None:
        if job is None:
            return None
        cluster = self._daemon.cluster
        trees = cluster.trees if cluster is not None else {}
        return views.round_now(self._daemon.engine, job, time.monotonic(), trees)

    def _follow(self, name: str, link: Link) -> dict[str, Any]:
        row = self._row(name)
        line = self._line(row)
        self._daemon.control.follow(name, link)
        if line["status"] in ("finished", "failed", "cancelled"):
            fields = {"status": line["status"], "reason": line["reason"]}
            self._daemon.loop.call_soon(self._daemon.control.publish, "job.over", name, fields)
        return {"job": line}

    def _nodes(self) -> list[dict[str, Any]]:
        cluster = self._daemon.cluster
        return cluster.rows() if cluster is not None else []

    def _plan(self, message: om.PlanJob) -> dict[str, Any]:
        try:
            config = parse_job(message.config)
        except ConfigError as error:
            raise Refused("bad-config", error.path, str(error)) from error
        layout = Layout(machine.read_schema(config.model.path))
        facts, home = self._daemon.engine.facts(time.monotonic())
        request = plan_request(config, layout, len(message.states), facts, model_node=home)
        return {"request": msgspec.to_builtins(request), "plan": msgspec.to_builtins(make_plan(request))}

    def _plans(self, message: om.PlansOfRound) -> dict[str, Any]:
        name = self._row(message.job).name
        rows = self._daemon.store.plans(name, message.round)
        if not rows:
            text = f"no plan of round {message.round} of job {name!r} is here: it has not begun, or is not one of the "
            raise Refused("no-plan", "round", f"{text}last {PLANS_MAX} that are kept; `lifl status {name}` lists them")
        return {"decisions": [msgspec.to_builtins(row) for row in rows]}

    def _snapshot(self) -> dict[str, Any]:
        daemon = self._daemon
        daemon.gateway.send(gm.AskStats())  # the next snapshot shows the answer: nobody waits for anybody
        engine, totals = daemon.engine, daemon.workers.redirector.totals()
        stats = daemon.gateway_stats
        jobs = [
            {**self._line(row), "now": self._now(engine.jobs.get(row.name))}
            for row in daemon.store.jobs()
            if row.name in engine.jobs
        ]
        return {
            "node": {
                **daemon.report({}),
                "uptime_s": time.time() - daemon.started_unix_s,
                "arena": {
                    "bytes": daemon.arena.arena_bytes,
                    "used_bytes": daemon.arena.used_bytes,
                    "peak_bytes": daemon.arena.peak_bytes,
                    "objects": sum(1 for _ in daemon.arena.live()),
                    "waiting": len(engine.agent.waiting),
                },
                "redirector": {"kind": daemon.workers.redirector.name, **views.redirector_line(totals)},
                "gateway": {"pid": daemon.gateway.pid, **(msgspec.structs.asdict(stats) if stats else {})},
                "cpu_s": daemon.meters(),
                "zygote_pid": daemon.zygote.pid,
            },
            "nodes": self._nodes(),
            "workers": views.worker_lines(engine),
            "jobs": jobs,
        }

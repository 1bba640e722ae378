"""What `lifl jobs`, `status` and `top` show: plain values out of the engine's objects and the store's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lifl.core.agent.agent import Agent
from lifl.core.agent.branch import Branch
from lifl.core.agent.pool import WorkerState
from lifl.core.coordinator.job import Job
from lifl.core.engine import Engine
from lifl.core.ids import round_of
from lifl.core.planning.tree import TaskState
from lifl.node.store import JobRow, RoundRow
from lifl.redirect.interface import Totals


class NodeIdentity(NamedTuple):
    """What does not change in a node's life."""

    number: int
    gateway: str
    arena_bytes: int
    workers_max: int


def tree_lines(agent: Agent, lines_max: int) -> list[dict[str, Any]]:
    """Return the tasks of all branches of a node, each with its job's number and its epoch; no more than so many."""
    lines: list[dict[str, Any]] = []
    for number, replica in agent.replicas.items():
        for runner in replica.runners.values():
            at = {"job": number, "epoch": runner.branch.epoch}
            lines += [line | at for line in runner.branch.lines()]
    return lines[:lines_max]


def job_line(row: JobRow, rounds: list[RoundRow], job: Job | None) -> dict[str, Any]:
    """Return one job of a list."""
    committed = [r for r in rounds if r.status == "committed" and r.round > 0]
    last = committed[-1] if committed else None
    status = job.status if job is not None else row.status
    if job is not None and job.status == "running" and job.round is not None and job.round.opened_at_s is None:
        status = "waiting"
    if job is not None and job.commits.paused:
        status = "paused"
    running = job.round.number if job is not None and job.round is not None else None
    return {
        "name": row.name,
        "status": status,
        "reason": (job.commits.paused or job.reason) if job is not None else row.reason,
        "round": running or (last.round if last else 0),
        "rounds": row.config.job.rounds,
        "committed": last.round if last else 0,
        "clients": len(job.present) if job is not None else 0,
        "rule": row.config.aggregation.rule,
        "metrics": last.fields.get("metrics", {}) if last else {},
        "submitted_unix_s": row.submitted_unix_s,
        "folder": row.folder,
    }


def round_line(row: RoundRow) -> dict[str, Any]:
    """Return one round that is over."""
    return {
        "round": row.round,
        "attempt": row.attempt,
        "status": row.status,
        "reason": row.fields.get("reason", ""),
        "committed_unix_s": row.saved_unix_s if row.status == "committed" else None,
        "metrics": row.fields.get("metrics", {}),
        "path": row.fields.get("path", "") if row.status == "committed" else "",
        "digest": next(iter(row.fields.get("digests", ())), "") if row.status == "committed" else "",
        "receipt": row.fields.get("receipt"),
    }


def round_now(
    engine: Engine, job: Job, now: float, trees: Mapping[int, Sequence[dict[str, Any]]]
) -> dict[str, Any] | None:
    """Return the round that runs; `trees` has the tasks at the other nodes."""
    round_ = job.round or next((saving for saving in job.rounds.saving[-1:] if saving.number), None)
    if round_ is None:
        return None
    replica = engine.agent.replicas.get(job.spec.number)
    here = [r for r in replica.runners.values() if r.branch.epoch == round_.epoch] if replica is not None else []
    tree = [line | {"node": f"{engine.node:016x}"} for runner in here for line in runner.branch.lines()]
    counted = sum(_counted(runner.branch) for runner in here)
    for record in round_.branches.values():
        if record.node != engine.node:
            at = {"job": job.spec.number, "epoch": round_.epoch, "branch": record.number}
            lines = [line for line in trees.get(record.node, ()) if at.items() <= line.items()]
            tree += [line | {"node": f"{record.node:016x}"} for line in lines]
            counted += sum(line["expect"] for line in lines if line["role"] == "leaf" and line["state"] == "sealed")
    return {
        "round": round_.number,
        "attempt": round_.attempt,
        "phase": round_.phase.value,
        "reason": round_.reason,
        "selected": len(round_.selected),
        "uploading": len(round_.granted),
        "accepted": len(round_.accepted),
        "counted": counted,
        "goal": round_.goal,
        "quorum": round_.quorum,
        "time_left_s": max(0.0, round_.deadline_at_s - now) if round_.opened_at_s is not None else None,
        "between_bytes": round_.between_bytes,
        "nodes": len(round_.nodes),
        "tree": tree,
    }


def _counted(branch: Branch) -> int:
    """Return how many updates are folded into a sealed partial by now."""
    done = sum(task.taken for task in branch.tree.takers if task.state is TaskState.DONE)
    return done + len(branch.accepted) - branch.to_take


def worker_lines(engine: Engine) -> list[dict[str, Any]]:
    """Return the workers, each with the task that it has."""
    lines = []
    for worker in engine.agent.pool.workers.values():
        address = next(iter(worker.tasks), 0)
        found = engine.agent.tasks.find(address)
        task = found.task if found else None
        lines.append(
            {
                "worker": worker.number,
                "pid": worker.pid,
                "state": "idle" if worker.state is WorkerState.RETIRING else worker.state.value,
                "role": task.role if task else "",
                "job": worker.served[0] if worker.served else "",
                "round": round_of(max(worker.served[1], 0)) if worker.served else 0,
                "address": address,
                "tasks": len(worker.tasks),
                "tasks_done": worker.tasks_done,
                "inputs": len(task.inputs) if task else 0,
                "expect": task.expect if task else 0,
            }
        )
    return lines


def redirector_line(totals: Totals) -> dict[str, Any]:
    """Return the redirector's counters."""
    return dict(totals._asdict())

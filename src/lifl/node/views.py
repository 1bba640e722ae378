"""What `lifl jobs`, `status` and `top` show: plain values out of the engine's objects and the store's rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from lifl.core.agent.agent import Agent
from lifl.core.agent.branch import Branch
from lifl.core.agent.pool import WorkerState
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.job_queue import Place
from lifl.core.coordinator.reliability import Record
from lifl.core.coordinator.round import Phase, Round
from lifl.core.engine import Engine, runs
from lifl.core.ids import round_of
from lifl.core.limits import NAMED_TASKS_MAX, NAMES_SHOWN_MAX, NOW_TASKS_MAX, PAGE_BYTES_MAX
from lifl.core.planning.tree import TaskState
from lifl.node.rows import JobRow, RoundRow, UnreadableJob
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


class Page:
    """Lines of an answer, as many as fit a frame with room to spare."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._left_bytes = PAGE_BYTES_MAX

    def add(self, line: dict[str, Any]) -> bool:
        """Add a line, and return whether it fits; the first one always does, if need be without its tasks."""
        nbytes = len(msgspec.msgpack.encode(line))
        if nbytes > self._left_bytes and self.lines:
            return False
        if nbytes > self._left_bytes:
            line = _without_tree(line)
        self._left_bytes -= nbytes
        self.lines.append(line)
        return True


def _without_tree(line: dict[str, Any]) -> dict[str, Any]:
    short = {name: value for name, value in line.items() if name != "tree"}
    return {name: _without_tree(value) if isinstance(value, dict) else value for name, value in short.items()}


def job_line(
    row: JobRow,
    last: RoundRow | None,
    job: Job | None,
    paused: str,
    fault: str,
    elsewhere: tuple[str, str] | None = None,
    place: Place | None = None,
    unstored: str = "",
) -> dict[str, Any]:
    """Return one job of a list; `last` is its last committed round, `paused` why the node waits.

    `fault` tells why the job could not be taken up; `elsewhere` has the status, and why, of one that runs while this
    node does not coordinate; `place` where it stands in line; `unstored` why this node can store no updates.
    """
    status, reason = row.status, row.reason
    if job is not None:
        status, reason = job.status, job.commits.paused or job.reason
        if job.status == "running" and job.round is not None and job.round.opened_at_s is None:
            status = "waiting"
        if paused and row.status == "running":  # also one that is over, which its row cannot say yet
            status, reason = "paused", paused
        elif job.commits.paused:
            status = "paused"
        elif job.rounds.held:
            status, reason = _held(job)
        elif place is not None:
            status, reason = "queued", _waits(place)
        else:
            reason = _waits_for(job, unstored) or reason
    elif row.status == "running" and elsewhere is not None and not fault:
        status, reason = elsewhere
    elif row.status == "running":
        status, reason = "unreadable", f"{fault}; `lifl cancel {row.name}` ends it"
    committed = last.round if last is not None else 0
    if job is not None and row.config.is_fold:
        committed = job.rounds.committed
    at = job.round.number if job is not None and job.round is not None else None
    return {
        "name": row.name,
        "status": status,
        "reason": reason,
        "round": at or committed,
        "rounds": row.config.job.rounds,
        "committed": committed,
        "clients": len(job.present) if job is not None else 0,
        "rule": row.config.aggregation.rule,
        "metrics": last.fields.get("metrics", {}) if last is not None else {},
        **evaluation_of(last),
        "last_round": _last_round(last) if last is not None else None,
        "submitted_unix_s": row.submitted_unix_s,
        "folder": row.folder,
        "pending": job.edits.pending if job is not None else {},
        "priority": row.config.priority,
        "queue": place._asdict() if place is not None else None,
    }


def _waits_for(job: Job, unstored: str) -> str:
    """Return what a job waits for, or what its user should know of it; empty: nothing."""
    if (running := job.evaluation.current) is not None:
        heard = f"{len(running.told)} of {len(running.selected)} clients have told what they found"
        return f"the model of round {running.number} is evaluated: {heard}"
    if job.over:
        return ""
    if job.evaluation.is_left and job.status == "running":
        return "its last evaluation, which the coordinator's end has broken off, waits for its clients"
    if unstored and job.spec.config.job.durability == "disk":
        return unstored
    if job.round is not None and job.round.reason:
        return job.round.reason
    if job.selection.choosing.waits:
        return f"{job.spec.config.selection.function} (selection.strategy) is asked whom to select"
    if job.round is not None and (lack := job.selection.lack(job.round)):
        return f"{lack}: it is asked again when another client is here, until the deadline"
    return job.stopping.fault


def _last_round(last: RoundRow) -> dict[str, Any]:
    """Return a committed round in a few figures."""
    receipt = last.fields.get("receipt") or {}
    names = ("duration_s", "last_accepted_to_commit_s", "selected", "counted", "bytes_in")
    return {
        "round": last.round,
        "committed_unix_s": last.saved_unix_s,
        **{name: receipt.get(name) for name in names},
        "cpu_s": sum(receipt["cpu_s"].values()) if receipt.get("cpu_s") else None,
    }


def _waits(place: Place) -> str:
    needs, free = (f"{nbytes / (1 << 20):.1f} MiB" for nbytes in (place.needs_bytes, place.free_bytes))
    text = f"needs {needs} of the arena, free {free}; {place.position} of {place.length} in line"
    return f"{text}; over the nodes: {place.elsewhere}" if place.elsewhere else text


def _held(job: Job) -> tuple[str, str]:
    """Return status and reason of a job that the user has paused: the round that runs is finished first."""
    numbers = [round_.number for round_ in job.rounds.live() if round_.opened_at_s is not None]
    if numbers:
        return "pausing", f"by the user; round {max(numbers)} is finished first"
    if not job.queued:
        return "pausing", "by the user; what it has begun is finished first"
    return "paused", f"by the user, its room in the arena is given back; `lifl resume {job.name}` lets it go on"


def unreadable_line(row: UnreadableJob) -> dict[str, Any]:
    """Return a job of a list whose row cannot be read."""
    end = f"`lifl cancel '{row.name}'` ends it" if row.status == "running" else ""
    return {
        "name": row.name,
        "status": "unreadable" if row.status == "running" else row.status,
        "reason": "; ".join(text for text in (row.reason, row.fault, end) if text),
        "round": 0,
        "rounds": 0,
        "committed": 0,
        "clients": 0,
        "rule": "?",
        "metrics": {},
        "last_round": None,
        "submitted_unix_s": row.submitted_unix_s,
        "folder": row.folder,
        "pending": {},
        "priority": 0,
        "queue": None,
    }


def round_line(row: RoundRow, tree: bool = True) -> dict[str, Any]:
    """Return one round that is over; of what cannot be read of it, `reason` tells.

    Without `tree` its receipt counts the tasks of each role (`tasks`) in their place, and tells no update's time.
    """
    receipt = row.fields.get("receipt")
    if receipt is not None and not tree:
        roles = Counter(line["role"] for line in receipt["tree"])
        receipt = {name: value for name, value in receipt.items() if name not in ("tree", "timeline")} | {
            "tasks": dict(roles)
        }
    hint = "; mend the row while no lifld runs, or leave it: the job's models are where they were"
    return {
        "round": None if "round" in row.unread else row.round,
        "attempt": row.attempt,
        "status": row.status,
        "reason": f"{row.fault}{hint}" if row.fault else row.fields.get("reason", ""),
        "committed_unix_s": row.saved_unix_s if row.status == "committed" else None,
        "metrics": row.fields.get("metrics", {}),
        "path": row.fields.get("path", "") if row.status == "committed" else "",
        "digest": next(iter(row.fields.get("digests", ())), "") if row.status == "committed" else "",
        "receipt": receipt,
        **evaluation_of(row),
    }


def evaluation_of(row: RoundRow | None) -> dict[str, Any]:
    """Return what was found of a round's model, where that was evaluated."""
    return {"evaluation": row.fields["evaluation"]} if row is not None and "evaluation" in row.fields else {}


def round_now(
    engine: Engine, job: Job, now: float, trees: Mapping[int, Sequence[dict[str, Any]]]
) -> dict[str, Any] | None:
    """Return the round that runs; `trees` has the tasks at the other nodes.

    `tree` has at most `NOW_TASKS_MAX` lines, `tasks` is how many there are.  `arriving` are clients of this node whose
    updates are on their way, `waiting` those whose updates are accepted and wait for room: the first ones of each.
    """
    round_ = job.round or next((saving for saving in job.rounds.saving[-1:] if saving.number), None)
    if round_ is None:
        return None
    replica = engine.agent.replicas.get(job.spec.number)
    here = [r for r in replica.runners.values() if r.branch.epoch == round_.epoch] if replica is not None else []
    tree: list[dict[str, Any]] = []
    tasks = 0

    def add(node: int, lines: Sequence[dict[str, Any]]) -> None:
        nonlocal tasks
        tasks += len(lines)
        tree.extend(line | {"node": f"{node:016x}"} for line in lines[: NOW_TASKS_MAX - len(tree)])

    for runner in here:
        add(engine.node, _named(runner.branch))
    counted = sum(_counted(runner.branch) for runner in here)
    for record in round_.branches.values():
        if record.node != engine.node:
            at = {"job": job.spec.number, "epoch": round_.epoch, "branch": record.number}
            lines = [line for line in trees.get(record.node, ()) if at.items() <= line.items()]
            add(record.node, lines)
            counted += sum(line["expect"] for line in lines if line["role"] == "leaf" and line["state"] == "sealed")
    return {
        "round": round_.number,
        "attempt": round_.attempt,
        "phase": round_.phase.value,
        "reason": round_.reason or _apart_text(job, round_),
        "selected": len(round_.selected),
        "uploading": len(round_.granted),
        "accepted": len(round_.accepted),
        "counted": counted,
        "goal": round_.goal,
        "quorum": round_.quorum,
        "open_s": now - round_.opened_at_s if round_.opened_at_s is not None else None,
        "time_left_s": _time_left_s(round_, now),
        "between_bytes": round_.between_bytes,
        "nodes": len(round_.nodes),
        "draining": sorted(f"{node:016x}" for node in round_.nodes if runs(engine, job.spec).nodes.goes(node)),
        "arriving": _first(grant.client for r in here for grant in r.branch.in_flight.values()),
        "waiting": _first(client for r in here for client in list(r.branch.accepted)[r.branch.given :]),
        "tree": tree,
        "tasks": tasks,
    }


def _apart_text(job: Job, round_: Round) -> str:
    """Return why a round waits though clients are here: the condition of the job is not true of them."""
    here, selectable = len(job.present), job.selection.selectable
    if round_.phase is not Phase.WAITING or selectable >= round_.goal or selectable == here:
        return ""
    return f"selection.where is true of {selectable} of the {here} clients that are here; it begins with {round_.goal}"


def _named(branch: Branch) -> list[dict[str, Any]]:
    """Return the lines of a branch; in a small one each task that takes updates tells whose came (`clients`).

    Tasks take updates as they were accepted, but for those that were read from the disk again.
    """
    lines = branch.lines()
    if len(lines) > NAMED_TASKS_MAX or branch.stored or branch.loading:
        return lines
    clients: dict[int, list[str]] = {}
    for position, client in enumerate(islice(branch.accepted, branch.given)):
        clients.setdefault(branch.tree.taker_of(position).number, []).append(client)
    return [line | {"clients": _first(clients.get(line["number"], ()))} for line in lines]


def _first(names: Iterable[str]) -> list[str]:
    return list(islice(names, NAMES_SHOWN_MAX))


def _time_left_s(round_: Round, now: float) -> float | None:
    """Return how long a round that is open may still take; None: it is not open, or has no deadline."""
    if round_.opened_at_s is None or round_.deadline_at_s == math.inf:
        return None
    return max(0.0, round_.deadline_at_s - now)


def client_lines(job: Job) -> list[dict[str, Any]]:
    """Return the clients of a job in the order of their names: those here, and those that were selected lately."""
    reliability = job.selection.reliability
    records, present = reliability.records(), job.present
    said = job.selection.said
    lines = []
    for client in sorted({*records, *present}):
        record = records.get(client, Record())
        line = {"client": client, "here": client in present, "level": reliability.level(client)}
        if client in said:
            line["properties"] = msgspec.to_builtins(said[client])
        lines.append(line | {name: value for name, value in record._asdict().items() if name != "at"})
    return lines


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
                "tied": worker.tied,
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

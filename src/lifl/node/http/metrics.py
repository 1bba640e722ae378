"""The node's status in Prometheus' text format, with names and units by its conventions.

Labels are bounded: those of jobs by `JOB_SERIES_MAX`, those of what clients measure by `JOB_METRIC_SERIES_MAX` for each
job, the others by what LIFL itself is; no client's name is one.  A job of LIFL is `job_name`, for Prometheus calls what
it scrapes a job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lifl.core.limits import JOB_SERIES_MAX

KIND = "text/plain; version=0.0.4; charset=utf-8"
JOB_STATES = ("loading", "waiting", "running", "paused", "finished", "failed", "cancelled", "unreadable")
NODE_STATES = ("alive", "suspect", "dead", "left")
_OF_NODE = (
    ("lifl_arena_bytes", "gauge", "arena", "bytes", "Size of the shared memory."),
    ("lifl_arena_used_bytes", "gauge", "arena", "used_bytes", "Bytes of it in use."),
    ("lifl_arena_peak_bytes", "gauge", "arena", "peak_bytes", "The most that was in use at a time."),
    ("lifl_arena_objects", "gauge", "arena", "objects", "Updates, partials and models in it."),
    ("lifl_arena_waiting_updates", "gauge", "arena", "waiting", "Updates that wait for room in it."),
    ("lifl_gateway_connections", "gauge", "gateway", "connections", "Connections of clients."),
    ("lifl_gateway_received_bytes_total", "counter", "gateway", "received_bytes", "Bytes of updates received."),
    ("lifl_gateway_sent_bytes_total", "counter", "gateway", "sent_bytes", "Bytes of models sent."),
    ("lifl_http_clients", "gauge", "", "clients", "Clients that take part by HTTP."),
    ("lifl_start_time_seconds", "gauge", "", "started_unix_s", "When the node was started, since 1970."),
    ("lifl_warnings", "gauge", "", "warnings", "What lifl top warns of."),
    ("lifl_paused", "gauge", "", "paused", "1 while nothing can be decided: a disk or a store takes nothing."),
    ("lifl_leads", "gauge", "", "leads", "1 on the node that coordinates."),
)
_OF_JOB = (
    ("lifl_job_rounds_committed_total", "counter", "", "committed", "Rounds that are committed."),
    ("lifl_job_clients", "gauge", "", "clients", "Clients that have joined now."),
    ("lifl_job_round", "gauge", "now", "round", "Number of the round that runs."),
    ("lifl_job_round_goal_updates", "gauge", "now", "goal", "Accepted updates that close the round that runs."),
    ("lifl_job_round_deadline_seconds", "gauge", "now", "time_left_s", "What is left until the round must close."),
    (
        "lifl_job_last_commit_timestamp_seconds",
        "gauge",
        "last_round",
        "committed_unix_s",
        "When a round was committed.",
    ),
    ("lifl_job_last_round_duration_seconds", "gauge", "last_round", "duration_s", "How long that round took."),
    (
        "lifl_job_last_round_commit_seconds",
        "gauge",
        "last_round",
        "last_accepted_to_commit_s",
        "From its last update to its commit.",
    ),
    ("lifl_job_last_round_counted_updates", "gauge", "last_round", "counted", "Updates in it."),
    ("lifl_job_last_round_received_bytes", "gauge", "last_round", "bytes_in", "Bytes of updates that it received."),
    ("lifl_job_last_round_cpu_seconds", "gauge", "last_round", "cpu_s", "CPU time that it took."),
)
_UPDATES = ("selected", "uploading", "accepted", "counted")
Sample = tuple[Mapping[str, str], float | int | None]


def text_of(status: dict[str, Any]) -> bytes:
    """Return the metrics of a status (`api.Api`)."""
    return "".join(f"{line}\n" for line in _lines(status)).encode()


def _lines(status: dict[str, Any]) -> Iterator[str]:
    version = {"version": status["version"], "node": status["node"], "redirector": status["redirector"]["kind"]}
    yield from _metric("lifl_build_info", "gauge", "What runs here.", [(version, 1)])
    for name, kind, group, key, text in _OF_NODE:
        yield from _metric(name, kind, text, [({}, (status[group] if group else status)[key])])
    for name, text, label, samples in (
        ("lifl_workers", "Aggregator processes.", "state", status["workers"]),
        ("lifl_nodes", "Nodes of the cluster; none for a node that is in none.", "state", _counted(status, "nodes")),
        (
            "lifl_jobs",
            "Jobs that are not over, and those that ended since the node is up.",
            "status",
            _by_status(status),
        ),
    ):
        yield from _metric(name, "gauge", text, [({label: which}, count) for which, count in samples.items()])
    for name, text, label, samples in (
        ("lifl_cpu_seconds_total", "CPU time of the node's standing processes.", "process", status["cpu_s"]),
        ("lifl_redirector_records_total", "Records sent, by what became of them.", "to", _redirected(status)),
    ):
        yield from _metric(name, "counter", text, [({label: which}, value) for which, value in samples.items()])
    yield from _jobs(status["jobs"])


def _jobs(jobs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    over = ("finished", "failed", "cancelled")
    shown = sorted(jobs, key=lambda job: job["status"] in over)[:JOB_SERIES_MAX]
    states: list[Sample] = [({"job_name": job["name"], "status": job["status"]}, 1) for job in shown]
    yield from _metric("lifl_job_status", "gauge", "1 for the status that the job has.", states)
    for name, kind, group, key, text in _OF_JOB:
        found = [({"job_name": job["name"]}, ((job.get(group) or {}) if group else job).get(key)) for job in shown]
        yield from _metric(name, kind, text, found)
    metrics: list[Sample] = [
        ({"job_name": job["name"], "metric": name}, value)
        for job in shown
        for name, value in job.get("metrics", {}).items()
    ]
    text = "Mean over the clients of the round that was committed last, by weight, of a metric that they sent."
    yield from _metric("lifl_job_metric", "gauge", text, metrics)
    found = [
        ({"job_name": job["name"], "metric": name}, value)
        for job in shown
        for name, value in job.get("evaluated", {}).items()
    ]
    text = (
        "What was found of the model that was committed last, where it was evaluated: by the server, else by clients."
    )
    yield from _metric("lifl_job_evaluation", "gauge", text, found)
    updates: list[Sample] = [
        ({"job_name": job["name"], "state": state}, job["now"].get(state))
        for job in shown
        if job.get("now")
        for state in _UPDATES
    ]
    yield from _metric("lifl_job_round_updates", "gauge", "Updates of the round that runs.", updates)


def _by_status(status: Mapping[str, Any]) -> dict[str, int]:
    found = Counter(job["status"] for job in status["jobs"])
    return {state: found[state] for state in JOB_STATES}


def _counted(status: Mapping[str, Any], key: str) -> dict[str, int]:
    return {state: status[key].get(state, 0) for state in NODE_STATES} if status[key] else {}


def _redirected(status: Mapping[str, Any]) -> dict[str, int]:
    """Return how many records went to their worker, and to lifld instead, and why."""
    found: dict[str, int] = {
        name: status["redirector"].get(name, 0) for name in ("unknown", "dead", "over", "malformed")
    }
    return {"worker": max(0, status["redirector"].get("runs", 0) - sum(found.values()))} | found


def _metric(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield a metric with the samples that have a value; one that has none is not told."""
    lines = [f"{name}{_labels(labels)} {value}" for labels, value in samples if value is not None]
    if lines:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {kind}"
        yield from lines


def _labels(labels: Mapping[str, str]) -> str:
    told = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{','.join(told)}}}" if labels else ""


def _escaped(text: str) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

"""The node's status in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KIND = "text/plain; version=0.0.4; charset=utf-8"
_GAUGES = {
    "lifl_arena_bytes": ("arena", "bytes", "Size of the shared memory."),
    "lifl_arena_used_bytes": ("arena", "used_bytes", "Bytes of it in use."),
    "lifl_arena_objects": ("arena", "objects", "Updates, partials and models in it."),
    "lifl_arena_waiting": ("arena", "waiting", "Updates that wait for room in it."),
    "lifl_gateway_connections": ("gateway", "connections", "Connections of clients."),
}
_COUNTERS = {
    "lifl_gateway_received_bytes_total": ("gateway", "received_bytes", "Bytes of updates received."),
    "lifl_gateway_sent_bytes_total": ("gateway", "sent_bytes", "Bytes of models sent."),
}


def text_of(status: dict[str, Any]) -> bytes:
    """Return the metrics of a status (`api.Api`)."""
    return "".join(f"{line}\n" for line in _lines(status)).encode()


def _lines(status: dict[str, Any]) -> Iterator[str]:
    for kind, table in (("gauge", _GAUGES), ("counter", _COUNTERS)):
        for name, (group, key, text) in table.items():
            yield from _head(name, kind, text)
            yield f"{name} {status[group][key]}"
    for name, key, text in (
        ("lifl_workers", "workers", "Aggregator processes."),
        ("lifl_http_clients", "clients", "Clients that take part by HTTP."),
        ("lifl_uptime_seconds", "uptime_s", "Since the node is up."),
        ("lifl_warnings", "warnings", "What lifl top warns of."),
    ):
        yield from _head(name, "gauge", text)
        yield f"{name} {status[key]}"
    yield from _head("lifl_cpu_seconds_total", "counter", "CPU time of the node's standing processes.")
    for process, seconds in status["cpu_s"].items():
        yield f'lifl_cpu_seconds_total{{process="{process}"}} {seconds}'
    yield from _head("lifl_job_rounds_committed", "gauge", "Rounds of a job that are committed.")
    for job in status["jobs"]:
        yield f'lifl_job_rounds_committed{{job="{job["name"]}",status="{job["status"]}"}} {job.get("committed", 0)}'


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"

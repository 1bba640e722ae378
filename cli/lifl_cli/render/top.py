"""The view of `lifl top`: the nodes, this node, its workers and its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lifl_cli.render.figures import metrics_text, seconds_text, size_text, who_coordinates
from lifl_cli.render.tables import cell, nodes_table
from lifl_cli.render.trees import round_text, tree_view

JOBS_MAX = 8
WORKERS_SHOWN_MAX = 32
REDIRECTED = {
    "runs": "sends",
    "unknown": "to no route",
    "dead": "to the dead",
    "over": "over a window",
    "malformed": "malformed",
}
"""The redirector's counters; all but the first went to the daemon instead."""


def view(sample: Mapping[str, Any]) -> RenderableType:
    """Return the whole view of one sample."""
    parts: list[RenderableType] = [_node_view(sample)]
    if len(sample.get("nodes", ())) > 1:
        parts.append(nodes_table(sample["nodes"]))
    if sample["workers"]:
        parts.append(_workers_view(sample))
    else:
        parts.append(Text("no aggregator runs: none is needed now", style="dim"))
    shown = sorted(sample["jobs"], key=lambda job: job["status"] not in ("running", "waiting"))
    parts += [_job_view(job) for job in shown[:JOBS_MAX]]
    if len(shown) > JOBS_MAX:
        parts.append(Text(f"... and {len(shown) - JOBS_MAX} more jobs: see `lifl jobs`", style="dim"))
    return Group(*parts)


def _node_view(sample: Mapping[str, Any]) -> RenderableType:
    node, host, rates = sample["node"], sample["host"], sample["rates"]
    arena, redirector, gateway = node["arena"], node["redirector"], node["gateway"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    seen = (
        f"CPU {host['cpu_percent']:.0f} % of {host['cpus']} cores, "
        f"memory {size_text(host['memory_used_bytes'])} of {size_text(host['memory_bytes'])}; "
        if host
        else ""
    )
    grid.add_row("machine", f"{seen}folds {node['capacity']:g} updates at a time")
    processes = [
        f"{kind} {_process_text(sample, pid)}"
        for kind, pid in (
            ("lifld", node["pid"]),
            ("gateway", gateway.get("pid")),
            ("zygote", node.get("zygote_pid")),
            *([("http", node["http_door"]["pid"])] if node.get("http_door") else []),
        )
    ]
    grid.add_row("processes", ", ".join(processes))
    waiting = f", {arena['waiting']} updates wait for room" if arena.get("waiting") else ""
    grid.add_row(
        "arena",
        f"{size_text(arena['used_bytes'])} of {size_text(arena['bytes'])} in use, "
        f"peak {size_text(arena['peak_bytes'])}, {arena['objects']} objects{waiting}",
    )
    counters = ", ".join(f"{value} {REDIRECTED[name]}" for name, value in redirector.items() if name in REDIRECTED)
    grid.add_row("redirector", cell(f"{redirector['kind']}: {counters}"))
    grid.add_row(
        "gateway",
        f"in {rates['received_bytes_s'] / 1e6:.1f} MB/s, out {rates['sent_bytes_s'] / 1e6:.1f} MB/s, "
        f"{gateway.get('connections', 0)} connections, {size_text(gateway.get('received_bytes', 0))} received in all",
    )
    if node.get("store"):
        grid.add_row("coordinator", _store_text(node["store"]))
    for warning in node.get("warnings", ()):
        grid.add_row("warning", cell(warning, "yellow"))
    title = f"lifld {node['node']}  {', '.join(node['listen'])}  up {seconds_text(node['uptime_s'])}"
    return Panel(grid, title=cell(title), title_align="left")


def _store_text(store: Mapping[str, Any]) -> Text:
    """Return who coordinates, or why nobody does."""
    if store["trouble"]:
        return cell(store["trouble"], "bold red")
    return cell(who_coordinates(store))


def _process_text(sample: Mapping[str, Any], pid: int | None) -> str:
    measured = sample["processes"].get(str(pid))
    if not pid or measured is None:
        return "-"
    return f"{pid} ({measured['cpu_percent']:.0f} %, {size_text(measured['private_bytes'])})"


def _workers_view(sample: Mapping[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False, title_justify="left", title="workers")
    for column in ("role", "pid", "CPU", "memory", "task", "inputs", "done"):
        table.add_column(column)
    workers = sorted(sample["workers"], key=lambda worker: (worker["role"] or "~", worker["worker"]))
    for worker in workers[:WORKERS_SHOWN_MAX]:
        busy = worker["state"] != "idle"
        measured = sample["processes"].get(str(worker["pid"]), {})
        table.add_row(
            cell(worker["role"] if busy else "idle"),
            str(worker["pid"]),
            f"{measured.get('cpu_percent', 0):.0f} %",
            size_text(measured.get("private_bytes")),
            cell(f"{worker['job']} round {worker['round']} #{worker['address']}" if busy else "-"),
            f"{worker['inputs']}/{worker['expect']}" if busy and worker["expect"] else "-",
            str(worker["tasks_done"]),
        )
    if len(workers) > WORKERS_SHOWN_MAX:
        table.add_row(f"... {len(workers) - WORKERS_SHOWN_MAX} more")
    return table


def _job_view(job: Mapping[str, Any]) -> RenderableType:
    now = job.get("now")
    lines: list[RenderableType] = []
    if now:
        lines.append(cell(round_text(now)))
    metrics = metrics_text(job.get("metrics"))
    if metrics:
        lines.append(cell(f"last round: {metrics}"))
    if job.get("reason"):
        lines.append(cell(job["reason"], "yellow"))
    if now and now.get("tree"):
        lines.append(tree_view(now["tree"], now.get("tasks", 0)))
    title = f"job {job['name']}  {job['status']}  {job['committed']}/{job['rounds']} committed"
    return Panel(Group(*lines) if lines else Text("-", style="dim"), title=cell(title), title_align="left")

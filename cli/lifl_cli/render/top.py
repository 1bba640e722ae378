"""The view of `lifl top`: the nodes, this node, its workers and its jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lifl_cli.render.figures import (
    NARROW_COLUMNS,
    disk_text,
    measured_text,
    seconds_text,
    size_text,
    upload_text,
    who_coordinates,
)
from lifl_cli.render.tables import STATE_STYLES, cell, nodes_table
from lifl_cli.render.trees import round_text, tree_view

SORTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "activity": lambda job: job["status"] not in ("running", "waiting"),
    "name": lambda job: job["name"],
    "progress": lambda job: -job["committed"] / max(1, job["rounds"]),
    "clients": lambda job: -job["clients"],
}
BAR_CELLS = 20
NARROW_BAR_CELLS = 8
KEYS = "j/k job  a all  s sort  t tree  space pause  q quit"
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


class Look(NamedTuple):
    """How somebody looks at it: at one `job` alone (or all), with or without trees; `paused`: what was seen stays."""

    job: str | None = None
    sort: str = "activity"
    tree: bool = True
    paused: bool = False


ALL = Look()


def pressed(look: Look, key: str, sample: Mapping[str, Any]) -> Look | None:
    """Return how it is looked at after a key; None: not at all any more."""
    jobs = [job["name"] for job in in_order(sample["jobs"], look.sort)]
    match key:
        case "q" | "":
            return None
        case "j" | "k" if jobs:
            step = 1 if key == "j" else -1
            at = jobs.index(look.job) + step if look.job in jobs else (0 if key == "j" else -1)
            return look._replace(job=jobs[at % len(jobs)])
        case "a":
            return look._replace(job=None)
        case "s":
            sorts = list(SORTS)
            return look._replace(sort=sorts[(sorts.index(look.sort) + 1) % len(sorts)])
        case "t":
            return look._replace(tree=not look.tree)
        case " " | "p":
            return look._replace(paused=not look.paused)
    return look


def in_order(jobs: Sequence[Mapping[str, Any]], sort: str) -> list[Mapping[str, Any]]:
    """Return jobs in the order of one of `SORTS`."""
    return sorted(jobs, key=SORTS[sort])


def view(sample: Mapping[str, Any], look: Look = ALL, width: int = 0, keys: str = "") -> RenderableType:
    """Return the whole view of one sample on `width` columns (0: as many as it takes), with what `keys` do below."""
    narrow = 0 < width < NARROW_COLUMNS
    parts: list[RenderableType] = [_narrow_node_view(sample) if narrow else _node_view(sample)]
    if len(sample.get("nodes", ())) > 1:
        parts.append(_states_view(sample["nodes"]) if narrow else nodes_table(sample["nodes"]))
    if narrow:
        busy = sum(worker["state"] != "idle" for worker in sample["workers"])
        parts.append(Text(f"{len(sample['workers'])} aggregators, {busy} busy", style="dim"))
    elif sample["workers"]:
        parts.append(_workers_view(sample))
    else:
        parts.append(Text("no aggregator runs: none is needed now", style="dim"))
    shown = [job for job in in_order(sample["jobs"], look.sort) if look.job in (None, job["name"])]
    parts += [_job_view(job, look.tree and not narrow, narrow) for job in shown[:JOBS_MAX]]
    if len(shown) > JOBS_MAX:
        parts.append(Text(f"... and {len(shown) - JOBS_MAX} more jobs: see `lifl jobs`", style="dim"))
    if keys:
        state = f"PAUSED  by {look.sort}" if look.paused else f"by {look.sort}"
        parts.append(Text(f"{state}  {keys}", style="reverse" if look.paused else "dim"))
    return Group(*parts)


def progress_text(now: Mapping[str, Any], last: Mapping[str, Any] | None, cells: int = BAR_CELLS) -> str:
    """Return how far a round is: a bar, updates, how long it has taken, and will if the rest come as those before."""
    accepted, goal = now["accepted"], max(1, now["goal"])
    full = min(cells, cells * accepted // goal)
    text = f"[{'#' * full}{'.' * (cells - full)}] {accepted}/{goal}"
    open_s = now.get("open_s")
    if open_s is not None:
        text += f"  {seconds_text(open_s)}"
        if 0 < accepted < goal:
            text += f", {seconds_text((goal - accepted) * open_s / accepted)} to go"
    if last and last.get("duration_s") is not None:
        text += f" (last: {seconds_text(last['duration_s'])})"
    return text


def _narrow_node_view(sample: Mapping[str, Any]) -> RenderableType:
    """Return the node in a few short lines."""
    node, rates, host = sample["node"], sample["rates"], sample["host"]
    arena = node["arena"]
    lines = [
        f"lifld {node['node']}",
        f"up {seconds_text(node['uptime_s'])}" + (f", CPU {host['cpu_percent']:.0f} %" if host else ""),
        f"arena {size_text(arena['used_bytes'])} of {size_text(arena['bytes'])}",
        f"in {rates['received_bytes_s'] / 1e6:.1f}, out {rates['sent_bytes_s'] / 1e6:.1f} MB/s",
    ]
    if arena.get("waiting"):
        lines.append(f"{arena['waiting']} updates wait for room")
    told = [cell(warning, "yellow") for warning in node.get("warnings", ())]
    if node.get("store"):
        told.insert(0, _store_text(node["store"]))
    return Group(*(cell(line) for line in lines), *told)


def _states_view(nodes: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return how many nodes are in which state, in a line."""
    states = Counter(str(node.get("drain") or "alive" if node["state"] == "alive" else node["state"]) for node in nodes)
    told = (cell(f"{count} {state}", STATE_STYLES.get(state, "")) for state, count in states.items())
    return Text(f"{len(nodes)} nodes: ") + Text(", ").join(told)


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


def _job_view(job: Mapping[str, Any], tree: bool = True, narrow: bool = False) -> RenderableType:
    now = job.get("now")
    lines: list[RenderableType] = []
    if now and narrow:
        lines.append(cell(f"round {now['round']}, {now['phase']}"))
    elif now:
        lines.append(cell(round_text(now)))
    if now:
        lines.append(cell(progress_text(now, job.get("last_round"), NARROW_BAR_CELLS if narrow else BAR_CELLS)))
    metrics = measured_text(job)
    if metrics:
        lines.append(cell(f"last round: {metrics}"))
    if job.get("disk"):
        lines.append(cell(disk_text(job["disk"]), "yellow" if job["disk"]["fault"] else ""))
    if job.get("upload"):
        lines.append(cell(upload_text(job["upload"]), "yellow" if job["upload"]["fault"] else ""))
    if job.get("reason"):
        lines.append(cell(job["reason"], "yellow"))
    if now and now.get("tree") and tree:
        lines.append(tree_view(now["tree"], now.get("tasks", 0)))
    title = f"job {job['name']}  {job['status']}  {job['committed']}/{job['rounds']} committed"
    if narrow:
        title = f"{job['name']} {job['status']} {job['committed']}/{job['rounds']}"
    return Panel(Group(*lines) if lines else Text("-", style="dim"), title=cell(title), title_align="left")

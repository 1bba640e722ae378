"""`lifl top`: the cluster, the node, its workers and its jobs, live.

`lifld` measures nothing on its own for this: once a second, while the view is open, one Snapshot is asked
for; rates are the differences of two snapshots.  CPU and memory of processes and of the machine are read
here, with psutil.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifl.core.protocol.cli import Snapshot
from lifl_cli.daemon_client import Control
from lifl_cli.state import state_option
from lifl_cli.text import metrics_text, seconds_text, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.tree import Tree

REFRESH_S = 1.0
ONCE_WINDOW_S = 0.3
"""How long `--once` measures CPU and rates."""
TREE_TASKS_MAX = 40
"""A larger tree is cut in the view (never in JSON)."""
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


@click.command()
@click.option("--once", is_flag=True, help="Print one view and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one snapshot as JSON and end.")
@state_option
def top(once: bool, as_json: bool, state_dir: Path) -> None:
    """Watch the node, its workers and its jobs live."""
    with Control(state_dir) as control:
        sampler = Sampler(control)
        if once or as_json:
            sampler.sample()
            time.sleep(ONCE_WINDOW_S)  # the window in which rates are measured
            sample = sampler.sample()
            if as_json:
                click.echo(json.dumps(sample, indent=2))
            else:
                from lifl_cli.jobs import show

                show(view(sample))
            return
        _live(sampler)


class Sampler:
    """Turns snapshots into samples: a snapshot with rates, and CPU and memory of each process."""

    def __init__(self, control: Control) -> None:
        import psutil

        self._psutil = psutil
        self._control = control
        self._processes: dict[int, Any] = {}
        self._last: tuple[float, Mapping[str, Any]] | None = None
        psutil.cpu_percent()

    def sample(self) -> dict[str, Any]:
        """A Snapshot's result with `host`, `processes` (by pid) and `rates` added."""
        snapshot = self._control.ask(Snapshot())
        now_s = time.monotonic()
        memory = self._psutil.virtual_memory()
        node = snapshot["node"]
        pids = [node["pid"], node["gateway"].get("pid"), node.get("zygote_pid")]
        pids += [worker["pid"] for worker in snapshot["workers"]]
        sample = {
            **snapshot,
            "host": {
                "cpu_percent": self._psutil.cpu_percent(),
                "cpus": self._psutil.cpu_count(),
                "memory_bytes": memory.total,
                "memory_used_bytes": memory.total - memory.available,
            },
            "processes": self._measure([pid for pid in pids if pid]),
            "rates": self._rates(now_s, node["gateway"]),
        }
        self._last = (now_s, node["gateway"])
        return sample

    def _measure(self, pids: Sequence[int]) -> dict[str, dict[str, float]]:
        found = {}
        for pid in pids:
            try:
                process = self._processes.setdefault(pid, self._psutil.Process(pid))
                memory = process.memory_info()
                found[str(pid)] = {
                    "cpu_percent": process.cpu_percent(),
                    # The arena is mapped by all of them: it belongs to none.
                    "private_bytes": memory.rss - memory.shared,
                }
            except self._psutil.Error:
                self._processes.pop(pid, None)
        self._processes = {pid: process for pid, process in self._processes.items() if pid in pids}
        return found

    def _rates(self, now_s: float, gateway: Mapping[str, Any]) -> dict[str, float]:
        if self._last is None:
            return {"received_bytes_s": 0.0, "sent_bytes_s": 0.0}
        then_s, before = self._last
        return {
            f"{way}_bytes_s": (gateway.get(f"{way}_bytes", 0) - before.get(f"{way}_bytes", 0)) / (now_s - then_s)
            for way in ("received", "sent")
        }


def _live(sampler: Sampler) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        raise click.UsageError("the live view needs a terminal; use --once or --json")
    sampler.sample()
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(view(sampler.sample()), refresh=True)
                ready, _, _ = select.select([sys.stdin], [], [], REFRESH_S)
                if ready and sys.stdin.read(1) in ("q", ""):
                    return
        except KeyboardInterrupt:
            return


@contextmanager
def _keys() -> Iterator[None]:
    """The terminal gives single keys, without echo, for a while."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def view(sample: Mapping[str, Any]) -> RenderableType:
    """The whole view of one sample."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_node_view(sample)]
    if len(sample.get("nodes", ())) > 1:
        from lifl_cli.nodes import nodes_table

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
    from rich.panel import Panel
    from rich.table import Table

    node, host, rates = sample["node"], sample["host"], sample["rates"]
    arena, redirector, gateway = node["arena"], node["redirector"], node["gateway"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    grid.add_row(
        "machine",
        f"CPU {host['cpu_percent']:.0f} % of {host['cpus']} cores, "
        f"memory {size_text(host['memory_used_bytes'])} of {size_text(host['memory_bytes'])}; "
        f"folds {node['capacity']:g} updates at a time",
    )
    processes = [
        f"{kind} {_process_text(sample, pid)}"
        for kind, pid in (
            ("lifld", node["pid"]),
            ("gateway", gateway.get("pid")),
            ("zygote", node.get("zygote_pid")),
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
    grid.add_row("redirector", f"{redirector['kind']}: {counters}")
    grid.add_row(
        "gateway",
        f"in {rates['received_bytes_s'] / 1e6:.1f} MB/s, out {rates['sent_bytes_s'] / 1e6:.1f} MB/s, "
        f"{gateway.get('connections', 0)} connections, {size_text(gateway.get('received_bytes', 0))} received in all",
    )
    title = f"lifld {node['node']}  {', '.join(node['listen'])}  up {seconds_text(node['uptime_s'])}"
    return Panel(grid, title=title, title_align="left")


def _process_text(sample: Mapping[str, Any], pid: int | None) -> str:
    measured = sample["processes"].get(str(pid))
    if not pid or measured is None:
        return "-"
    return f"{pid} ({measured['cpu_percent']:.0f} %, {size_text(measured['private_bytes'])})"


def _workers_view(sample: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title_justify="left", title="workers")
    for column in ("role", "pid", "CPU", "memory", "task", "inputs", "done"):
        table.add_column(column)
    workers = sorted(sample["workers"], key=lambda worker: (worker["role"] or "~", worker["worker"]))
    for worker in workers[:WORKERS_SHOWN_MAX]:
        busy = worker["state"] != "idle"
        measured = sample["processes"].get(str(worker["pid"]), {})
        table.add_row(
            worker["role"] if busy else "idle",
            str(worker["pid"]),
            f"{measured.get('cpu_percent', 0):.0f} %",
            size_text(measured.get("private_bytes")),
            f"{worker['job']} round {worker['round']} #{worker['address']}" if busy else "-",
            f"{worker['inputs']}/{worker['expect']}" if busy and worker["expect"] else "-",
            str(worker["tasks_done"]),
        )
    if len(workers) > WORKERS_SHOWN_MAX:
        table.add_row(f"... {len(workers) - WORKERS_SHOWN_MAX} more")
    return table


def _job_view(job: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    now = job.get("now")
    lines: list[RenderableType] = []
    if now:
        lines.append(Text(round_text(now)))
    metrics = metrics_text(job.get("metrics"))
    if metrics:
        lines.append(Text(f"last round: {metrics}"))
    if job.get("reason"):
        lines.append(Text(job["reason"], style="yellow"))
    if now and now.get("tree"):
        lines.append(tree_view(now["tree"]))
    title = f"job {job['name']}  {job['status']}  {job['committed']}/{job['rounds']} committed"
    return Panel(Group(*lines) if lines else Text("-", style="dim"), title=title, title_align="left")


def round_text(now: Mapping[str, Any]) -> str:
    """The running round in one line."""
    return (
        f"round {now['round']}: {now['selected']} selected, {now['accepted']} accepted, "
        f"{now['counted']} counted; commits at {now['goal']} (quorum {now['quorum']}), "
        f"{seconds_text(now['time_left_s'])} left"
    )


def tree_view(tasks: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The aggregation tree, its root above; tasks whose parent is not known yet stand beside each other.

    Where several nodes take part each has a branch of its own; those whose partial goes to the node with the top hang
    below it.
    """
    from rich.tree import Tree

    tree = Tree("aggregation tree", hide_root=True)
    branches: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for task in tasks:
        branches.setdefault((task.get("node") or "", task.get("branch", 0)), []).append(task)
    if len(branches) < 2:
        shown = _add_tasks(tree, tasks, TREE_TASKS_MAX)
    else:
        shown = 0
        above = tree
        for (node, _), branch in sorted(branches.items(), key=lambda item: not _has_top(item[1])):
            place = above.add(_branch_text(node, branch), style="none")
            shown += _add_tasks(place, branch, TREE_TASKS_MAX - shown)
            above = place if _has_top(branch) else above
    if len(tasks) > shown:
        tree.add(f"... {len(tasks) - shown} more tasks", style="dim")
    return tree


def _add_tasks(tree: Tree, tasks: Sequence[Mapping[str, Any]], tasks_max: int) -> int:
    """Draws the tasks of one node below `tree`, at most so many; returns how many."""
    # A task has its number from the plan, its address only while it is open.
    known = {task["number"] for task in tasks}
    below: dict[int | None, list[Mapping[str, Any]]] = {}
    for task in tasks:
        parent = task["parent_number"] if task["parent_number"] in known else None
        below.setdefault(parent, []).append(task)
    waiting = [(tree, task) for task in reversed(below.get(None, []))]
    shown = 0
    while waiting and shown < tasks_max:
        branch, task = waiting.pop()
        place = branch.add(_task_text(task), style=_STYLES.get(task["state"], ""))
        waiting += [(place, child) for child in reversed(below.get(task["number"], []))]
        shown += 1
    return shown


def _has_top(branch: Sequence[Mapping[str, Any]]) -> bool:
    return any(task["role"] == "top" for task in branch)


def _branch_text(node: str, branch: Sequence[Mapping[str, Any]]) -> str:
    leaves = [task for task in branch if task["role"] == "leaf"]
    sealed = sum(task["state"] == "sealed" for task in leaves)
    updates = f"{sum(t['updates'] for t in branch)}/{sum(t['updates_expect'] for t in branch)} updates"
    return f"node {node or '-'}  {updates}, {sealed} of {len(leaves)} leaves sealed"


_STYLES = {"running": "bold", "sealed": "green", "failed": "red"}


def _task_text(task: Mapping[str, Any]) -> str:
    pid = f"  pid {task['pid']}" if task.get("pid") else ""
    return f"{task['role']} {task['number']}  {task['inputs']}/{task['expect']}  {task['state']}{pid}"

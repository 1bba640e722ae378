"""Tables: of jobs, rounds, nodes, and of a plan's nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lifl.core.planning.plan import Plan
from lifl_cli.render.figures import metrics_text, printable, seconds_text, size_text

STATE_STYLES = {
    "alive": "green",
    "suspect": "yellow",
    "slow": "yellow",
    "draining": "yellow",
    "dead": "red",
    "left": "dim",
}


def show(content: RenderableType) -> None:
    """Print a rich table or tree; as wide as its content where the output is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=160)
    console.print(content)


def cell(text: object, style: str = "") -> Text:
    """Return a text from outside for rich, which is to show it and not to read it as markup."""
    return Text(printable(text), style)


def jobs_table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each job."""
    table = Table(box=None, pad_edge=False)
    for column in ("job", "status", "committed", "clients", "rule", "metrics", "reason"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        table.add_row(
            cell(job["name"]),
            cell(job["status"]),
            f"{job['committed']}/{job['rounds']}",
            str(job["clients"]),
            cell(job["rule"]),
            cell(metrics_text(job.get("metrics"))),
            cell(job.get("reason", "")),
        )
    return table


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each round, with the figures of its receipt."""
    table = Table(box=None, pad_edge=False)
    columns = (
        "round",
        "status",
        "counted",
        "bytes in",
        "CPU s",
        "took",
        "last to commit",
        "workers",
        "metrics",
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in rounds:
        receipt = line.get("receipt")
        number = "?" if line["round"] is None else str(line["round"])
        if not receipt:
            table.add_row(
                number,
                cell(line["status"]),
                *[""] * 6,
                cell(line.get("reason") or metrics_text(line["metrics"])),
            )
            continue
        table.add_row(
            number,
            cell(line["status"]),
            f"{receipt['counted']}/{receipt['selected']}",
            size_text(receipt["bytes_in"]),
            f"{sum(receipt['cpu_s'].values()):.3f}",
            seconds_text(receipt["duration_s"]),
            seconds_text(receipt["last_accepted_to_commit_s"]),
            f"{receipt['workers_cold']} cold, {receipt['workers_warm']} warm",
            cell(line.get("reason") or metrics_text(line.get("metrics"))),
        )
    return table


def clients_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each client of a job."""
    table = Table(box=None, pad_edge=False)
    counts = ("selected", "delivered", "late", "left", "declined", "spoilt")
    for column in ("client", "here", *counts, "misses", "is asked"):
        table.add_column(column, no_wrap=column == "client")
    for line in lines:
        asked = "as others" if not line["level"] else f"late ({line['level']})"
        table.add_row(
            cell(line["client"]),
            "yes" if line["here"] else "no",
            *(str(line[name]) for name in counts),
            f"{line['misses']:.2f}",
            cell(asked, "yellow" if line["level"] else ""),
        )
    return table


def nodes_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each node; the coordinator has a star."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "state", "since", "updates/s", "fold", "load", "arena", "workers", "gateway", "control"):
        # Names and addresses are for copying: the rest gives way on a narrow terminal.
        table.add_column(column, no_wrap=column in ("node", "state", "gateway", "control"))
    for line in lines:
        drain, state = line.get("drain", ""), str(line["state"])
        state = f"{state}, {drain}" if drain and state != "alive" else drain or state
        table.add_row(
            cell(f"{line['node']} *" if line["coordinator"] else line["node"]),
            cell(state, STATE_STYLES.get(state, "")),
            seconds_text(line["since_s"]),
            f"{line['rate_per_s']:.1f}",
            seconds_text(line["execution_s"]) if line["execution_s"] else "-",
            load_text(line),
            f"{size_text(line['arena_used_bytes'])} of {size_text(line['arena_bytes'])}",
            str(line["workers"]),
            cell(line["gateway"]),
            cell(line["control"]),
        )
    return table


def load_text(line: Mapping[str, Any]) -> str:
    """Return the updates in service of those that the node serves at a time."""
    return f"{line['capacity'] - line['residual']:.1f} of {line['capacity']:.1f}"


def plan_table(made: Plan) -> Table:
    """Return a table of what each node of a plan does; a node that is not used is dim."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "updates", "leaves", "leaf tasks", "Q", "arena peak", "its partial after"):
        table.add_column(column)
    for part in made.nodes:
        unused = part.node not in made.used
        table.add_row(
            cell(part.node),
            str(part.updates),
            str(part.leaves),
            str(part.leaf_tasks),
            f"{part.queue:.2f}",
            size_text(part.peak_bytes),
            seconds_text(part.ready_s),
            style="dim" if unused else "",
        )
    return table

"""Tables: of jobs, rounds, nodes, and of a plan's nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lifl.core.planning.plan import Plan
from lifl_cli.render.figures import (
    NARROW_COLUMNS,
    found_text,
    means_of,
    measured_text,
    metrics_text,
    minute_text,
    printable,
    seconds_text,
    size_text,
)
from lifl_cli.render.long_tables import long_lines

LONG_ROWS = 500
"""A table with more rows is printed without colours."""
WHOLE_COLUMNS = 10_000
"""What no cell is wrapped at."""
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
    if isinstance(content, Table) and console.width < NARROW_COLUMNS:
        content = fitted(content, console)
    if isinstance(content, Table) and content.row_count > LONG_ROWS:
        for line in long_lines(content, console):
            click.echo(line)
        return
    console.print(content)


def fitted(table: Table, console: Console) -> Table:
    """Return a table as it is where the console has the columns for it, else a line for each cell that says something.

    Each row begins with its first cell, and an empty line is between two of them.
    """
    if Measurement.get(console, console.options.update(width=WHOLE_COLUMNS), table).maximum <= console.width:
        return table
    names = [str(column.header) for column in table.columns]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for at, cells in enumerate(zip(*(column.cells for column in table.columns), strict=True)):
        if at:
            grid.add_row("", "")
        for name, content in zip(names, cells, strict=True):
            if str(content).strip():
                grid.add_row(name, content)
    return grid


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
            cell(measured_text(job)),
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
        table.add_column(column, overflow="fold", no_wrap=column in ("round", "status", "counted"))
    for line in rounds:
        receipt = line.get("receipt")
        number = "?" if line["round"] is None else str(line["round"])
        if not receipt:
            table.add_row(
                number,
                cell(line["status"]),
                *[""] * 6,
                cell(line.get("reason") or measured_text(line)),
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
            cell(line.get("reason") or measured_text(line)),
        )
    return table


def history_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with a row for each attempt at a round: when, how long, who, and what was measured."""
    table = Table(box=None, pad_edge=False)
    for column in ("round", "status", "at", "took", "counted", "metrics"):
        table.add_column(column, overflow="fold", no_wrap=column == "round")
    for row in rows:
        counted = "" if row["counted"] is None else f"{row['counted']}/{row['selected']}"
        at = row["committed_unix_s"]
        table.add_row(
            "?" if row["round"] is None else str(row["round"]),
            cell(row["status"]),
            "" if at is None else minute_text(at),
            "" if row["duration_s"] is None else seconds_text(row["duration_s"]),
            counted,
            cell(row["reason"] or found_text(row["metrics"], means_of(row["evaluation"]))),
        )
    return table


def client_metrics_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each client of each round, with its own metrics."""
    table = Table(box=None, pad_edge=False)
    for column in ("round", "client", "metrics"):
        table.add_column(column, overflow="fold", no_wrap=column == "round")
    for line in lines:
        table.add_row(str(line["round"]), cell(line["client"]), cell(metrics_text(line["metrics"])))
    return table


MISSED = ("late", "left", "declined", "spoilt")
"""How a client can miss a round that it was selected for."""
NAME_COLUMNS = 24
"""A client's name goes on below itself where it is longer."""


def clients_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each client of a job.

    What none has is left out, so that names stay whole on a terminal of 80 columns.
    """
    table = Table(box=None, pad_edge=False)
    said = any(line.get("properties") for line in lines)
    name_columns = max((len(printable(line["client"])) for line in lines), default=0)
    table.add_column("client", overflow="fold", width=min(NAME_COLUMNS, max(6, name_columns)))
    for column in ("here", "delivered", "misses"):
        table.add_column(column, no_wrap=True)
    for column in ("missed", *(["says"] if said else [])):
        table.add_column(column, overflow="fold")
    for line in lines:
        missed = [f"{line[name]} {name}" for name in MISSED if line[name]]
        missed += [f"asked late ({line['level']})"] if line["level"] else []
        table.add_row(
            cell(line["client"]),
            "yes" if line["here"] else "no",
            f"{line['delivered']}/{line['selected']}",
            f"{line['misses']:.2f}",
            cell(", ".join(missed), "yellow" if line["level"] else ""),
            *([cell(said_text(line.get("properties", {})))] if said else []),
        )
    return table


def said_text(properties: Mapping[str, Any]) -> str:
    """Return what a client says of itself: ``region=eu examples=1200 device=gpu``."""
    said = {**properties.get("labels", {}), **{k: v for k, v in properties.items() if k != "labels"}}
    return " ".join(f"{name}={value}" for name, value in said.items())


def nodes_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each node, in 80 columns; the coordinator has a star."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "state", "since", "rate/s", "fold", "load", "arena", "workers"):
        table.add_column(column, overflow="fold", no_wrap=column in ("node", "state", "rate/s", "fold", "workers"))
    for line in lines:
        drain, state = line.get("drain", ""), str(line["state"])
        states = [state, drain] if drain and state != "alive" else [drain or state]
        table.add_row(
            cell(f"{line['node']} *" if line["coordinator"] else line["node"]),
            Text("\n").join(cell(each, STATE_STYLES.get(each, "")) for each in states),
            seconds_text(line["since_s"]),
            f"{line['rate_per_s']:.1f}",
            seconds_text(line["execution_s"]) if line["execution_s"] else "-",
            load_text(line),
            f"{size_text(line['arena_used_bytes'])} of {size_text(line['arena_bytes'])}",
            str(line["workers"]),
        )
    return table


def addresses_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of where each node is reached: for copying, so nothing of it is cut off."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "gateway", "control"):
        table.add_column(column, overflow="fold", no_wrap=column == "node")
    for line in lines:
        table.add_row(cell(line["node"]), cell(line["gateway"]), cell(line["control"]))
    return table


def labels_table(lines: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return a table of the labels of the nodes that have any; None: none has."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "labels"):
        table.add_column(column, overflow="fold", no_wrap=column == "node")
    for line in (line for line in lines if line.get("labels")):
        labels = (f"{key}={value}" for key, value in sorted(line["labels"].items()))
        table.add_row(cell(line["node"]), cell("  ".join(labels)))
    return table if table.row_count else None


def load_text(line: Mapping[str, Any]) -> str:
    """Return the updates in service of those that the node serves at a time."""
    return f"{line['capacity'] - line['residual']:.1f} of {line['capacity']:.1f}"


def plan_table(made: Plan) -> Table:
    """Return a table of what each node of a plan does; a node that is not used is dim."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "updates", "leaves", "leaf tasks", "Q", "arena peak", "its partial after"):
        table.add_column(column, overflow="fold")
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

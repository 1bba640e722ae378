"""`lifl nodes`: the members of the cluster, as the node that is asked knows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifl.core.protocol.cli import ListNodes
from lifl_cli.daemon_client import Control
from lifl_cli.state import state_option
from lifl_cli.text import seconds_text, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType

STATE_STYLES = {"alive": "green", "suspect": "yellow", "slow": "yellow", "dead": "red", "left": "dim"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@state_option
def nodes(as_json: bool, state_dir: Path) -> None:
    """List the nodes of the cluster, their load and their state."""
    with Control(state_dir) as control:
        result = control.ask(ListNodes())
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    if not result["nodes"]:
        click.echo("this node is alone; others can join it once it is started with --control HOST:PORT")
        return
    from lifl_cli.jobs import show

    show(nodes_table(result["nodes"]))


def nodes_table(lines: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A row for each node; the coordinator has a star."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("node", "state", "since", "updates/s", "fold", "load", "arena", "workers", "gateway", "control"):
        # Names and addresses are for copying: the rest gives way on a narrow terminal.
        table.add_column(column, no_wrap=column in ("node", "gateway", "control"))
    for line in lines:
        state = str(line["state"])
        table.add_row(
            f"{line['node']} *" if line["coordinator"] else str(line["node"]),
            Text(state, style=STATE_STYLES.get(state, "")),
            seconds_text(line["since_s"]),
            f"{line['rate_per_s']:.1f}",
            seconds_text(line["execution_s"]) if line["execution_s"] else "-",
            load_text(line),
            f"{size_text(line['arena_used_bytes'])} of {size_text(line['arena_bytes'])}",
            str(line["workers"]),
            line["gateway"],
            line["control"],
        )
    return table


def load_text(line: Mapping[str, Any]) -> str:
    """Updates in service of those that the node serves at a time."""
    return f"{line['capacity'] - line['residual']:.1f} of {line['capacity']:.1f}"

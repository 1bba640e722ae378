"""`lifl nodes`: the members of the cluster, as the node that is asked knows them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.protocol.cli import ListNodes
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option


@click.command()
@json_option
@state_option
def nodes(as_json: bool, state_dir: Path) -> None:
    """List the nodes of the cluster, their load and their state."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(ListNodes())
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    if not result["nodes"]:
        click.echo("this node is alone; others can join it once it is started with --control HOST:PORT")
        return
    from lifl_cli.render.tables import addresses_table, labels_table, nodes_table, show

    lines = result["nodes"]
    show(nodes_table(lines))
    for more in filter(None, (addresses_table(lines), labels_table(lines))):
        click.echo()
        show(more)

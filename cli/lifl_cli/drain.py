"""`lifl drain`: a node finishes what it has and gets nothing new, so that it can go down."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.errors import ResourceFault
from lifl.core.protocol.cli import DRAIN_S, DrainNode
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did


@click.command()
@click.argument("node", metavar="NODE")
@click.option("--undo", is_flag=True, help="Let the node take part again.")
@json_option
@state_option
def drain(node: str, undo: bool, as_json: bool, state_dir: Path) -> None:
    """Let a node finish what it has and get nothing new.

    NODE is its id in `lifl nodes`, or the beginning of one; it is said at the node that coordinates.  The clients of
    NODE go to other nodes.  The command ends when nothing is left there: `lifl down` then loses nothing.  Where there
    is a store, NODE may be the one that coordinates: another one does so first.
    """
    with daemon_at(state_dir) as daemon:
        row = daemon.ask(DrainNode(node, undo), 0.0 if undo else DRAIN_S)["node"]
    if not undo and row["drain"] != "drained":
        why = "is still finishing what it has; it gets nothing new" if row["drain"] else "is gone, or has started again"
        raise ResourceFault(f"node {row['node']} {why}: `lifl nodes` shows its state")
    now = "takes part again" if undo else "is drained: `lifl down` there loses nothing"
    did(f"node {row['node']} {now}", json.dumps(row) if as_json else None)

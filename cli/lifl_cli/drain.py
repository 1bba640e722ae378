"""`lifl drain`: a node finishes what it has and gets nothing new, so that it can go down."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from lifl.core.errors import ResourceFault
from lifl.core.protocol.cli import DrainNode, ListNodes
from lifl_cli.daemon_client import DaemonClient, daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did

DRAIN_S = 90.0
"""How long it is waited until a node is drained: as long as `lifl down` waits for its end."""
LOOK_S = 0.2


@click.command()
@click.argument("node", metavar="NODE")
@click.option("--undo", is_flag=True, help="Let the node take part again.")
@json_option
@state_option
def drain(node: str, undo: bool, as_json: bool, state_dir: Path) -> None:
    """Let a node finish what it has and get nothing new.

    NODE is its id in `lifl nodes`, or the beginning of one; it is said at the node that coordinates.  The clients of
    NODE go to other nodes.  The command ends when nothing is left there: `lifl down` then loses nothing.
    """
    with daemon_at(state_dir) as daemon:
        row = daemon.ask(DrainNode(node, undo))["node"]
        if not undo:
            row = _drained(daemon, row)
    now = "takes part again" if undo else "is drained: `lifl down` there loses nothing"
    did(f"node {row['node']} {now}", json.dumps(row) if as_json else None)


def _drained(daemon: DaemonClient, row: dict[str, Any]) -> dict[str, Any]:
    """Return the node's row when nothing is left there.  Raise `ResourceFault` when that takes too long."""
    until = time.monotonic() + DRAIN_S
    while row["drain"] == "draining" and time.monotonic() < until:
        time.sleep(LOOK_S)
        row = next(
            (each for each in daemon.ask(ListNodes())["nodes"] if each["node"] == row["node"]), row | {"drain": ""}
        )
    if row["drain"] != "drained":
        why = "is still finishing what it has; it gets nothing new" if row["drain"] else "is gone, or has started again"
        raise ResourceFault(f"node {row['node']} {why}: `lifl nodes` shows its state")
    return row

"""`lifl debug`: what helps to find out why a node decided as it did."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.protocol.cli import DebugRecord
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did


@click.group()
def debug() -> None:
    """Write out what a node has decided on, to be replayed."""


@debug.command()
@json_option
@state_option
def record(as_json: bool, state_dir: Path) -> None:
    """Write the node's last events, with the state that the first of them met, to a file in its state folder.

    The simulator replays it: make sim RECORDING=FILE.  It names jobs and clients, and holds weights and metrics, but no
    tensor.
    """
    with DaemonClient(state_dir) as daemon:
        result = daemon.ask(DebugRecord())
    did(f"{result['events']} events are written to {result['path']}", json.dumps(result) if as_json else None)

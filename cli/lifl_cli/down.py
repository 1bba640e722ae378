"""`lifl down`."""

from __future__ import annotations

import os
import select
from pathlib import Path

import click

from lifl.core.protocol.cli import Shutdown
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.options import state_option


@click.command()
@state_option
def down(state_dir: Path) -> None:
    """Stop lifld; everything it holds is released."""
    with DaemonClient(state_dir) as daemon:
        pid = daemon.lifld_pid
        try:
            # Readable once the process has ended, whichever process is its parent.
            process: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            process = None
        daemon.ask(Shutdown())
        daemon.wait_end()
        if process is not None:
            select.select([process], [], [])
            os.close(process)
    click.echo(f"lifld (pid {pid}) is down")

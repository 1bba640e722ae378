"""`lifl down`."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from pathlib import Path

import click

from lifl.core.protocol.cli import Shutdown
from lifl_cli.daemon_client import DaemonClient, DaemonEnded
from lifl_cli.options import state_option


@click.command()
@state_option
def down(state_dir: Path) -> None:
    """Stop lifld; everything it holds is released."""
    with DaemonClient(state_dir) as daemon:
        pid = daemon.lifld_pid
        process = _process(pid)
        with suppress(DaemonEnded):  # it was ending already
            daemon.ask(Shutdown())
            daemon.wait_end()
        if process is not None:
            select.select([process], [], [])
            os.close(process)
        elif not pid:
            from lifl.node.locks import wait_until_free

            wait_until_free(state_dir)
    click.echo(f"lifld ({f'pid {pid}' if pid else 'in another PID namespace'}) is down")


def _process(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended; None when it has, or cannot be seen."""
    try:
        return os.pidfd_open(pid) if pid else None
    except ProcessLookupError:
        return None

"""`lifl down`.

It gets in however many command lines are connected: a node that turns it away gets SIGTERM, which means the same.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import suppress
from pathlib import Path

import click

from lifl.core.errors import Refused, ResourceFault
from lifl.core.protocol.cli import TOO_MANY, Shutdown
from lifl_cli.daemon_client import DaemonClient, DaemonEnded
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did
from lifl_cli.state import LOG_FILE

SAID_S = 2.0
"""After so long it is said what is waited for."""
DOWN_S = 90.0
"""How long the end of a node is waited for: some times what its parts may take."""
WAITS_FOR = "rounds whose updates are all in are to commit, then its processes end"


@click.command()
@json_option
@state_option
def down(as_json: bool, state_dir: Path) -> None:
    """Stop lifld; everything it holds is released."""
    with DaemonClient(state_dir) as daemon:
        pid = daemon.lifld_pid
        process = _process(pid)
        try:
            _tell(daemon, process)
            if process is not None or not pid:
                _wait(state_dir, pid, process)
        finally:
            if process is not None:
                os.close(process)
    did(f"lifld ({_named(pid)}) is down", json.dumps({"pid": pid, "status": "down"}) if as_json else None)


def _tell(daemon: DaemonClient, process: int | None) -> None:
    try:
        daemon.ask(Shutdown())
    except DaemonEnded:
        pass  # it was ending already
    except Refused as refused:
        if refused.code != TOO_MANY or process is None:
            raise
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGTERM)


def _wait(state_dir: Path, pid: int, process: int | None) -> None:
    """Return when the node has ended.  Raise `ResourceFault` when it does not."""
    if _ended(state_dir, process, SAID_S):
        return
    click.echo(f"lifld ({_named(pid)}) is ending: {WAITS_FOR}", err=True)
    if _ended(state_dir, process, DOWN_S):
        return
    kill = f"`kill -9 {pid}` ends it" if pid else "kill -9 from its own PID namespace ends it"
    text = (
        f"lifld ({_named(pid)}) has not ended within {SAID_S + DOWN_S:g} s: {WAITS_FOR}; {state_dir / LOG_FILE} tells"
    )
    raise ResourceFault(f"{text} more.  {kill}, and `lifl up` goes on with what was accepted")


def _ended(state_dir: Path, process: int | None, timeout_s: float) -> bool:
    if process is not None:
        return bool(select.select([process], [], [], timeout_s)[0])
    from lifl.node.locks import wait_until_free

    return wait_until_free(state_dir, timeout_s)


def _named(pid: int) -> str:
    return f"pid {pid}" if pid else "in another PID namespace"


def _process(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended; None when it has, or cannot be seen."""
    try:
        return os.pidfd_open(pid) if pid else None
    except ProcessLookupError:
        return None

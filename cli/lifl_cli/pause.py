"""`lifl pause`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.protocol.cli import PauseJob
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did


@click.command()
@click.argument("job", shell_complete=job_names)
@json_option
@state_option
def pause(job: str, as_json: bool, state_dir: Path) -> None:
    """Let a job begin no further round; its clients wait."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(PauseJob(job))
    first = f" when round {result['finishing']} is finished" if result["finishing"] is not None else ""
    did(f"job {job} is paused{first}; `lifl resume {job}` lets it go on", json.dumps(result) if as_json else None)

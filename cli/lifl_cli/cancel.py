"""`lifl cancel`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.protocol.cli import CancelJob
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did


@click.command()
@click.argument("job", shell_complete=job_names)
@json_option
@state_option
def cancel(job: str, as_json: bool, state_dir: Path) -> None:
    """End a job; models already committed stay."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(CancelJob(job))
    did(f"job {job} is cancelled", json.dumps(result) if as_json else None)

"""`lifl rm`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.protocol.cli import RemoveJob
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did
from lifl_cli.render.figures import printable, size_text


@click.command()
@click.argument("job", shell_complete=job_names)
@click.option("--models", is_flag=True, help="Remove the files of its models, too, also copies on other nodes.")
@json_option
@state_option
def rm(job: str, models: bool, as_json: bool, state_dir: Path) -> None:
    """Forget a job that is over; its name is free."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(RemoveJob(job, models))
    folder = printable(result["folder"])
    count, verb = ("1 file", "is") if result["files"] == 1 else (f"{result['files']} files", "are")
    files = f"{count} of its models ({size_text(result['bytes'])}) {verb} removed"
    if result.get("copies"):
        files += "; copies on other nodes go, too, those of nodes that are away when they come back"
    what = files if models else f"its models stay in {folder}"
    did(f"job {job} is forgotten; {what}", json.dumps(result) if as_json else None)

"""`lifl jobs`: a line for each job of the node."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.protocol.cli import ListJobs
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option


@click.command()
@json_option
@state_option
def jobs(as_json: bool, state_dir: Path) -> None:
    """List the jobs of the node."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(ListJobs())
        while (more := result.pop("more")) is not None:
            page = daemon.ask(ListJobs(more))
            result = {"jobs": result["jobs"] + page["jobs"], "more": page["more"]}
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    if not result["jobs"]:
        click.echo("no jobs yet: submit one with `lifl submit FILE`")
        return
    from lifl_cli.render.tables import jobs_table, show

    show(jobs_table(result["jobs"]))

"""`lifl edit`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.protocol.cli import EditJob
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did
from lifl_cli.render.figures import changes_text


@click.command()
@click.argument("job", shell_complete=job_names)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    required=True,
    metavar="SECTION.KEY=VALUE",
    help="A key and its new value, such as client.options.lr=0.01; more than one may be given.",
)
@json_option
@state_option
def edit(job: str, overrides: tuple[str, ...], as_json: bool, state_dir: Path) -> None:
    """Change a job's config, from its next round on."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(EditJob(job, overrides))
    when = f"from round {result['from_round']} on" if result["from_round"] is not None else "when it is resumed"
    did(f"job {job}: {changes_text(result['changes'])}, {when}", json.dumps(result) if as_json else None)

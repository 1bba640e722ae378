"""`lifl model`: a committed model, copied out of the checkpoint folder; what is in one, and how two of them differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lifl_cli.completion import job_names
from lifl_cli.daemon_client import daemon_at
from lifl_cli.fetch_model import WHICH, Which, copied, one_of
from lifl_cli.options import OutputFile, json_option, state_option
from lifl_cli.output import did
from lifl_cli.render.figures import printable

DEFAULT = "get"


class Models(click.Group):
    """Takes what names none of its commands for the arguments of `get`, so that ``lifl model JOB -o FILE`` is one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, DEFAULT)


@click.group(cls=Models, subcommand_metavar="JOB -o FILE | COMMAND ...")
def model() -> None:
    """Copy a committed model to a file; look into models.

    `lifl model JOB -o FILE` copies the last one; so does `lifl model get JOB -o FILE`.
    """


@model.command(name=DEFAULT)
@click.argument("job", shell_complete=job_names)
@click.option("-o", "--output", required=True, type=OutputFile(), help="The file to write.")
@click.option("--round", "which", type=WHICH, default="last", show_default=True, help="A round, best or last.")
@json_option
@state_option
def get(job: str, output: str, which: Which, as_json: bool, state_dir: Path) -> None:
    """Copy a committed model to a safetensors file."""
    with daemon_at(state_dir) as daemon:
        wanted, unread = copied(daemon, job, which, Path(output))
    if unread:
        click.echo(f"warning: {printable(unread)}", err=True)
    shown = json.dumps({"job": job, "round": wanted, "file": output}) if as_json else None
    did(f"{output}: model of job {job} after round {wanted}", shown)


@model.command()
@click.argument("model", metavar="JOB|FILE", shell_complete=job_names)
@click.option(
    "--round", "which", type=WHICH, default="last", show_default=True, help="Of a job: a round, best or last."
)
@json_option
@state_option
def info(model: str, which: Which, as_json: bool, state_dir: Path) -> None:
    """Show the tensors of a model: shapes, dtypes, bytes, norms; and its digest."""
    from lifl_cli.model_files import info_of

    with one_of(model, which, state_dir) as file:
        found = info_of(file)
    _say(found, as_json, "info_view")


@model.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@json_option
@state_option
def diff(before: str, after: str, as_json: bool, state_dir: Path) -> None:
    """Show how the tensors of two models differ.

    A and B are files, or JOB@ROUND (a round, best or last).
    """
    from lifl_cli.model_files import difference

    with one_of(before, "last", state_dir) as first, one_of(after, "last", state_dir) as second:
        found = difference(first, second)
    _say(found, as_json, "diff_view")


def _say(found: dict[str, Any], as_json: bool, view: str) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from lifl_cli.render import models
    from lifl_cli.render.tables import show

    for part in getattr(models, view)(found):
        show(part)

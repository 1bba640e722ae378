"""`lifl model`: a committed model, copied out of the checkpoint folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from lifl.core.errors import Refused, ResourceFault
from lifl.core.protocol.cli import JobStatus
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.options import state_option

ROUNDS_NAMED_MAX = 8
"""Rounds that an error message lists one by one."""


@click.command()
@click.argument("job")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The file to write.")
@click.option("--round", "round_number", type=click.IntRange(min=0), help="Default: the last committed one.")
@state_option
def model(job: str, output: str, round_number: int | None, state_dir: Path) -> None:
    """Copy a committed model to a safetensors file."""
    with DaemonClient(state_dir) as daemon:
        result = daemon.ask(JobStatus(job))
    paths = {line["round"]: line["path"] for line in result.get("rounds", ()) if line.get("path")}
    if result["job"].get("folder"):
        # Round 0 is the model that the job started from.
        paths.setdefault(0, str(Path(result["job"]["folder"]) / "round-00000.safetensors"))
    wanted = max(paths, default=0) if round_number is None else round_number
    if wanted not in paths:
        numbers = [str(number) for number in sorted(paths)]
        shown = numbers if len(numbers) <= ROUNDS_NAMED_MAX else [*numbers[:3], "...", numbers[-1]]
        known = ", ".join(shown) or "none yet"
        raise Refused("unknown-round", "round", f"job {job} has no model of round {wanted}; it has: {known}")
    _copy(Path(paths[wanted]), Path(output))
    click.echo(f"{output}: model of job {job} after round {wanted}")


def _copy(source: Path, target: Path) -> None:
    """Copy by way of a file beside `target`, so that no half a model ever stands there."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ResourceFault(f"cannot copy {source} to {target}: {error.strerror}") from error

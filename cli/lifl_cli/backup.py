"""`lifl backup`: the node's durable state in one file, also while it runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl_cli.options import json_option, state_option
from lifl_cli.render.figures import printable, size_text
from lifl_cli.state import absolute


@click.command()
@click.argument("file", metavar="FILE")
@json_option
@state_option
def backup(file: str, as_json: bool, state_dir: Path) -> None:
    """Write the node's durable state to one file, also while it runs.

    That is database, models, identity and audit log.  FILE has the node's keys: keep it as you keep these.
    """
    from lifl.node.backup.write import write_backup

    target = absolute(file)
    made = write_backup(state_dir, target)
    nbytes = target.stat().st_size
    if as_json:
        click.echo(
            json.dumps({"file": str(target), "bytes": nbytes, "files": len(made.files), "left_out": made.left_out})
        )
        return
    click.echo(f"{target}: {len(made.files)} files of node {made.node}, {size_text(nbytes)}")
    for folder in made.left_out:
        click.echo(f"  not in it: the models in {printable(folder)}, outside of the state folder")
    click.echo("  it has the node's keys: keep it as you keep these")

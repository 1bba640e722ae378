"""`lifl backup`: the node's durable state in one file, also while it runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl_cli.options import json_option, state_option
from lifl_cli.output import did
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
    about = {"file": str(target), "bytes": nbytes, "files": len(made.files), "left_out": made.left_out}
    said = [f"{target}: {len(made.files)} files of node {made.node}, {size_text(nbytes)}"]
    said += [f"  not in it: the models in {printable(folder)}, outside of the state folder" for folder in made.left_out]
    said += ["  it has the node's keys: keep it as you keep these"]
    did(said[0], json.dumps(about) if as_json else "\n".join(said))

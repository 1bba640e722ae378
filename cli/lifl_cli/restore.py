"""`lifl restore`: a node's state folder out of a backup."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl_cli.options import json_option, state_option
from lifl_cli.output import did
from lifl_cli.render.figures import printable
from lifl_cli.state import absolute


@click.command()
@click.argument("file", metavar="FILE")
@json_option
@state_option
def restore(file: str, as_json: bool, state_dir: Path) -> None:
    """Make a node's state folder of a backup.

    The folder must not be there, or be empty.  The node must not run anywhere else: its cluster takes one of its
    identity, and refuses the second.
    """
    from lifl.node.backup.restore import restore_backup

    found = restore_backup(absolute(file), state_dir)
    about = {
        "state": str(state_dir),
        "node": found.node,
        "made_unix_s": found.made_unix_s,
        "release": found.release,
        "files": len(found.files),
        "left_out": found.left_out,
    }
    said = [printable(f"{state_dir}: {len(found.files)} files of node {found.node}, by LIFL {found.release}")]
    said += [printable(f"  not in the backup: the models in {folder}") for folder in found.left_out]
    said += [f"  `lifl up --state {state_dir}` goes on from it"]
    did(said[0], json.dumps(about) if as_json else "\n".join(said))

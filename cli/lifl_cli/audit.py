"""`lifl audit`: the node's log of who joined, submitted, was refused, cancelled, revoked; and whether it is whole.

The files are read, not the daemon asked: a node that is down has a log, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from lifl.core.errors import ResourceFault
from lifl.core.limits import AUDIT_SHOWN, COUNT_MAX
from lifl_cli.options import json_option, state_option
from lifl_cli.render.figures import printable

SHOWN_FIRST = ("at", "event", "who")
NOT_SHOWN = ("prev", "text")


@click.command()
@click.argument("what", type=click.Choice(["verify"]), required=False)
@click.option(
    "--last",
    type=click.IntRange(0, COUNT_MAX),
    default=AUDIT_SHOWN,
    show_default=True,
    metavar="N",
    help="The last N lines.",
)
@json_option
@state_option
def audit(what: str | None, last: int, as_json: bool, state_dir: Path) -> None:
    """Show who joined, submitted, was refused, cancelled, revoked.

    With `verify`: check that no line of it was changed, taken out or put in between, and name the first that shows it.
    A log can be made anew as a whole, or cut at its end, by who may write its files: keep the digest of the last line,
    which is printed, somewhere else, and look it up in the log later.
    """
    if what is not None:
        _verify(as_json, state_dir)
        return
    from lifl.core.audit import parsed
    from lifl.node.audit_log import last_lines

    lines = [(parsed(line), line) for line in last_lines(_folder(state_dir), last)]
    if as_json:
        click.echo(json.dumps([found or {"torn": line.decode(errors="replace")} for found, line in lines], indent=2))
        return
    for found, line in lines:
        click.echo(_text(found) if found else f"(not whole) {printable(line.decode(errors='replace'))}")


def _verify(as_json: bool, state_dir: Path) -> None:
    """Say whether the chain is whole; exit 1 when it is not."""
    from lifl.node.audit_log import chain_shown, check_files
    from lifl.node.locks import holder

    found = check_files(_folder(state_dir))
    being_written = found.unmarked > 0 and holder(state_dir) is not None
    if as_json:
        click.echo(json.dumps(chain_shown(found, being_written)))
    elif found.broken:
        click.echo(f"lines {found.first} to {found.last.seq} are whole; the chain is broken at {found.broken}")
    else:
        click.echo(f"lines {found.first} to {found.last.seq} are whole; the last one's digest is {found.last.digest}")
        if found.first > 1:
            click.echo(f"  lines before {found.first} are not here any more: only the newest files are kept")
        if found.torn:
            click.echo(f"  {found.torn} of them were not written to their end, and are marked: a lifld was killed")
        if found.unmarked and not being_written:
            click.echo(f"  {found.unmarked} bytes behind it were not written to their end; `lifl up` marks them")
    sys.exit(1 if found.broken else 0)


def _folder(state_dir: Path) -> Path:
    from lifl.node.audit_log import FOLDER

    if not (state_dir / FOLDER).is_dir():
        raise ResourceFault(f"there is no audit log in {state_dir}: `lifl up` begins it")
    return state_dir / FOLDER


def _text(line: dict[str, Any]) -> str:
    """Return a line as a person reads it."""
    first = " ".join(f"{line.get(name, '?')}" for name in SHOWN_FIRST)
    about = [f"{name}={line[name]}" for name in line if name not in (*SHOWN_FIRST, *NOT_SHOWN, "seq")]
    text = [line["text"]] if line.get("text") else []
    return printable(" ".join([f"{line['seq']:>6} {first}", *about, *text]))

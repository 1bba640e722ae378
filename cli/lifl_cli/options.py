"""The options that several commands have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lifl_cli.state import DEFAULT_STATE_DIR, absolute, working_folder

F = TypeVar("F", bound=Callable[..., Any])

STATE_HELP = f"The node's state folder.  [default: $LIFL_STATE, or {DEFAULT_STATE_DIR}]"
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class OutputFile(click.Path):
    """A file that the command is to write, in the place of one that is there: refused before the work is begun.

    With `in_place` it is opened, and may be a device; else it is written beside and renamed, which would put a file in
    the place of /dev/null.
    """

    def __init__(self, *, allow_dash: bool = False, in_place: bool = False) -> None:
        super().__init__(dir_okay=False, readable=False, allow_dash=allow_dash)
        self._in_place = in_place

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = os.fsdecode(super().convert(value, param, ctx))
        path, shown = Path(found), f"{found!r:.80}"
        if found == "-" and self.allow_dash:
            return found
        if found in ("", "-"):
            self.fail(f"{shown} names no file" + (", and standard output is none" if found else ""), param, ctx)
        if not path.is_absolute():
            working_folder(found)  # it may have been deleted
        if not path.parent.is_dir():
            self.fail(f"there is no folder {str(path.parent)!r:.80}: make it, or name another file", param, ctx)
        if not self._in_place and path.exists() and not path.is_file():
            self.fail(f"{shown} is no file, and stays what it is: name another", param, ctx)
        written = path if self._in_place and path.exists() else path.resolve().parent
        if not os.access(written, os.W_OK):
            self.fail(f"{shown} cannot be written by this account: name another file", param, ctx)
        return found


def state_option(command: F) -> F:
    """Add ``--state DIR`` to a command, as `state_dir`: an absolute path."""
    return click.option(
        "--state",
        "state_dir",
        envvar="LIFL_STATE",
        default=DEFAULT_STATE_DIR,
        metavar="DIR",
        callback=lambda _ctx, _param, value: absolute(value),
        help=STATE_HELP,
    )(command)

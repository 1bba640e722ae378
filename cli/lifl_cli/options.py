"""The options that several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from lifl_cli.state import DEFAULT_STATE_DIR, absolute

F = TypeVar("F", bound=Callable[..., Any])

STATE_HELP = f"The node's state folder.  [default: $LIFL_STATE, or {DEFAULT_STATE_DIR}]"
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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

"""The state folder of a node: which one a command means, and how its files are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

DEFAULT_STATE_DIR = "~/.local/state/lifl"
CONTROL_SOCKET = "lifld.sock"
LOG_FILE = "lifld.log"
MODELS_FOLDER = "models"

F = TypeVar("F", bound=Callable[..., Any])


def state_option(command: F) -> F:
    """Adds ``--state DIR`` to a command, as `state_dir`: an absolute path."""
    return click.option(
        "--state",
        "state_dir",
        envvar="LIFL_STATE",
        default=DEFAULT_STATE_DIR,
        show_default=f"$LIFL_STATE, or {DEFAULT_STATE_DIR}",
        metavar="DIR",
        callback=lambda _ctx, _param, value: absolute(value),
        help="The node's state folder.",
    )(command)


def absolute(path: str, base: Path | None = None) -> Path:
    """`path` with ~ expanded, made absolute against `base` (else the working folder)."""
    return ((base or Path.cwd()) / Path(path).expanduser()).absolute()

"""The state folder of a node: which one a command means, and how its files are called."""

from __future__ import annotations

import os
from pathlib import Path

from lifl.core.errors import ResourceFault

DEFAULT_STATE_DIR = "~/.local/state/lifl"
CONTROL_SOCKET = "lifld.sock"
LOG_FILE = "lifld.log"
MODELS_FOLDER = "models"


def absolute(path: str, base: Path | None = None) -> Path:
    """Return `path` with ~ expanded, made absolute against `base` (else the working folder).

    Raise `ResourceFault` for an empty one, and when there is no home, or no working folder, and the path begins there.
    """
    if not path:
        raise ResourceFault("an empty path names no file and no folder: name one, or leave the option out")
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise ResourceFault(
            f"{path} cannot be found: HOME is not set, and user {os.geteuid()} has no entry in /etc/passwd, or none of "
            "that name; name the state folder with --state DIR or LIFL_STATE, and other files by absolute paths"
        ) from error
    if expanded.is_absolute():
        return expanded
    return (base or working_folder(path)) / expanded


def working_folder(path: str) -> Path:
    """Return where the relative `path` begins.  Raise `ResourceFault` when that was deleted."""
    try:
        return Path.cwd()
    except OSError as error:
        text = f"{path} begins in the working folder, which was deleted: cd to another one, or give an absolute path"
        raise ResourceFault(text) from error

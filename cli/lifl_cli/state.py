"""The state folder of a node: which one a command means, and how its files are called."""

from __future__ import annotations

from pathlib import Path

DEFAULT_STATE_DIR = "~/.local/state/lifl"
CONTROL_SOCKET = "lifld.sock"
LOG_FILE = "lifld.log"
MODELS_FOLDER = "models"


def absolute(path: str, base: Path | None = None) -> Path:
    """Return `path` with ~ expanded, made absolute against `base` (else the working folder)."""
    return ((base or Path.cwd()) / Path(path).expanduser()).absolute()

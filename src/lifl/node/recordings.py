"""Files of the engine's last events, in the state folder beside the database; `make sim RECORDING=FILE` replays one."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lifl.core.errors import ResourceFault
from lifl.core.event_log import Recording

RECORDINGS_MAX = 8
"""Recordings that are kept, the newest ones."""
SUFFIX = ".recording"


def write_recording(folder: Path, recording: Recording) -> Path:
    """Write a recording to a new file of the folder; forget the oldest beyond `RECORDINGS_MAX`.

    Raise `ResourceFault` when it cannot be written.
    """
    path = folder / f"{time.time_ns()}{SUFFIX}"
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(recording.pack())
        for old in sorted(folder.glob(f"*{SUFFIX}"))[:-RECORDINGS_MAX]:
            old.unlink(missing_ok=True)
    except OSError as error:
        text = f"the recording {path} cannot be written: {error.strerror}; make room in the state folder"
        raise ResourceFault(text) from error
    return path

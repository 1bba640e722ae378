"""Whether a process stands still because a signal has stopped it."""

from __future__ import annotations

from pathlib import Path

STOPPED = "T"
"""As /proc shows it.  One that a debugger holds is in another state (t), and is left alone."""


def is_stopped(pid: int) -> bool:
    """Return whether the process is stopped; False for one that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == STOPPED

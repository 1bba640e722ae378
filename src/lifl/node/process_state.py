"""Whether a process stands still because a signal has stopped it; how one has ended."""

from __future__ import annotations

import os
import signal
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


def ended_text(status: int) -> str:
    """Return ``exit code 3`` or ``signal SIGSEGV``, out of waitpid's status."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"signal {-code}"

"""Whether a process stands still because a signal has stopped it; whose child it is; how one has ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path

STOPPED = "T"
"""As /proc shows it.  One that a debugger holds is in another state (t), and is left alone."""


def is_stopped(pid: int) -> bool:
    """Return whether the process is stopped; False for one that is gone."""
    return _stat(pid)[:1] == [STOPPED]


def is_child(pid: int, parent: int) -> bool:
    """Return whether the process is a child of `parent`; False for one that is gone."""
    return _stat(pid)[1:2] == [str(parent)]


def _stat(pid: int) -> list[str]:
    """Return what /proc tells of a process from its state on; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def ended_text(status: int) -> str:
    """Return ``exit code 3`` or ``signal SIGSEGV``, out of waitpid's status; the number itself where it is none."""
    try:
        code = os.waitstatus_to_exitcode(status)
    except ValueError:  # of a process that was stopped, which is none that has ended
        return f"status {status}"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"signal {-code}"

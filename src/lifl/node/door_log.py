"""What the log says of those who come to a door of this node: each thing once, then how often (`core/audit.py::Tally`).

Whoever can connect can be refused without end, and a log that says so each time is rid of all other lines in minutes.
So what is said of one host, for one reason, is said once in `AUDIT_WINDOW_S`, and at its end how often it was left out;
of more hosts and reasons than `AUDIT_REFUSALS_MAX` only how many there were.
"""

from __future__ import annotations

import asyncio
import logging
import time

from lifl.core.audit import Note, Tally
from lifl.core.limits import AUDIT_REFUSALS_MAX, AUDIT_WINDOW_S

log = logging.getLogger("lifl.doors")

LEVELS = {
    "peer.refused": logging.WARNING,
    "peer.gone": logging.INFO,
    "cli.taken": logging.INFO,
    "client.disconnected": logging.WARNING,
    "update.aborted": logging.INFO,
}
"""What is said so."""


class DoorLog:
    """Says it in lifld's log (or, in another process, where that process says things)."""

    def __init__(self) -> None:
        self._tally = Tally(dict.fromkeys(LEVELS, AUDIT_REFUSALS_MAX))

    def say(self, event: str, host: str, why: str, **about: str) -> None:
        """Say that `event`, one of `LEVELS`, has come to pass for `host`; `about` are names that belong to it.

        It is called in the running loop's thread.
        """
        if self._tally.due_s is None:
            asyncio.get_running_loop().call_later(AUDIT_WINDOW_S, self.flush)
        for note in self._tally.add(Note(event, host, {**about, "why": why}), time.monotonic()):
            _say(note)

    def flush(self) -> None:
        """Say what has been counted, and count anew."""
        for note in self._tally.flush():
            _say(note)


def _say(note: Note) -> None:
    about = {name: value for name, value in note.about.items() if name != "why"}
    facts = " ".join(f"{name}={value or '-'}" for name, value in {"host": note.who, **about}.items())
    why = note.about.get("why", note.text)
    often = f" ({note.count} times more within {AUDIT_WINDOW_S:g} s)" if note.count != 1 else ""
    log.log(LEVELS[note.event], "%s %s %s%s", note.event, facts, why, often)

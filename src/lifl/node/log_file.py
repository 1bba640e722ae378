"""Where `lifld` logs to: a file of its state folder, or its terminal."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import re
import time
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from lifl.core.limits import LOG_SHOWN_BYTES
from lifl.node.modes import open_private

LOG_BYTES_MAX = 4 * 1024 * 1024
LOG_FILES_MAX = 3
_EVENT = re.compile(r"[a-z][a-z_-]*(?:\.[a-z_-]+)+")
_FACT = re.compile(r"(\w+)=([^\s{}()\[\]'\"]+)(?: |$)")
_TAKEN = frozenset({"at", "level", "logger", "event", "text", "exception"})


class PrivateLog(logging.handlers.RotatingFileHandler):
    """A log whose files are their user's alone."""

    def _open(self) -> TextIOWrapper:
        os.close(open_private(Path(self.baseFilename), os.O_WRONLY))
        return super()._open()


def last_log_lines(folder: Path) -> list[str] | None:
    """Return the end of the log in the folder, as whole lines; None where there is none.  Raise `OSError`."""
    try:
        with open(folder / "lifld.log", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(0, size - LOG_SHOWN_BYTES)
            file.seek(begin)
            data = file.read(LOG_SHOWN_BYTES)
    except FileNotFoundError:
        return None
    lines = data.decode(errors="replace").splitlines()
    return lines[1:] if begin else lines


class JsonLines(logging.Formatter):
    """Each record as a line of JSON.

    `event` is the word that a line begins with, the facts behind it (``job=mine``) have their own names, and what is
    left is `text`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line: dict[str, Any] = {"at": at, "level": record.levelname.lower(), "logger": record.name}
        facts = getattr(record, "facts", None)
        if facts is None:
            line |= _parsed(record.getMessage())
        else:
            line |= {"event": record.args[0]} if isinstance(record.args, tuple) and record.args else {}
            line |= {name: value for name, value in facts.items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Half a character, of a name that is not UTF-8, is told by its number: JSON has the same escape for it.
        return json.dumps(line, default=str, ensure_ascii=False).encode(errors="backslashreplace").decode()


def _parsed(message: str) -> dict[str, str]:
    """Return the event that a line begins with, the facts behind it, and what is left."""
    event, _, rest = message.partition(" ")
    if not _EVENT.fullmatch(event):
        return {"text": message}
    found = {"event": event}
    while (fact := _FACT.match(rest)) is not None and fact[1] not in _TAKEN:
        found[fact[1]] = fact[2]
        rest = rest[fact.end() :]
    return found | ({"text": rest} if rest else {})


def set_up_log(folder: Path, log_to_file: bool, form: str = "text") -> None:
    """Log into the folder, or to standard error, as ``text`` or ``json``."""
    handler: logging.Handler = logging.StreamHandler()
    if log_to_file:
        handler = PrivateLog(folder / "lifld.log", maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_MAX)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else plain)
    logger = logging.getLogger("lifl")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if log_to_file else logging.WARNING)

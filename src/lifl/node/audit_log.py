"""The audit log of a node: who joined, submitted, was refused, cancelled, revoked; files of lines in its state folder.

`note` keeps nobody waiting: a thread of its own makes the lines (`core/audit.py`) and writes them, each time all that
has come meanwhile, and then has the disk sync them.  So a line is in its file within a moment, and durable one sync
later; what lifld decides waits for neither.  A disk that takes nothing is tried again, and `fault` says so; meanwhile
notes wait, at most `AUDIT_WAITING_MAX`, and those beyond are counted.

Files are named by the number of their first line.  One that is full is followed by the next, and the oldest beyond
`AUDIT_FILES_MAX` is removed; the chain goes on, also over the lives of the node.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, NamedTuple

from lifl import failpoints
from lifl.core import audit
from lifl.core.errors import ResourceFault
from lifl.core.limits import (
    AUDIT_FILE_BYTES_MAX,
    AUDIT_FILES_MAX,
    AUDIT_PAGE_LINES,
    AUDIT_RETRY_S,
    AUDIT_RETRY_S_MAX,
    AUDIT_TEXT_CHARS_MAX,
    AUDIT_WAITING_MAX,
    COUNT_MAX,
)
from lifl.node.modes import open_file, open_private, private_folder

log = logging.getLogger("lifl.audit")

FOLDER = "audit"
CLOSE_S = 5.0
"""How long the end of a node waits for what is still to be written."""
AT_A_TIME = 256
"""Notes that are written together at most."""


class _Entry(NamedTuple):
    at_unix_s: float
    note: audit.Note


class AuditLog:
    """The log in `folder`, which is made when it is not there.  One process writes it."""

    def __init__(self, folder: Path) -> None:
        self.fault = ""  # why nothing can be written now
        self._writer = _Writer(folder)
        self._queue: SimpleQueue[_Entry | None] = SimpleQueue()
        self._dropped = 0
        self._tally = audit.Tally()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def note(self, event: str, who: str, text: str = "", count: int = 1, **about: str | int) -> None:
        """Note that `who` has done (or was denied) what `event` of `core/audit.EVENTS` says; returns at once.

        `about` are the names of what it is about, such as job="digits"; empty ones are left out.
        """
        if self._queue.qsize() >= AUDIT_WAITING_MAX:
            self._dropped += count
            return
        note = audit.Note(event, who, {name: value for name, value in about.items() if value != ""}, text, count)
        self._queue.put(_Entry(time.time(), note))

    def close(self) -> None:
        """Write what has been noted, unless the disk does not take it, and end."""
        self._ending.set()
        self._queue.put(None)
        self._thread.join(CLOSE_S)

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        ended = False
        waiting: deque[_Entry] = deque()
        try:
            while not ended:
                ended = self._next(waiting)
                self._write(waiting)
        except Exception as error:
            log.exception("audit.failed")
            self.fault = f"the audit log has a fault: {error!r}; lifld's log tells more"
        if waiting:
            log.error("audit.lost lines=%d %s", len(waiting), self.fault)
        self._writer.close()

    def _next(self, waiting: deque[_Entry]) -> bool:
        """Take what has come, or is due, at least one entry; return whether it was the last."""
        ended = False
        due_s = self._tally.due_s
        try:
            entry = self._queue.get(timeout=None if due_s is None else max(0.0, due_s - time.monotonic()))
            while entry is not None:
                found = self._tally.add(entry.note, time.monotonic())
                waiting.extend(_Entry(entry.at_unix_s, note) for note in found)
                if len(waiting) >= AT_A_TIME:
                    break
                entry = self._queue.get_nowait()
            ended = entry is None
        except Empty:
            pass
        if ended or (self._tally.due_s is not None and time.monotonic() >= self._tally.due_s):
            waiting.extend(_Entry(time.time(), note) for note in self._tally.flush())
        if self._dropped:
            count, self._dropped = self._dropped, 0
            waiting.append(_Entry(time.time(), audit.Note(audit.DROPPED, "lifld", count=count)))
        return ended

    def _write(self, waiting: deque[_Entry]) -> None:
        """Write all that waits; return when the disk has taken it, or the node ends and the disk still does not."""
        retry_s = AUDIT_RETRY_S
        while waiting:
            last_try = self._ending.is_set()
            try:
                self._writer.write(waiting)
            except (OSError, ResourceFault) as error:
                self._failed(str(getattr(error, "strerror", None) or error))
                if last_try:
                    return
                self._ending.wait(retry_s)
                retry_s = min(2 * retry_s, AUDIT_RETRY_S_MAX)
            else:
                if self.fault:
                    log.warning("audit.goes_on")
                self.fault = ""

    def _failed(self, why: str) -> None:
        fault = f"the audit log in {self._writer.folder} cannot be written: {why}"
        if not self.fault:
            log.error("audit.paused %s; it is tried again by itself", fault)
        self.fault = f"{fault}; make room there, and let lifld's user write"


class _Writer:
    """The files: writes lines to the last one, and begins the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fd = -1
        self._bytes = 0  # of the last file
        self._last = audit.Link()

    def write(self, waiting: deque[_Entry]) -> None:
        """Write the lines of all that waits, and take them out; they are durable when this returns.

        Raise `OSError` when the disk does not take them: nothing of them is there then.
        """
        if self._fd < 0:
            self._open()
        if self._bytes >= AUDIT_FILE_BYTES_MAX:
            self._begin(self._last.seq + 1)
        lines, last = [], self._last
        for at_unix_s, note in waiting:
            line = audit.line_of(note, at_unix_s, last)
            lines.append(line + b"\n")
            last = audit.Link(last.seq + 1, audit.digest_of(line))
        self._append(b"".join(lines))
        self._last = last
        waiting.clear()
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the last file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        """Go on behind the last line there is; mark what is torn."""
        private_folder(self.folder)
        files = audit_files(self.folder)
        if not files:
            self._begin(1)
            return
        data, tail = b"", audit.Tail(audit.Link())
        for path in reversed(files):  # the first lines of a file may be torn, and the whole one in the one before
            data = _read(path) + data
            tail = audit.tail_of(data)
            if tail.last.seq:
                break
        self._fd = open_private(files[-1], os.O_WRONLY | os.O_APPEND)
        self._bytes = os.fstat(self._fd).st_size
        self._last = tail.last
        if tail.torn:
            mark = audit.mark_of(tail, time.time())
            self._append((b"\n" if tail.open else b"") + mark + b"\n")
            self._last = audit.Link(tail.last.seq + len(tail.torn) + 1, audit.digest_of(mark))
            log.warning("audit.torn lines=%d the process before was killed while it wrote", len(tail.torn))

    def _begin(self, seq: int) -> None:
        """Begin the file whose first line has this number, and remove the oldest ones."""
        path = self.folder / f"{FILE_PREFIX}{seq:012d}{FILE_SUFFIX}"
        fd = open_private(path, os.O_WRONLY | os.O_APPEND)
        self.close()
        self._fd, self._bytes = fd, os.fstat(fd).st_size
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        for old in audit_files(self.folder)[:-AUDIT_FILES_MAX]:
            old.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        """Write to the end of the last file, all or nothing."""
        half = len(data) // 2 if failpoints.on else 0
        try:
            if half:
                _write_all(self._fd, data[:half])
                failpoints.hit("lifld.audit_line.half")
            _write_all(self._fd, data[half:])
        except OSError:
            try:
                os.ftruncate(self._fd, self._bytes)
            except OSError:
                self.close()  # the next try looks at what is there, and marks it
            raise
        self._bytes += len(data)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


# ---- who reads it ----------------------------------------------------------------------------------------------------

FILE_PREFIX, FILE_SUFFIX = "audit-", ".jsonl"
NUMBER_DIGITS_MAX = 20


def audit_files(folder: Path) -> list[Path]:
    """Return the files of a log, the oldest first."""
    return sorted(folder.glob(f"{FILE_PREFIX}[0-9]*{FILE_SUFFIX}"))


def _opened(path: Path) -> BinaryIO:
    """Return a file of a log, open for reading.  Raise `OSError`, also for a pipe."""
    return open(open_file(path, os.O_RDONLY), "rb")


def _read(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def check_files(folder: Path) -> audit.Checked:
    """Check all files of a log, also while a node writes it."""
    piece = b""

    def lines() -> Iterator[tuple[str, bytes]]:
        nonlocal piece
        for path in (files := audit_files(folder)):
            # One that the node has removed meanwhile was the oldest.
            with suppress(FileNotFoundError), _opened(path) as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n") and path == files[-1]:
                        piece = line
                        break  # the rest may be there by now, and would be taken for a line
                    yield f"{path.name}:{number}", line.removesuffix(b"\n")

    found = audit.check(lines())
    return found._replace(unmarked=found.unmarked + len(piece))


def chain_shown(found: audit.Checked, being_written: bool) -> dict[str, Any]:
    """Return what a check has found, as it is told; what is being written is not torn."""
    about: dict[str, Any] = {"first": found.first, "last": found.last.seq, "digest": found.last.digest}
    about |= {"torn": found.torn, "unmarked_bytes": 0 if being_written else found.unmarked, "broken": found.broken}
    return about


def page_before(folder: Path, before: int) -> dict[str, Any]:
    """Return the last lines before a number, as `core/protocol/cli.ReadAudit` says.

    Lines are counted by their places, which are their numbers unless somebody has changed the files.
    """
    page: list[dict[str, Any]] = []
    begin = 1
    files = [(first, path) for path in audit_files(folder) if (first := _first_number(path)) < before]
    for first, path in sorted(files, reverse=True):
        try:
            lines = _read(path).split(b"\n")[:-1][: before - first]
        except FileNotFoundError:  # the node has removed the oldest one
            break
        shown = lines[-(AUDIT_PAGE_LINES - len(page)) :]
        begin = first + len(lines) - len(shown)
        page = [_line_shown(number, line) for number, line in enumerate(shown, begin)] + page
        if len(page) == AUDIT_PAGE_LINES:
            break
    is_more = any(first < begin for first, _path in files)
    return {"lines": page, "more": begin if is_more else None, "chain": None}


def _line_shown(number: int, line: bytes) -> dict[str, Any]:
    found = audit.parsed(line)
    if found is None:
        return {"seq": number, "torn": line[:AUDIT_TEXT_CHARS_MAX].decode(errors="replace")}
    return {name: value for name, value in found.items() if name != "prev"}


def _first_number(path: Path) -> int:
    """Return the number of a file's first line, which its name tells; what is no number is of no file."""
    number = path.name.removeprefix(FILE_PREFIX).removesuffix(FILE_SUFFIX)
    return int(number) if number.isascii() and number.isdecimal() and len(number) < NUMBER_DIGITS_MAX else COUNT_MAX


def last_lines(folder: Path, most: int) -> list[bytes]:
    """Return the last whole lines of a log, in order, at most so many."""
    found: list[bytes] = []
    for path in reversed(audit_files(folder)):
        if len(found) >= most:
            break
        with suppress(FileNotFoundError):  # as above
            lines = _read(path).split(b"\n")[:-1]
            found = lines[-(most - len(found)) :] + found
    return found[-most:] if most else []

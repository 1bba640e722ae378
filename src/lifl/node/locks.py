"""One daemon to a state folder, and no child of an earlier one left.

Two files.  `lifld.lock` is held by the daemon alone: a second one is refused at once.  `children.lock` is held by the
daemon and, through the inherited descriptor, by every process that it starts: a daemon that gets it knows that no
process can still write into the arena that is about to be adopted.

`lifld.lock` says whose it is and what it is at ("PID STATE"), for those who come in between: `Holder`.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lifl.core.errors import ResourceFault
from lifl.node.modes import open_file, open_private, told

CHILDREN_END_S = 10.0
"""How long the children of a killed daemon may take to end; they are killed by the kernel with it."""


STARTING, UP, STOPPING = "starting", "up", "stopping"


class Holder(NamedTuple):
    """The daemon that holds a state folder: its process as it calls itself ("?": it has not said), and its state."""

    pid: str
    state: str

    def text(self, folder: Path) -> str:
        """Return what to tell one who comes in between, and what to do."""
        match self.state:
            case "starting":
                return f"a lifld (pid {self.pid}) is starting on state folder {folder}: try again when it is up"
            case "stopping":
                return f"the lifld (pid {self.pid}) of state folder {folder} is stopping: try again when it has ended"
            case _:
                return (
                    f"a lifld (pid {self.pid}) runs on state folder {folder} already: stop it with "
                    f"`lifl down --state {folder}`, or use another folder with --state"
                )


def holder(folder: Path) -> Holder | None:
    """Return who holds a state folder; None when nobody does, or this account may not see it.

    It is looked at by the lock that a daemon waits for, so that no start fails because of a look.
    """
    try:
        with _opened(folder / "children.lock") as children, _opened(folder / "lifld.lock") as daemon:
            try:
                fcntl.flock(children, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(daemon)
    except OSError:
        return None
    return None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = open_file(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def wait_until_free(folder: Path, timeout_s: float) -> bool:
    """Return whether within this time no daemon, nor a process of one, holds the folder; also across PID namespaces."""
    fd = open_file(folder / "children.lock", os.O_RDONLY)
    if not _locked(fd, fcntl.LOCK_SH, timeout_s):
        return False  # the descriptor stays with the thread that waits
    os.close(fd)
    return True


def _locked(fd: int, how: int, timeout_s: float) -> bool:
    """Return whether a lock was got within this time."""
    taker = threading.Thread(target=fcntl.flock, args=(fd, how), daemon=True)
    taker.start()
    taker.join(timeout_s)
    return not taker.is_alive()


def _holder(fd: int) -> Holder:
    said = os.pread(fd, 64, 0).decode(errors="replace").split()
    pid, state = (*said, "?", STARTING)[:2] if len(said) != 1 else (said[0], UP)
    return Holder(pid, state)


class StateLocks:
    """The locks of a state folder.  Raise `ResourceFault` when another daemon runs on it, or they cannot be used."""

    def __init__(self, folder: Path) -> None:
        with told(folder), ExitStack() as opened:
            self._daemon = open_private(folder / "lifld.lock", os.O_RDWR)
            opened.callback(os.close, self._daemon)
            self.children = open_private(folder / "children.lock", os.O_RDWR)
            opened.pop_all()
        try:
            self._take_daemon(folder)
            self._take_children(folder)
        except ResourceFault:
            self.close()
            raise

    def _take_daemon(self, folder: Path) -> None:
        try:
            fcntl.flock(self._daemon, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceFault(_holder(self._daemon).text(folder)) from None
        self.say(STARTING)

    def say(self, state: str) -> None:
        """Note what the daemon is at, for those who ask."""
        with suppress(OSError):  # a full disk keeps nobody from starting
            # In one write, of one length: a reader never sees half of it.
            os.pwrite(self._daemon, f"{os.getpid()} {state}".ljust(31).encode() + b"\n", 0)
            os.ftruncate(self._daemon, 32)

    def _take_children(self, folder: Path) -> None:
        if not _locked(self.children, fcntl.LOCK_EX, CHILDREN_END_S):
            raise ResourceFault(
                f"processes of an earlier lifld still hold {folder / 'children.lock'} after {CHILDREN_END_S:g} s: "
                f"find them with `fuser {folder / 'children.lock'}` and end them"
            )

    def close(self) -> None:
        """Let both locks go."""
        os.close(self._daemon)
        os.close(self.children)

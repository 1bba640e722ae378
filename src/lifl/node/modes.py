"""Who may read and write what a node makes: its folder is its user's alone (0700), and so are its files (0600).

Modes are set, not left to the umask: one that takes none would leave the database open to all.  (That none takes rights
from the owner the command line sees to, for all its processes.)
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lifl.core.errors import ResourceFault

FOLDER_MODE = 0o700
FILE_MODE = 0o600
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""There is no room for what is to be written."""
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(folder: Path) -> None:
    """Make a folder that is its user's alone, with those above it; one that is there stays as it is.

    Raise `ResourceFault` when others may write to it: whoever can put a database or a socket there has the node.
    Raise `OSError` when it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        if not folder.is_dir():
            raise
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & OTHERS_WRITE:
            raise ResourceFault(
                f"folder {folder} has mode {mode:04o}: other users can change what a node keeps there; "
                f"close it with `chmod 700 {folder}`"
            ) from None
        return
    folder.chmod(FOLDER_MODE)


def open_private(path: Path, flags: int) -> int:
    """Return a descriptor of a file that is its user's alone, made if need be, also where it was open to others.

    Raise `OSError`, also for a pipe or a device: who opens the one may wait without end.
    """
    return open_file(path, flags | os.O_CREAT, private=True)


def open_file(path: Path, flags: int, private: bool = False) -> int:
    """Return a descriptor of what is a file; with `private` it becomes its user's alone.  Raise `OSError`."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe that nobody reads, or a socket
            raise _no_file(path) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _no_file(path)
        if private and stat.S_IMODE(os.fstat(fd).st_mode) != FILE_MODE:
            os.fchmod(fd, FILE_MODE)
    except OSError:
        os.close(fd)
        raise
    return fd


def _no_file(path: Path) -> OSError:
    return OSError(errno.EINVAL, "it is no file", str(path))


def remedy(folder: Path) -> str:
    """Return what to do about what is wrong in a state folder."""
    return f"`lifl doctor --repair --state {folder}` mends it, or says who can"


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Say what to do about an `OSError` over something in a state folder; others pass."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:  # what is written to a file that is open has no name
            text = f"state folder {folder} cannot be written: {error.strerror}; make room on its disk"
            raise ResourceFault(text) from error
        if not isinstance(error.filename, str) or folder not in Path(error.filename).parents:
            raise
        raise ResourceFault(f"{error.filename}: {error.strerror}; {remedy(folder)}") from error

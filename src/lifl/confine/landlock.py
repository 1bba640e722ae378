"""Landlock: what of the file system a process may use, and that it opens no TCP connection and signals nobody outside.

A *domain* is built from a list of folders, each with the rights to all that is beneath it, and holds for the process
and what it starts, for ever; a second one on top of it can only take away.  What was open before stays open.  A domain
also keeps its processes from tracing, and so from reading the memory of, any process outside of it.
Source: the kernel's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lifl.confine import kernel

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_CHAR, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
TRUNCATE = 1 << 14
_FS_FIRST = (1 << 13) - 1
_FS_SINCE = {2: 1 << 13, 3: TRUNCATE, 5: 1 << 15}  # moving between folders, truncating, ioctl on devices
READ = READ_FILE | READ_DIR
SPECIAL = EXECUTE | MAKE_CHAR | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK
"""To run a program, and to make what is neither file nor folder."""
BIND_TCP, CONNECT_TCP = 1, 2
_NET_SINCE = 4
_SCOPED_SINCE = 6
_SCOPED = 3
"""Abstract AF_UNIX sockets, and signals."""
_AROUND_MAX = 4096
"""Entries of a folder that are allowed one by one because another one beneath it is not."""


def version() -> int:
    """Return the version of Landlock that the kernel offers; 0: none."""
    try:
        return kernel.syscall(_CREATE, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def restrict(handled: int | None, allowed: Iterable[tuple[Path, int]], tcp: int) -> int:
    """Enter a new domain; return the version of Landlock that it is of, 0 when the kernel has none.

    `handled` are the rights to files that only what is `allowed` gives (None: all that there are), each a path and the
    rights to what is beneath it; a path that is not there is left out.  `tcp` are the uses of TCP that are refused.
    Raise `OSError`.
    """
    known = version()
    if not known:
        return 0
    rights = _FS_FIRST | sum(bit for since, bit in _FS_SINCE.items() if since <= known)
    handled = rights if handled is None else handled & rights
    words = [handled, tcp] if known >= _NET_SINCE else [handled]
    words += [_SCOPED] if known >= _SCOPED_SINCE else []
    attribute = struct.pack(f"<{len(words)}Q", *words)
    ruleset = kernel.syscall(_CREATE, attribute, len(attribute), 0)
    try:
        for path, access in allowed:
            _allow(ruleset, path, access & handled)
        kernel.take_no_new_rights()
        kernel.syscall(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return known


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # it is not there, or not this user's to see
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= EXECUTE | WRITE_FILE | READ_FILE
        if access:
            kernel.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("<Qi", access, fd), 0)
    except OSError as error:
        if error.errno != errno.EBADFD:  # what lies in no file system that rules are for, such as a pipe
            raise
    finally:
        os.close(fd)


def readable(folders: Sequence[Path], but: Path | None) -> Iterator[tuple[Path, int]]:
    """Yield what lets all beneath `folders` be read, but for the files in the folder `but` that is beneath one of them.

    A folder within `but` is readable when it is named itself; of `but` itself Python's files are.  The paths of folders
    hold no symbolic links.
    """
    hidden = but.resolve() if but is not None else None
    for folder in dict.fromkeys(folders):
        if hidden is None or not hidden.is_relative_to(folder):
            yield folder, READ
            continue
        yield folder, READ_DIR
        yield from _around(folder, hidden)
        if folder == hidden:
            yield from ((file, READ_FILE) for file in folder.glob("*.py") if not file.is_symlink())


def _around(folder: Path, hidden: Path) -> Iterator[tuple[Path, int]]:
    """Yield the entries of a folder above `hidden`, and of those between the two: a rule cannot be taken back below."""
    while folder != hidden:
        onward = folder / hidden.relative_to(folder).parts[0]
        with suppress(OSError):
            entries = [folder / entry for entry in os.listdir(folder)[:_AROUND_MAX]]
            yield from ((entry, READ) for entry in entries if entry != onward and not entry.is_symlink())
        folder = onward

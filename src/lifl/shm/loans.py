"""Objects that are lent to other processes: each loan is a descriptor of the segment, to be read only, and a lock.

The lock is of the kernel's kind that belongs to an open file (an OFD lock): it is there as long as the descriptor that
`lend` returns, a copy of it, or a mapping that was made by it is, in whatever process; and it goes with the last of
them.  So a daemon finds out by `is_lent` what an earlier one has lent, and by `wait` when that is over.
"""

from __future__ import annotations

import fcntl
import os
import struct

_LOCK = struct.Struct("hhqqi4x")
"""`struct flock` where files have 64-bit lengths: kind, whence, start, length, process."""


def lend(fd: int, offset: int, nbytes: int) -> int:
    """Return a descriptor that lends `nbytes` of the segment `fd`; it is the caller's.  Raise `OSError`."""
    lent = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)  # a file that is opened anew
    try:
        fcntl.fcntl(lent, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, offset, nbytes, 0))
    except BaseException:
        os.close(lent)
        raise
    return lent


def wait(fd: int, offset: int, nbytes: int) -> None:
    """Return when nobody has any of these bytes of the segment `fd` as a loan any more; it may be closed meanwhile.

    Raise `OSError` when it cannot be waited for.
    """
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(own, fcntl.F_OFD_SETLKW, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, nbytes, 0))
    finally:
        os.close(own)


def is_lent(fd: int, offset: int, nbytes: int) -> bool:
    """Return whether somebody has any of these bytes of the segment `fd` as a loan."""
    asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, nbytes, 0)
    try:
        found: bytes = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    except OSError:  # a kernel without such locks, which has lent none
        return False
    return bool(_LOCK.unpack(found)[0] != fcntl.F_UNLCK)

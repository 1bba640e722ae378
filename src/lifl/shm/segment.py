"""The POSIX shared-memory segment of an arena: made, found again and removed, by its name.

The memory is reserved with `posix_fallocate` when the segment is made: a full /dev/shm is an error then, and never a
SIGBUS later.  A segment is opened only when it was finished, is of this version and of this user.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import struct

import posix_ipc

from lifl.core.errors import LocalFault, ResourceFault
from lifl.shm import layout
from lifl.shm.layout import ENTRIES_MAX, PAGE_BYTES, Header

SHM_FOLDER = "/dev/shm"
_LONG = struct.Struct("<Q")


class SegmentMissing(ResourceFault):
    """There is no segment of this name: create one."""


class SegmentUnfinished(ResourceFault):
    """The segment was never finished (its creator died): nothing is in it, remove it and create a new one."""


class SegmentUnusable(ResourceFault):
    """The segment is damaged, of another version or of another user; the text says which and what to do."""


def make_segment(name: str, arena_bytes: int, node: int, entries: int) -> tuple[int, Header]:
    """Return the descriptor of a new segment, whose memory is reserved, and the header that it is to get.

    Raise `LocalFault` on sizes that cannot be, `ResourceFault` when the name is taken or memory is short; after an
    error nothing is left behind.
    """
    header = _plan(arena_bytes, node, entries)
    _allow_file(header.arena_bytes)
    _check_memory(header.arena_bytes)
    try:
        segment = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.ExistentialError:
        raise ResourceFault(
            f"shared-memory segment {name} exists already: adopt it, or remove {SHM_FOLDER}{name}"
        ) from None
    except (posix_ipc.PermissionsError, OSError, ValueError) as error:
        raise ResourceFault(f"cannot create shared-memory segment {name}: {error}") from error
    fd: int = segment.fd
    try:
        _reserve(fd, header.arena_bytes)
    except BaseException:
        os.close(fd)
        segment.unlink()
        raise
    return fd, header


def open_segment(name: str) -> tuple[int, Header]:
    """Return the descriptor and the header of the segment `name`.

    Raise `SegmentMissing`, `SegmentUnfinished` or `SegmentUnusable`.
    """
    try:
        segment = posix_ipc.SharedMemory(name, flags=0)
    except posix_ipc.ExistentialError:
        raise SegmentMissing(f"there is no shared-memory segment {name}: is the daemon up?") from None
    except (posix_ipc.PermissionsError, OSError, ValueError) as error:
        raise ResourceFault(f"cannot open shared-memory segment {name}: {error}") from error
    fd: int = segment.fd
    try:
        owner = os.fstat(fd).st_uid
        if owner != os.geteuid():
            raise SegmentUnusable(f"segment {name} belongs to user {owner}, not to {os.geteuid()}: use another name")
        return fd, _read_header(name, fd)
    except BaseException:
        os.close(fd)
        raise


class SegmentLock:
    """A lock on the segment `name` for a daemon's life; `take` it before the segment is changed, and on a new one.

    Two state folders with one node id (one is a copy) name the same segment.  The arena's own descriptor cannot be
    locked: direct clients get it, and would keep the lock.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._fd: int | None = None

    def take(self) -> None:
        """Lock the segment that has the name now, if there is one.  Raise `ResourceFault` when a daemon has it."""
        try:
            fd = os.open(SHM_FOLDER + self._name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # none is there; or another user's, which cannot be opened either
            return
        if self._fd is not None and os.path.sameopenfile(fd, self._fd):
            os.close(fd)
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise ResourceFault(
                f"another lifld uses the arena {self._name}: this state folder is a copy of the one that it runs on, "
                "with the same node id; end that node first, or begin with an empty state folder"
            ) from None
        self.close()
        self._fd = fd

    def close(self) -> None:
        """Let it go."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def remove_segment(name: str) -> None:
    """Remove the segment `name`, if there is one; a process that has it mapped keeps the memory until it closes."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return
    except posix_ipc.PermissionsError as error:
        raise ResourceFault(f"cannot remove shared-memory segment {name}: {error}") from error


def _read_header(name: str, fd: int) -> Header:
    """Return the header of the segment `name`.  Raise `SegmentUnfinished` or `SegmentUnusable`."""
    size = os.fstat(fd).st_size
    page = os.pread(fd, PAGE_BYTES, 0).ljust(PAGE_BYTES, b"\0")
    header = Header(*layout.HEADER.unpack_from(page))
    if header.magic not in (layout.MAGIC, bytes(len(layout.MAGIC))):
        raise SegmentUnusable(damaged(name, "it is no arena of LIFL"))
    if _LONG.unpack_from(page, layout.INITIALISED_OFFSET) != (layout.INITIALISED,):
        raise SegmentUnfinished(
            f"segment {name} was not finished by the process that made it: nothing is in it, remove it"
        )
    if header.version != layout.VERSION:
        raise SegmentUnusable(
            f"segment {name} has layout version {header.version}, this program reads {layout.VERSION}:"
            " finish its jobs with the version of LIFL that made it, or remove it and lose them"
        )
    places = (header.table_offset, header.data_offset)
    expected = (layout.TABLE_OFFSET, layout.data_offset(header.entries))
    if places != expected or not header.data_offset < header.arena_bytes == size:
        raise SegmentUnusable(damaged(name, f"its header does not fit its {size} bytes: {header}"))
    return header


def damaged(name: str, how: str) -> str:
    """Return the text of a fault that nothing can be done about."""
    return (
        f"segment {name} is damaged: {how}; what was accepted but not committed cannot be recovered, remove"
        " the segment and start again"
    )


def _plan(arena_bytes: int, node: int, entries: int) -> Header:
    """Return the header of a segment of at most `arena_bytes`, in whole pages.  Raise `LocalFault`."""
    if not 1 <= entries <= ENTRIES_MAX:
        raise LocalFault(f"an arena has 1 to {ENTRIES_MAX} entries, not {entries}")
    if not 0 <= node < 1 << 64:
        raise LocalFault(f"node id {node} is no unsigned 64-bit number")
    begin = layout.data_offset(entries)
    end = arena_bytes // PAGE_BYTES * PAGE_BYTES
    if end <= begin:
        raise LocalFault(
            f"an arena of {arena_bytes} bytes has no room for objects: its table of {entries} entries ends at"
            f" byte {begin}; give it more than that"
        )
    return Header(layout.MAGIC, layout.VERSION, entries, node, end, layout.TABLE_OFFSET, begin)


def _allow_file(arena_bytes: int) -> None:
    """Raise the limit of a file's size, if need be.  Raise `ResourceFault` where that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY or soft >= arena_bytes:
        return
    if hard != resource.RLIM_INFINITY and hard < arena_bytes:
        raise ResourceFault(
            f"the arena needs {arena_bytes} bytes, and this process may make files of at most {hard}: raise that limit"
            " (ulimit -f, or LimitFSIZE= in the unit file), or give the node a smaller arena (--arena-bytes)"
        )
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _check_memory(arena_bytes: int) -> None:
    """Raise `ResourceFault` when /dev/shm or the machine has not so much free.

    Asked first, because `posix_fallocate` takes page after page before it finds out, and on a tmpfs as
    large as the memory the kernel would kill processes instead.
    """
    about = os.statvfs(SHM_FOLDER)
    free = about.f_bavail * about.f_frsize
    if arena_bytes > free:
        raise ResourceFault(_short(arena_bytes))
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        found = [int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:")]
    if found and arena_bytes > found[0]:
        raise ResourceFault(
            f"the arena needs {arena_bytes} bytes, this machine has {found[0]} bytes of memory available:"
            " give the node a smaller arena_bytes, or end other programs"
        )


def _reserve(fd: int, arena_bytes: int) -> None:
    try:
        os.posix_fallocate(fd, 0, arena_bytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM):
            raise ResourceFault(_short(arena_bytes)) from error
        raise ResourceFault(f"cannot reserve {arena_bytes} bytes of shared memory: {error}") from error


def _short(arena_bytes: int) -> str:
    about = os.statvfs(SHM_FOLDER)
    size, free = about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize
    return (
        f"the arena needs {arena_bytes} bytes, {SHM_FOLDER} has {free} free of {size}: give the node a"
        f" smaller arena_bytes, remove what fills {SHM_FOLDER}, or enlarge it (mount -o remount,size=..."
        f" {SHM_FOLDER})"
    )

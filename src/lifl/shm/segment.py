"""The segments of an arena as files of /dev/shm: made, found again, reserved and removed.

The *table* has the arena's name; the other segments have that with a number and whose they are, such as
``/lifl-a.2.17``: the second segment, of job 17 (`job_segments.py`).  Each of these is as long as the arena, and holes
but for the pages that it holds.

Memory is reserved with `posix_fallocate`: a full /dev/shm is an error then, and never a
SIGBUS later.  A segment is opened only when it was finished, is of this version and of this user.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import resource
import struct
from collections.abc import Iterator

import posix_ipc

from lifl.core.errors import LocalFault, ResourceFault
from lifl.shm import layout
from lifl.shm.layout import ENTRIES_MAX, PAGE_BYTES, Header

SHM_FOLDER = "/dev/shm"
FREE = "free"
"""The owner of a segment that no job has had: all of it is zeros."""
EARLIER = "earlier"
"""The owner of what an earlier version has left: objects of any job."""
_LONG = struct.Struct("<Q")
_SEGMENT = re.compile(rf"([1-9][0-9]*)\.([0-9]+|{FREE}|{EARLIER})")
_BLOCK_BYTES = 512
_PUNCH_HOLE = 0x03  # and the length stays

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class SegmentMissing(ResourceFault):
    """There is no segment of this name: create one."""


class SegmentUnfinished(ResourceFault):
    """The segment was never finished (its creator died): nothing is in it, remove it and create a new one."""


class SegmentEarlier(ResourceFault):
    """The segment is an arena of an earlier version, which a daemon takes over."""


class SegmentUnusable(ResourceFault):
    """The segment is damaged, of another version or of another user; the text says which and what to do."""


def make_table(name: str, arena_bytes: int, node: int, entries: int) -> tuple[int, Header]:
    """Return the descriptor of a new arena's table, whose memory is reserved, and the header that it is to get.

    Raise `LocalFault` on sizes that cannot be, `ResourceFault` when the name is taken or memory is short; after an
    error nothing is left behind.
    """
    header = _plan(arena_bytes, node, entries)
    _allow_file(header.arena_bytes)
    _check_memory(header.arena_bytes)
    fd = make_file(name)
    try:
        reserve(fd, 0, header.data_offset)
    except BaseException:
        os.close(fd)
        remove_file(name)
        raise
    return fd, header


def make_file(name: str) -> int:
    """Return the descriptor of a new segment without any bytes.  Raise `ResourceFault`."""
    try:
        segment = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.ExistentialError:
        raise ResourceFault(
            f"shared-memory segment {name} exists already: adopt it, or remove {SHM_FOLDER}{name}"
        ) from None
    except (posix_ipc.PermissionsError, OSError, ValueError) as error:
        raise ResourceFault(f"cannot create shared-memory segment {name}: {error}") from error
    return int(segment.fd)


def open_table(name: str, writes: bool = False) -> tuple[int, Header]:
    """Return the descriptor of the table of the arena `name`, to be read (or written, too), and its header.

    Raise `SegmentMissing`, `SegmentUnfinished` or `SegmentUnusable`.
    """
    fd = open_file(name, writes)
    try:
        return fd, read_header(name, fd)
    except BaseException:
        os.close(fd)
        raise


def open_file(name: str, writes: bool) -> int:
    """Return the descriptor of the segment `name` of this user.  Raise `SegmentMissing` or `SegmentUnusable`."""
    try:
        segment = posix_ipc.SharedMemory(name, flags=0, read_only=not writes)
    except posix_ipc.ExistentialError:
        raise SegmentMissing(f"there is no shared-memory segment {name}: is the daemon up?") from None
    except (posix_ipc.PermissionsError, OSError, ValueError) as error:
        raise ResourceFault(f"cannot open shared-memory segment {name}: {error}") from error
    fd: int = segment.fd
    try:
        owner = os.fstat(fd).st_uid
        if owner != os.geteuid():
            raise SegmentUnusable(f"segment {name} belongs to user {owner}, not to {os.geteuid()}: use another name")
        return fd
    except BaseException:
        os.close(fd)
        raise


class SegmentLock:
    """A lock on the segment `name` for a daemon's life; `take` it before the segment is changed, and on a new one.

    Two state folders with one node id (one is a copy) name the same segment.  It is the table that is locked, by a
    descriptor of the lock's own.
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


def segments_of(name: str) -> dict[int, str]:
    """Return the segments of the arena `name` beside its table: their names, by number."""
    prefix = f"{name[1:]}."
    found = {}
    with os.scandir(SHM_FOLDER) as folder:
        for each in folder:
            if each.name.startswith(prefix) and (match := _SEGMENT.fullmatch(each.name, len(prefix))):
                found[int(match[1])] = f"/{each.name}"
    return found


def segment_name(arena: str, number: int, owner: int | str) -> str:
    """Return the name of an arena's segment; `owner` is the number of a job, `FREE` or `EARLIER`."""
    return f"{arena}.{number}.{owner}"


def new_table_name(name: str) -> str:
    """Return the name that the table of an arena has while it is made from an earlier version's."""
    return f"{name}.table"


def remove_segment(name: str) -> None:
    """Remove the arena `name`, if there is one; a process that has it mapped keeps the memory until it closes."""
    for each in segments_of(name).values():
        remove_file(each)
    remove_file(new_table_name(name))
    remove_file(name)


def remove_file(name: str) -> None:
    """Remove one segment, if there is one."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return
    except posix_ipc.PermissionsError as error:
        raise ResourceFault(f"cannot remove shared-memory segment {name}: {error}") from error


def read_header(name: str, fd: int) -> Header:
    """Return the header of the table `name`.  Raise `SegmentEarlier`, `SegmentUnfinished` or `SegmentUnusable`."""
    size = os.fstat(fd).st_size
    page = os.pread(fd, PAGE_BYTES, 0).ljust(PAGE_BYTES, b"\0")
    header = Header(*layout.HEADER.unpack_from(page))
    if header.magic not in (layout.MAGIC, bytes(len(layout.MAGIC))):
        raise SegmentUnusable(damaged(name, "it is no arena of LIFL"))
    if _LONG.unpack_from(page, layout.INITIALISED_OFFSET) != (layout.INITIALISED,):
        raise SegmentUnfinished(
            f"segment {name} was not finished by the process that made it: nothing is in it, remove it"
        )
    if header.version not in (layout.VERSION, layout.EARLIER_VERSION):
        raise SegmentUnusable(
            f"segment {name} has layout version {header.version}, this program reads {layout.VERSION}:"
            " finish its jobs with the version of LIFL that made it, or remove it and lose them"
        )
    places = (header.table_offset, header.data_offset)
    expected = (layout.TABLE_OFFSET, layout.data_offset(header.entries))
    lengths = {size, header.data_offset if header.version == layout.VERSION else header.arena_bytes}
    # Of the segments one may have been cut short by who had it to write to.
    of_objects = set(_lengths(name)) if header.version == layout.VERSION else set()
    good = places == expected and header.data_offset < header.arena_bytes
    if not good or len(lengths) > 1 or (of_objects and header.arena_bytes not in of_objects):
        raise SegmentUnusable(damaged(name, f"its header does not fit its {size} bytes: {header}"))
    if header.version == layout.EARLIER_VERSION:
        raise SegmentEarlier(f"segment {name} is of an earlier version, and not taken over yet: is the daemon up?")
    return header


def _lengths(name: str) -> Iterator[int]:
    """Yield the lengths of an arena's segments, but for one that is being made."""
    for file in segments_of(name).values():
        with contextlib.suppress(FileNotFoundError):  # it is gone, or has another name, a moment later
            if length := os.stat(SHM_FOLDER + file).st_size:
                yield length


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


def reserve(fd: int, begin: int, nbytes: int) -> None:
    """Have the segment hold these bytes: zeros, where it has not held them before.  Raise `ResourceFault`."""
    try:
        os.posix_fallocate(fd, begin, nbytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM):
            raise ResourceFault(_short(nbytes)) from error
        raise ResourceFault(f"cannot reserve {nbytes} bytes of shared memory: {error}") from error


def punch(fd: int, begin: int, nbytes: int) -> None:
    """Have the segment hold these bytes no more, whoever has them mapped.  Raise `ResourceFault`."""
    while nbytes and _libc.fallocate(fd, _PUNCH_HOLE, begin, nbytes):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise ResourceFault(f"cannot give {nbytes} bytes of shared memory back: {os.strerror(code)}")


def clear(fd: int, begin: int, nbytes: int) -> None:
    """Make a few bytes that the segment holds zeros.  Raise `ResourceFault`.

    They are written: whoever has the segment may have cut it short, and a mapping of it would be no more.  What is
    punched within a page is zeros, too (and may split a huge page); that is not held to a limit of files' sizes.
    """
    try:
        os.pwrite(fd, bytes(nbytes), begin)
    except OSError:
        punch(fd, begin, nbytes)


def held_bytes(fd: int) -> int:
    """Return the bytes that the segment holds."""
    return os.fstat(fd).st_blocks * _BLOCK_BYTES


def _short(arena_bytes: int) -> str:
    about = os.statvfs(SHM_FOLDER)
    size, free = about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize
    return (
        f"the arena needs {arena_bytes} bytes, {SHM_FOLDER} has {free} free of {size}: give the node a"
        f" smaller arena_bytes, remove what fills {SHM_FOLDER}, or enlarge it (mount -o remount,size=..."
        f" {SHM_FOLDER})"
    )

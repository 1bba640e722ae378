"""A segment mapped where the processor can address it by huge pages, and its pages made ready before they are needed.

**The address.**  The kernel chooses an address for a segment that is a multiple of 4 KiB.  A
huge page of the segment can be mapped as one only where the address and the place in the segment are both multiples
of its size.  So a little more than the segment is reserved as private memory that is never touched and may not be
(so no limit of a process' own memory counts it), and the segment is mapped over the first multiple of 2 MiB in it.
All of that is unmapped when the last view has gone, and not before.

**Pages.**  The first touch of a page in a process is a fault; the first touch at all also clears the page.  Both
happen in the middle of a `recv_into` or a fold unless they were made to happen before: `populate`
(MADV_POPULATE_WRITE, Linux 5.14) does it in one call, without the interpreter's lock and without changing contents, so
it may run while others write the same pages.  `collapse` (MADV_COLLAPSE, Linux 6.1) makes one huge page of 512 small
ones; it needs no right and no setting of the system but that shared memory is not denied huge pages.  Then one fault
maps 2 MiB, in every process.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import weakref
from collections.abc import Callable

from lifl.core.errors import LocalFault, ResourceFault

HUGE_PAGE_BYTES = 2 << 20
"""A huge page of x86-64, and of arm64 with pages of 4 KiB."""
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000  # Linux's, not in Python 3.11
_MREMAP_TO = 3
"""MREMAP_MAYMOVE and MREMAP_FIXED."""
_POPULATE_READ = 22
_POPULATE_WRITE = 23
_COLLAPSE = 25
_TRIES = 3
_FAILED = ctypes.c_void_p(-1).value
_PAGE = struct.Struct("=Q")
"""What the kernel tells of a page (its Documentation/admin-guide/mm/pagemap.rst)."""
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Mapped:
    """The first `nbytes` of the segment `fd`, shared, readable and writable, as `view`.

    The descriptor stays the caller's.  Raise `ResourceFault` when there is no room for the mapping.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        reserved_bytes = nbytes + HUGE_PAGE_BYTES
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        reserved = _map(None, reserved_bytes, _PROT_NONE, flags, -1)
        address = -(-reserved // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        try:
            _map(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd)
        except ResourceFault:
            _libc.munmap(reserved, reserved_bytes)
            raise
        memory = (ctypes.c_ubyte * nbytes).from_address(address)
        # Every view holds the memory; when the last one is gone it is unmapped.
        weakref.finalize(memory, _libc.munmap, reserved, reserved_bytes).atexit = False
        self._memory = weakref.ref(memory)
        self.view = memoryview(memory).cast("B")

    def close(self) -> bool:
        """Let go of it; return whether it is unmapped, or views of it are still held.  May be called twice."""
        self.view.release()
        return self._memory() is None


class Readable:
    """Bytes of the segment `fd` from `offset` on, to be read, as `view`: what the segment holds, until `part`.

    Then they are a private copy at the same address: whoever has a view of them sees the same bytes on.  All is
    unmapped when the last view has gone.  The descriptor stays the caller's.  Raise `ResourceFault` when there is no
    room for the mapping.
    """

    def __init__(self, fd: int, offset: int, nbytes: int) -> None:
        begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._nbytes = offset - begin + nbytes
        self._address = _map(None, self._nbytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, begin)
        memory = (ctypes.c_ubyte * self._nbytes).from_address(self._address)
        weakref.finalize(memory, _libc.munmap, self._address, self._nbytes).atexit = False
        self._memory = weakref.ref(memory)
        self.view: memoryview | None = memoryview(memory).cast("B")[offset - begin :].toreadonly()

    def take(self, ended: Callable[[], None]) -> memoryview:
        """Return the view, which is the caller's alone from now on; `ended` is called when its last one has gone."""
        view, self.view = self.view, None
        memory = self._memory()
        if view is None or memory is None:
            raise LocalFault("the view was taken before")
        weakref.finalize(memory, ended).atexit = False
        return view

    def part(self) -> None:
        """Have the bytes be a copy of this process' own.  Raise `ResourceFault` when there is no memory for it."""
        held = self._memory()  # while this is done nobody unmaps it
        if held is None:
            return
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        copy = _map(None, self._nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1)
        ctypes.memmove(copy, self._address, self._nbytes)
        _libc.mprotect(copy, self._nbytes, mmap.PROT_READ)
        # In one step, which no reader sees half of.
        moved = _libc.mremap(copy, self._nbytes, self._nbytes, _MREMAP_TO, self._address)
        if moved == _FAILED:
            code = ctypes.get_errno()
            _libc.munmap(copy, self._nbytes)
            raise ResourceFault(f"cannot keep {self._nbytes} bytes of shared memory as a copy: {os.strerror(code)}")


class Borrowed:
    """Bytes of the segment `fd` from `offset` on, which begin at a page, as `view`: to be read, and to be written.

    What is written is this process' own, a copy made page by page; nobody else sees it.  All is unmapped when the last
    view has gone, and just before that `ended(address, nbytes)` is called.  Nobody may write to those bytes of the
    segment until then.  The descriptor stays the caller's.  Raise `ResourceFault` when there is no room for it.
    """

    def __init__(self, fd: int, offset: int, nbytes: int, ended: Callable[[int, int], None]) -> None:
        reserved_bytes = nbytes + 2 * HUGE_PAGE_BYTES
        reserved = _map(None, reserved_bytes, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
        first = -(-reserved // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        self.address = first + offset % HUGE_PAGE_BYTES
        self.nbytes = nbytes
        flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
        try:
            _map(self.address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset)
        except ResourceFault:
            _libc.munmap(reserved, reserved_bytes)
            raise
        _libc.madvise(self.address, nbytes, _POPULATE_READ)  # or the first reads do that
        memory = (ctypes.c_ubyte * nbytes).from_address(self.address)
        weakref.finalize(memory, self._unmap, (reserved, reserved_bytes), ended, (self.address, nbytes)).atexit = False
        self.view = memoryview(memory).cast("B")

    @staticmethod
    def _unmap(reserved: tuple[int, int], ended: Callable[[int, int], None], at: tuple[int, int]) -> None:
        try:
            ended(*at)
        finally:
            _libc.munmap(*reserved)


def own_pages(address: int, nbytes: int, samples: int) -> int:
    """Return how many of so many pages of a `Borrowed` memory, equally far apart, have been written to.

    0 where the kernel does not tell.
    """
    found = 0
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:
            for sample in range(samples):
                page = (address + sample * nbytes // samples) // mmap.PAGESIZE
                (about,) = _PAGE.unpack(os.pread(pages.fileno(), _PAGE.size, page * _PAGE.size))
                found += about & (_PRESENT | _SWAPPED) != 0 and not about & _OF_FILE
    except (OSError, struct.error):
        return 0
    return found


def _map(address: int | None, nbytes: int, access: int, flags: int, fd: int, begin: int = 0) -> int:
    found = _libc.mmap(address, nbytes, access, flags, fd, begin)
    if found is None or found == _FAILED:
        raise ResourceFault(f"cannot map {nbytes} bytes of shared memory: {os.strerror(ctypes.get_errno())}")
    return int(found)


def populate(view: memoryview) -> None:
    """Map the pages of `view`, which begins at a page, into this process.  Raise `ResourceFault` when memory is
    short.

    A kernel that does not know the advice is served by reading a byte of each page, with the same effect more slowly.
    """
    code = _advise(view, _POPULATE_WRITE)
    if code == errno.EINVAL:
        view[:: mmap.PAGESIZE].tobytes()
    elif code:
        raise ResourceFault(f"cannot populate {len(view)} bytes of the arena: {os.strerror(code)}; is memory short?")


def collapse(view: memoryview) -> int:
    """Make huge pages of `view`, whole pages of 2 MiB of a segment; return 0, or the error number that tells why not.

    ENOMEM: the machine has no such piece of memory in a row.  EINVAL: this kernel does not do it for shared memory.
    """
    for _ in range(_TRIES):
        code = _advise(view, _COLLAPSE)
        if code not in (errno.EAGAIN, errno.EBUSY):  # a process held one of the pages
            break
    return code


def _advise(view: memoryview, advice: int) -> int:
    """Return the error number of madvise, or 0.  While it runs `view` holds the mapping, so the address stays ours."""
    if not view:
        return 0
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    while _libc.madvise(address, len(view), advice):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            return code
    return 0

"""Pages that are mapped before they are needed.

The first touch of a page of the arena in a process is a fault; the first touch at all also clears the page.
Both happen in the middle of a `recv_into` or a fold unless somebody did it before.
`madvise(MADV_POPULATE_*)` (Linux 5.14) does it for a whole range in one call, which runs without the
interpreter's lock and never changes contents, so it may run while others write the same pages.

WRITE is the faster for pages that nobody has touched yet, READ for pages that are in memory already: it
maps the neighbours of a page along with it, and in a shared mapping what it maps is writable too.  So: the
process that writes first (the gateway) populates the arena by `Prefault` once, at lowest priority; workers
call `populate_read` for what they are about to read or write.

An older kernel refuses the advice; then one byte of each page is read instead, which has the same effect
more slowly.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from enum import IntEnum

from lifl.core.errors import ResourceFault
from lifl.shm.arena import Arena
from lifl.shm.layout import PAGE_BYTES

CHUNK_BYTES = 1 << 20
"""Advised at a time: a millisecond at most, for which munmap and mmap in this process wait."""
_NICE_LOWEST = 19


class _Advice(IntEnum):
    POPULATE_READ = 22
    POPULATE_WRITE = 23


_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def populate_read(arena: Arena, offset: int, nbytes: int) -> None:
    """Maps the pages of bytes `offset` to `offset + nbytes` of the segment into this process.

    Raises `LocalFault` when they are not in the arena, `ResourceFault` when memory is short.
    """
    _populate(arena, offset, nbytes, _Advice.POPULATE_READ)


def populate_write(arena: Arena, offset: int, nbytes: int) -> None:
    """Like `populate_read`, faster where the pages have never been touched by any process."""
    _populate(arena, offset, nbytes, _Advice.POPULATE_WRITE)


def _populate(arena: Arena, offset: int, nbytes: int, advice: _Advice) -> None:
    begin = offset // PAGE_BYTES * PAGE_BYTES
    with arena.window(begin, offset + nbytes - begin) as view:
        _advise(view, advice)


def _advise(view: memoryview, advice: _Advice) -> None:
    """`view` begins at a page.  While this runs `view` holds the mapping, so the address stays ours."""
    if not view:
        return
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    while _libc.madvise(address, len(view), advice):
        code = ctypes.get_errno()
        if code == errno.EINVAL:
            view[::PAGE_BYTES].tobytes()
            return
        if code != errno.EINTR:
            raise ResourceFault(
                f"cannot populate {len(view)} bytes of the arena: {os.strerror(code)}; is memory short?"
            )


class Prefault:
    """A thread that populates the whole arena, lowest addresses first, in this process at lowest priority.

    It ends by itself; `stop` before `Arena.close` lets the mapping go at once.  `error` tells why it gave
    up.
    """

    def __init__(self, arena: Arena, nbytes: int | None = None) -> None:
        """`nbytes` from the segment's start are populated, by default all.  Raises `LocalFault` beyond the
        arena.
        """
        self._view = arena.window(0, arena.arena_bytes if nbytes is None else nbytes)
        self._stop = threading.Event()
        self.done_bytes = 0
        self.error: ResourceFault | None = None
        self._thread = threading.Thread(target=self._run, name="prefault", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its current chunk and waits for it; may be called twice."""
        self._stop.set()
        self._thread.join()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until the thread has ended; True when it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE_LOWEST)
        with self._view as view:
            try:
                for begin in range(0, len(view), CHUNK_BYTES):
                    if self._stop.is_set():
                        return
                    with view[begin : begin + CHUNK_BYTES] as chunk:
                        _advise(chunk, _Advice.POPULATE_WRITE)
                        self.done_bytes = begin + len(chunk)
            except ResourceFault as error:
                self.error = error

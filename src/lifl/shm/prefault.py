"""The arena's pages, made ready in the background by the process that writes to them first (the gateway)."""

from __future__ import annotations

import errno
import os
import threading

from lifl.core.errors import LocalFault, ResourceFault
from lifl.shm import layout
from lifl.shm.arena import Arena
from lifl.shm.mapping import HUGE_PAGE_BYTES, collapse, populate
from lifl.shm.segment import held_bytes

CHUNK_BYTES = HUGE_PAGE_BYTES
"""Populated, then made one huge page, at a time: a millisecond or two, for which munmap and mmap in this process wait.
Populating first is not needed, but the kernel is four times as fast then."""
SCARCE_MAX = 64
"""Chunks in a row for which the machine has no huge page, after which no more is asked for."""
_NICE_LOWEST = 19


class Prefault:
    """A thread that populates the arena's segments, lowest addresses first, in this process at lowest priority.

    It populates what they hold, as the kernel says: touching a hole would take memory beyond the arena.
    It ends by itself; `stop` before `Arena.close` lets the mapping go at once.  `huge_bytes` of the `done_bytes` have
    become huge pages, `refused` is the error number that ended this (0: nothing did), `error` tells why it gave up.
    """

    def __init__(self, arena: Arena, nbytes: int | None = None) -> None:
        """Populate `nbytes` from each segment's start, by default all.  Raise `LocalFault` beyond the arena."""
        nbytes = arena.arena_bytes if nbytes is None else nbytes
        if not 0 <= nbytes <= arena.arena_bytes:
            raise LocalFault(f"{nbytes} bytes are more than the arena's {arena.arena_bytes}")
        self._segments = {number: view[:nbytes] for number, view in arena.segments.views().items()}
        self._descriptors = arena.segments.descriptors()
        self._begin, self._end = layout.data_offset(arena.entries), arena.arena_bytes
        self._stop = threading.Event()
        self._scarce = 0
        self.done_bytes = 0
        self.huge_bytes = 0
        self.refused = 0
        self.error: ResourceFault | None = None
        self._thread = threading.Thread(target=self._run, name="prefault", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current chunk and wait for it; may be called twice."""
        self._stop.set()
        self._thread.join()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the thread has ended; return True when it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE_LOWEST)  # to Linux 0 is this thread alone
        try:
            for number, view in self._segments.items():
                for begin in range(0, len(view), CHUNK_BYTES):
                    if self._stop.is_set():
                        return
                    end = min(begin + CHUNK_BYTES, len(view))
                    for first, last in self._held(number, begin, end):
                        with view[first:last] as piece:
                            populate(piece)
                            self._collapse(piece)
                    self.done_bytes += end - begin
        except ResourceFault as error:
            self.error = error
        finally:
            for view in self._segments.values():
                view.release()

    def _held(self, number: int, begin: int, end: int) -> list[tuple[int, int]]:
        """Return which of these bytes the segment holds: all, or those that were touched before."""
        found: list[tuple[int, int]] = []
        fd = self._descriptors.get(number, -1)
        try:
            if held_bytes(fd) >= self._end - self._begin:
                return [(max(begin, self._begin), end)] if end > self._begin else []
            while begin < end and (first := os.lseek(fd, begin, os.SEEK_DATA)) < end:
                begin = os.lseek(fd, first, os.SEEK_HOLE)
                found.append((first, min(begin, end)))
        except OSError:  # nothing more, or the segment is in use no more
            pass
        return found

    def _collapse(self, chunk: memoryview) -> None:
        if self.refused or len(chunk) < HUGE_PAGE_BYTES:
            return
        code = collapse(chunk)
        if not code:
            self.huge_bytes += len(chunk)
        self._scarce = self._scarce + 1 if code == errno.ENOMEM else 0
        if code == errno.EINVAL or self._scarce > SCARCE_MAX:
            self.refused = code

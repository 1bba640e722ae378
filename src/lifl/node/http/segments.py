"""Segments of the arena that the HTTP door has mapped: each once, for as long as somebody uses it."""

from __future__ import annotations

import mmap
import os
from weakref import WeakValueDictionary

from lifl.shm.mapping import Mapped, populate


class Segments:
    """By device and inode; a session keeps what it was given last, so that its job's stays mapped."""

    def __init__(self) -> None:
        self._mapped: WeakValueDictionary[tuple[int, int], Mapped] = WeakValueDictionary()

    def take(self, fd: int) -> Mapped:
        """Return the segment of a descriptor, which is closed.  Raise `OSError`, `ResourceFault`."""
        try:
            about = os.fstat(fd)
            at = about.st_dev, about.st_ino
            found = self._mapped.get(at)
            if found is None or len(found.view) != about.st_size:
                found = self._mapped[at] = Mapped(fd, about.st_size)
            return found
        finally:
            os.close(fd)


def made_ready(segment: Mapped, offset: int, nbytes: int) -> memoryview:
    """Return bytes of a segment that are to be written, their pages there."""
    begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
    populate(segment.view[begin : offset + nbytes])
    return segment.view[offset : offset + nbytes]

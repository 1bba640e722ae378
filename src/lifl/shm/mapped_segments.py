"""The segments of an arena in a process that `lifld` has started: opened by name, or given as descriptors.

A segment is mapped when an object of it is looked at.  One that is opened by its name is mapped and its descriptor
closed, so that what a worker runs later finds none.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from lifl.core.errors import ResourceFault, StaleKey
from lifl.shm.layout import Entry
from lifl.shm.mapping import Mapped
from lifl.shm.segment import EARLIER, SegmentMissing, open_file, segment_name, segments_of


class MappedSegments:
    """Those of the arena `name`, by number."""

    def __init__(self, name: str, arena_bytes: int) -> None:
        self.name = name
        self._arena_bytes = arena_bytes
        self._descriptors: dict[int, int] = {}  # those that this process was given, or keeps to hand on
        self._mapped: dict[int, Mapped] = {}
        self._only: frozenset[int] | None = None  # beside which none is mapped any more

    def open_all(self) -> None:
        """Open all that there are, for a process that may open none later.  Raise `ResourceFault`."""
        while True:
            try:
                for number, file in segments_of(self.name).items():
                    if number not in self._descriptors:
                        self._descriptors[number] = open_file(file, writes=True)
            except SegmentMissing:  # it got another name, or is gone, a moment ago
                continue
            return

    def take(self, number: int, fd: int) -> None:
        """Use the segment of this descriptor, which is not the caller's any more."""
        if number in self._descriptors:
            os.close(fd)
        else:
            self._descriptors[number] = fd

    def forget(self, number: int) -> None:
        """Let go of a segment that is in use no more."""
        self._close(number)
        self._unmap(number)

    def keep_only(self, numbers: Collection[int]) -> None:
        """Unmap all others."""
        for number in self._mapped.keys() - set(numbers):
            self._unmap(number)

    def close_to_others(self, entry: Entry) -> None:
        """Have no other segment than the object's from now on, but for what an earlier version has left.

        Raise `StaleKey` or `ResourceFault`.
        """
        self.view(entry)
        self._close_but(entry.segment)

    def close_to_other_jobs(self, job: int) -> None:
        """Do as `close_to_others`, with what the job has in its name now.  Raise `StaleKey` or `ResourceFault`."""
        own = {n: file for n, file in segments_of(self.name).items() if file == segment_name(self.name, n, job)}
        if not own:
            raise StaleKey(f"the arena {self.name} has no segment of job {job}")
        for number in own.keys() - self._mapped.keys():
            self._map(number, open_file(own[number], writes=True))
        self._close_but(*own)

    def _close_but(self, *numbers: int) -> None:
        earlier = {n: file for n, file in segments_of(self.name).items() if file.endswith(f".{EARLIER}")}
        for number in earlier.keys() - self._mapped.keys():
            self._map(number, open_file(earlier[number], writes=True))
        self._only = frozenset({*numbers, *earlier})
        self.keep_only(self._only)
        for number in list(self._descriptors):
            self._close(number)

    def holds(self, entry: Entry) -> bool:
        """Return whether this process may map the object's segment."""
        return self._only is None or entry.segment in self._only

    def view(self, entry: Entry) -> memoryview:
        """Return the bytes of the object's segment.  Raise `StaleKey` or `ResourceFault`."""
        mapped = self._mapped.get(entry.segment)
        if mapped is None:
            fd = self.descriptors().get(entry.segment)
            if fd is None:
                mapped = self._map(entry.segment, self._open(entry))
            else:
                mapped = self._mapped[entry.segment] = Mapped(fd, self._arena_bytes)
        return mapped.view

    def descriptor(self, entry: Entry) -> int:
        """Return the descriptor of the object's segment, to hand on.  Raise `StaleKey` or `ResourceFault`."""
        if entry.segment not in self._descriptors:
            self._descriptors[entry.segment] = self._open(entry)
        return self._descriptors[entry.segment]

    def descriptors(self) -> dict[int, int]:
        """Return those that this process has."""
        return self._descriptors

    def views(self) -> dict[int, memoryview]:
        """Return the bytes of all segments that this process has a descriptor of."""
        for number, fd in self.descriptors().items():
            if number not in self._mapped:
                self._mapped[number] = Mapped(fd, self._arena_bytes)
        return {number: self._mapped[number].view for number in self.descriptors()}

    def close(self) -> bool:
        """Let go of all; return whether they are unmapped, or views of them are still held.  May be called twice."""
        for number in list(self._descriptors):
            self._close(number)
        return all([mapped.close() for mapped in self._mapped.values()])  # noqa: C419 - each one is closed

    def _map(self, number: int, fd: int) -> Mapped:
        """Map a segment, and close its descriptor."""
        try:
            mapped = self._mapped[number] = Mapped(fd, self._arena_bytes)
        finally:
            os.close(fd)
        return mapped

    def _unmap(self, number: int) -> None:
        mapped = self._mapped.pop(number, None)
        if mapped is not None:
            mapped.close()  # or its last view does

    def _close(self, number: int) -> None:
        fd = self._descriptors.pop(number, None)
        if fd is not None:
            os.close(fd)

    def _open(self, entry: Entry) -> int:
        if not self.holds(entry):
            raise ResourceFault(f"segment {entry.segment} of the arena {self.name} is not this process's to open")
        for owner in (entry.job, EARLIER):
            try:
                return open_file(segment_name(self.name, entry.segment, owner), writes=True)
            except SegmentMissing:
                continue
        raise StaleKey(f"segment {entry.segment} of the arena {self.name} is gone, and what was in it")

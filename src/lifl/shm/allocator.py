"""Which bytes of the arena are whose: offsets only, no memory is touched.

Two layers.  The *heap* is the list of holes in address order; a request takes the lowest hole that fits (so
low pages, which have been touched before and are warm, are used again first), or the highest where it asks for
that, and a hole that is given back grows together with its neighbours.  Partials, which are longer than updates and
models, come from above, and the others from below: so what is free between the ones is seldom too short for the
others.  A *slab* is for many objects of one size, such as the updates of one
job: it takes *runs* of neighbouring slots from the heap and hands out its lowest free slot, so that the
objects mostly form arithmetic progressions of offsets and a batch of them is one matrix with a fixed row
stride. Runs double (4, 8, 16, ...) while the slab grows, but never take more than half of the largest hole.

What a run reserves and does not use is still free: when the heap cannot serve a request, runs without
objects are given back, and if that is not enough the free slots of all runs are.  So a request fails only
when no gap between live objects is as long, whatever slabs there are.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise

from lifl.core.errors import ArenaFull, LocalFault
from lifl.shm.layout import PAGE_BYTES, round_to_pages

RUN_SLOTS_FIRST = 4
RUN_SLOTS_MAX = 64
Range = tuple[int, int]
"""Where some bytes begin and end."""


class _Run:
    """`slots` neighbouring slots of `slab` from byte `start`; `live` of them hold an object."""

    __slots__ = ("live", "slab", "slots", "start")

    def __init__(self, slab: _Slab, start: int, slots: int) -> None:
        self.slab = slab
        self.start = start
        self.slots = slots
        self.live = 0

    def offsets(self) -> range:
        return range(self.start, self.start + self.slots * self.slab.stride, self.slab.stride)


class _Slab:
    """All runs of one slab id and stride; `free` is a binary heap of the offsets of their free slots."""

    __slots__ = ("free", "name", "next_slots", "run_of", "stride")

    def __init__(self, name: Hashable, stride: int) -> None:
        self.name = name
        self.stride = stride
        self.run_of: dict[int, _Run] = {}
        self.free: list[int] = []
        self.next_slots = RUN_SLOTS_FIRST


class Allocator:
    """Hands out extents (whole pages) of the range of bytes from `begin` to `end`.

    Raises `LocalFault` unless both are multiples of a page and at least one page lies between them.
    """

    def __init__(self, begin: int, end: int) -> None:
        if begin % PAGE_BYTES or end % PAGE_BYTES or end - begin < PAGE_BYTES:
            raise LocalFault(f"bytes {begin} to {end} are not one or more whole pages of {PAGE_BYTES} bytes")
        self.begin = begin
        self.end = end
        self.used_bytes = 0
        self.peak_bytes = 0
        self._hole_starts = [begin]
        self._hole_sizes = [end - begin]
        self._live: dict[int, tuple[int, _Run | None]] = {}
        self._slabs: dict[tuple[Hashable, int], _Slab] = {}
        self._near: Sequence[Sequence[Range]] = ()
        self._high = False

    # ---- what callers do ---------------------------------------------------------------------------------

    def alloc(
        self, nbytes: int, slab: Hashable | None = None, near: Sequence[Sequence[Range]] = (), high: bool = False
    ) -> int:
        """Return the offset of a new extent of `nbytes`, rounded up to whole pages; `high`: from the other end.

        Extents of one `slab` and one size are slots at equal distances where possible.  What is taken from the heap
        lies within one of the first ranges of `near` (where each begins and ends, in order) if it fits there, else of
        the next ones, else wherever it fits.  Raise `ArenaFull`
        when no gap is long enough, `LocalFault` when `nbytes` < 1.
        """
        if nbytes < 1:
            raise LocalFault(f"an extent has at least 1 byte, not {nbytes}")
        size = round_to_pages(nbytes)
        self._near, self._high = near, high
        run = None
        if slab is None:
            offset = self._take(size)
        else:
            offset, run = self._take_slot(slab, size)
            if run is not None:
                run.live += 1
        self._live[offset] = (size, run)
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return offset

    def free(self, offset: int) -> None:
        """Give the extent at `offset` back.  Raise `LocalFault` when none begins there."""
        try:
            size, run = self._live.pop(offset)
        except KeyError:
            raise LocalFault(f"no live extent begins at {offset}: it was freed before or never was") from None
        self.used_bytes -= size
        if run is None:
            self._give(offset, size)
        else:
            run.live -= 1
            heapq.heappush(run.slab.free, offset)

    def close_slab(self, slab: Hashable) -> None:
        """Forget the slab: its free slots return to the heap now, its live extents when they are freed."""
        for found in [s for s in self._slabs.values() if s.name == slab]:
            self._dissolve(found)

    def adopt(self, extents: Iterable[tuple[int, int]]) -> None:
        """Start again with exactly these live extents, each (offset, bytes), and no slabs.

        Raise `LocalFault`, and change nothing, when one is not whole pages, lies outside or overlaps
        another.
        """
        ordered = sorted(extents)
        for offset, size in ordered:
            if size < PAGE_BYTES or size % PAGE_BYTES or offset % PAGE_BYTES:
                raise LocalFault(f"extent {offset}+{size} is not whole pages of {PAGE_BYTES} bytes")
            if offset < self.begin or offset + size > self.end:
                raise LocalFault(f"extent {offset}+{size} lies outside of {self.begin} to {self.end}")
        for (offset, size), (following, _) in pairwise(ordered):
            if offset + size > following:
                raise LocalFault(f"extent {offset}+{size} overlaps the one at {following}")
        self._live = {offset: (size, None) for offset, size in ordered}
        self._slabs = {}
        holes = self._gaps()
        self._hole_starts = [start for start, _ in holes]
        self._hole_sizes = [size for _, size in holes]
        self.used_bytes = sum(size for _, size in ordered)
        self.peak_bytes = self.used_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes in no live extent."""
        return self.end - self.begin - self.used_bytes

    @property
    def largest_free_bytes(self) -> int:
        """The longest extent that `alloc` could give now.  O(n log n) in the number of live extents."""
        return max((size for _, size in self._gaps()), default=0)

    # ---- the heap ----------------------------------------------------------------------------------------

    def _take(self, size: int) -> int:
        """Take `size` bytes from the heap, or when it is short from what slabs have reserved; return their offset."""
        offset = self._first_fit(size)
        if offset is None:
            self._return_unused_runs()
            offset = self._first_fit(size)
        if offset is None and self.largest_free_bytes >= size:
            for slab in list(self._slabs.values()):
                self._dissolve(slab)
            offset = self._first_fit(size)
        if offset is None:
            raise ArenaFull(
                f"no room for {size} bytes: of the arena's {self.end - self.begin} bytes {self.used_bytes}"
                f" are in use, the longest free piece has {self.largest_free_bytes}; try again when objects"
                " have been freed, or start the node with a larger arena_bytes"
            )
        return offset

    def _first_fit(self, size: int) -> int | None:
        for ranges in self._near:
            for begin, end in reversed(ranges) if self._high else ranges:
                if end - begin >= size and (offset := self._fit_within(begin, end, size)) is not None:
                    return offset
        order = range(len(self._hole_sizes))
        index = next((i for i in (reversed(order) if self._high else order) if self._hole_sizes[i] >= size), None)
        if index is None:
            return None
        unused = self._hole_sizes[index] - size if self._high else 0
        return self._cut(index, self._hole_starts[index] + unused, size)

    def _fit_within(self, begin: int, end: int, size: int) -> int | None:
        """Take the first `size` bytes (or the last) from `begin` to `end` that are in one hole."""
        lowest = max(0, bisect_right(self._hole_starts, begin) - 1)
        within = range(lowest, bisect_left(self._hole_starts, end))
        for index in reversed(within) if self._high else within:
            first = max(begin, self._hole_starts[index])
            last = min(end, self._hole_starts[index] + self._hole_sizes[index])
            if last - first >= size:
                return self._cut(index, last - size if self._high else first, size)
        return None

    def _cut(self, index: int, offset: int, size: int) -> int:
        """Take bytes out of a hole; return their offset."""
        start, hole = self._hole_starts[index], self._hole_sizes[index]
        rests = [(start, offset - start), (offset + size, start + hole - offset - size)]
        rests = [(begin, nbytes) for begin, nbytes in rests if nbytes]
        self._hole_starts[index : index + 1] = [begin for begin, _ in rests]
        self._hole_sizes[index : index + 1] = [nbytes for _, nbytes in rests]
        return offset

    def _give(self, start: int, size: int) -> None:
        """Give bytes back to the heap and join them with the holes next to them."""
        starts, sizes = self._hole_starts, self._hole_sizes
        index = bisect_left(starts, start)
        if index < len(starts) and starts[index] == start + size:
            size += sizes[index]
            del starts[index], sizes[index]
        if index and starts[index - 1] + sizes[index - 1] == start:
            sizes[index - 1] += size
        else:
            starts.insert(index, start)
            sizes.insert(index, size)

    def _gaps(self) -> list[tuple[int, int]]:
        """Return (start, bytes) of all that lies between live extents: what the heap would be without runs."""
        found = []
        position = self.begin
        for offset in sorted(self._live):
            if offset > position:
                found.append((position, offset - position))
            position = offset + self._live[offset][0]
        if position < self.end:
            found.append((position, self.end - position))
        return found

    # ---- slabs -------------------------------------------------------------------------------------------

    def _take_slot(self, name: Hashable, stride: int) -> tuple[int, _Run | None]:
        """Return the lowest free slot and its run; a plain extent (None) where no run of two slots fits any more."""
        slab = self._slabs.get((name, stride))
        if slab is None or not slab.free:
            slab = self._grow(name, stride)
        if slab is None:
            return self._take(stride), None
        offset = heapq.heappop(slab.free)
        return offset, slab.run_of[offset]

    def _grow(self, name: Hashable, stride: int) -> _Slab | None:
        """Give the slab one more run, of at most half of the largest hole; return None if that is not two slots."""
        slab = self._slabs.get((name, stride))
        wanted = RUN_SLOTS_FIRST if slab is None else slab.next_slots
        slots = min(wanted, max(self._hole_sizes, default=0) // 2 // stride)
        if slots < 2:
            return None
        if slab is None:
            slab = self._slabs[name, stride] = _Slab(name, stride)
        run = _Run(slab, self._take(slots * stride), slots)
        slab.next_slots = min(2 * wanted, RUN_SLOTS_MAX)
        for offset in run.offsets():
            slab.run_of[offset] = run
            heapq.heappush(slab.free, offset)
        return slab

    def _return_unused_runs(self) -> None:
        for slab in list(self._slabs.values()):
            unused = {run.start: run for run in slab.run_of.values() if run.live == 0}
            for run in unused.values():
                for offset in run.offsets():
                    del slab.run_of[offset]
                self._give(run.start, run.slots * slab.stride)
            slab.free = [offset for offset in slab.free if offset in slab.run_of]
            heapq.heapify(slab.free)
            if not slab.run_of:
                del self._slabs[slab.name, slab.stride]

    def _dissolve(self, slab: _Slab) -> None:
        """Turn the slab's live slots into plain extents and its free slots into holes."""
        del self._slabs[slab.name, slab.stride]
        for offset in slab.run_of:
            if offset in self._live:
                self._live[offset] = (slab.stride, None)
        for offset in slab.free:
            self._give(offset, slab.stride)

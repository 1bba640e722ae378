"""Which segment holds the pages of which bytes of the arena: numbers only, no memory is touched.

Each page of the arena is in one segment at most, so what all of them hold is never more than the arena.  Neighbouring
pages of one segment are one *range*.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable

NOBODY = 0
"""Stands for the segment of pages that none holds: they could not be reserved again where they were wanted."""


class Residency:
    """The bytes from `begin` to `end`, at first `NOBODY`'s; segments are told apart by their numbers."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin = begin
        self.end = end
        self._starts = [begin]  # of the ranges, in order; each ends where the next one begins
        self._segments = [NOBODY]
        self._held: Counter[int] = Counter({NOBODY: end - begin})

    def pieces(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """Return what lies from `begin` to `end`, in order: where each piece begins and ends, and its segment."""
        first = bisect_right(self._starts, begin) - 1
        last = bisect_left(self._starts, end)
        found = []
        for index in range(first, last):
            following = self._starts[index + 1] if index + 1 < len(self._starts) else self.end
            found.append((max(begin, self._starts[index]), min(end, following), self._segments[index]))
        return found

    def ranges(self, segments: Iterable[int]) -> list[tuple[int, int]]:
        """Return where the ranges of these segments begin and end, in order; those that touch are one."""
        wanted = set(segments)
        found: list[tuple[int, int]] = []
        for begin, end, segment in self.pieces(self.begin, self.end):
            if segment not in wanted:
                continue
            first = found.pop()[0] if found and found[-1][1] == begin else begin
            found.append((first, end))
        return found

    def held_bytes(self, segment: int) -> int:
        """Return the bytes that the segment holds."""
        return self._held[segment]

    @property
    def is_whole(self) -> bool:
        """True when one segment holds it all."""
        return len(self._starts) == 1

    def give(self, begin: int, end: int, segment: int) -> None:
        """Note that the segment holds these bytes from now on, and no other does."""
        if begin >= end:
            return
        for start, stop, before in self.pieces(begin, end):
            self._held[before] -= stop - start
        self._held[segment] += end - begin
        self._cut(begin)
        self._cut(end)
        first, last = bisect_left(self._starts, begin), bisect_left(self._starts, end)
        self._starts[first:last] = [begin]
        self._segments[first:last] = [segment]
        for index in (first + 1, first):  # join what touches
            if 0 < index < len(self._starts) and self._segments[index - 1] == self._segments[index]:
                del self._starts[index], self._segments[index]

    def _cut(self, position: int) -> None:
        index = bisect_left(self._starts, position)
        if position < self.end and (index == len(self._starts) or self._starts[index] != position):
            self._starts.insert(index, position)
            self._segments.insert(index, self._segments[index - 1])

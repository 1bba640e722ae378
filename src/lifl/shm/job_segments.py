"""The segments that the objects of an arena are in, one for each job: as `lifld` has them, which alone makes them.

All segments are as long as the arena, and an object's bytes are at the same offset whichever it is in.  A process that
is given one segment sees the objects of its job, and holes; what it does there touches no other job.

**Pages.**  All of the arena's pages are reserved from the start, in a first segment, which the first job has as its
own.  Pages that another job wants move: they are punched out of the segment that holds them and reserved in the
other's, where they are zeros.  What a job has freed stays in its segment until then, so that its next round finds it
warm.  When somebody else has filled /dev/shm in between, the pages are nobody's, and whoever wanted them is refused as
by a full arena.

**Spares.**  The segment of a job that is over, and of which no object is left, is a *spare*: the next job of the same
owner has it as it is, warm, with what freed objects have left in it.  One that was *lent*, so that a process which does
not end with the job may have it mapped still (a local client, a user's rule), is no spare: its pages move.  Nor is one
of a job without an owner.

**Death.**  Nothing is written down of that.  A table's entry tells in which segment an object is, and whoever adopts
the arena gives all that is free to the largest segment.  What was spare or lent then is not known, so none is a spare.

**Names.**  A segment has its job in its name.  That of a job that is over stays while it holds pages, or until another
job has the segment; of
`SEGMENTS_ENDED_MAX` such ones the smallest is emptied when another job begins.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from lifl import failpoints
from lifl.core.errors import ArenaFull, LocalFault, ResourceFault
from lifl.core.limits import SEGMENTS_ENDED_MAX
from lifl.shm.residency import NOBODY, Residency
from lifl.shm.segment import (
    EARLIER,
    FREE,
    SHM_FOLDER,
    held_bytes,
    make_file,
    open_file,
    punch,
    remove_file,
    reserve,
    segment_name,
    segments_of,
)

Range = tuple[int, int]
"""Where some bytes begin and end."""


class Extent(NamedTuple):
    """Where an object is."""

    offset: int
    nbytes: int
    segment: int


class _Segment:
    """A segment: `owner` is a job's number, or one of the names that stand for none."""

    def __init__(self, number: int, owner: int | str, fd: int) -> None:
        self.number = number
        self.owner = owner
        self.fd = fd
        self.ended = True  # until an object of the job is made
        self.spare_of = ""  # whose next job may have it; nobody's
        self.lent = owner != FREE
        """Others than the gateway and ordinary workers may have it; also when that is not known."""


class JobSegments:
    """The segments of the arena `name` for its bytes from `begin` to `end`, made by `create` or `adopt`.

    `on_open(number, fd)` and `on_closed(number)` tell of segments that are, or are not, in use from now on; the
    descriptor stays this object's.
    """

    def __init__(self, name: str, begin: int, end: int) -> None:
        self._name = name
        self._begin, self._end = begin, end
        self.residency = Residency(begin, end)
        self.on_open: Callable[[int, int], None] = lambda _number, _fd: None
        self.on_closed: Callable[[int], None] = lambda _number: None
        self._segments: dict[int, _Segment] = {}
        self._of_job: dict[int, _Segment] = {}
        self._owners: dict[int, str] = {}  # of jobs, where they are known
        self._live: Counter[int] = Counter()  # objects, by segment
        self._next = 1  # no number is a second segment's: others keep what they have mapped by it

    @staticmethod
    def create(name: str, begin: int, end: int) -> JobSegments:
        """Return the segments of a new arena: one that holds it all.  Raise `ResourceFault`."""
        made = JobSegments(name, begin, end)
        first = made._make(FREE)
        try:
            reserve(first.fd, begin, end - begin)
        except BaseException:
            made.close()
            raise
        made.residency.give(begin, end, first.number)
        return made

    @staticmethod
    def adopt(name: str, begin: int, end: int) -> JobSegments:
        """Return the segments that a daemon has left, all open; `settle` follows.  Raise `ResourceFault`."""
        made = JobSegments(name, begin, end)
        try:
            for number, file in segments_of(name).items():
                fd = open_file(file, writes=True)
                owner = file.rpartition(".")[2]
                made._add(_Segment(number, owner if owner in (FREE, EARLIER) else int(owner), fd))
                if os.fstat(fd).st_size != end:
                    os.ftruncate(fd, end)  # made, and not finished; or cut by who had it to write to
        except BaseException:
            made.close()
            raise
        return made

    def check(self, extents: Iterable[Extent]) -> None:
        """Raise `LocalFault` when an object is in a segment that is not there."""
        for extent in extents:
            if extent.segment not in self._segments:
                raise LocalFault(f"the object at {extent.offset} is in segment {extent.segment}, which is missing")

    def settle(self, extents: Sequence[Extent]) -> None:
        """Have each segment hold its objects, and the largest one all that is free."""
        keeper = max(self._segments.values(), key=lambda s: (held_bytes(s.fd), -s.number), default=None)
        keeper = keeper or self._make(FREE)
        self.residency.give(self._begin, self._end, NOBODY)
        for offset, nbytes, number in extents:
            self.residency.give(offset, offset + nbytes, number)
            self._live[number] += 1
        free = self.residency.ranges([NOBODY])
        for begin, end in free:
            self.residency.give(begin, end, keeper.number)
        for segment in list(self._segments.values()):
            self._punch_strays(segment)
            self._remove_if_empty(segment)
        if held_bytes(keeper.fd) == self.residency.held_bytes(keeper.number):
            return
        failed = [begin for begin, end in free if not self._reserve(keeper, begin, end)]
        if failed:
            self._punch_strays(keeper)

    def begin(self, job: int, owner: str) -> None:
        """Note whose the job is: it may have the segment of an earlier one of this owner ("": of none)."""
        self._owners[job] = owner

    def lend(self, number: int) -> None:
        """Note that a process gets the segment that may have it for longer than the job lasts."""
        self._segments[number].lent = True

    def near(self, job: int) -> tuple[list[Range], ...]:
        """Return the ranges in which the job's next object costs least: first the best; none: wherever it is."""
        if self.residency.is_whole:
            return ()
        own = self._of_job.get(job) or self._spare_for(job)
        ended = [segment.number for segment in self._segments.values() if segment.ended]
        return self.residency.ranges([own.number] if own else []), self.residency.ranges(ended)

    def take(self, job: int, offset: int, nbytes: int) -> int:
        """Have the job's segment hold these bytes, which are no object's, for one; return its number.

        Raise `ArenaFull` when it cannot.
        """
        try:
            segment = self._segment_for(job)
            for begin, end, holder in self.residency.pieces(offset, offset + nbytes):
                if holder != segment.number:
                    self._move(begin, end, holder, segment)
        except ResourceFault as fault:
            raise ArenaFull(f"there is room in the arena, but its pages are not to be had: {fault}") from fault
        self._live[segment.number] += 1
        return segment.number

    def mend(self) -> list[int]:
        """Make whole what another program has cut short, or punched; return the jobs that have lost bytes."""
        cut = []
        for segment in self._segments.values():
            size, held = os.fstat(segment.fd).st_size, self.residency.held_bytes(segment.number)
            if size >= self._end and held_bytes(segment.fd) >= held:
                continue
            os.ftruncate(segment.fd, max(size, self._end))
            for begin, end in self.residency.ranges([segment.number]):
                self._reserve(segment, begin, end)
            if isinstance(segment.owner, int):
                cut.append(segment.owner)
        return cut

    def give_back(self, segment: int) -> None:
        """Note that an object in this segment is no more."""
        self._live[segment] -= 1

    def end(self, job: int) -> None:
        """Note that the job is over: its segment is a spare, or gone when all of its pages are others'."""
        owner = self._owners.pop(job, "")
        segment = self._of_job.get(job)
        if segment is not None:
            segment.ended = True
            segment.spare_of = "" if segment.lent else owner
            if held_bytes(segment.fd) > self.residency.held_bytes(segment.number):
                self._punch_strays(segment)
            self._remove_if_empty(segment)

    def descriptor(self, number: int) -> int:
        """Return the segment's descriptor, which stays this object's.  Raise `LocalFault` when there is none."""
        if number not in self._segments:
            raise LocalFault(f"the arena {self._name} has no segment {number}")
        return self._segments[number].fd

    def open_now(self) -> dict[int, int]:
        """Return the descriptors of all segments, by number."""
        return {number: segment.fd for number, segment in self._segments.items()}

    def close(self) -> None:
        """Close all descriptors."""
        for segment in self._segments.values():
            os.close(segment.fd)
        self._segments.clear()
        self._of_job.clear()

    # ---- segments ----------------------------------------------------------------------------------------

    def _segment_for(self, job: int) -> _Segment:
        segment = self._of_job.get(job)
        if segment is None:
            spare = self._spare_for(job)
            segment = self._begin_with(spare, job) if spare is not None else self._make(job)
            segment.lent = False
            self._empty_one(segment)
        segment.ended = False
        return segment

    def _spare_for(self, job: int) -> _Segment | None:
        """Return the largest segment that the job may have as it is: its owner's, or one that no job has had."""
        owner = self._owners.get(job)
        found = [s for s in self._segments.values() if s.owner == FREE or (s.ended and owner and s.spare_of == owner)]
        spares = (segment for segment in found if not self._live[segment.number])
        return max(spares, key=lambda s: (self.residency.held_bytes(s.number), -s.number), default=None)

    def _make(self, owner: int | str) -> _Segment:
        number = self._next
        file = segment_name(self._name, number, owner)
        fd = make_file(file)
        try:
            os.ftruncate(fd, self._end)
        except OSError as error:
            os.close(fd)
            remove_file(file)
            raise ResourceFault(f"cannot make shared-memory segment {file}: {error}") from error
        return self._add(_Segment(number, owner, fd))

    def _begin_with(self, segment: _Segment, job: int) -> _Segment:
        """Let a job have a segment that is no other's, under its own name."""
        names = (segment_name(self._name, segment.number, owner) for owner in (segment.owner, job))
        try:
            os.rename(*(SHM_FOLDER + name for name in names))
        except OSError as error:
            raise ResourceFault(f"cannot name a segment of {self._name}: {error}") from error
        if isinstance(segment.owner, int):
            del self._of_job[segment.owner]
        segment.owner = job
        self._of_job[job] = segment
        return segment

    def _add(self, segment: _Segment) -> _Segment:
        self._segments[segment.number] = segment
        self._next = max(self._next, segment.number + 1)
        if isinstance(segment.owner, int):
            self._of_job[segment.owner] = segment
        self.on_open(segment.number, segment.fd)
        return segment

    def _remove_if_empty(self, segment: _Segment) -> None:
        if not segment.ended or self.residency.held_bytes(segment.number):
            return
        remove_file(segment_name(self._name, segment.number, segment.owner))
        self._punch_strays(segment)
        os.close(segment.fd)
        del self._segments[segment.number]
        if isinstance(segment.owner, int):
            self._of_job.pop(segment.owner, None)
        self.on_closed(segment.number)

    def _empty_one(self, into: _Segment) -> None:
        """Where very many jobs have left pages, have the segment take those of the one that has fewest."""
        ended = [s for s in self._segments.values() if s.ended and s is not into and not self._live[s.number]]
        if len(ended) > SEGMENTS_ENDED_MAX:
            smallest = min(ended, key=lambda s: self.residency.held_bytes(s.number))
            for begin, end in self.residency.ranges([smallest.number]):
                self._move(begin, end, smallest.number, into)

    # ---- pages -------------------------------------------------------------------------------------------

    def _move(self, begin: int, end: int, holder: int, into: _Segment) -> None:
        """Have a segment hold pages of another one, or of nobody.  Raise `ResourceFault`: then they are nobody's."""
        if holder != NOBODY:
            failpoints.hit("lifld.punch.before")
            punch(self._segments[holder].fd, begin, end - begin)
            self.residency.give(begin, end, NOBODY)
            failpoints.hit("lifld.punch.after")
            self._remove_if_empty(self._segments[holder])
        if not self._reserve(into, begin, end):
            for segment in self._segments.values():
                self._punch_strays(segment)
            reserve(into.fd, begin, end - begin)
            self.residency.give(begin, end, into.number)
        failpoints.hit("lifld.reserve.after")

    def _reserve(self, segment: _Segment, begin: int, end: int) -> bool:
        """Have the segment hold pages that no other holds; return False, and they are nobody's, when it cannot."""
        try:
            reserve(segment.fd, begin, end - begin)
        except ResourceFault:
            self.residency.give(begin, end, NOBODY)
            return False
        self.residency.give(begin, end, segment.number)
        return True

    def _punch_strays(self, segment: _Segment) -> None:
        """Take from a segment what it is not to hold: who has it mapped may have touched its holes."""
        position = 0
        for begin, end in [*self.residency.ranges([segment.number]), (self._end, self._end)]:
            punch(segment.fd, position, begin - position)
            position = end

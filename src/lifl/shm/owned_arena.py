"""The arena as its owner has it: `lifld`, which makes or adopts it, and alone allocates and frees.

What others write, the seals of objects and their meta, it reads by the segment's descriptor: one that maps the segment,
too, and cuts it off, is no SIGBUS for `lifld`.

Allocation has one thread of one process, so nothing here locks.  `adopt` must not run while a process of the earlier
daemon lives, because it takes away what they write.  A client that writes its update itself is no such process and may
outlive the daemon: what was UPDATE and WRITING stays so until the new daemon frees it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Hashable, Iterator

from lifl.core.errors import ArenaFull, LocalFault
from lifl.core.ids import Key, Kind
from lifl.shm import layout
from lifl.shm.allocator import Allocator
from lifl.shm.arena import Arena, check_u32
from lifl.shm.earlier_segment import take_over
from lifl.shm.job_segments import Extent, JobSegments
from lifl.shm.layout import ENTRIES_DEFAULT, Entry, Header, ObjectState
from lifl.shm.mapped_segments import MappedSegments
from lifl.shm.segment import (
    SegmentEarlier,
    SegmentUnusable,
    clear,
    damaged,
    make_table,
    open_table,
    remove_file,
    remove_segment,
    segments_of,
)

_KINDS = frozenset(Kind)


class _OwnedSegments(MappedSegments):
    """The segments as their owner has them."""

    def __init__(self, name: str, arena_bytes: int, places: JobSegments) -> None:
        super().__init__(name, arena_bytes)
        self._places = places

    def descriptors(self) -> dict[int, int]:
        """Return those of all segments."""
        return self._places.open_now()

    def descriptor(self, entry: Entry) -> int:
        """Return the one of the object's segment."""
        return self._places.descriptor(entry.segment)


class OwnedArena(Arena):
    """The arena of this process: made by `create` or `adopt`, never directly.

    `capacity_bytes` of it are for objects.
    """

    def __init__(self, name: str, fd: int, header: Header, places: JobSegments) -> None:
        super().__init__(name, fd, header, _OwnedSegments(name, header.arena_bytes, places))
        self.capacity_bytes = header.arena_bytes - header.data_offset
        """What the arena holds of objects when it is full."""
        self.places = places
        self._allocator = Allocator(header.data_offset, header.arena_bytes)
        self._free_slots: deque[int] = deque(range(header.entries))
        self._live_slots: set[int] = set()

    @classmethod
    def create(cls, name: str, arena_bytes: int, node: int, entries: int = ENTRIES_DEFAULT) -> OwnedArena:
        """Return a new arena of `arena_bytes` for the node with the 64-bit id `node`; `name` is such as "/lifl-a".

        Raise as `make_table` does; after an error nothing is left behind.
        """
        fd, header = make_table(name, arena_bytes, node, entries)
        places = None
        try:
            for file in segments_of(name).values():  # of a table that was removed by hand
                remove_file(file)
            places = JobSegments.create(name, header.data_offset, header.arena_bytes)
            arena = cls(name, fd, header, places)
            layout.HEADER.pack_into(arena._view, 0, *header)
            arena._longs[layout.EPOCH_OFFSET // 8] = 1
            arena._longs[layout.INITIALISED_OFFSET // 8] = layout.INITIALISED
        except BaseException:
            if places is not None:
                places.close()
            remove_segment(name)
            raise
        finally:
            os.close(fd)
        return arena

    @classmethod
    def adopt(cls, name: str) -> OwnedArena:
        """Return the arena of a daemon that died, with epoch + 1; one of an earlier version is taken over.

        SEALED objects and WRITING updates stay (see above), other WRITING ones are freed.
        Raise `SegmentMissing`, `SegmentUnfinished` or `SegmentUnusable`.
        """
        try:
            fd, header = open_table(name, writes=True)
        except SegmentEarlier:
            take_over(name)
            fd, header = open_table(name, writes=True)
        places = None
        try:
            places = JobSegments.adopt(name, header.data_offset, header.arena_bytes)
            arena = cls(name, fd, header, places)
        except BaseException:
            if places is not None:
                places.close()
            raise
        finally:
            os.close(fd)
        try:
            arena._recover()
        except LocalFault as error:
            arena.close()
            raise SegmentUnusable(damaged(name, str(error))) from error
        arena._longs[layout.EPOCH_OFFSET // 8] += 1
        return arena

    def _recover(self) -> None:
        """Take over the objects that stay, free the others.  Raise `LocalFault` on damage, before any change."""
        writing = []
        extents = []
        for slot in range(self.entries):
            entry = self._in_table(slot)
            if entry.state == ObjectState.FREE:
                continue
            if entry.state not in (ObjectState.WRITING, ObjectState.SEALED):
                raise LocalFault(f"entry {slot} has the unknown state {entry.state}")
            extent = Extent(entry.offset, entry.extent_bytes, entry.segment)
            self._check_place(slot, entry)
            self.places.check([extent])
            sealed = self._sealed(entry)
            if entry.kind == Kind.UPDATE or sealed.state == ObjectState.SEALED:
                if entry.kind not in _KINDS or entry.meta_bytes > entry.meta_room:
                    raise LocalFault(f"entry {slot} contradicts itself: {entry}")
                extents.append(extent)
                self._live_slots.add(slot)
            else:
                writing.append(slot)
        self._allocator.adopt((offset, nbytes) for offset, nbytes, _ in extents)
        for slot in writing:
            self._view[layout.entry_position(slot) + layout.STATE_OFFSET] = ObjectState.FREE
        self._free_slots = deque(slot for slot in range(self.entries) if slot not in self._live_slots)
        self.places.settle(extents)
        self.places.mend()

    def _check_place(self, slot: int, entry: Entry) -> None:
        needed = layout.align_meta(entry.data_bytes) + entry.meta_room
        within = self.arena_bytes - self.capacity_bytes <= entry.offset <= self.arena_bytes - entry.extent_bytes
        if needed > entry.extent_bytes or not within:
            raise LocalFault(f"entry {slot} contradicts itself: {entry}")

    def alloc(
        self,
        kind: Kind,
        job: int,
        round: int,
        data_bytes: int,
        meta_bytes: int = 0,
        slab: Hashable | None = None,
    ) -> Key:
        """Return a new object in state WRITING with room for `data_bytes` of data and `meta_bytes` of meta.

        Its bytes are zeros, or what an object of the same job, or of an earlier one of its owner's, had there.  Objects
        of one `slab` and one size lie at equal distances where possible.  Raise `ArenaFull` when bytes or entries are
        short, `LocalFault` when a number does not fit its field.
        """
        self._check_open()
        if data_bytes < 0:
            raise LocalFault(f"data_bytes is {data_bytes}; it cannot be negative")
        for value in (meta_bytes, job, round):
            check_u32(value)
        if not self._free_slots:
            raise ArenaFull(
                f"all {self.entries} entries of the object table are in use; try again when objects have been"
                " freed, or create the arena with more entries"
            )
        size = layout.extent_bytes(data_bytes, meta_bytes)
        offset = self._allocator.alloc(size, slab, self.places.near(job), high=kind is Kind.PARTIAL)
        seal = layout.align_meta(layout.align_meta(data_bytes) + meta_bytes)
        try:
            segment = self.places.take(job, offset, size)
            clear(self.places.descriptor(segment), offset + seal, layout.SEAL_BYTES)
        except BaseException:
            self._allocator.free(offset)
            raise
        slot = self._free_slots.popleft()
        position = layout.entry_position(slot)
        generation = self._words[(position + layout.GENERATION_OFFSET) // 4] % layout.U32_MAX + 1
        self._words[(position + layout.GENERATION_OFFSET) // 4] = generation
        layout.BODY.pack_into(
            self._view,
            position + layout.BODY_OFFSET,
            *(segment, job, round, 0, 0, offset, size, data_bytes, 0.0, 0, meta_bytes),
        )
        self._view[position + layout.KIND_OFFSET] = kind
        self._view[position + layout.STATE_OFFSET] = ObjectState.WRITING
        self._live_slots.add(slot)
        return Key(slot, generation, self.node)

    def free(self, key: Key) -> None:
        """End the object: its key is stale from now on and its bytes will be another object's.

        The caller makes sure that no process reads or writes it any more.  Raise `StaleKey`.
        """
        entry = self._entry_of(key)
        self._view[layout.entry_position(key.slot) + layout.STATE_OFFSET] = ObjectState.FREE
        self._allocator.free(entry.offset)
        self.places.give_back(entry.segment)
        self._live_slots.remove(key.slot)
        self._free_slots.append(key.slot)  # first in, first out: generations grow evenly

    def close_slab(self, slab: Hashable) -> None:
        """Give back what the slab has reserved: no more objects of it will come."""
        self._check_open()
        self._allocator.close_slab(slab)

    def begin_job(self, job: int, owner: str) -> None:
        """Note whose the job is (`JobSegments.begin`)."""
        self._check_open()
        self.places.begin(job, owner)

    def mend(self) -> list[int]:
        """Make segments whole that were cut short; return the jobs that have lost bytes (`JobSegments.mend`)."""
        self._check_open()
        return self.places.mend()

    def lend(self, key: Key) -> None:
        """Note that a process gets the object's segment that may outlive its job.  Raise `StaleKey`."""
        self.places.lend(self._entry_of(key).segment)

    def place(self, key: Key) -> tuple[int, int, int]:
        """Return the descriptor of the object's segment, where it begins there, and its bytes.  Raise `StaleKey`."""
        entry = self._entry_of(key)
        return self.places.descriptor(entry.segment), entry.offset, entry.extent_bytes

    def end_job(self, job: int) -> None:
        """Note that no more objects of the job will come."""
        self._check_open()
        self.places.end(job)

    @property
    def objects(self) -> int:
        """How many objects are not FREE."""
        return len(self._live_slots)

    def live(self) -> Iterator[tuple[Key, Entry]]:
        """Yield all objects that are not FREE, in the table's order; objects may be freed while it runs."""
        self._check_open()
        for slot in sorted(self._live_slots):
            entry = self._in_table(slot)
            if entry.state != ObjectState.FREE:
                yield Key(slot, entry.generation, self.node), self._sealed(entry)

    @property
    def used_bytes(self) -> int:
        """Bytes of live objects, in whole pages."""
        return self._allocator.used_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that `used_bytes` has been since the arena was opened."""
        return self._allocator.peak_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes in no object, in however many pieces."""
        return self._allocator.free_bytes

    @property
    def largest_free_bytes(self) -> int:
        """The longest piece in no object."""
        return self._allocator.largest_free_bytes

    def close(self, unlink: bool = False) -> bool:
        """Let go of the arena, as `Arena.close`, and with `unlink` remove it."""
        if unlink:
            self._check_open()
            remove_segment(self.name)
        self.places.close()
        return super().close()

    def _read(self, entry: Entry, offset: int, nbytes: int) -> memoryview:
        found = os.pread(self.places.descriptor(entry.segment), nbytes, offset)
        return memoryview(found.ljust(nbytes, b"\0"))

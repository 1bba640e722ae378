"""The arena as its owner has it: `lifld`, which makes or adopts the segment, and alone allocates and frees.

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
from lifl.shm.layout import ENTRIES_DEFAULT, Entry, Header, ObjectState
from lifl.shm.segment import SegmentUnusable, damaged, make_segment, open_segment, remove_segment

_KINDS = frozenset(Kind)


class OwnedArena(Arena):
    """The segment of this process: made by `create` or `adopt`, never directly.

    `capacity_bytes` of it are for objects.
    """

    def __init__(self, name: str, fd: int, header: Header) -> None:
        super().__init__(name, fd, header)
        self.capacity_bytes = header.arena_bytes - header.data_offset
        """What the arena holds of objects when it is full."""
        self._allocator = Allocator(header.data_offset, header.arena_bytes)
        self._free_slots: deque[int] = deque(range(header.entries))
        self._live_slots: set[int] = set()

    @classmethod
    def create(cls, name: str, arena_bytes: int, node: int, entries: int = ENTRIES_DEFAULT) -> OwnedArena:
        """Return a new segment of `arena_bytes` for the node with the 64-bit id `node`; `name` is such as "/lifl-a".

        Raise as `make_segment` does; after an error nothing is left behind.
        """
        fd, header = make_segment(name, arena_bytes, node, entries)
        try:
            arena = cls(name, fd, header)
            layout.HEADER.pack_into(arena._view, 0, *header)
            arena._longs[layout.EPOCH_OFFSET // 8] = 1
            arena._longs[layout.INITIALISED_OFFSET // 8] = layout.INITIALISED
        except BaseException:
            os.close(fd)
            remove_segment(name)
            raise
        return arena

    @classmethod
    def adopt(cls, name: str) -> OwnedArena:
        """Return the segment of a daemon that died, with epoch + 1.

        SEALED objects and WRITING updates stay (see above), other WRITING ones are freed.
        Raise `SegmentMissing`, `SegmentUnfinished` or `SegmentUnusable`.
        """
        fd, header = open_segment(name)
        try:
            arena = cls(name, fd, header)
        except BaseException:
            os.close(fd)
            raise
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
            entry = self._read(slot)
            if entry.state == ObjectState.SEALED or (entry.state == ObjectState.WRITING and entry.kind == Kind.UPDATE):
                self._check_kept(slot, entry)
                extents.append((entry.offset, entry.extent_bytes))
                self._live_slots.add(slot)
            elif entry.state == ObjectState.WRITING:
                writing.append(slot)
            elif entry.state != ObjectState.FREE:
                raise LocalFault(f"entry {slot} has the unknown state {entry.state}")
        self._allocator.adopt(extents)
        for slot in writing:
            self._view[layout.entry_position(slot) + layout.STATE_OFFSET] = ObjectState.FREE
        self._free_slots = deque(slot for slot in range(self.entries) if slot not in self._live_slots)

    @staticmethod
    def _check_kept(slot: int, entry: Entry) -> None:
        needed = layout.align_meta(entry.data_bytes) + entry.meta_room
        if entry.kind not in _KINDS or entry.meta_bytes > entry.meta_room or needed > entry.extent_bytes:
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

        Its bytes are whatever was there before.  Objects of one `slab` and one size lie at equal distances where
        possible.  Raise `ArenaFull` when bytes or entries are short, `LocalFault` when a number does not fit its field.
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
        size = layout.round_to_pages(max(1, layout.align_meta(data_bytes) + meta_bytes))
        offset = self._allocator.alloc(size, slab)
        slot = self._free_slots.popleft()
        position = layout.entry_position(slot)
        generation = self._words[(position + layout.GENERATION_OFFSET) // 4] % layout.U32_MAX + 1
        self._words[(position + layout.GENERATION_OFFSET) // 4] = generation
        layout.BODY.pack_into(
            self._view,
            position + layout.BODY_OFFSET,
            *(job, round, 0, 0, offset, size, data_bytes, 0.0, 0, meta_bytes),
        )
        self._view[position + layout.KIND_OFFSET] = kind
        self._view[position + layout.STATE_OFFSET] = ObjectState.WRITING
        self._live_slots.add(slot)
        return Key(slot, generation, self.node)

    def free(self, key: Key) -> None:
        """End the object: its key is stale from now on and its bytes will be another object's.

        The caller makes sure that no process reads or writes it any more.  Raise `StaleKey`.
        """
        entry = self.entry(key)
        self._view[layout.entry_position(key.slot) + layout.STATE_OFFSET] = ObjectState.FREE
        self._allocator.free(entry.offset)
        self._live_slots.remove(key.slot)
        self._free_slots.append(key.slot)  # first in, first out: generations grow evenly

    def close_slab(self, slab: Hashable) -> None:
        """Give back what the slab has reserved: no more objects of it will come."""
        self._check_open()
        self._allocator.close_slab(slab)

    def live(self) -> Iterator[tuple[Key, Entry]]:
        """Yield all objects that are not FREE, in the table's order; objects may be freed while it runs."""
        self._check_open()
        for slot in sorted(self._live_slots):
            entry = self._read(slot)
            if entry.state != ObjectState.FREE:
                yield Key(slot, entry.generation, self.node), entry

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
        """Let go of the segment, as `Arena.close`, and with `unlink` remove its name."""
        if unlink:
            self._check_open()
            remove_segment(self.name)
        return super().close()

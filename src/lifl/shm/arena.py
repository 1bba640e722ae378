"""The node's one POSIX shared-memory segment, and the objects in it, as every process of the node sees them.

`lifld` makes or adopts the segment and alone allocates and frees (`owned_arena.py`); gateway, workers and direct
clients attach, write objects in state WRITING and seal them.  A sealed object is never changed again.  What the segment
looks like is told in `layout.py`, which object gets which bytes in `allocator.py`.

`arena_bytes` is the length of the whole segment, header and table included, so the node's budget is exact.

Nothing here locks: an object is written by one process until it is sealed.
"""

from __future__ import annotations

import os

from lifl.core.errors import LocalFault, StaleKey
from lifl.core.ids import Key
from lifl.shm import layout
from lifl.shm.layout import Entry, Header, ObjectState
from lifl.shm.mapping import map_segment
from lifl.shm.segment import open_segment


class Arena:
    """A mapped segment: made by `attach`, never directly.

    `fd` is the segment's descriptor, to hand to clients that map it themselves; it stays the arena's.
    """

    def __init__(self, name: str, fd: int, header: Header) -> None:
        self.name = name
        self.fd = fd
        self.node = header.node
        self.arena_bytes = header.arena_bytes
        self.entries = header.entries
        self._map, self._view = map_segment(fd, header.arena_bytes)
        self._words = self._view.cast("I")
        self._longs = self._view.cast("Q")

    @staticmethod
    def attach(name: str) -> Arena:
        """Return another process's arena by name.

        Raise `SegmentMissing`, `SegmentUnfinished` or `SegmentUnusable`.
        """
        fd, header = open_segment(name)
        try:
            return Arena(name, fd, header)
        except BaseException:
            os.close(fd)
            raise

    @property
    def epoch(self) -> int:
        """How many daemons have owned the segment: 1 for the one that made it."""
        self._check_open()
        return self._longs[layout.EPOCH_OFFSET // 8]

    def entry(self, key: Key) -> Entry:
        """Return the object's entry.  Raise `StaleKey` when the key's object is gone or was never here."""
        self._check_open()
        if key.node != self.node:
            raise StaleKey(f"key {key} is of another node; this one is {self.node:016x}")
        if not 0 <= key.slot < self.entries:
            raise StaleKey(f"key {key} names no slot of this arena, which has {self.entries}")
        entry = self._read(key.slot)
        # Read again what tells whose entry it is: the daemon may have freed and reused it in between.
        after = self._read(key.slot)
        gone = ObjectState.FREE in (entry.state, after.state)
        if gone or not key.generation == entry.generation == after.generation:
            raise StaleKey(f"key {key} is stale: its object was freed, the slot is at generation {after.generation}")
        return entry

    def offset(self, key: Key) -> int:
        """Return the byte of the segment where the object's data begins, a multiple of a page."""
        return self.entry(key).offset

    def data(self, key: Key) -> memoryview:
        """Return exactly the object's `data_bytes`; writable while it is WRITING, read-only once it is SEALED.

        A writable view stays writable after the seal: its holder lets go of it before sealing.  The mapping
        lives until the last view of it is released, also after `close`.
        """
        entry = self.entry(key)
        view = self._view[entry.offset : entry.offset + entry.data_bytes]
        return view if entry.state == ObjectState.WRITING else view.toreadonly()

    def meta(self, key: Key) -> memoryview:
        """Return the meta that the object was sealed with, read-only; nothing while it is WRITING."""
        entry = self.entry(key)
        start = layout.meta_offset(entry)
        return self._view[start : start + entry.meta_bytes].toreadonly()

    def window(self, offset: int, nbytes: int) -> memoryview:
        """Return any bytes of the segment, whatever they belong to, for populating page tables.  Raise
        `LocalFault`.
        """
        self._check_open()
        if offset < 0 or nbytes < 0 or offset + nbytes > self.arena_bytes:
            raise LocalFault(f"bytes {offset}+{nbytes} are not within the arena's {self.arena_bytes}")
        return self._view[offset : offset + nbytes]

    def seal(self, key: Key, weight: float, contributions: int, meta: bytes = b"", checksum: int = 0) -> None:
        """Make the object immutable and visible: all of its data has been written.

        Raise `LocalFault` when it is not WRITING or `meta` is longer than its room, `StaleKey`.
        """
        entry = self.entry(key)
        if entry.state != ObjectState.WRITING:
            raise LocalFault(f"object {key} is sealed already; it cannot be changed")
        if len(meta) > entry.meta_room:
            raise LocalFault(f"{len(meta)} bytes of meta do not fit in the {entry.meta_room} of object {key}")
        check_u32(contributions)
        if not 0 <= checksum < 1 << 64:
            raise LocalFault(f"checksum {checksum} is no unsigned 64-bit number")
        start = layout.meta_offset(entry)
        self._view[start : start + len(meta)] = meta
        position = layout.entry_position(key.slot)
        self._words[(position + layout.CONTRIBUTIONS_OFFSET) // 4] = contributions
        self._words[(position + layout.META_BYTES_OFFSET) // 4] = len(meta)
        layout.WEIGHT_CHECKSUM.pack_into(self._view, position + layout.WEIGHT_OFFSET, weight, checksum)
        self._view[position + layout.STATE_OFFSET] = ObjectState.SEALED

    def close(self) -> bool:
        """Let go of the segment.  May be called twice.

        True: it is unmapped.  False: views of it (or arrays over them) are still held in this process; the memory is
        unmapped when the last of them is gone, and they stay valid until then.
        """
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            for view in (self._words, self._longs, self._view):
                view.release()
        try:
            self._map.close()
        except BufferError:
            return False
        return True

    def _read(self, slot: int) -> Entry:
        return Entry._make(layout.ENTRY.unpack_from(self._view, layout.entry_position(slot)))

    def _check_open(self) -> None:
        if self.fd < 0:
            raise LocalFault(f"the arena {self.name} is closed")


def check_u32(value: int) -> None:
    """Raise `LocalFault` when `value` does not fit a 32-bit field."""
    if not 0 <= value <= layout.U32_MAX:
        raise LocalFault(f"{value} does not fit an unsigned 32-bit field of the object table")

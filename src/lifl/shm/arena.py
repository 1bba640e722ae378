"""The node's shared memory, and the objects in it, as every process of the node sees them.

`lifld` makes or adopts the arena and alone allocates and frees (`owned_arena.py`).  Its table, which tells what objects
there are, is read by all and written by `lifld`.  The objects of each job are in a segment of their own: gateway,
workers and direct clients map those of the jobs that they work for, write objects in state WRITING and seal them.  A
sealed object is never changed again.  What the bytes look like is told in `layout.py`, which object gets which of them
in `allocator.py`, and which segment holds them in `job_segments.py`.

`arena_bytes` is what table and segments hold together, so the node's budget is exact.

Nothing here locks: an object is written by one process until it is sealed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable

from lifl.core.errors import LocalFault, RemoteFault, ResourceFault, StaleKey
from lifl.core.ids import Key
from lifl.shm import layout
from lifl.shm.layout import Entry, Header, ObjectState
from lifl.shm.mapped_segments import MappedSegments
from lifl.shm.segment import open_table


class Arena:
    """An arena: made by `attach`, never directly.  Its segments are mapped when an object of theirs is looked at.

    Only who has the `segments` otherwise than by name, which is `lifld`, may write to the table.
    """

    def __init__(self, name: str, fd: int, header: Header, segments: MappedSegments | None = None) -> None:
        self.name = name
        self.node = header.node
        self.arena_bytes = header.arena_bytes
        self.entries = header.entries
        self.segments = segments or MappedSegments(name, header.arena_bytes)
        self._is_open = True
        access = mmap.PROT_READ | (mmap.PROT_WRITE if segments else 0)
        try:
            self._table = mmap.mmap(fd, header.data_offset, mmap.MAP_SHARED, access)
        except OSError as error:
            raise ResourceFault(f"cannot map the table of the arena {name}: {error}") from error
        self._view = memoryview(self._table)
        self._words = self._view.cast("I")
        self._longs = self._view.cast("Q")

    @staticmethod
    def attach(name: str) -> Arena:
        """Return another process's arena by name: its table can be read.

        Raise `SegmentMissing`, `SegmentEarlier`, `SegmentUnfinished` or `SegmentUnusable`.
        """
        fd, header = open_table(name)
        try:
            return Arena(name, fd, header)
        finally:
            os.close(fd)

    @property
    def epoch(self) -> int:
        """How many daemons have owned the arena: 1 for the one that made it."""
        self._check_open()
        return self._longs[layout.EPOCH_OFFSET // 8]

    def descriptor(self, key: Key) -> int:
        """Return the descriptor of the object's segment, which stays the arena's, for a client that maps it itself.

        Raise `StaleKey` or `ResourceFault`.
        """
        return self.segments.descriptor(self._entry_of(key))

    def keep_only(self, keys: Iterable[Key]) -> None:
        """Unmap the segments in which none of these objects is."""
        wanted = set()
        for key in keys:
            with contextlib.suppress(StaleKey):
                wanted.add(self._entry_of(key).segment)
        self.segments.keep_only(wanted)

    def close_to_others(self, key: Key) -> None:
        """Have no other segment than the object's from now on (`MappedSegments.close_to_others`)."""
        self.segments.close_to_others(self._entry_of(key))

    def close_to_other_jobs(self, job: int) -> None:
        """Have no other segment than those of the job with this number (`MappedSegments.close_to_other_jobs`)."""
        self._check_open()
        self.segments.close_to_other_jobs(job)

    def holds(self, key: Key) -> bool:
        """Return whether this process may map the object's segment; also when the object is gone."""
        try:
            return self.segments.holds(self._entry_of(key))
        except StaleKey:
            return True

    def entry(self, key: Key) -> Entry:
        """Return the object's entry, with what its seal says.

        Raise `StaleKey` when the key's object is gone or was never here, `ResourceFault` when it cannot be mapped.
        """
        return self._sealed(self._entry_of(key))

    def _entry_of(self, key: Key) -> Entry:
        """Return the object's entry as it is in the table.  Raise `StaleKey`."""
        self._check_open()
        if key.node != self.node:
            raise StaleKey(f"key {key} is of another node; this one is {self.node:016x}")
        if not 0 <= key.slot < self.entries:
            raise StaleKey(f"key {key} names no slot of this arena, which has {self.entries}")
        entry = self._in_table(key.slot)
        # Read again what tells whose entry it is: the daemon may have freed and reused it in between.
        after = self._in_table(key.slot)
        gone = ObjectState.FREE in (entry.state, after.state)
        if gone or not key.generation == entry.generation == after.generation:
            raise StaleKey(f"key {key} is stale: its object was freed, the slot is at generation {after.generation}")
        return entry

    def offset(self, key: Key) -> int:
        """Return the byte of its segment where the object's data begins, a multiple of a page."""
        return self._entry_of(key).offset

    def data(self, key: Key) -> memoryview:
        """Return exactly the object's `data_bytes`; writable while it is WRITING, read-only once it is SEALED.

        A writable view stays writable after the seal: its holder lets go of it before sealing.  The mapping
        lives until the last view of it is released, also after `close`.
        """
        entry = self.entry(key)
        view = self.segments.view(entry)[entry.offset : entry.offset + entry.data_bytes]
        return view if entry.state == ObjectState.WRITING else view.toreadonly()

    def meta(self, key: Key) -> memoryview:
        """Return the meta that the object was sealed with, read-only; nothing while it is WRITING.

        Raise `RemoteFault` when whoever sealed it says that it is longer than its room.
        """
        entry = self.entry(key)
        check_meta(key, entry)
        return self._read(entry, layout.meta_offset(entry), entry.meta_bytes)

    def window(self, offset: int, nbytes: int) -> memoryview:
        """Return any bytes of the table.  Raise `LocalFault`."""
        self._check_open()
        if offset < 0 or nbytes < 0 or offset + nbytes > len(self._view):
            raise LocalFault(f"bytes {offset}+{nbytes} are not within the arena's table of {len(self._view)}")
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
        view, start = self.segments.view(entry), layout.meta_offset(entry)
        view[start : start + len(meta)] = meta
        seal = layout.seal_offset(entry)
        layout.SEAL_BODY.pack_into(view, seal + layout.SEAL_BODY_OFFSET, contributions, len(meta), weight, checksum)
        with view[seal : seal + layout.SEAL_BODY_OFFSET].cast("I") as word:
            word[0] = entry.generation

    def close(self) -> bool:
        """Let go of the arena.  May be called twice.

        True: it is unmapped.  False: views of it (or arrays over them) are still held in this process; the memory is
        unmapped when the last of them is gone, and they stay valid until then.
        """
        if self._is_open:
            self._is_open = False
            for view in (self._words, self._longs, self._view):
                view.release()
        unmapped = self.segments.close()
        try:
            self._table.close()
        except BufferError:
            return False
        return unmapped

    def _in_table(self, slot: int) -> Entry:
        return Entry._make(layout.ENTRY.unpack_from(self._view, layout.entry_position(slot)))

    def _sealed(self, entry: Entry) -> Entry:
        """Return the entry with what the object's seal says, if it has one."""
        if entry.state != ObjectState.WRITING or not layout.has_seal(entry):
            return entry
        with self._read(entry, layout.seal_offset(entry), layout.SEAL_BYTES) as seal:
            generation, contributions, meta_bytes, weight, checksum = layout.SEAL.unpack(seal)
        if generation != entry.generation:
            return entry
        state = ObjectState.SEALED
        told = {"contributions": contributions, "meta_bytes": meta_bytes, "weight": weight, "checksum": checksum}
        return entry._replace(state=state, **told)

    def _read(self, entry: Entry, offset: int, nbytes: int) -> memoryview:
        """Return bytes of an object's segment, to be read."""
        return self.segments.view(entry)[offset : offset + nbytes].toreadonly()

    def _check_open(self) -> None:
        if not self._is_open:
            raise LocalFault(f"the arena {self.name} is closed")


def check_meta(key: Key, entry: Entry) -> None:
    """Raise `RemoteFault` when the meta of a sealed object is longer than its room."""
    if entry.meta_bytes > entry.meta_room:
        raise RemoteFault(f"object {key} is sealed with {entry.meta_bytes} bytes of meta, and has room for less")


def check_u32(value: int) -> None:
    """Raise `LocalFault` when `value` does not fit a 32-bit field."""
    if not 0 <= value <= layout.U32_MAX:
        raise LocalFault(f"{value} does not fit an unsigned 32-bit field of the object table")

"""The node's one POSIX shared-memory segment, and the objects in it.

`lifld` creates the segment (or adopts the one that a killed `lifld` left behind) and alone allocates and
frees; gateway, workers and direct clients attach, write objects in state WRITING and seal them.  A sealed
object is never changed again.  What the segment looks like is told in `layout.py`, who gets which bytes in
`allocator.py`.

The memory is reserved with `posix_fallocate` when the segment is made: a full /dev/shm is an error then,
and never a SIGBUS later.  `arena_bytes` is the length of the whole segment, header and table included, so
the node's budget is exact; `capacity_bytes` of it are for objects.

Nothing here locks.  Allocation has one thread of one process; an object is written by one process, its
owner, until it seals it.  `adopt` must not run while a process of the earlier daemon lives, because it
takes away what they write.  A client that writes its update itself is no such process and may outlive the
daemon: what was UPDATE and WRITING stays so until the new daemon frees it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections import deque
from collections.abc import Hashable, Iterator

import posix_ipc

from lifl.core.errors import ArenaFull, LocalFault, ResourceFault, StaleKey
from lifl.core.ids import Key, Kind
from lifl.shm import layout
from lifl.shm.allocator import Allocator
from lifl.shm.layout import ENTRIES_DEFAULT, ENTRIES_MAX, PAGE_BYTES, Entry, Header, State
from lifl.shm.mapping import map_segment

SHM_FOLDER = "/dev/shm"


class SegmentMissing(ResourceFault):
    """There is no segment of this name: create one."""


class SegmentUnfinished(ResourceFault):
    """The segment was never finished (its creator died): nothing is in it, remove it and create a new one."""


class SegmentUnusable(ResourceFault):
    """The segment is damaged, of another version or of another user; the text says which and what to do."""


class Arena:
    """A mapped segment: made by `create`, `adopt`, `attach` or `attach_fd`, never directly.

    `fd` is the segment's descriptor, to hand to processes that `attach_fd`; it stays the arena's.
    """

    def __init__(self, name: str, fd: int, header: Header) -> None:
        self.name = name
        self.fd = fd
        self.node = header.node
        self.arena_bytes = header.arena_bytes
        self.entries = header.entries
        self._data_offset = header.data_offset
        self._map, self._view = map_segment(fd, header.arena_bytes)
        self._words = self._view.cast("I")
        self._longs = self._view.cast("Q")
        self._allocator: Allocator | None = None
        self._free_slots: deque[int] = deque()
        self._live_slots: set[int] = set()

    # ---- making ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, name: str, arena_bytes: int, node: int, entries: int = ENTRIES_DEFAULT) -> Arena:
        """A new segment `name` (such as "/lifl-1000-main") of `arena_bytes`, for the daemon of the 64-bit
        id `node`.

        Raises `LocalFault` on sizes that cannot be, `ResourceFault` when the name is taken or memory is
        short; after an error nothing is left behind.
        """
        header = _plan(arena_bytes, node, entries)
        _check_memory(header.arena_bytes)
        try:
            segment = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
        except posix_ipc.ExistentialError:
            raise ResourceFault(
                f"shared-memory segment {name} exists already: adopt it, or remove {SHM_FOLDER}{name}"
            ) from None
        except (posix_ipc.PermissionsError, OSError, ValueError) as error:
            raise ResourceFault(f"cannot create shared-memory segment {name}: {error}") from error
        try:
            _reserve(segment.fd, header.arena_bytes)
            arena = cls(name, segment.fd, header)
            layout.HEADER.pack_into(arena._view, 0, *header)
            arena._longs[layout.EPOCH_OFFSET // 8] = 1
            arena._longs[layout.INITIALISED_OFFSET // 8] = layout.INITIALISED
        except BaseException:
            os.close(segment.fd)
            segment.unlink()
            raise
        arena._manage([])
        return arena

    @classmethod
    def adopt(cls, name: str) -> Arena:
        """The segment of a daemon that died, epoch + 1: SEALED objects and WRITING updates stay (see above), other
        WRITING ones are freed.

        Raises `SegmentMissing`, `SegmentUnfinished` or `SegmentUnusable`.
        """
        arena = cls.attach(name)
        try:
            arena._manage(arena._recover())
        except LocalFault as error:
            arena.close()
            raise SegmentUnusable(_damaged(name, str(error))) from error
        arena._longs[layout.EPOCH_OFFSET // 8] += 1
        return arena

    @classmethod
    def attach(cls, name: str) -> Arena:
        """Another process's arena by name, without the right to allocate; raises as `adopt` does."""
        try:
            segment = posix_ipc.SharedMemory(name, flags=0)
        except posix_ipc.ExistentialError:
            raise SegmentMissing(f"there is no shared-memory segment {name}: is the daemon up?") from None
        except (posix_ipc.PermissionsError, OSError, ValueError) as error:
            raise ResourceFault(f"cannot open shared-memory segment {name}: {error}") from error
        try:
            owner = os.fstat(segment.fd).st_uid
            if owner != os.geteuid():
                raise SegmentUnusable(
                    f"segment {name} belongs to user {owner}, not to {os.geteuid()}: use another name"
                )
            return cls._open(name, segment.fd)
        except BaseException:
            os.close(segment.fd)
            raise

    @classmethod
    def attach_fd(cls, fd: int) -> Arena:
        """Another process's arena by its descriptor, which stays the caller's; raises as `adopt` does."""
        own = os.dup(fd)
        try:
            return cls._open(f"descriptor {fd}", own)
        except BaseException:
            os.close(own)
            raise

    @staticmethod
    def remove(name: str) -> None:
        """Removes the segment `name`, if there is one; who has it mapped keeps the memory until it closes."""
        try:
            posix_ipc.unlink_shared_memory(name)
        except posix_ipc.ExistentialError:
            return
        except posix_ipc.PermissionsError as error:
            raise ResourceFault(f"cannot remove shared-memory segment {name}: {error}") from error

    @classmethod
    def _open(cls, name: str, fd: int) -> Arena:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise SegmentUnusable(f"{name} is not a shared-memory segment")
        page = os.pread(fd, PAGE_BYTES, 0).ljust(PAGE_BYTES, b"\0")
        header = Header(*layout.HEADER.unpack_from(page))
        if header.magic not in (layout.MAGIC, bytes(len(layout.MAGIC))):
            raise SegmentUnusable(_damaged(name, "it is no arena of LIFL"))
        if _LONG.unpack_from(page, layout.INITIALISED_OFFSET) != (layout.INITIALISED,):
            raise SegmentUnfinished(
                f"segment {name} was not finished by the process that made it: nothing is in it, remove it"
            )
        if header.version != layout.VERSION:
            raise SegmentUnusable(
                f"segment {name} has layout version {header.version}, this program reads {layout.VERSION}:"
                " finish its jobs with the version of LIFL that made it, or remove it and lose them"
            )
        places = (header.table_offset, header.data_offset)
        expected = (layout.TABLE_OFFSET, layout.data_offset(header.entries))
        if places != expected or not header.data_offset < header.arena_bytes == about.st_size:
            raise SegmentUnusable(_damaged(name, f"its header does not fit its {about.st_size} bytes: {header}"))
        return cls(name, fd, header)

    def _manage(self, extents: list[tuple[int, int]]) -> None:
        """Makes this process the one that allocates."""
        allocator = Allocator(self._data_offset, self.arena_bytes)
        allocator.adopt(extents)
        self._allocator = allocator
        self._free_slots = deque(slot for slot in range(self.entries) if slot not in self._live_slots)

    def _recover(self) -> list[tuple[int, int]]:
        """The extents of the objects that stay; frees the others.  `LocalFault`, before any change, on damage."""
        writing = []
        extents = []
        for slot in range(self.entries):
            entry = self._read(slot)
            if entry.state == State.SEALED or (entry.state == State.WRITING and entry.kind == Kind.UPDATE):
                self._check_kept(slot, entry)
                extents.append((entry.offset, entry.extent_bytes))
                self._live_slots.add(slot)
            elif entry.state == State.WRITING:
                writing.append(slot)
            elif entry.state != State.FREE:
                raise LocalFault(f"entry {slot} has the unknown state {entry.state}")
        Allocator(self._data_offset, self.arena_bytes).adopt(extents)
        for slot in writing:
            self._view[layout.entry_position(slot) + layout.STATE_OFFSET] = State.FREE
        return extents

    @staticmethod
    def _check_kept(slot: int, entry: Entry) -> None:
        needed = layout.align_meta(entry.data_bytes) + entry.meta_room
        if entry.kind not in _KINDS or entry.meta_bytes > entry.meta_room or needed > entry.extent_bytes:
            raise LocalFault(f"entry {slot} contradicts itself: {entry}")

    # ---- what only the daemon does -----------------------------------------------------------------------

    def alloc(
        self,
        kind: Kind,
        job: int,
        round: int,
        data_bytes: int,
        meta_bytes: int = 0,
        slab: Hashable | None = None,
        owner: int = 0,
        address: int = 0,
    ) -> Key:
        """A new object in state WRITING with room for `data_bytes` of data and `meta_bytes` of meta.

        Its bytes are whatever was there before.  Objects of one `slab` and one size lie at equal distances
        where possible.  `owner` is the pid that will write it, `address` the task that it is the output of.
        Raises `ArenaFull` when bytes or entries are short, `LocalFault` when a number does not fit its
        field.
        """
        allocator = self._allocation()
        if data_bytes < 0:
            raise LocalFault(f"data_bytes is {data_bytes}; it cannot be negative")
        for value in (meta_bytes, owner, job, round, address):
            _check_u32(value)
        if not self._free_slots:
            raise ArenaFull(
                f"all {self.entries} entries of the object table are in use; try again when objects have been"
                " freed, or create the arena with more entries"
            )
        size = layout.round_to_pages(max(1, layout.align_meta(data_bytes) + meta_bytes))
        offset = allocator.alloc(size, slab)
        slot = self._free_slots.popleft()
        position = layout.entry_position(slot)
        generation = self._words[(position + layout.GENERATION_OFFSET) // 4] % layout.U32_MAX + 1
        self._words[(position + layout.GENERATION_OFFSET) // 4] = generation
        layout.BODY.pack_into(
            self._view,
            position + layout.BODY_OFFSET,
            *(owner, job, round, 0, address, 0, offset, size, data_bytes, 0.0, 0, meta_bytes),
        )
        self._view[position + layout.KIND_OFFSET] = kind
        self._view[position + layout.STATE_OFFSET] = State.WRITING
        self._live_slots.add(slot)
        return Key(slot, generation, self.node)

    def free(self, key: Key) -> None:
        """Ends the object: its key is stale from now on and its bytes will be somebody else's.

        The caller makes sure that nobody reads or writes it any more.  Raises `StaleKey`.
        """
        allocator = self._allocation()
        entry = self.entry(key)
        self._view[layout.entry_position(key.slot) + layout.STATE_OFFSET] = State.FREE
        allocator.free(entry.offset)
        self._live_slots.remove(key.slot)
        self._free_slots.append(key.slot)  # first in, first out: generations grow evenly

    def close_slab(self, slab: Hashable) -> None:
        """No more objects of this slab will come: what it reserved is free for others."""
        self._allocation().close_slab(slab)

    def live(self) -> Iterator[tuple[Key, Entry]]:
        """All objects that are not FREE, in the table's order; objects may be freed while it runs."""
        self._allocation()
        for slot in sorted(self._live_slots):
            entry = self._read(slot)
            if entry.state != State.FREE:
                yield Key(slot, entry.generation, self.node), entry

    @property
    def capacity_bytes(self) -> int:
        """What the arena holds of objects when it is full."""
        return self.arena_bytes - self._data_offset

    @property
    def used_bytes(self) -> int:
        """Bytes of live objects, in whole pages."""
        return self._allocation().used_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that `used_bytes` has been since the arena was opened or since `reset_peak`."""
        return self._allocation().peak_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes in no object, in however many pieces."""
        return self._allocation().free_bytes

    @property
    def largest_free_bytes(self) -> int:
        """The longest piece in no object."""
        return self._allocation().largest_free_bytes

    def reset_peak(self) -> None:
        """From now on `peak_bytes` is the peak since now."""
        self._allocation().reset_peak()

    # ---- what every process does -------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """How many daemons have owned the segment: 1 for the one that made it."""
        self._check_open()
        return self._longs[layout.EPOCH_OFFSET // 8]

    def entry(self, key: Key) -> Entry:
        """The object's entry.  Raises `StaleKey` when the key's object is gone or was never here."""
        self._check_open()
        if key.node != self.node:
            raise StaleKey(f"key {key} is of another node; this one is {self.node:016x}")
        if not 0 <= key.slot < self.entries:
            raise StaleKey(f"key {key} names no slot of this arena, which has {self.entries}")
        entry = self._read(key.slot)
        # Read again what tells whose entry it is: the daemon may have freed and reused it in between.
        after = self._read(key.slot)
        gone = State.FREE in (entry.state, after.state)
        if gone or not key.generation == entry.generation == after.generation:
            raise StaleKey(f"key {key} is stale: its object was freed, the slot is at generation {after.generation}")
        return entry

    def offset(self, key: Key) -> int:
        """The byte of the segment where the object's data begins, a multiple of a page."""
        return self.entry(key).offset

    def data(self, key: Key) -> memoryview:
        """Exactly the object's `data_bytes`; writable while it is WRITING, read-only once it is SEALED.

        A writable view stays writable after the seal: its holder lets go of it before sealing.  The mapping
        lives until the last view of it is released, also after `close`.
        """
        entry = self.entry(key)
        view = self._view[entry.offset : entry.offset + entry.data_bytes]
        return view if entry.state == State.WRITING else view.toreadonly()

    def meta(self, key: Key) -> memoryview:
        """The meta that the object was sealed with, read-only; nothing while it is WRITING."""
        entry = self.entry(key)
        start = layout.meta_offset(entry)
        return self._view[start : start + entry.meta_bytes].toreadonly()

    def window(self, offset: int, nbytes: int) -> memoryview:
        """Any bytes of the segment, whatever they belong to, for populating page tables.  Raises
        `LocalFault`.
        """
        self._check_open()
        if offset < 0 or nbytes < 0 or offset + nbytes > self.arena_bytes:
            raise LocalFault(f"bytes {offset}+{nbytes} are not within the arena's {self.arena_bytes}")
        return self._view[offset : offset + nbytes]

    def seal(self, key: Key, weight: float, members: int, meta: bytes = b"", checksum: int = 0) -> None:
        """Makes the object immutable and visible: all of its data has been written.

        Raises `LocalFault` when it is not WRITING or `meta` is longer than its room, `StaleKey`.
        """
        entry = self.entry(key)
        if entry.state != State.WRITING:
            raise LocalFault(f"object {key} is sealed already; it cannot be changed")
        if len(meta) > entry.meta_room:
            raise LocalFault(f"{len(meta)} bytes of meta do not fit in the {entry.meta_room} of object {key}")
        _check_u32(members)
        if not 0 <= checksum < 1 << 64:
            raise LocalFault(f"checksum {checksum} is no unsigned 64-bit number")
        start = layout.meta_offset(entry)
        self._view[start : start + len(meta)] = meta
        position = layout.entry_position(key.slot)
        self._words[(position + layout.MEMBERS_OFFSET) // 4] = members
        self._words[(position + layout.META_BYTES_OFFSET) // 4] = len(meta)
        layout.WEIGHT_CHECKSUM.pack_into(self._view, position + layout.WEIGHT_OFFSET, weight, checksum)
        self._view[position + layout.STATE_OFFSET] = State.SEALED

    def close(self, unlink: bool = False) -> bool:
        """Lets go of the segment, and with `unlink` (the daemon only) removes its name.  May be called
        twice.

        True: it is unmapped.  False: views of it (or arrays over them) are still held in this process; the
        memory is unmapped when the last of them is gone, and they stay valid until then.
        """
        if unlink:
            self._allocation()
            self.remove(self.name)
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

    # ---- inside ------------------------------------------------------------------------------------------

    def _read(self, slot: int) -> Entry:
        return Entry._make(layout.ENTRY.unpack_from(self._view, layout.entry_position(slot)))

    def _check_open(self) -> None:
        if self.fd < 0:
            raise LocalFault(f"the arena {self.name} is closed")

    def _allocation(self) -> Allocator:
        self._check_open()
        if self._allocator is None:
            raise LocalFault("only the daemon, which made or adopted the arena, allocates and frees")
        return self._allocator


_LONG = struct.Struct("<Q")
_KINDS = frozenset(Kind)


def _check_u32(value: int) -> None:
    if not 0 <= value <= layout.U32_MAX:
        raise LocalFault(f"{value} does not fit an unsigned 32-bit field of the object table")


def _plan(arena_bytes: int, node: int, entries: int) -> Header:
    """The header of a segment of at most `arena_bytes`, in whole pages.  Raises `LocalFault`."""
    if not 1 <= entries <= ENTRIES_MAX:
        raise LocalFault(f"an arena has 1 to {ENTRIES_MAX} entries, not {entries}")
    if not 0 <= node < 1 << 64:
        raise LocalFault(f"node id {node} is no unsigned 64-bit number")
    begin = layout.data_offset(entries)
    end = arena_bytes // PAGE_BYTES * PAGE_BYTES
    if end <= begin:
        raise LocalFault(
            f"an arena of {arena_bytes} bytes has no room for objects: its table of {entries} entries ends at"
            f" byte {begin}; give it more than that"
        )
    return Header(layout.MAGIC, layout.VERSION, entries, node, end, layout.TABLE_OFFSET, begin)


def _check_memory(arena_bytes: int) -> None:
    """Raises `ResourceFault` when /dev/shm or the machine has not so much free.

    Asked first, because `posix_fallocate` takes page after page before it finds out, and on a tmpfs as
    large as the memory the kernel would kill processes instead.
    """
    about = os.statvfs(SHM_FOLDER)
    free = about.f_bavail * about.f_frsize
    if arena_bytes > free:
        raise ResourceFault(_short(arena_bytes))
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        found = [int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:")]
    if found and arena_bytes > found[0]:
        raise ResourceFault(
            f"the arena needs {arena_bytes} bytes, this machine has {found[0]} bytes of memory available:"
            " give the node a smaller arena_bytes, or end other programs"
        )


def _reserve(fd: int, arena_bytes: int) -> None:
    try:
        os.posix_fallocate(fd, 0, arena_bytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM):
            raise ResourceFault(_short(arena_bytes)) from error
        raise ResourceFault(f"cannot reserve {arena_bytes} bytes of shared memory: {error}") from error


def _short(arena_bytes: int) -> str:
    about = os.statvfs(SHM_FOLDER)
    size, free = about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize
    return (
        f"the arena needs {arena_bytes} bytes, {SHM_FOLDER} has {free} free of {size}: give the node a"
        f" smaller arena_bytes, remove what fills {SHM_FOLDER}, or enlarge it (mount -o remount,size=..."
        f" {SHM_FOLDER})"
    )


def _damaged(name: str, how: str) -> str:
    return (
        f"segment {name} is damaged: {how}; what was accepted but not committed cannot be recovered, remove"
        " the segment and start again"
    )

"""The bytes of an arena: a header page, the object table, then the objects.

    0            header   magic, version, sizes, node id, the daemon's epoch, `initialised`
    TABLE_OFFSET table    `entries` entries of 128 bytes
    data_offset  objects  extents of whole pages: data, then (64-byte aligned) meta, then (64-byte aligned) a seal

Header and table are one segment, which `lifld` writes and all others read.  The objects of each job are in a segment of
their own (`job_segments.py`), at the same offset as they would have in one: what lies there in another job's segment
is a hole.

The layout is written so that a process may be killed between any two stores.  `initialised` is the header's
last store: without it no process opens the segment.  An entry's *state* byte is its commit point: everything
that the state promises has been stored before it.  Who seals an object writes to the job's segment alone: the seal's
first word, which is zero from the alloc on, becomes the object's generation when all else is stored.  An entry's
*generation* is stored alone, as one aligned 32-bit word, and only while the entry is FREE: it never goes back, so a key
of an earlier object in the slot never fits again.  (struct's `pack_into` clears its target first; that is why it never
covers state, generation or the first word of a seal.)

The order of stores is program order: on x86 another process sees it so; elsewhere the socket that carries
the key is the barrier, for no process reads an entry before it has received its key.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

PAGE_BYTES = 4096
MAGIC = b"LIFLSHM\0"
VERSION = 2
EARLIER_VERSION = 1
"""All in one segment, and what the seal says in the entry itself; it is taken over (`earlier_segment.py`)."""
TABLE_OFFSET = PAGE_BYTES
ENTRY_BYTES = 128
ENTRIES_DEFAULT = 4096
ENTRIES_MAX = 65_536
"""Objects that one arena's table can name; 8 MiB of table."""
META_ALIGN_BYTES = 64
U32_MAX = 0xFFFF_FFFF

HEADER = struct.Struct("<8sIIQQQQ")
"""magic, version, entries, node, arena_bytes, table_offset, data_offset; then EPOCH_OFFSET and
INITIALISED_OFFSET.
"""
EPOCH_OFFSET = 48
INITIALISED_OFFSET = 56
INITIALISED = 0x0D15EA5E_F1F0F1F0
"""No pattern that an unfinished or foreign page holds by chance."""

STATE_OFFSET = 0
KIND_OFFSET = 1
GENERATION_OFFSET = 4
BODY_OFFSET = 8
BODY = struct.Struct("<IIII4xIQQQdQI")
"""segment, job, round, contributions, meta_bytes, offset, extent_bytes, data_bytes, weight, checksum, meta_room.

The bytes that are left out, before `meta_bytes`, are reserved: earlier versions stored another word there, so what
they hold means nothing.
"""
ENTRY = struct.Struct("<BBxxIIIII4xIQQQdQI")
META_BYTES_OFFSET = 28
SEAL_BODY = struct.Struct("<II4xdQ")
"""contributions, meta_bytes, weight, checksum: what follows the first word of a seal."""
SEAL_BODY_OFFSET = 4
SEAL_BYTES = 32
SEAL = struct.Struct("<III4xdQ")


class ObjectState(IntEnum):
    """Where an object stands: FREE → WRITING (alloc) → SEALED (seal) → FREE (free).

    In the table SEALED is found only of what an earlier version has sealed; else the seal says so.
    """

    FREE = 0
    WRITING = 1
    SEALED = 2


class Header(NamedTuple):
    """The fixed part of the header page."""

    magic: bytes
    version: int
    entries: int
    node: int
    arena_bytes: int
    table_offset: int
    data_offset: int


class Entry(NamedTuple):
    """One object's entry of the table.

    `job` and `round` tell whose it is, `segment` in which of the arena's it lies.  From the seal on: `contributions`
    updates are in it with a total `weight`; `meta_bytes` of its `meta_room` are used; `checksum` is the writer's (0:
    not told).  `offset` is the data's place there and `extent_bytes` what the object takes there.
    """

    state: int
    kind: int
    generation: int
    segment: int
    job: int
    round: int
    contributions: int
    meta_bytes: int
    offset: int
    extent_bytes: int
    data_bytes: int
    weight: float
    checksum: int
    meta_room: int


def entry_position(slot: int) -> int:
    """Return the byte of the segment where the entry of `slot` begins."""
    return TABLE_OFFSET + slot * ENTRY_BYTES


def data_offset(entries: int) -> int:
    """Return where the objects begin: the first page after a table of `entries` entries."""
    return round_to_pages(TABLE_OFFSET + entries * ENTRY_BYTES)


def meta_offset(entry: Entry) -> int:
    """Return where the object's meta begins in the segment."""
    return entry.offset + align_meta(entry.data_bytes)


def seal_offset(entry: Entry) -> int:
    """Return where the object's seal is in the segment."""
    return entry.offset + align_meta(align_meta(entry.data_bytes) + entry.meta_room)


def has_seal(entry: Entry) -> bool:
    """Return whether the object has room for a seal, as all have but those of an earlier version."""
    return seal_offset(entry) + SEAL_BYTES <= entry.offset + entry.extent_bytes


def extent_bytes(data_bytes: int, meta_room: int) -> int:
    """Return what an object takes of its segment, in whole pages."""
    return round_to_pages(align_meta(align_meta(data_bytes) + meta_room) + SEAL_BYTES)


def align_meta(data_bytes: int) -> int:
    """Return `data_bytes` rounded up to where a meta region may begin."""
    return -(-data_bytes // META_ALIGN_BYTES) * META_ALIGN_BYTES


def round_to_pages(nbytes: int) -> int:
    """Return `nbytes` rounded up to whole pages."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES

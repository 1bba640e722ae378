"""The names that travel instead of data: object keys, and the 64-byte records that carry them.

A *key* is 16 bytes: the slot of the object in its node's table, the generation of that slot, and the node.  A
slot is used again after its object is freed; the generation then differs, so an old key is refused as stale
and never reads another object's bytes.

A *record* is what the redirector routes: one key and the address that it goes to.  Its first eight bytes are read
by the eBPF program (`bpf/redirector.c` holds the same layout): magic, number of records in this send, address.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from lifl.core.errors import LocalFault, RemoteFault

KEY_BYTES = 16
RECORD_BYTES = 64
RECORD_MAGIC = 0x464C  # "LF"
RECORDS_PER_SEND_MAX = 64
ADDRESSES_MAX = 16_384
"""Addresses (open aggregation tasks) that one node can route at a time; 0 is the daemon."""
SLOTS_MAX = 1_024
"""Receivers (worker sockets) that one node can register at a time; 0 is the daemon's."""
DAEMON_ADDRESS = 0
HOSTED_MIN, HOSTED_MAX = 1 << 31, (1 << 32) - 1
"""Between these are the numbers of sessions that a node of a cluster hosts by itself; those of jobs are below."""

_KEY = struct.Struct("<IIQ")
_RECORD = struct.Struct("<HHI16sIIQ24x")


class Key(NamedTuple):
    """Names one object: `slot` in the table of `node`, valid while the slot has this `generation`."""

    slot: int
    generation: int
    node: int

    def pack(self) -> bytes:
        """Return the key's 16 bytes, little-endian."""
        return _KEY.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Key:
        """Return the key in `data`.  Raise `RemoteFault` unless it has 16 bytes."""
        if len(data) != KEY_BYTES:
            raise RemoteFault(f"a key has {KEY_BYTES} bytes, this one has {len(data)}")
        return cls(*_KEY.unpack(data))

    def __str__(self) -> str:
        return f"{self.slot}.{self.generation}@{self.node:016x}"


class Record(NamedTuple):
    """One key on its way to an address.

    `address` names the aggregation task (0: the daemon); `attempt` counts the task's starts, so that a record for an
    earlier one is told apart; `sender` is free for the sender's use; `sent_ns` is the sender's monotonic clock.
    """

    address: int
    key: Key
    attempt: int = 0
    sender: int = 0
    sent_ns: int = 0


def is_hosted(number: int) -> bool:
    """Return whether that is the number of a session that the node hosts by itself."""
    return number >= HOSTED_MIN


def pack_records(records: Sequence[Record]) -> bytes:
    """Return the bytes of one send: 1 to 64 records for one address.  Raise `LocalFault` for others."""
    if not 1 <= len(records) <= RECORDS_PER_SEND_MAX:
        raise LocalFault(f"one send takes 1 to {RECORDS_PER_SEND_MAX} records, not {len(records)}")
    address = records[0].address
    if any(record.address != address for record in records):
        raise LocalFault("the records of one send must all have the same address")
    return b"".join(
        _RECORD.pack(RECORD_MAGIC, len(records), address, r.key.pack(), r.attempt, r.sender, r.sent_ns) for r in records
    )


def unpack_records(data: bytes | bytearray | memoryview) -> list[Record]:
    """Return the records in `data`, a whole number of them.  Raise `RemoteFault` on a bad length or magic."""
    if len(data) % RECORD_BYTES:
        raise RemoteFault(f"{len(data)} bytes are not a whole number of {RECORD_BYTES}-byte records")
    return list(_unpack(data))


def _unpack(data: bytes | bytearray | memoryview) -> Iterable[Record]:
    for magic, _count, address, key, attempt, sender, sent_ns in _RECORD.iter_unpack(data):
        if magic != RECORD_MAGIC:
            raise RemoteFault(f"a record starts with {magic:#06x}, not {RECORD_MAGIC:#06x}")
        yield Record(address, Key(*_KEY.unpack(key)), attempt, sender, sent_ns)


class Kind(IntEnum):
    """What an object of the arena is.

    Until LIFL 0.1 a partial was a scaled sum (`EARLIER_PARTIAL`), then for a time a mean that was rounded to float32
    where the model's floats are not wider, and a sum of 128 bits of integers of 64 (`NARROW_PARTIAL`); they are read,
    and made no more (`worker/earlier.py`).
    """

    UPDATE = 1
    EARLIER_PARTIAL = 2
    MODEL = 3
    STATE = 4
    NARROW_PARTIAL = 5
    PARTIAL = 6


ATTEMPT_BITS = 8
ATTEMPTS_MAX = (1 << ATTEMPT_BITS) - 1


def epoch_of(round_number: int, attempt: int) -> int:
    """Return the fence of one attempt at one round: objects of the arena carry it, and a commit names it.

    A round that failed is tried again under the next epoch, so nothing that an earlier attempt left can be counted.
    """
    if not 0 <= attempt <= ATTEMPTS_MAX:
        raise LocalFault(f"a round has at most {ATTEMPTS_MAX} attempts, not {attempt}")
    return (round_number << ATTEMPT_BITS) | attempt


def round_of(epoch: int) -> int:
    """Return the round's number in an epoch."""
    return epoch >> ATTEMPT_BITS

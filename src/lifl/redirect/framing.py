"""Records into sends, and bytes into records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lifl.core.errors import LocalFault, RemoteFault
from lifl.core.ids import (
    ADDRESSES_MAX,
    DAEMON_ADDRESS,
    RECORD_BYTES,
    RECORDS_PER_SEND_MAX,
    Key,
    Record,
    unpack_records,
)

SEND_BYTES_MAX = RECORDS_PER_SEND_MAX * RECORD_BYTES
WAKE_KEY = Key(0, 0, 0)
"""No object has this key: a record to address 0 with it says that the slot `sender` has room again."""


def wake(slot: int) -> Record:
    """Return the record by which a receiver that was full asks for what the daemon holds; slot 0: try all receivers."""
    return Record(DAEMON_ADDRESS, WAKE_KEY, sender=slot)


def is_wake(record: Record) -> bool:
    """Return whether the record is no key, but says that slot `record.sender` has room again."""
    return record.address == DAEMON_ADDRESS and record.key == WAKE_KEY


def batches(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Yield the records in sends: 1 to 64 successive ones for one address.  Raise `LocalFault` for a wrong one."""
    start = 0
    while start < len(records):
        address = records[start].address
        if not 0 <= address < ADDRESSES_MAX:
            raise LocalFault(f"address {address} is not below {ADDRESSES_MAX}")
        end = start + 1
        limit = min(len(records), start + RECORDS_PER_SEND_MAX)
        while end < limit and records[end].address == address:
            end += 1
        yield records[start:end]
        start = end


def parse(data: bytes) -> tuple[list[Record], int]:
    """Return the records in `data`, and how many pieces of it (64 bytes, or fewer at its end) are none."""
    try:
        return unpack_records(data), 0
    except RemoteFault:
        records, malformed = [], 0
        for start in range(0, len(data), RECORD_BYTES):
            try:
                records += unpack_records(data[start : start + RECORD_BYTES])
            except RemoteFault:
                malformed += 1
        return records, malformed

"""Where the rows of a cluster are in etcd, and what a value looks like there.

    /lifl/NAME/leader                         who coordinates: held by a lease, its create revision is the term
    /lifl/NAME/cluster                        what the cluster is, made once
    /lifl/NAME/moving                         rows are moved to or from another store, and that is not done yet
    /lifl/NAME/last-job                       the number of the last job
    /lifl/NAME/removed                        the numbers of the last jobs that were forgotten
    /lifl/NAME/jobs/NUMBER                    a job as it was submitted
    /lifl/NAME/status/NUMBER                  what became of it; a job without it was never accepted
    /lifl/NAME/rounds/NUMBER/ROUND/ATTEMPT    an attempt at a round
    /lifl/NAME/commits/NUMBER/ROUND           which attempt at a round is committed; there is one at most
    /lifl/NAME/parts/.../DIGEST/INDEX         parts of a value that is too long for one key

Numbers have leading zeros, so that keys lie in their order.  A value is a table in msgpack, compressed; the one of a
row has the term under which it was written.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import msgpack

from lifl.core.limits import STORE_ROW_BYTES_MAX, STORE_VALUE_BYTES_MAX

WHOLE, PARTS = b"W", b"P"
"""The first byte of a value: it is all there, or names its parts."""


class Keys:
    """The keys of one cluster."""

    def __init__(self, name: str) -> None:
        self.root = f"/lifl/{name}/".encode()
        self.leader = self.root + b"leader"
        self.cluster = self.root + b"cluster"
        self.moving = self.root + b"moving"
        self.last_job = self.root + b"last-job"
        self.removed = self.root + b"removed"

    def job(self, number: int) -> bytes:
        """Return the key of a job."""
        return self.root + b"jobs/%012d" % number

    def status(self, number: int) -> bytes:
        """Return the key of what became of a job."""
        return self.root + b"status/%012d" % number

    def round(self, number: int, round_: int, attempt: int = 0) -> bytes:
        """Return the key of an attempt at a job's round; of attempt 0 it lies before all others."""
        return self.root + b"rounds/%012d/%07d/%03d" % (number, round_, attempt)

    def commit(self, number: int, round_: int) -> bytes:
        """Return the key of a job's commit."""
        return self.root + b"commits/%012d/%07d" % (number, round_)

    def parts(self, key: bytes, digest: bytes = b"") -> bytes:
        """Return what the keys of a value's parts begin with."""
        return self.root + b"parts/" + key.removeprefix(self.root) + b"/" + (digest + b"/" if digest else b"")

    def of_job(self, number: int) -> list[tuple[bytes, bytes]]:
        """Return the ranges (begin, end) of all that there is of a job."""
        one, many = [self.job(number), self.status(number)], []
        for kind in (b"rounds/", b"commits/"):
            many += [kind + b"%012d/" % number, b"parts/" + kind + b"%012d/" % number]
        many.append(b"parts/jobs/%012d/" % number)
        return [(key, key + b"\0") for key in one] + [(self.root + key, after(self.root + key)) for key in many]

    def of_jobs(self) -> list[tuple[bytes, bytes]]:
        """Return the ranges (begin, end) of all that there is of jobs."""
        kinds = [self.root + kind for kind in (b"jobs/", b"status/", b"rounds/", b"commits/", b"parts/")]
        return [(kind, after(kind)) for kind in kinds]

    def named(self, key: bytes) -> tuple[str, tuple[int, ...]]:
        """Return the kind of a key, and the numbers in it; an unknown one's kind is empty."""
        kind, *rest = key.removeprefix(self.root).decode(errors="replace").split("/")
        if kind == "parts" or not all(part.isascii() and part.isdigit() for part in rest):
            return ("parts" if kind == "parts" else "", ())
        return kind, tuple(map(int, rest))


def after(prefix: bytes) -> bytes:
    """Return the key behind all that begin with `prefix`."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def pack(value: dict[str, Any]) -> tuple[bytes, bytes, list[bytes]]:
    """Return a value for a key; the digest and the parts of one that is too long (none otherwise)."""
    packed = WHOLE + zlib.compress(msgpack.packb(value))
    if len(packed) <= STORE_VALUE_BYTES_MAX:
        return packed, b"", []
    digest = hashlib.sha256(packed).hexdigest()[:16].encode()
    parts = [packed[at : at + STORE_VALUE_BYTES_MAX] for at in range(0, len(packed), STORE_VALUE_BYTES_MAX)]
    return PARTS + msgpack.packb({"digest": digest, "parts": len(parts)}), digest, parts


def unpack(value: bytes) -> dict[str, Any]:
    """Return what a whole value says.  Raise `ValueError` or `zlib.error` (`rows.UNREADABLE`) when it is damaged."""
    if value[:1] != WHOLE:
        raise ValueError(f"a value begins with {value[:1]!r}")
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(value[1:], STORE_ROW_BYTES_MAX)
    if not unpacker.eof:
        raise ValueError(f"it is cut off, or takes more than {STORE_ROW_BYTES_MAX} bytes")
    found = msgpack.unpackb(data, strict_map_key=False)
    if not isinstance(found, dict):
        raise ValueError("it is no table")
    return found


def parts_of(value: bytes) -> tuple[bytes, int]:
    """Return digest and number of the parts that a value names; no digest when it is whole, or damaged."""
    if value[:1] != PARTS:
        return b"", 0
    try:
        named = msgpack.unpackb(value[1:])
        return bytes(named["digest"]), int(named["parts"])
    except (ValueError, TypeError, LookupError, msgpack.UnpackException):
        return b"", 0

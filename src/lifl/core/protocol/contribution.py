"""Contributions: who is in an object, as the meta region of updates and partials tells.

An update's meta is one contribution; a partial's is the concatenation of its inputs' metas.  So after a crash the
ledger is rebuilt from the arena alone, however far the tree had come.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Sequence

import msgpack
import msgspec

from lifl.core.errors import LocalFault, RemoteFault
from lifl.core.limits import CONTRIBUTION_BYTES_MAX

_LENGTH = struct.Struct("<H")


class Contribution(msgspec.Struct, frozen=True):
    """One client's part in a round: its weight (number of examples), its metrics, and what its update lacks.

    `absent` are the tensors that are not in it, by `absent_bits`; not told: all of them are.  It is known where the
    object is, and not in the ledger.  `digest` is the checksum of its bytes (`shm/checksum.py`), as they were sealed.
    """

    client: str
    weight: float
    metrics: dict[str, float] = {}
    absent: bytes | msgspec.UnsetType = msgspec.UNSET
    digest: int | msgspec.UnsetType = msgspec.UNSET


def absent_bits(names: Sequence[str], there: Collection[str]) -> bytes:
    """Return a bit for each of the tensors `names`, the lowest of the first byte first: 1 for one that is not there."""
    bits = sum(1 << index for index, name in enumerate(names) if name not in there)
    return bits.to_bytes(-(-len(names) // 8), "little")


def sealed_as(packed: bytes, digest: int, absent: bytes | msgspec.UnsetType) -> bytes:
    """Return a packed contribution as that of an update whose bytes are there.  Raise as `unpack_contributions`.

    The digest is left out where there is no room for it: it is told to the ledger besides.
    """
    (contribution,) = unpack_contributions(packed)
    contribution = msgspec.structs.replace(contribution, absent=absent)
    whole = msgspec.structs.replace(contribution, digest=digest)
    return pack_contribution(whole if packed_bytes(whole) <= CONTRIBUTION_BYTES_MAX else contribution)


def with_digest(contribution: Contribution, digest: int) -> Contribution:
    """Return the contribution with the digest of its update; 0: it is not known."""
    return msgspec.structs.replace(contribution, digest=digest) if digest else contribution


def root_of(updates: Iterable[tuple[str, float, int]]) -> str:
    """Return what stands for all updates of a round, (client, weight, digest) each: SHA-256, in hexadecimal digits.

    It is that of a line for each, in the order of the clients' names: name, weight as Python writes it, digest.
    """
    lines = (f"{client} {float(weight)!r} {digest:016x}\n" for client, weight, digest in sorted(updates))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def packed_bytes(contribution: Contribution) -> int:
    """Return how many bytes the contribution takes; at most `CONTRIBUTION_BYTES_MAX` fit into an update."""
    return _LENGTH.size + len(_body(contribution))


def _body(contribution: Contribution) -> bytes:
    packed: bytes = msgpack.packb(msgspec.to_builtins(contribution, builtin_types=(bytes,)))
    return packed


def pack_contribution(contribution: Contribution) -> bytes:
    """Return the contribution's bytes.  Raise `LocalFault` when they are more than `CONTRIBUTION_BYTES_MAX`."""
    body = _body(contribution)
    if _LENGTH.size + len(body) > CONTRIBUTION_BYTES_MAX:
        raise LocalFault(
            f"client {contribution.client!r}: name and metrics take {len(body)} bytes, at most"
            f" {CONTRIBUTION_BYTES_MAX} fit"
        )
    return _LENGTH.pack(len(body)) + body


def unpack_contributions(meta: bytes | memoryview) -> list[Contribution]:
    """Return the contributions in a meta region.  Raise `RemoteFault` when it is damaged."""
    contributions = []
    position = 0
    while position < len(meta):
        if position + _LENGTH.size > len(meta):
            raise RemoteFault("a meta region ends within a contribution")
        (length,) = _LENGTH.unpack_from(meta, position)
        position += _LENGTH.size
        if position + length > len(meta):
            raise RemoteFault("a meta region ends within a contribution")
        try:
            value = msgpack.unpackb(bytes(meta[position : position + length]))
            contributions.append(msgspec.convert(value, Contribution))
        except (ValueError, msgpack.exceptions.UnpackException, msgspec.ValidationError) as error:
            raise RemoteFault(f"a meta region holds a damaged contribution: {error}") from error
        position += length
    return contributions

"""A large body over several connections, where one core's cipher is what a connection cannot pass.

Whoever asks for a large body, or offers one, may first have made side connections to the same gateway, as the same
client, and says how many `streams` there are with the one by which it asks.  When the gateway splits the body, its
answer (Go, or Model) has a `transfer`: the first range goes over that connection, each other one over a side connection
that says BodyRange.  The ranges follow from the size and the number alone.  The body is there when all of them are; the
end of any of these connections ends it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from lifl.core.fields import Message, Secret
from lifl.core.limits import STREAMS_MAX

ALIGN_BYTES = 65_536
"""Ranges begin at multiples of this: no number, and no block of the checksum, is in two."""
SPLIT_BYTES_MIN = 8 * 1024 * 1024
"""A shorter body goes over one connection."""
STREAMS_BY_CORES_MAX = 4
"""Over so many at most, where nobody has said over how many."""
STREAMS = "streams"
"""The feature of a client that knows `Welcome.streams`: told by who may use several."""

Streams = Annotated[int, msgspec.Meta(ge=1, le=STREAMS_MAX)]
"""Connections over which one body goes."""


class BodyRange(Message, frozen=True):
    """Range `number` of the transfer's body goes over this connection: its bytes follow at once, whichever way.

    It has no answer.  Who names no transfer of its own that waits for this range is disconnected.
    """

    transfer: Secret
    number: Annotated[int, msgspec.Meta(ge=1, le=STREAMS_MAX - 1)]


def body_ranges(nbytes: int, count: int) -> list[tuple[int, int]]:
    """Return begin and end, in bytes, of each of `count` ranges; of several none is empty from `SPLIT_BYTES_MIN` on."""
    step = -(-nbytes // (count * ALIGN_BYTES)) * ALIGN_BYTES
    return [(min(number * step, nbytes), min((number + 1) * step, nbytes)) for number in range(count)]


def streams_for(setting: int, cores: int, secured: bool) -> int:
    """Return over how many connections a large body may go: as the `setting` says, or (0) half as many as cores.

    By itself only under TLS, which costs its core at each end: elsewhere one connection takes what a machine gives.
    """
    if setting:
        return setting
    return max(1, min(STREAMS_BY_CORES_MAX, cores // 2)) if secured else 1

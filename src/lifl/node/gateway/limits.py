"""What a connection is given: how long, how many bytes, how many at a time."""

from __future__ import annotations

from lifl.core.protocol.frames import FRAME_BYTES_MAX

HELLO_S = 10.0
"""A new connection says Hello within this time."""
FRAME_S = 60.0
"""A frame that has begun is complete within this time."""
BODY_STALL_S = 60.0
"""A body (either way) moves at least `body_moves.STALL_BYTES` in this time, or the connection ends."""
REPLACED_STALL_S = 2.0
"""The same for a client that has come over another connection meanwhile."""
PEER_STALL_S = 10.0
"""The same between nodes, which are nearer to each other; and what the peer's TCP may leave unacknowledged."""
HELLO_BYTES_MAX = 4096
SMALL_FRAME_BYTES = 64 * 1024
"""Frames up to here are read from all clients at a time; longer ones are schemas, `LARGE_FRAMES_MAX` at a time."""
LARGE_FRAMES_MAX = 8
SMALL_BODY_BYTES = 256 * 1024
"""Bodies up to here are received and checked (tens of microseconds) by the event loop's thread itself."""
SOON_S = 1.0
"""A small body that takes longer is left to the movers, which see whether it stalls."""
WAITING_BYTES_MAX = 2 * FRAME_BYTES_MAX
"""What may wait for one client that reads slowly."""
LINGER_S = 1.0
"""How long a refused connection is kept so that the peer can read why."""
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3
UNACKNOWLEDGED_S = 60.0
"""A peer that acknowledges nothing for so long is gone."""

"""How many TLS handshakes a node makes for one source: each costs it signatures before it knows for whom.

A source (`greetings.source_of`) has `HANDSHAKES_AT_ONCE`, then `HANDSHAKES_PER_S`: enough for a site with thousands of
clients behind one address.  Beyond, a connection waits for its turn, and is turned away when that would be too late.
Of `HANDSHAKE_SOURCES_MAX` sources is kept how many they have made; beyond, the one that came first is forgotten.
"""

from __future__ import annotations

from lifl.core import limits


class Handshakes:
    """The books of one door."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[float, float]] = {}  # by source: how many that have not had their time, and when

    def wait_s(self, source: str, now: float) -> float:
        """Count a handshake; return how long it is to wait.  Raise `ConnectionError`, uncounted, if that is long."""
        made, at_s = self._made.pop(source, (0.0, now))
        made = max(0.0, made - (now - at_s) * limits.HANDSHAKES_PER_S)
        wait_s = (made + 1 - limits.HANDSHAKES_AT_ONCE) / limits.HANDSHAKES_PER_S
        late = wait_s > limits.HANDSHAKE_WAIT_S
        self._made[source] = (made if late else made + 1), now
        if len(self._made) > limits.HANDSHAKE_SOURCES_MAX:
            del self._made[next(iter(self._made))]
        if late:
            raise ConnectionError(f"{source} makes more TLS handshakes than {limits.HANDSHAKES_PER_S} per second")
        return max(0.0, wait_s)

"""What all connections of a gateway share, and what keeps one of them from taking it all.

* `Flow`: the bytes of bodies, of one client or job, at a rate.
* `WaitingBytes`: what waits to be sent.  When all of it is too much, who has most waiting is disconnected.
* `LargeFrames`: what has come of long frames that are not complete.  A sender holds what it has sent, no more: a slow
  one holds nobody.  When all of it is too much, who has held the most bytes for the longest time is disconnected.
* `Pace`: small requests of one client.  Who sends them without end is slowed; an update that is taken gives back
  more than a round's requests cost, so a client that takes part is never slowed.
"""

from __future__ import annotations

from typing import Protocol

from lifl.core import limits


class Holder(Protocol):
    """A connection's part that holds something shared."""

    def cut(self, because: str) -> None:
        """Disconnect its client."""
        ...


class WaitingBytes:
    """The bytes that wait for each client, and for all together; what many share does not count."""

    def __init__(self) -> None:
        self._held: dict[Holder, int] = {}
        self.total = 0

    def add(self, holder: Holder, nbytes: int) -> None:
        """Count bytes (negative: those that have left); disconnect whom most waits for when it is too much."""
        held = self._held.get(holder, 0) + nbytes
        self.total += nbytes
        if held:
            self._held[holder] = held
        else:
            self._held.pop(holder, None)
        while self.total > limits.ALL_WAITING_BYTES_MAX:
            most = max(self._held, key=lambda each: self._held[each])
            text = f"{self.total} bytes wait for all clients, {self._held[most]} for this one, which does not read"
            self.forget(most)
            most.cut(text)

    def forget(self, holder: Holder) -> None:
        """Count nothing for a connection any more."""
        self.total -= self._held.pop(holder, 0)


class LargeFrames:
    """The bytes of long frames that are not complete, by who sends them."""

    def __init__(self) -> None:
        self._held: dict[Holder, tuple[int, float]] = {}
        self.total = 0

    def add(self, holder: Holder, nbytes: int, now: float) -> None:
        """Count bytes that have come; disconnect who has held most for longest when it is too much."""
        held, since = self._held.get(holder, (0, now))
        self._held[holder] = held + nbytes, since
        self.total += nbytes
        while self.total > limits.LARGE_FRAMES_BYTES_MAX:
            slow = max(self._held, key=lambda each: self._held[each][0] * (now - self._held[each][1]))
            held, since = self._held[slow]
            text = f"long frames of all clients hold {self.total} bytes, this one's {held} for {now - since:.1f} s"
            self.forget(slow)
            slow.cut(text)

    def forget(self, holder: Holder) -> None:
        """Count nothing for a connection: its frame is complete, or it has ended."""
        self.total -= self._held.pop(holder, (0, 0.0))[0]


class Pace:
    """A bucket of requests: `REQUESTS_BURST` at once or those of two seconds, then so many `per_s` (0: the default)."""

    def __init__(self, now: float, per_s: int = 0) -> None:
        self._per_s = per_s or limits.REQUESTS_PER_S
        self._left = self._burst = max(float(limits.REQUESTS_BURST), 2.0 * self._per_s)
        self._at_s = now

    def wait_s(self, now: float) -> float:
        """Take one request out; return how long it is to wait for its turn."""
        self._left = min(self._burst, self._left + (now - self._at_s) * self._per_s) - 1.0
        self._at_s = now
        return max(0.0, -self._left / self._per_s)

    def taken(self) -> None:
        """Give back what the requests of a round cost: an update has been taken."""
        self._left = min(self._burst, self._left + limits.REQUESTS_OF_AN_UPDATE)


class Flow:
    """Bodies of bytes at a rate: each waits until those before it have had their time; 0: there is no limit."""

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at_s = 0.0

    def wait_s(self, nbytes: int, now: float) -> float:
        """Take a body of so many bytes; return how long it is to wait for its turn."""
        if not self.bytes_per_s:
            return 0.0
        begin_s = max(self._free_at_s, now)
        self._free_at_s = begin_s + nbytes / self.bytes_per_s
        return begin_s - now

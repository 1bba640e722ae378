"""The tables that the daemon, the workers' ports and the eBPF program share, as 64-bit words in mapped memory.

    routes    one word per address   slot | generation << 32; 0 is no route.  Written by the daemon only
    slots     eight words per slot   see below; one cache line each

The words of a slot, and which process writes them (only that one, so none of them needs a lock):

    SENT, BYTES, LAST_NS, OVER   the eBPF program, atomically (AF_UNIX counts elsewhere: `unix/layout.py`)
    CONSUMED, MALFORMED          the receiver: records taken from its socket; pieces that were no records
    HELD                         the daemon sets it when it holds records back because the receiver is full; the
                                 receiver clears it, and then wakes the daemon
    GENERATION                   the daemon; a route or a port with another generation is stale

HELD closes a circle without polling: the daemon sets it and then looks for room once more, the receiver makes room
and then looks at it.  With a full memory barrier between the two steps on each side (`fence`) one of them must see
the other.  The receiver clears it before it sends its wake, so a mark that it wipes out is followed by a wake.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque

from lifl.core.errors import ResourceFault
from lifl.core.ids import ADDRESSES_MAX, SLOTS_MAX

WORD_BYTES = 8
SLOT_WORDS = 8
SENT, BYTES, LAST_NS, OVER, CONSUMED, MALFORMED, HELD, GENERATION = range(SLOT_WORDS)
ROUTES_WORDS = ADDRESSES_MAX
SLOTS_WORDS = SLOTS_MAX * SLOT_WORDS
QUARANTINE_SLOTS = 64
"""A slot is given out again only after so many others were freed after it (while there are others)."""

_LOW = 0xFFFF_FFFF
_barrier = threading.Lock()


def route_entry(slot: int, generation: int) -> int:
    """Return the word of a route."""
    return slot | generation << 32


def entry_slot(entry: int) -> int:
    """Return the slot that a route's word names; 0: none."""
    return entry & _LOW


def entry_generation(entry: int) -> int:
    """Return the generation of the slot that a route's word means."""
    return entry >> 32


def fence() -> None:
    """Pass a full memory barrier: taking and giving back a lock is made of atomic instructions."""
    with _barrier:
        pass


class Words:
    """`count` 64-bit words of a mappable descriptor (a BPF array map, a memfd); the descriptor stays the caller's."""

    def __init__(self, descriptor: int, count: int, *, writable: bool, offset_words: int = 0) -> None:
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(
            descriptor, count * WORD_BYTES, flags=mmap.MAP_SHARED, prot=access, offset=offset_words * WORD_BYTES
        )
        self._bytes = memoryview(self._map)
        self.words = self._bytes.cast("Q")

    def close(self) -> None:
        """Unmap them; no slice of `words` may be in use."""
        self.words.release()
        self._bytes.release()
        self._map.close()


class SlotPool:
    """Which slots are free.  The oldest freed comes first, and rests in quarantine before it is used again.

    A send that has read a route just before it was cleared may still be on its way to the slot; the rest (and the
    generation) keeps it from reaching the slot's next owner.
    """

    def __init__(self) -> None:
        self._freed: deque[int] = deque()
        self.used = 1
        """Slots below this number have been given out at least once; 0 is the daemon's."""

    def take(self) -> int:
        """Return a free slot.  Raise `ResourceFault` when all are taken."""
        if len(self._freed) <= QUARANTINE_SLOTS and self.used < SLOTS_MAX:
            self.used += 1
            return self.used - 1
        if not self._freed:
            raise ResourceFault(
                f"all {SLOTS_MAX - 1} slots of the redirector are taken; lower workers_max, or wait until workers end"
            )
        return self._freed.popleft()

    def give(self, slot: int) -> None:
        """Take a slot back; it is free again."""
        self._freed.append(slot)

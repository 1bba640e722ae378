"""Memory for a client's models, used again from round to round.

The first touch of fresh memory costs more than to receive a model into it.  So what a model was in is kept when the
last array over it has gone, and the next model is received into it.  As long as anything refers to a model, an array of
it, a slice, a torch tensor over it or an update that is not committed yet, its memory is its own.

One block is kept.  A trainer has the last round's model still while the next one is fetched, so two take turns, and
never more memory is taken at a time than without: what is kept then is what would be allocated then.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

KEPT_BYTES_MIN = 1 << 20
"""Less is had as fast from the allocator, which keeps it itself."""
KEPT_BYTES_MAX = 4 << 30
"""More is given back to the system when a model has gone."""
KEPT_MAX = 1


class Buffers:
    """The memory of the models of one client."""

    def __init__(self) -> None:
        self._idle: deque[NDArray[np.uint8]] = deque(maxlen=KEPT_MAX)
        self._closed = False

    @property
    def idle_bytes(self) -> int:
        """The bytes that are kept for the next model, and that nothing refers to."""
        return sum(block.nbytes for block in self._idle)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """Return writable memory, with whatever is in it.  Raise `MemoryError`."""
        if not KEPT_BYTES_MIN <= nbytes <= KEPT_BYTES_MAX:
            return np.empty(nbytes, np.uint8)
        block = self._kept()
        if block is None or block.nbytes != nbytes:
            del block  # one of another size: the job is another one
            block = np.empty(nbytes, np.uint8)
        memory = (ctypes.c_ubyte * nbytes).from_address(block.ctypes.data)
        # Every array over it holds this, by however many others; the block lives until then in what is to be called.
        weakref.finalize(memory, self._put, block).atexit = False
        return np.frombuffer(memoryview(memory).cast("B"), np.uint8)

    def _kept(self) -> NDArray[np.uint8] | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _put(self, block: NDArray[np.uint8]) -> None:
        """Keep a block that nothing refers to any more; called in whatever thread the last array goes."""
        if not self._closed:
            self._idle.append(block)

    def close(self) -> None:
        """Keep nothing any more: what is in use is given back when its last array goes."""
        self._closed = True
        self._idle.clear()

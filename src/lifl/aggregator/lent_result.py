"""A result that is read where the node has it: its memory is mapped, and nothing is copied.

A connection of its own keeps the model in the arena.  It ends when the last array has gone, or when the memory is
wanted: the next fold's result takes the model's place, a model is put there, the session ends, the connection breaks,
the process forks.  Then what is still looked at is *parted* from the arena: the same bytes at the same address, in
memory of this process.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lifl.aggregator.line import Line
from lifl.client.stream import Stream, lent_bytes
from lifl.core.errors import LiflError, Refused, RemoteFault
from lifl.core.protocol import client as cm
from lifl.core.schema import Layout

if TYPE_CHECKING:
    from lifl.shm.mapping import Readable

LENT_BYTES_MIN = 1 << 20
"""Of a smaller result a copy is had sooner than a connection."""


class LentResult:
    """What is lent over the connection `stream`, as `memory`."""

    def __init__(self, stream: Stream, memory: Readable) -> None:
        self._lock = threading.Lock()
        self._stream: Stream | None = stream
        self._memory = memory
        _lent.add(self)

    def take(self) -> NDArray[np.uint8]:
        """Return its bytes, read-only; when the last view of them has gone the node has them back."""
        return np.frombuffer(self._memory.take(self._end), np.uint8)

    def part(self) -> None:
        """Have what is still looked at in memory of this process, and let the node have its own.

        Raise `ResourceFault` when there is no memory for it.
        """
        with self._lock:
            if self._stream is not None:
                self._memory.part()
        self._end()

    def _end(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def borrowed(line: Line, job: str, round_: int, layout: Layout) -> LentResult | None:
    """Return the model of round `round_` of a session as the node lends it, or None when it lends none to us.

    Raise `OSError`, `Refused`, `RemoteFault`, `ResourceFault`.
    """
    stream = line.another()
    try:
        stream.send(cm.GetModel(job, round_ + 1, digest=layout.digest, direct=True))
        answer = stream.receive()
        if isinstance(answer, cm.Refusal):
            raise Refused(answer.code, answer.field, answer.text)
        if not isinstance(answer, cm.Model) or answer.data_bytes != layout.data_bytes:
            raise RemoteFault(f"the node answers GetModel by {type(answer).__name__}")
        if not isinstance(answer.offset, int):
            stream.close()
            return None
        return LentResult(stream, lent_bytes(stream, answer.offset, answer.data_bytes))
    except BaseException:
        stream.close()
        raise


_lent: weakref.WeakSet[LentResult] = weakref.WeakSet()


def _part_before_fork() -> None:
    """Part all: the node would not know of a child that reads on."""
    for lent in list(_lent):
        with suppress(LiflError):
            lent.part()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_part_before_fork)

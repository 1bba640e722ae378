"""Models that are on the client's own machine: read where the node has them, and not copied.

The node's memory is mapped in a way of the kernel's that lets a trainer write to it: a page that is written to becomes
this process' own, and the others stay the node's, which leaves them alone as long as anything refers to the model (an
array of it, a slice, a torch tensor over it, an update that is not committed yet, also in a forked process).  So a
model is kept as long as the trainer likes, whatever becomes of the node.

Copying page by page costs more than to receive a model, so the models of a trainer that writes to them are received.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lifl.client.stream import Stream, loan_of
from lifl.core.errors import ResourceFault
from lifl.core.protocol import client as cm

if TYPE_CHECKING:
    from lifl.shm.mapping import Borrowed

log = logging.getLogger("lifl.client")

LOAN_BYTES_MIN = 1 << 20
"""Less is received as fast."""
LOANS_MAX = 2
"""A trainer has the last round's model still while the next one is fetched; who keeps more has copies of them."""
SAMPLES = 64
WRITTEN_MAX = SAMPLES // 4
"""Of so many pages of a model that are looked at, those that a trainer may have written to."""


class Loans:
    """The loans of one client.

    The last array of a model may go in any thread, within any line, and in a forked process: so nothing is locked.
    """

    def __init__(self) -> None:
        self._held: list[tuple[int, int]] = []  # where they are: address and bytes
        self._writes = False  # the trainer writes to its models; or there is no room for a mapping

    @property
    def held(self) -> int:
        """How many models are mapped."""
        return len(self._held)

    def asks(self, stream: Stream, nbytes: int) -> bool:
        """Return whether to ask for a model of so many bytes as a loan."""
        if not stream.direct or cm.LOANS not in stream.knows or nbytes < LOAN_BYTES_MIN:
            return False
        for at in list(self._held):
            if _is_written(*at) and at in self._held:  # else something else may be there by now
                self._writes = True
        return not self._writes and len(self._held) < LOANS_MAX

    def take(self, stream: Stream, offset: int, nbytes: int) -> NDArray[np.uint8] | None:
        """Return the model that has come as a loan, writable; None, and the next ones are received, when it cannot be
        mapped.
        """
        from lifl.shm.mapping import Borrowed  # Linux's

        segment, end = loan_of(stream)
        try:
            memory = Borrowed(segment, offset, nbytes, self._ending(end))
        except ResourceFault as fault:
            log.warning("model.unmapped bytes=%d error=%s: it is received", nbytes, fault)
            os.close(end)
            self._writes = True
            return None
        finally:
            os.close(segment)
        return self._noted(memory)

    def _noted(self, memory: Borrowed) -> NDArray[np.uint8]:
        self._held.append((memory.address, memory.nbytes))
        return np.frombuffer(memory.view, np.uint8)

    def _ending(self, end: int) -> Callable[[int, int], None]:
        def ended(address: int, nbytes: int) -> None:
            if _is_written(address, nbytes):
                self._writes = True
            self._held.remove((address, nbytes))
            os.close(end)

        return ended


def _is_written(address: int, nbytes: int) -> bool:
    """Return whether much of a mapped model has been written to."""
    from lifl.shm.mapping import own_pages

    return own_pages(address, nbytes, SAMPLES) > WRITTEN_MAX

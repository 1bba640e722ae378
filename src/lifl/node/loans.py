"""The models that clients of this machine have as loans: mapped where they are, for as long as they like.

A client gets two descriptors, by way of the gateway: that of the model's segment (`shm/loans.py`), and the end of a
pipe.  When the last copy of that is closed the loan is over, whichever process had it, however it ended, and whether
there is a connection still.  When `lifld` dies the locks of the first ones tell the next one what is lent.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from msgspec.structs import replace

from lifl.core.agent.model_service import LOAN
from lifl.core.errors import StaleKey
from lifl.core.ids import Key
from lifl.core.protocol import gateway as gm
from lifl.node.children import Child
from lifl.shm.owned_arena import OwnedArena

log = logging.getLogger("lifl.daemon")

DISCARDED_BYTES = 4096


class Loans:
    """Those of one node; `on_end` is told of each that is over, by ModelSent."""

    def __init__(self, arena: OwnedArena, gateway: Child, on_end: Callable[[gm.ModelSent], None]) -> None:
        self._arena = arena
        self._gateway = gateway
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, bytes] = {}  # by our end of its pipe: the key
        self._sent: set[tuple[int, bytes]] = set()  # granted as loans, and sent as bytes: connection and key

    def grant(self, granted: gm.ModelGranted) -> None:
        """Hand a model that is lent to the gateway, for its client; as bytes, where it cannot be lent."""
        try:
            segment = self._arena.loan(Key.unpack(granted.key))
        except (OSError, StaleKey) as error:
            self._send(granted, error)
            return
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            os.close(segment)
            self._send(granted, error)
            return
        try:
            self._open[ours] = granted.key
            self._loop.add_reader(ours, self._heard, ours)
            self._gateway.send(granted, descriptors=(segment, theirs))
        finally:
            os.close(theirs)
            os.close(segment)

    def _send(self, granted: gm.ModelGranted, error: Exception) -> None:
        log.warning("model.not-lent job=%s round=%d error=%s", granted.job, granted.round, error)
        self._sent.add((granted.conn, granted.key))
        self._gateway.send(replace(granted, lent=False))

    def told(self, sent: gm.ModelSent) -> gm.ModelSent:
        """Return what the gateway says of a model, as it is to be understood."""
        if (sent.conn, sent.key) not in self._sent:
            return sent
        self._sent.discard((sent.conn, sent.key))
        return replace(sent, conn=LOAN)

    def gateway_gone(self) -> None:
        """End what the gateway would have sent: its process is over."""
        sent, self._sent = self._sent, set()
        for _, key in sorted(sent):
            self._on_end(gm.ModelSent(LOAN, key, 0))

    def _heard(self, ours: int) -> None:
        try:
            if os.read(ours, DISCARDED_BYTES):  # a client that writes there says nothing by it
                return
        except BlockingIOError:
            return
        self._loop.remove_reader(ours)
        os.close(ours)
        self._on_end(gm.ModelSent(LOAN, self._open.pop(ours), 0))

    def close(self) -> None:
        """Listen to none of them any more: what is mapped stays as it is."""
        for ours in self._open:
            self._loop.remove_reader(ours)
            os.close(ours)
        self._open.clear()

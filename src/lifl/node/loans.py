"""The models that clients of this machine have as loans: mapped where they are, for as long as they like.

A client gets two descriptors, by way of the gateway: that of the model's segment (`shm/loans.py`), and the end of a
pipe.  When the last copy of that is closed the loan is over, whichever process had it, however it ended, and whether
there is a connection still.  When `lifld` dies the locks of the first ones tell the next one what is lent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from lifl.core.agent.model_service import LOAN
from lifl.core.errors import StaleKey
from lifl.core.ids import Key, Kind
from lifl.core.protocol import gateway as gm
from lifl.node.children import Child
from lifl.shm import loans
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
            key = Key.unpack(granted.key)
            self._arena.lend(key)
            segment = loans.lend(*self._arena.place(key))
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

    def found(self) -> tuple[Key, ...]:
        """Return what clients have as loans of an earlier life of the node, and hear of the end of each from now on."""
        models = (key for key, entry in self._arena.live() if entry.kind == Kind.MODEL)
        lent = tuple(key for key in models if loans.is_lent(*self._arena.place(key)))
        for key in lent:
            log.info("model.lent-before key=%s", key)
            threading.Thread(target=self._wait, args=(key, *self._arena.place(key)), name="loan", daemon=True).start()
        return lent

    def _wait(self, key: Key, fd: int, offset: int, nbytes: int) -> None:
        """Wait, in a thread of its own: nothing tells of a lock's end but the lock."""
        try:
            loans.wait(fd, offset, nbytes)
        except OSError as error:
            log.error("model.kept key=%s %s: its room is free when lifld has started again", key, error)
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the node has ended
            self._loop.call_soon_threadsafe(self._on_end, gm.ModelSent(LOAN, key.pack(), 0))

    def _send(self, granted: gm.ModelGranted, error: Exception) -> None:
        log.warning("model.not-lent job=%s round=%d error=%s", granted.job, granted.round, error)
        self._sent.add((granted.conn, granted.key))
        self._gateway.send(replace(granted, lent=False))

    def told(self, sent: Any) -> Any:
        """Return what the gateway says, of a model that was sent in the place of a loan that the loan is over."""
        if not isinstance(sent, gm.ModelSent) or (sent.conn, sent.key) not in self._sent:
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

"""Whether this node takes part in its cluster, for clients that ask.

A gateway that lives says nothing about its `lifld`: that may be stopped, or cut off from the coordinator.  So a Ping is
answered only when lifld has given a sign within `FRESH_S`; else it is asked first, once for all who wait.  Where it
gives none, nothing is answered, and the client goes to another node.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from lifl.core import limits
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.node.link import Link

FRESH_S = 1.0
"""How long a sign of lifld counts."""
PING_S = 2.0
"""How long a client waits between its questions, at the least."""


class Pulse:
    """What lifld has last said of the node; `connections` is how many clients may ask."""

    def __init__(self, link: Link) -> None:
        self.connections = 0
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._heard_s = self._asked_s = -math.inf
        self._gateways: tuple[str, ...] = ()
        self._waiting: dict[int, Callable[[cm.Pong], None]] = {}

    def ask(self, conn: int, answer: Callable[[cm.Pong], None]) -> None:
        """Call `answer` for the connection as soon as lifld has given a sign: now, usually."""
        now = self._loop.time()
        if now - self._heard_s < FRESH_S:
            answer(self._pong())
            return
        self._waiting[conn] = answer
        if now - self._asked_s >= FRESH_S:
            self._asked_s = now
            self._link.send(gm.AskPulse())

    def heard(self, message: gm.Pulse) -> None:
        """Take a sign of lifld, and answer all who wait."""
        self._heard_s, self._asked_s = self._loop.time(), -math.inf
        self._gateways = message.gateways
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer(self._pong())

    def forget(self, conn: int) -> None:
        """Answer the connection no more: it has ended."""
        self._waiting.pop(conn, None)

    def _pong(self) -> cm.Pong:
        return cm.Pong(max(PING_S, self.connections / limits.PINGS_PER_S_MAX), self._gateways)

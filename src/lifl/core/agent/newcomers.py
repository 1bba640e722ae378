"""Clients that want to take part at a node whose coordinator is away: each waits for one here, for a while.

Who is connected when a coordinator is there takes part at once; who was sent away would come back only after its pause.
The while is short: it may be this node alone that is cut off, and then the client is to try another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from lifl.core.limits import JOIN_HELD_S
from lifl.core.protocol import gateway as gm
from lifl.core.turn import Turn


class Newcomers:
    """Those of one node, by connection, the longest first."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._waiting: dict[int, tuple[float, gm.ClientJoined]] = {}  # with the time until which each may

    def hold(self, event: gm.ClientJoined) -> None:
        """Let a client wait; one that asks for a second job over its connection is sent away."""
        if event.conn in self._waiting:
            self.send_away(event.conn)
        else:
            self._waiting[event.conn] = self._turn.now + JOIN_HELD_S, event

    def send_away(self, conn: int) -> None:
        """Send a client to another node, and to this one again."""
        self._waiting.pop(conn, None)
        self._turn.emit(gm.HangUp(conn))

    def left(self, event: gm.ClientLeft) -> bool:
        """Forget a client that has left; return whether it had waited, so that no coordinator knows of it."""
        _, waiting = self._waiting.get(event.conn, (0.0, None))
        if waiting is None or event.job not in ("", waiting.job):
            return False
        del self._waiting[event.conn]
        return True

    def let_in(self) -> None:
        """Pass all on to the coordinator, which is there."""
        for _, event in self._waiting.values():
            self._turn.report(event)
        self._waiting = {}

    def forget(self) -> None:
        """Forget all: their connections are being ended, or have."""
        self._waiting = {}

    def tick(self) -> None:
        """Send away those that have waited long enough."""
        for conn in [conn for conn, (until_s, _) in self._waiting.items() if until_s <= self._turn.now]:
            self.send_away(conn)

    def next_timer(self) -> float:
        """Return when `tick` is due; infinity: nobody waits."""
        return next((until_s for until_s, _ in self._waiting.values()), math.inf)

    def problems(self, connected: bool) -> Iterable[str]:
        """Yield what is wrong with the books, a sentence each."""
        if connected and self._waiting:
            yield f"clients at connections {sorted(self._waiting)} wait for a coordinator that is there"

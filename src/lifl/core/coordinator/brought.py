"""Updates that others than a session's host bring: by a standing ticket they wait for folds; the host hears of each."""

from __future__ import annotations

import msgspec

from lifl.core.coordinator.presence import Connection, Presence
from lifl.core.coordinator.round import Round
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol.contribution import Contribution


class Brought:
    """Those who bring updates to the folds of a session, of models of `data_bytes`; `host` is its host's connection."""

    def __init__(self, job: str, data_bytes: int, presence: Presence) -> None:
        self.host: Connection | None = None
        self._job = job
        self._data_bytes = data_bytes
        self._presence = presence
        self._waiting: dict[str, tuple[Connection, int]] = {}  # by client: over which connection, behind which fold
        self._last = 0  # the fold that was opened last
        self._behind = 0  # the one before that; 0: there was none in this life of the node

    def opened(self, fold: int) -> None:
        """Note that a fold is open."""
        self._behind, self._last = self._last, fold

    def wait(self, client: str, here: Connection, fold: int) -> None:
        """Have a client wait for a fold behind one."""
        self._waiting[client] = here, fold

    def tell_waiting(self, round_: Round) -> None:
        """Tell who waits for a fold behind an earlier one that this one is open."""
        for client, (to, fold) in list(self._waiting.items()):
            if fold < round_.epoch:
                del self._waiting[client]
                self.select(to, round_)

    def select(self, to: Connection, round_: Round) -> None:
        """Tell who has a ticket what updates look like."""
        about = (self._job, round_.number, 0.0, (), self._data_bytes)
        behind = self._behind or msgspec.UNSET
        self._presence.select(to, cm.Selected(*about, fold=round_.epoch, behind=behind))

    def left(self, node: int, conn: int | None) -> None:
        """Forget who waits over a connection (None: each at the node's gateway) that has ended."""
        for client, (to, _fold) in list(self._waiting.items()):
            if to.node == node and conn in (None, to.conn):
                del self._waiting[client]

    def end(self, round_: int, reason: str) -> None:
        """Tell all who wait that there are no more folds."""
        for to, _fold in self._waiting.values():
            self._presence.send(to, cm.RoundOver(self._job, round_, reason))
        self._waiting.clear()

    def tell_host(self, round_: Round, contribution: Contribution, over: Connection | None) -> None:
        """Tell the host of an update that was accepted, unless it came over its own connection."""
        if self.host is not None and over != self.host:
            about = (contribution.client, contribution.weight, dict(contribution.metrics))
            self._presence.send(self.host, fm.FoldAccepted(self._job, round_.epoch, *about))

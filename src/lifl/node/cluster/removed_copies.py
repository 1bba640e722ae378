"""Copies of models on other nodes that go because their job was forgotten with its models.

The coordinator tells all nodes that it knows, and each that comes, of the last jobs of which that is so; so a node that
was away removes them when it is back.  What it is told once more is gone already, which costs a look at a folder each.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from lifl.core.engine import Engine
from lifl.core.protocol import cluster as p
from lifl.node import folders
from lifl.node.cluster.transport import Peers, Send
from lifl.node.database import DatabaseFault
from lifl.node.durable_rows import DurableRows

log = logging.getLogger("lifl.cluster")


class RemovedCopies:
    """One node's part in it; `state` is its folder."""

    def __init__(self, peers: Peers, engine: Engine, state: Path) -> None:
        self._peers = peers
        self._engine = engine
        self._state = state
        self.rows: DurableRows | None = None
        self._in_turn = asyncio.Lock()

    # ---- the coordinator -------------------------------------------------------------------------------------------

    def _told(self) -> p.CopiesRemoved | None:
        """Return what a node is told; None: nothing."""
        if self.rows is None:
            return None
        try:
            jobs = self.rows.removed_copies
        except DatabaseFault as fault:
            log.error("database.paused %s", fault)  # who is not told now is told when it comes again
            return None
        return p.CopiesRemoved(self.rows.owner, tuple(jobs)) if jobs else None

    def joined(self, hello: p.PeerHello, send: Send) -> None:
        """Tell a node that has come."""
        if p.REMOVES in hello.knows and (told := self._told()) is not None:
            send(told)

    def changed(self) -> None:
        """Tell all nodes: there is one more."""
        coordinator, told = self._engine.coordinator, self._told()
        for node in self._peers.living() if told is not None else ():
            if coordinator is not None and told is not None and coordinator.nodes.knows(node, p.REMOVES):
                self._peers.send(node, told)

    # ---- any node --------------------------------------------------------------------------------------------------

    async def obey_own(self) -> None:
        """Remove what is here: this node has come to coordinate, and may have been away."""
        if (told := self._told()) is not None:
            await self.obey(told)

    async def obey(self, told: p.CopiesRemoved) -> None:
        """Remove what is here of these jobs; the disk may keep a thread waiting, but not the node."""
        async with self._in_turn:
            for number, name in told.jobs:
                folder = folders.local(self._state, name)
                removed = await asyncio.to_thread(folders.remove_copies, folder, told.owner, number, name)
                if removed.files:
                    log.info("copies.removed job=%s number=%d files=%d", name, number, removed.files)

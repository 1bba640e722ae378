"""A node among others: what the control channel says becomes the engine's events.

A node that connects, for the first time or again, says what it has (Inventory), and coordinator and agent go on from
there; see `coordinator/recovery.py`.  What was sent while there was no connection is lost on purpose: the books are
compared.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

from lifl.core import events as ev
from lifl.core.engine import Engine
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.node import machine
from lifl.node.cluster.transport import Peers, Send
from lifl.node.driver import Driver
from lifl.node.store import DatabaseFault, NodeStore
from lifl.node.views import NodeIdentity, tree_lines

log = logging.getLogger("lifl.cluster")


class Bridge:
    """The node's place in the cluster; `Peers` calls it (transport.Handler)."""

    def __init__(
        self, listener: socket.socket, join: str, identity: NodeIdentity, driver: Driver, store: NodeStore
    ) -> None:
        self._listener = listener
        self._identity = identity
        self._driver = driver
        self._store = store
        self.incarnation = store.next_incarnation()
        self.trees: dict[int, tuple[dict[str, Any], ...]] = {}  # by node: the tasks there, as it told last
        self.peers = Peers(listener, self._hello, not join, join, self)

    @property
    def control(self) -> str:
        """The address where this node's control channel listens."""
        return machine.shown(self._listener)

    @property
    def _engine(self) -> Engine:
        return self._driver.engine

    def _hello(self) -> p.PeerHello:
        node = self._identity
        capacity = self._engine.agent.load.capacity
        sizes = (capacity, node.arena_bytes, node.workers_max)
        return p.PeerHello(p.PEER_VERSION, node.number, self.incarnation, self.control, node.gateway, *sizes)

    def load(self) -> p.Heartbeat:
        """Return an agent's next heartbeat."""
        agent = self._engine.agent
        load, used = agent.load, agent.quota.used_bytes
        rate = load.rate_at(time.monotonic())
        tree = tuple(tree_lines(agent, p.TREE_LINES_MAX))
        return p.Heartbeat(load.capacity, rate, load.execution_s, used, len(agent.pool.workers), tree)

    # ---- the coordinator -------------------------------------------------------------------------------------------

    def node_up(self, hello: p.PeerHello, send: Send) -> None:
        """Take a node in that is connected, for the first time or again."""
        log.info("node.up node=%016x gateway=%s incarnation=%d", hello.node, hello.gateway, hello.incarnation)
        sizes = (hello.capacity, hello.arena_bytes, hello.workers_max)
        self._driver.handle(ev.NodeUp(hello.node, hello.gateway, *sizes, hello.incarnation))

    def node_suspect(self, node: int) -> None:
        """Give a silent node nothing new: its rounds wait for it until it is declared dead."""
        log.warning("node.suspect node=%016x", node)
        self._driver.handle(ev.NodeSuspect(node, True))

    def node_alive(self, node: int) -> None:
        """Go on with a suspect that was heard again."""
        log.info("node.alive node=%016x", node)
        self._driver.handle(ev.NodeSuspect(node, False))

    def node_down(self, node: int, why: str, renewed: bool) -> None:
        """Go on without a node whose life is over."""
        log.warning("node.down node=%016x %s", node, why)
        self.trees.pop(node, None)
        if not renewed:  # else it may have adopted what the life before it had: see `node_up`
            self._driver.handle(ev.NodeGone(node))

    def node_left(self, node: int) -> None:
        """Go on without a node that has gone in good order."""
        log.info("node.left node=%016x", node)
        self.trees.pop(node, None)
        self._driver.handle(ev.NodeGone(node))

    def from_node(self, node: int, message: Any) -> None:
        """Take an agent's report, an event of a client at its gateway, or its heartbeat."""
        if isinstance(message, p.Heartbeat):
            self.trees[node] = message.tree
            self._driver.handle(ev.NodeLoadTold(node, message.capacity, message.rate_per_s, message.execution_s))
        else:
            self._driver.handle(ev.FromNode(node, message))

    # ---- an agent --------------------------------------------------------------------------------------------------

    def coordinator_up(self, welcome: p.PeerWelcome) -> None:
        """Tell the coordinator, connected for the first time or again, what this node has."""
        log.info("coordinator.up node=%016x control=%s", welcome.node, welcome.control)
        try:
            stranger = not self._store.meets(f"{welcome.node:016x}")
        except DatabaseFault as fault:  # it could not be noted: what is here may be another's, and is sent again
            log.error("database.paused %s", fault)
            stranger = True
        self._driver.handle(ev.CoordinatorUp(stranger))

    def coordinator_down(self) -> None:
        """Pause: the coordinator is not connected any more."""
        log.warning("coordinator.down")
        self._driver.handle(ev.CoordinatorDown())

    def rejoin(self, above: int) -> None:
        """Go on as a new life: this one was declared dead."""
        self._driver.handle(ev.LifeEnded())
        try:
            self.incarnation = self._store.next_incarnation(above)
        except DatabaseFault as fault:
            log.error("database.paused %s", fault)
            self.incarnation = max(self.incarnation, above) + 1

    def refused(self, text: str) -> None:
        """Log why the node cannot join."""
        log.error("coordinator.refused %s", text)

    def order(self, order: o.Order) -> None:
        """Obey an order of the coordinator."""
        self._driver.handle(order)

    # ---- what is shown ---------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return what `lifl nodes` shows, the coordinator first."""
        found = []
        for row in self.peers.members():
            load = row.get("load") or {}
            if int(row["node"], 16) == self._identity.number:
                beat = self.load()
                load = {name: getattr(beat, name) for name in beat.__struct_fields__}
            capacity = load.get("capacity", row.get("capacity", 0.0))
            rate, execution = load.get("rate_per_s", 0.0), load.get("execution_s", 0.0)
            found.append(
                {
                    "node": row["node"],
                    "state": row["state"],
                    "coordinator": row["role"] == "coordinator",
                    "incarnation": row["incarnation"],
                    "control": row["control"],
                    "gateway": row["gateway"],
                    "since_s": max(0.0, time.time() - row["since_unix_s"]),
                    "capacity": capacity,
                    "rate_per_s": rate,
                    "execution_s": execution,
                    "residual": capacity - rate * execution,
                    "arena_bytes": row.get("arena_bytes", 0),
                    "arena_used_bytes": load.get("arena_used_bytes", 0),
                    "workers": load.get("workers", 0),
                }
            )
        return found

    async def leave(self) -> None:
        """Say goodbye, and end."""
        await self.peers.leave()
        self._listener.close()

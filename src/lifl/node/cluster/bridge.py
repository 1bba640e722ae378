"""A node among others: what the control channel says becomes the engine's events, and the other way round.

A node that connects, for the first time or again, says what it has (Inventory), and coordinator and agent go on from
there; see `coordinator/branches.py`.  What was sent while there was no connection is lost on purpose: the books are
compared.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from lifl import failpoints
from lifl.core.coordinator.coordinator import Node
from lifl.core.fields import Message
from lifl.core.planning.capacity import NodeLoad
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.node import machine
from lifl.node.cluster.transport import Peers, Send

if TYPE_CHECKING:
    from lifl.node.daemon import Daemon

log = logging.getLogger("lifl.cluster")


class Cluster:
    """The node's place in the cluster; `Peers` calls it (peers.Handler)."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        config = daemon.config
        self._listener = machine.listen_tcp(config.control or "127.0.0.1:0")
        self.incarnation = daemon.store.next_incarnation()
        self.trees: dict[int, tuple[dict[str, Any], ...]] = {}  # by node: the tasks there, as it told last
        self.peers = Peers(self._listener, self._hello, not config.join, config.join, self)

    @property
    def control(self) -> str:
        """Where this node's control channel listens."""
        return machine.shown(self._listener)

    def _hello(self) -> p.PeerHello:
        node = self._daemon.identity
        return p.PeerHello(
            p.PEER_VERSION,
            node.number,
            self.incarnation,
            self.control,
            node.gateway,
            node.load.capacity,
            node.arena_bytes,
            node.workers_max,
        )

    def load(self) -> p.Heartbeat:
        """An agent's next heartbeat."""
        daemon = self._daemon
        load = daemon.identity.load
        rate = load.rate_at(time.monotonic())
        agent, used = daemon.engine.agent, daemon.arena.used_bytes
        tree = tuple(agent.tree_lines(p.TREE_LINES_MAX))
        return p.Heartbeat(load.capacity, rate, load.execution_s, used, len(agent.pool.workers), tree)

    # ---- the coordinator -------------------------------------------------------------------------------------------

    def node_up(self, hello: p.PeerHello, send: Send) -> None:
        """The node is connected, for the first time or again."""
        now = time.monotonic()
        sizes = (hello.capacity, hello.arena_bytes, hello.workers_max)
        node = Node(hello.node, hello.gateway, *sizes, hello.incarnation)
        node.load = NodeLoad(capacity=hello.capacity, at_s=now)
        log.info("node.up node=%s gateway=%s incarnation=%d", node.name, hello.gateway, hello.incarnation)
        self._daemon.engine.node_up(node, now)
        self._daemon.perform()

    def node_suspect(self, node: int) -> None:
        """The node is silent: its rounds wait for it until it is held dead."""
        log.warning("node.suspect node=%016x", node)
        self._daemon.engine.node_suspect(node, True, time.monotonic())
        self._daemon.perform()

    def node_alive(self, node: int) -> None:
        """A suspect was heard again."""
        log.info("node.alive node=%016x", node)
        self._daemon.engine.node_suspect(node, False, time.monotonic())
        self._daemon.perform()

    def node_down(self, node: int, why: str, renewed: bool) -> None:
        """The life of the node is over."""
        log.warning("node.down node=%016x %s", node, why)
        self.trees.pop(node, None)
        if renewed:
            return  # it may have adopted what the life before it had: see `node_up`
        self._daemon.engine.node_gone(node, time.monotonic())
        self._daemon.perform()

    def node_left(self, node: int) -> None:
        """The node has gone in good order."""
        log.info("node.left node=%016x", node)
        self.trees.pop(node, None)
        self._daemon.engine.node_gone(node, time.monotonic())
        self._daemon.perform()

    def from_node(self, node: int, message: Any) -> None:
        """An agent's report, an event of a client at its gateway, or its heartbeat."""
        now = time.monotonic()
        if isinstance(message, p.Heartbeat):
            coordinator = self._daemon.engine.coordinator
            member = coordinator.members.get(node) if coordinator is not None else None
            if member is not None:
                member.load = NodeLoad(message.capacity, now, message.rate_per_s, message.execution_s)
                self.trees[node] = message.tree
            return
        self._daemon.engine.from_node(node, message, now)
        self._daemon.perform()

    # ---- an agent --------------------------------------------------------------------------------------------------

    def coordinator_up(self, welcome: p.PeerWelcome) -> None:
        """Connected, for the first time or again."""
        log.info("coordinator.up node=%016x control=%s", welcome.node, welcome.control)
        stranger = not self._daemon.store.meets(f"{welcome.node:016x}")
        self._daemon.engine.coordinator_up(time.monotonic(), stranger)
        self._daemon.perform()

    def coordinator_down(self) -> None:
        """Not connected any more: rounds pause."""
        log.warning("coordinator.down")
        self._daemon.engine.coordinator_down(time.monotonic())
        self._daemon.perform()

    def rejoin(self, above: int) -> None:
        """This life was held dead: go on as a new one."""
        self._daemon.engine.forget(time.monotonic())
        self._daemon.perform()
        self.incarnation = self._daemon.store.next_incarnation(above)

    def refused(self, text: str) -> None:
        """The node was told that it cannot join."""
        log.error("coordinator.refused %s", text)

    def order(self, order: o.Order) -> None:
        """An order of the coordinator."""
        self._daemon.engine.ordered(order, time.monotonic())
        self._daemon.perform()

    # ---- what is sent ----------------------------------------------------------------------------------------------

    def send(self, node: int, order: Message) -> None:
        """An order for another node's agent."""
        failpoints.hit("lifld.order.before")
        self.peers.send(node, order)
        failpoints.hit("lifld.order.after")

    def report(self, report: Message) -> None:
        """A report for the coordinator."""
        failpoints.hit("lifld.report.before")
        self.peers.report(report)
        failpoints.hit("lifld.report.after")

    def rows(self) -> list[dict[str, Any]]:
        """What `lifl nodes` shows, the coordinator first."""
        found = []
        for row in self.peers.members():
            load = row.get("load") or {}
            own = int(row["node"], 16) == self._daemon.node
            if own:
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
        """Says goodbye, and ends."""
        await self.peers.leave()
        self._listener.close()

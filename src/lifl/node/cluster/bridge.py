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
from lifl.core.config.values import split_address
from lifl.core.engine import Engine
from lifl.core.identity import ROLES, Role
from lifl.core.limits import CLI_REMOTE_MAX, TREE_LINES_MAX
from lifl.core.planning.capacity import NodeLoad
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import enrolment as e
from lifl.core.protocol.peer_check import checked
from lifl.core.trust.revocation import Revocation, RevokedList
from lifl.node import machine
from lifl.node.audit_log import AuditLog
from lifl.node.authority.credentials import Credentials
from lifl.node.authority.desk import Desk
from lifl.node.cli_server import CliServer
from lifl.node.cluster.transport import Peers, Send
from lifl.node.database import DatabaseFault
from lifl.node.driver import Driver
from lifl.node.security import Secured, Security
from lifl.node.store import NodeStore
from lifl.node.views import NodeIdentity, tree_lines

COMMANDERS: tuple[Role, ...] = ("operator", "reader")
"""Whose commands a control port takes."""
log = logging.getLogger("lifl.cluster")


class Bridge:
    """The node's place in the cluster; `Peers` calls it (transport.Handler).

    `cluster` names one whose coordinator moves; without, a node coordinates that is not told to `join` another's.
    """

    def __init__(
        self,
        listener: socket.socket,
        join: str,
        identity: NodeIdentity,
        driver: Driver,
        store: NodeStore,
        audit: AuditLog,
        credentials: Credentials,
        cli: CliServer,
        cluster: str = "",
    ) -> None:
        self._cli = cli
        self._audit = audit
        self._cluster = cluster
        self._term = 0  # of the coordinator that this node had last, where that moves
        self._listener = listener
        self._identity = identity
        self._driver = driver
        self._store = store
        self.incarnation = store.next_incarnation()
        self._beats: dict[int, p.Heartbeat] = {}  # by node: what it told last of itself
        self._desk = Desk(credentials, self.coordinator)
        self._credentials = credentials
        self._security = Security(credentials.contexts)
        self.peers = Peers(listener, self._hello, not join and not cluster, join, self, security=self._security)

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
        return p.PeerHello(p.PEER_VERSION, node.number, self.incarnation, self.control, node.gateway, *sizes, p.KNOWS)

    def load(self) -> p.Heartbeat:
        """Return an agent's next heartbeat."""
        agent = self._engine.agent
        load, used = agent.load, agent.quota.used_bytes
        rate = load.rate_at(time.monotonic())
        tree = tuple(tree_lines(agent, TREE_LINES_MAX))
        return p.Heartbeat(load.capacity, rate, load.execution_s, used, len(agent.pool.workers), tree)

    # ---- where the coordinator moves -------------------------------------------------------------------------------

    def lead(self, term: int) -> None:
        """Let the others dial this node, which coordinates from now on."""
        self._term = term
        self.peers.lead(term)

    def follow(self) -> None:
        """Dial whoever coordinates: this node does not any more."""
        self._beats.clear()
        self.peers.follow()

    # ---- the coordinator -------------------------------------------------------------------------------------------

    def node_up(self, hello: p.PeerHello, send: Send) -> None:
        """Take a node in that is connected, for the first time or again."""
        log.info("node.up node=%016x gateway=%s incarnation=%d", hello.node, hello.gateway, hello.incarnation)
        who, node = split_address(hello.control)[0], f"{hello.node:016x}"
        self._audit.note("peer.joined", who, node=node, incarnation=hello.incarnation)
        if self._security.is_on:
            send(p.Revoked(self._credentials.revocations.entries))
        sizes = (hello.capacity, hello.arena_bytes, hello.workers_max)
        self._driver.handle(ev.NodeUp(hello.node, hello.gateway, *sizes, hello.incarnation, hello.knows))

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
        self._audit.note("peer.lost", "lifld", why, node=f"{node:016x}")
        self._beats.pop(node, None)
        if not renewed:  # else it may have adopted what the life before it had: see `node_up`
            self._driver.handle(ev.NodeGone(node))

    def node_left(self, node: int) -> None:
        """Go on without a node that has gone in good order."""
        log.info("node.left node=%016x", node)
        self._audit.note("peer.left", f"node {node:016x}", node=f"{node:016x}")
        self._beats.pop(node, None)
        self._driver.handle(ev.NodeGone(node))

    def turned_away(self, host: str, text: str) -> None:
        """Note that whoever came from `host` to the control port may not join, and why."""
        self._audit.note("peer.refused", host, text)

    def from_node(self, node: int, message: Any) -> None:
        """Take an agent's report, an event of a client at its gateway, or its heartbeat.  Raise `RemoteFault`."""
        message = checked(message)
        if isinstance(message, p.Heartbeat):
            self._beats[node] = message
            self._driver.handle(ev.NodeLoadTold(node, message.capacity, message.rate_per_s, message.execution_s))
        else:
            self._driver.handle(ev.FromNode(node, message))

    # ---- an agent --------------------------------------------------------------------------------------------------

    def coordinator_up(self, welcome: p.PeerWelcome) -> None:
        """Tell the coordinator, connected for the first time or again, what this node has."""
        log.info("coordinator.up node=%016x control=%s", welcome.node, welcome.control)
        try:
            stranger = not self._store.meets(self._cluster or f"{welcome.node:016x}")
        except DatabaseFault as fault:  # it could not be noted: what is here may be another's, and is sent again
            log.error("database.paused %s", fault)
            stranger = True
        moved = bool(self._term) and welcome.term != self._term
        self._term = welcome.term
        self._driver.handle(ev.CoordinatorUp(stranger, moved))

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

    def order(self, order: o.Order | p.Revoked) -> None:
        """Obey an order of the coordinator."""
        if isinstance(order, p.Revoked):
            self._credentials.revocations.replace(order.entries)
        else:
            self._driver.handle(order)

    # ---- who wants a certificate -----------------------------------------------------------------------------------

    def coordinator(self) -> str:
        """Return the coordinator's control address; empty while none is known."""
        return next((str(row["control"]) for row in self.peers.members() if row["role"] == "coordinator"), "")

    def asked(self, asking: e.Asking, secured: Secured, host: str) -> e.Answer:
        """Answer who wants a certificate, with one that it has or with none."""
        if not secured.is_open and not secured.is_stranger:
            secured.check(ROLES)
        return self._desk.answer(asking, secured.peer, host)

    def commanded(self, secured: Secured, host: str) -> p.PeerRefusal | None:
        """Serve an operator's or a reader's command line."""
        if secured.is_open:
            return p.PeerRefusal("this node is not secured: its owner's commands come from its own machine")
        secured.check(COMMANDERS)
        assert secured.peer is not None
        if self._cli.take(secured.sock, secured.peer, host):
            return None
        return p.PeerRefusal(f"{CLI_REMOTE_MAX} command lines of other machines are served; come again", retry=True)

    def revoke(self, entries: tuple[Revocation, ...], revoked: RevokedList) -> None:
        """Take no more connections of revoked certificates, end those that there are, and tell the agents."""
        self._security.revoked = revoked
        self.peers.revoke(entries, revoked)

    # ---- what is shown ---------------------------------------------------------------------------------------------

    def trees(self) -> dict[int, tuple[dict[str, Any], ...]]:
        """Return the tasks at other nodes, by node, as these told last."""
        return {node: beat.tree for node, beat in self._beats.items()}

    def _load_of(self, number: int) -> NodeLoad | None:
        """Return the load of a node, if this one knows it: its own, and on the coordinator everyone's."""
        if number == self._identity.number:
            return self._engine.agent.load
        node = self._engine.coordinator.nodes.get(number) if self._engine.coordinator is not None else None
        return node.load if node is not None else None

    def rows(self) -> list[dict[str, Any]]:
        """Return what `lifl nodes` shows, the coordinator first."""
        found = []
        for row in self.peers.members():
            number = int(row["node"], 16)
            beat = self.load() if number == self._identity.number else self._beats.get(number, p.Heartbeat())
            load = self._load_of(number)
            capacity = load.capacity if load is not None else row["capacity"]
            rate = load.rate_at(time.monotonic()) if load is not None else 0.0
            execution = load.execution_s if load is not None else 0.0
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
                    "arena_bytes": row["arena_bytes"],
                    "arena_used_bytes": beat.arena_used_bytes,
                    "workers": beat.workers,
                }
            )
        return found

    async def leave(self) -> None:
        """Say goodbye, and end."""
        await self.peers.leave()
        self._listener.close()

"""A node among others: what the control channel says becomes the engine's events.

A node that connects, for the first time or again, says what it has (Inventory), and coordinator and agent go on from
there; see `coordinator/recovery.py`.  What was sent while there was no connection is lost on purpose: the books are
compared.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

from lifl.core import events as ev
from lifl.core.config.values import split_address
from lifl.core.identity import ROLES, Role
from lifl.core.limits import CLI_OF_ONE_MAX, CLI_REMOTE_MAX, REFUSAL_CHARS_MAX
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
from lifl.node.cluster.bearer_news import BearerNews
from lifl.node.cluster.folder_looks import FolderLooks, look
from lifl.node.cluster.nodes_shown import NodesShown
from lifl.node.cluster.removed_copies import RemovedCopies
from lifl.node.cluster.transport import Peers, Send
from lifl.node.database import DatabaseFault
from lifl.node.driver import Driver
from lifl.node.security import Secured, Security
from lifl.node.store import NodeStore
from lifl.node.tasks import start
from lifl.node.views import NodeIdentity
from lifl.tls.faults import TlsFault

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
        self._join = join
        self._cluster = cluster
        self._term = 0  # of the coordinator that this node had last, where that moves
        self._listener = listener
        self._identity = identity
        self._driver = driver
        self._store = store
        self.incarnation = store.next_incarnation()
        self._tasks: set[asyncio.Task[None]] = set()
        self._desk = Desk(credentials, self.authority_address)
        self._credentials = credentials
        self._security = Security(credentials.contexts)
        self.peers = Peers(listener, self._hello, not join and not cluster, join, self, security=self._security)
        self.shown = NodesShown(identity, driver.engine, self.peers.members)
        self._looks = FolderLooks(self.peers.send)
        self.removed = RemovedCopies(self.peers, driver.engine, store.path.parent)
        moves, makes = self._security.is_on and bool(cluster), credentials.authority is not None
        self.bearers = BearerNews(credentials.bearers, self.peers, driver.engine, moves, makes)

    @property
    def control(self) -> str:
        """The address where this node's control channel listens."""
        return machine.shown(self._listener)

    def _hello(self) -> p.PeerHello:
        node = self._identity
        capacity = self._driver.engine.agent.load.capacity
        sizes = (capacity, node.arena_bytes, node.workers_max)
        knows = (*p.KNOWS, p.COORDINATES) if self._cluster else p.KNOWS
        return p.PeerHello(p.PEER_VERSION, node.number, self.incarnation, self.control, node.gateway, *sizes, knows)

    def load(self) -> p.Heartbeat:
        """Return an agent's next heartbeat."""
        return self.shown.load()

    # ---- where the coordinator moves -------------------------------------------------------------------------------

    def lead(self, term: int) -> None:
        """Let the others dial this node, which coordinates from now on."""
        self._term = term
        self.peers.lead(term)
        start(self._tasks, self.removed.obey_own(), "the removal of copies")

    def follow(self) -> None:
        """Dial whoever coordinates: this node does not any more."""
        self.shown.beats.clear()
        self.peers.follow()

    async def check_seen(self, folder: Path, owner: int, number: int) -> None:
        """Ask the nodes that may come to coordinate whether they see the folder of a job.

        Raise `Refused` when one does not.
        """
        known = self._driver.engine.coordinating().nodes
        asked = [node for node in self.peers.living() if known.knows(node, p.COORDINATES)]
        await self._looks.ask(asked, folder, owner, number)

    # ---- the coordinator -------------------------------------------------------------------------------------------

    def node_up(self, hello: p.PeerHello, send: Send) -> None:
        """Take a node in that is connected, for the first time or again."""
        log.info("node.up node=%016x gateway=%s incarnation=%d", hello.node, hello.gateway, hello.incarnation)
        who, node = split_address(hello.control)[0], f"{hello.node:016x}"
        self._audit.note("peer.joined", who, node=node, incarnation=hello.incarnation)
        if self._security.is_on:
            send(p.Revoked(self._credentials.revocations.entries))
            self.bearers.joined(hello, send)
        self.removed.joined(hello, send)
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
        self.shown.beats.pop(node, None)
        if not renewed:  # else it may have adopted what the life before it had: see `node_up`
            self._driver.handle(ev.NodeGone(node))

    def node_left(self, node: int) -> None:
        """Go on without a node that has gone in good order."""
        log.info("node.left node=%016x", node)
        self._audit.note("peer.left", f"node {node:016x}", node=f"{node:016x}")
        self.shown.beats.pop(node, None)
        self._driver.handle(ev.NodeGone(node))

    def turned_away(self, host: str, text: str) -> None:
        """Note that whoever came from `host` to the control port may not join, and why."""
        self._audit.note("peer.refused", host, text)

    def from_node(self, node: int, message: Any) -> None:
        """Take an agent's report, an event of a client at its gateway, or its heartbeat.  Raise `RemoteFault`."""
        message = checked(message)
        if isinstance(message, p.FolderSeen):
            self._looks.answered(node, message)
        elif isinstance(message, p.Revoked):
            if self._cluster:
                self._credentials.revocations.merge(message.entries)
        elif isinstance(message, p.BearersTold):
            self.bearers.heard(message.entries, self.peers.has_authority(node))
        elif isinstance(message, p.Heartbeat):
            self.shown.beats[node] = message
            load = (message.capacity, message.rate_per_s, message.execution_s)
            self._driver.handle(ev.NodeLoadTold(node, *load, message.hosted_bytes))
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
        if self._cluster and self._security.is_on:
            self.peers.report(p.Revoked(self._credentials.revocations.entries))
        self.bearers.coordinator_up()
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

    def order(self, order: o.Order | p.Revoked | p.BearersTold | p.SeeFolder | p.CopiesRemoved) -> None:
        """Obey an order of the coordinator, or answer its question."""
        match order:
            case p.Revoked(entries) if self._cluster:
                self._credentials.revocations.merge(entries)
            case p.Revoked(entries):
                self._credentials.revocations.replace(entries)
            case p.BearersTold(entries):
                self.bearers.told(entries)
            case p.SeeFolder():
                start(self._tasks, self._look(order), "a look at a folder")
            case p.CopiesRemoved():
                start(self._tasks, self.removed.obey(order), "the removal of copies")
            case _:
                self._driver.handle(order)

    async def _look(self, question: p.SeeFolder) -> None:
        self.peers.report(await look(question))

    # ---- who wants a certificate -----------------------------------------------------------------------------------

    def authority_address(self) -> str:
        """Return the control address of the node with the authority; empty while none is known.

        It is the coordinator; where that moves, the member that this node was told to join.
        """
        if self._cluster and self._join:
            return self._join
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
        try:
            secured.check(COMMANDERS)
        except TlsFault as fault:
            remedy = "commands from elsewhere are for who has enrolled by a token for an operator, or a reader"
            return p.PeerRefusal(f"{fault}; {remedy}"[:REFUSAL_CHARS_MAX])
        assert secured.peer is not None
        if self._cli.take(secured.sock, secured.peer, host):
            return None
        most = f"{CLI_REMOTE_MAX} command lines of other machines are served, {CLI_OF_ONE_MAX} of one name"
        return p.PeerRefusal(f"{most}: end one, or come again", retry=True)

    def revoke(self, entries: tuple[Revocation, ...], revoked: RevokedList) -> None:
        """Take no more connections of revoked certificates, end those that there are, and tell the agents."""
        self._security.revoked = revoked
        self.peers.revoke(entries, revoked)
        if self._cluster and self._security.is_on and self._driver.engine.coordinator is None:
            self.peers.report(p.Revoked(entries))

    # ---- the end ----------------------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """Say goodbye, and end."""
        for task in list(self._tasks):
            task.cancel()
        await self.peers.leave()
        self._listener.close()

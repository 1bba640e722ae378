"""The coordinator's side of the control channel: a link to each agent, and the table of members.

`membership.py` decides whether a node may come in, when it is suspect and when it is declared dead; here that is
performed, told to the handler and spread among the agents.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from lifl.core.coordinator import membership as ms
from lifl.core.errors import LocalFault
from lifl.core.fields import Message
from lifl.core.limits import NEWS_MAX
from lifl.core.protocol import cluster as p
from lifl.core.protocol.pages import Pages
from lifl.core.trust.revocation import Revocation, RevokedList
from lifl.node.cluster.member_rows import as_member, met, row, unix_of
from lifl.node.cluster.timer import Timer
from lifl.node.link import Link
from lifl.node.security import Secured
from lifl.tls.peer import Peer
from lifl.tls.tls_socket import Stream

log = logging.getLogger("lifl.peers")

Send = Callable[[Message], None]


class CoordinatorHandler(Protocol):
    """What a coordinator does about its agents.  All calls come in the event loop; those of one life in order."""

    def load(self) -> p.Heartbeat:
        """Return this node's next heartbeat."""
        ...

    def node_up(self, hello: p.PeerHello, send: Send) -> None:
        """Take the node in: it is connected, for the first time or again, over `send`; its Inventory comes next."""
        ...

    def node_suspect(self, node: int) -> None:
        """Give the node nothing new: it is silent, or its connection broke."""
        ...

    def node_alive(self, node: int) -> None:
        """Go on with a suspect: it was heard again, on the connection that it had, and nothing was lost."""
        ...

    def node_down(self, node: int, why: str, renewed: bool) -> None:
        """Give up the life of a node, which is over; `renewed`: its next one is here, and `node_up` follows."""
        ...

    def node_left(self, node: int) -> None:
        """Give up a node that has gone in good order."""
        ...

    def from_node(self, node: int, message: Any) -> None:
        """Take a message of `protocol/cluster.ToCoordinator` (no Leaving), heartbeats included."""
        ...


class CoordinatorSide:
    """The links to the agents."""

    def __init__(
        self, hello: Callable[[], p.PeerHello], handler: CoordinatorHandler, timing: ms.Timing, term: int = 0
    ) -> None:
        self._term = term
        self._hello = hello
        self._handler = handler
        self._timing = timing
        self._links: dict[int, Link] = {}
        self._pages: dict[int, Pages] = {}
        self._shown: dict[int, Peer] = {}  # the certificates of those that are connected, where they are secured
        # The number of each member's latest change, in rising order; and how far each link was told.
        self._changes: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._last_change = 0
        self._loop = asyncio.get_running_loop()
        self._since_s = self._loop.time()
        self._table = ms.Membership(hello().node, timing)
        self._timer = Timer(self._tick, self._table.next_timer)
        self._closed = False

    def answer(self, hello: p.PeerHello, secured: Secured, host: str) -> p.Greeting | None:
        hello = met(hello, host)
        *before, last = self._table.join(hello, self._loop.time(), secured.name)
        self._perform(before)
        match last:
            case ms.Refuse(text):
                return p.PeerRefusal(text)
            case ms.Rejoin(above):
                log.info("peer.rejoin node=%016x incarnation=%d", hello.node, hello.incarnation)
                return p.PeerRejoin(above)
        if self._closed:
            return p.PeerRefusal("this coordinator goes down", retry=True)
        self._connect(hello, secured.sock)
        if secured.peer is not None:
            self._shown[hello.node] = secured.peer
        self._perform([last])
        return None

    def _connect(self, hello: p.PeerHello, sock: Stream) -> None:
        node = hello.node
        link: Link = Link(
            sock,
            p.ToCoordinator,
            lambda message: self._heard(node, link, message),
            lambda error: self._gone(node, link, error),
        )
        self._close_link(node)
        self._links[node] = link
        self._pages[node] = Pages()
        own = met(self._hello(), str(sock.getsockname()[0]))
        knows = p.KNOWS if p.PROPERTIES in hello.knows else ()
        link.send(p.PeerWelcome(p.PEER_VERSION, own.node, own.control, own.gateway, self._term, knows))
        link.send(p.PeerMembers((as_member(own, "alive", unix_of(self._since_s)),), first=True))
        self._told[node] = 0

    def _close_link(self, node: int) -> None:
        self._shown.pop(node, None)
        link = self._links.pop(node, None)
        if link is not None:
            link.close()

    def _heard(self, node: int, link: Link, message: Any) -> None:
        if self._links.get(node) is not link:
            return
        self._perform(self._table.heard(node, self._loop.time()))
        if isinstance(message, p.Leaving):
            self._perform(self._table.leave(node, self._loop.time()))
            return
        if (whole := self._pages[node].joined(message)) is not None:
            self._handler.from_node(node, whole)

    def _gone(self, node: int, link: Link, error: Exception | None) -> None:
        if self._links.get(node) is not link:
            return  # it was closed here
        del self._links[node]
        self._shown.pop(node, None)
        log.warning("peer.lost node=%016x %s", node, error or "it closed the connection")
        self._perform(self._table.lost(node, self._loop.time()))

    def _tick(self, now: float) -> None:
        self._perform(self._table.tick(now))

    def _perform(self, changes: list[ms.Change]) -> None:
        for change in changes:
            if self._closed:
                return
            self._perform_one(change)
        if changes and not self._closed:
            self._timer.set()

    def _perform_one(self, change: ms.Change) -> None:
        match change:
            case ms.Up(hello) | ms.Back(hello):
                log.info("peer.up node=%016x incarnation=%d control=%s", hello.node, hello.incarnation, hello.control)
                self._changed(hello.node)
                link = self._links[hello.node]
                self._handler.node_up(hello, link.send)
            case ms.Suspect(node):
                log.warning("peer.suspect node=%016x", node)
                self._changed(node)
                self._handler.node_suspect(node)
            case ms.Alive(node):
                log.info("peer.alive node=%016x", node)
                self._changed(node)
                self._handler.node_alive(node)
            case ms.Down(node, why, renewed):
                log.warning("peer.down node=%016x %s", node, why)
                self._end(node)
                self._handler.node_down(node, why, renewed)
            case ms.Left(node):
                log.info("peer.left node=%016x", node)
                self._end(node)
                self._handler.node_left(node)
            case ms.Beat():
                for link in list(self._links.values()):
                    link.send(p.Heartbeat())
                self._spread()

    def _end(self, node: int) -> None:
        self._close_link(node)
        self._pages.pop(node, None)
        self._told.pop(node, None)
        self._changed(node)

    def _changed(self, node: int) -> None:
        self._last_change += 1
        self._changes.pop(node, None)
        self._changes[node] = self._last_change

    def _spread(self) -> None:
        """Tell each agent the oldest changes that it does not know."""
        for node in self._changes.keys() - self._table.members.keys():
            del self._changes[node]  # forgotten
        news: dict[int, tuple[p.PeerMembers, int]] = {}
        for node, link in list(self._links.items()):
            told = self._told[node]
            if told == self._last_change:
                continue
            if told not in news:
                fresh = [(other, number) for other, number in self._changes.items() if number > told][:NEWS_MAX]
                until = fresh[-1][1] if len(fresh) == NEWS_MAX else self._last_change
                news[told] = p.PeerMembers(tuple(self._member(other) for other, _ in fresh)), until
            message, self._told[node] = news[told]
            link.send(message)

    def revoke(self, entries: tuple[Revocation, ...], revoked: RevokedList) -> None:
        """End the connections of nodes whose certificates are revoked, and tell the others."""
        for node, peer in list(self._shown.items()):
            if revoked.names(peer.identity, peer.serial, peer.issued_unix_s) and (link := self._links.get(node)):
                log.warning("peer.revoked node=%016x serial=%s", node, peer.serial)
                link.close()
        for link in list(self._links.values()):
            link.send(p.Revoked(entries))

    def has_authority(self, node: int) -> bool:
        """Return whether a node's certificate says that it issues certificates."""
        peer = self._shown.get(node)
        return peer is not None and peer.is_authority

    def send(self, node: int, message: Message) -> None:
        link = self._links.get(node)
        if link is None:
            return
        try:
            link.send(message)
        except LocalFault as fault:  # it is too long for a frame; what the node then misses, its Inventory shows
            log.error("peer.order node=%016x %s", node, fault)
            self._loop.call_soon(link.close)

    def _member(self, node: int) -> p.PeerMember:
        member = self._table.members[node]
        return as_member(member.hello, member.state.value, unix_of(member.since_s))

    def rows(self) -> list[dict[str, Any]]:
        agents = [row(self._member(node), "agent") for node in sorted(self._table.members)]
        own = as_member(self._hello(), "alive", unix_of(self._since_s))
        return [row(own, "coordinator"), *agents]

    @property
    def own(self) -> int:
        return self._hello().node

    def living(self) -> dict[int, str]:
        """Return the gateways of the nodes that live, by node."""
        members = self._table.members.items()
        return {node: member.hello.gateway for node, member in members if member.state is ms.MemberState.ALIVE}

    def close(self) -> None:
        self._closed = True
        self._timer.cancel()
        for node in list(self._links):
            self._close_link(node)

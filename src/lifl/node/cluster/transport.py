"""The control channel between nodes: a star of TCP links around the coordinator.

Each node listens on its control port.  The *door* takes connections in and reads exactly one frame of each, the
PeerHello, in bounded time and memory; whoever sends anything else is told why and shut out, and nobody else notices.
The coordinator asks `membership.py` whether the node may come in and then owns a `Link` to it; an agent sends
whoever knocks on to the coordinator.  An agent itself dials for ever: the coordinator as it knows it, then the member
that it was told to join through, then waits a little longer each time.

A broken machine or cable does not close a connection, so both sides count heartbeats: the coordinator by the
membership's table, the agent by a `Lifeline`, at whose end it closes and dials again.  Nothing is sent twice and
nothing is kept for a node that is away: an agent that is welcomed says what it has (Inventory), and both sides go on
from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from lifl.core.config.values import split_address
from lifl.core.coordinator import membership as ms
from lifl.core.errors import ConfigError, LocalFault, RemoteFault
from lifl.core.fields import Message
from lifl.core.protocol import cluster as p
from lifl.core.protocol.frames import encode
from lifl.node.cluster.acceptor import GREETING_S, Door, Timer, prepare, read_frame, start
from lifl.node.link import Link

log = logging.getLogger("lifl.peers")

REDIRECTS_MAX = 4
LEAVE_S = 2.0

Send = Callable[[Message], None]


class Handler(Protocol):
    """What a node does about its peers.  All calls come in the event loop; those of one life of a node in order."""

    def load(self) -> p.Heartbeat:
        """An agent: its next heartbeat."""
        ...

    # the coordinator

    def node_up(self, hello: p.PeerHello, send: Send) -> None:
        """The node is connected, for the first time or again, over `send`; its Inventory comes next."""
        ...

    def node_suspect(self, node: int) -> None:
        """The node is silent, or its connection broke: give it nothing new."""
        ...

    def node_alive(self, node: int) -> None:
        """A suspect was heard again, on the connection that it had: nothing was lost."""
        ...

    def node_down(self, node: int, why: str, renewed: bool) -> None:
        """The life of the node is over; `renewed`: its next one is here, and `node_up` follows."""
        ...

    def node_left(self, node: int) -> None:
        """The node has gone in good order."""
        ...

    def from_node(self, node: int, message: Any) -> None:
        """A message of `peering.ToCoordinator` (no Leaving), heartbeats included."""
        ...

    # an agent

    def coordinator_up(self, welcome: p.PeerWelcome) -> None:
        """Connected, for the first time or again: answer with an Inventory."""
        ...

    def coordinator_down(self) -> None:
        """Not connected any more; `Peers` dials again."""
        ...

    def rejoin(self, above: int) -> None:
        """This life was held dead: drop all branches; from now on `hello` has an incarnation above `above`."""
        ...

    def refused(self, text: str) -> None:
        """The node was told that it cannot join, and why; `Peers` asks again now and then all the same."""
        ...

    def order(self, order: Any) -> None:
        """An order of the coordinator."""
        ...


def check_exposed(address: str, insecure: bool, path: str = "control") -> None:
    """Raises `ConfigError` at `path` when HOST:PORT can be reached from other machines and that was not allowed."""
    host, _port = split_address(address, path)
    if insecure or _is_loopback(host, path):
        return
    raise ConfigError(
        path,
        f"{address} can be reached from other machines, and what nodes say is neither encrypted nor authenticated "
        "yet; listen on 127.0.0.1, or allow it with --insecure on a network that you trust",
    )


def _is_loopback(host: str, path: str) -> bool:
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise ConfigError(path, f"the host {host!r} is not known: {error}; give an address of this machine") from error
    return all(ipaddress.ip_address(text.partition("%")[0]).is_loopback for text in found)


class Peers:
    """A node's end of the control channel.  Must be made in the running loop's thread; owns `listener` until `close`.

    `listener` is a listening TCP socket.  `hello` is asked before each attempt to join, and by the coordinator for its
    own addresses.  An agent dials `join`, the control address (HOST:PORT) of any member.
    """

    def __init__(
        self,
        listener: socket.socket,
        hello: Callable[[], p.PeerHello],
        coordinator: bool,
        join: str,
        handler: Handler,
        timing: ms.Timing = ms.TIMING,
    ) -> None:
        self._side: _Coordinator | _Agent
        self._side = _Coordinator(hello, handler, timing) if coordinator else _Agent(hello, join, handler, timing)
        self._door = Door(listener, self._side.answer)

    def send(self, node: int, message: Message) -> None:
        """The coordinator: sends to an agent; dropped when it is not connected."""
        if isinstance(self._side, _Agent):
            raise LocalFault("only the coordinator sends to nodes")
        self._side.send(node, message)

    def report(self, message: Message) -> None:
        """An agent: sends to the coordinator; dropped while it is not connected."""
        if isinstance(self._side, _Coordinator):
            raise LocalFault("the coordinator has nobody to report to")
        self._side.report(message)

    @property
    def connected(self) -> bool:
        """Whether an agent has its coordinator; True on the coordinator."""
        return isinstance(self._side, _Coordinator) or self._side.connected

    @property
    def trouble(self) -> str:
        """Why an agent is not connected; empty when it is, and on the coordinator."""
        return "" if isinstance(self._side, _Coordinator) else self._side.trouble

    def members(self) -> list[dict[str, Any]]:
        """All members, the coordinator first: the fields of PeerMember with `node` as 16 hex digits, and more.

        `role` is coordinator or agent; `load` a Heartbeat's figures, known to the coordinator only, else None.  An
        agent that is not connected tells what it knew last, and the coordinator is suspect.  News reach the agents
        with the coordinator's heartbeats.
        """
        return self._side.rows()

    async def leave(self) -> None:
        """Ends as `close` does; an agent says so to the coordinator first, and waits until that is noted."""
        if isinstance(self._side, _Agent):
            await self._side.leave()
        self.close()

    def close(self) -> None:
        """Ends all connections; the handler is not called any more."""
        self._door.close()
        self._side.close()


def _row(member: p.PeerMember, role: str, load: p.Heartbeat | None) -> dict[str, Any]:
    fields = {"node": f"{member.node:016x}", "role": role}
    figures = None if load is None else {k: v for k, v in msgspec.structs.asdict(load).items() if k != "tree"}
    return fields | {k: v for k, v in msgspec.structs.asdict(member).items() if k != "node"} | {"load": figures}


def _met(hello: p.PeerHello, host: str) -> p.PeerHello:
    """`hello` with addresses that others can use, of a node that was met at `host`."""
    control, gateway = p.reachable(hello.control, host), p.reachable(hello.gateway, host)
    return msgspec.structs.replace(hello, control=control, gateway=gateway)


def _as_member(hello: p.PeerHello, state: p.MemberStateName, since_unix_s: float) -> p.PeerMember:
    fields = msgspec.structs.asdict(hello)
    del fields["version"]
    return p.PeerMember(state=state, since_unix_s=since_unix_s, **fields)


# ---- the coordinator ---------------------------------------------------------------------------------------------


class _Coordinator:
    def __init__(self, hello: Callable[[], p.PeerHello], handler: Handler, timing: ms.Timing) -> None:
        self._hello = hello
        self._handler = handler
        self._timing = timing
        self._since_unix_s = time.time()
        self._links: dict[int, Link] = {}
        self._loads: dict[int, p.Heartbeat] = {}
        # The number of each member's latest change, in rising order; and how far each link was told.
        self._changes: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._last_change = 0
        self._loop = asyncio.get_running_loop()
        self._table = ms.Membership(hello().node, timing)
        self._timer = Timer(self._tick, self._table.next_timer)
        self._closed = False

    def answer(self, hello: p.PeerHello, sock: socket.socket, host: str) -> p.Greeting | None:
        hello = _met(hello, host)
        *before, last = self._table.join(hello, self._loop.time())
        self._perform(before)
        match last:
            case ms.Refuse(text):
                return p.PeerRefusal(text)
            case ms.Rejoin(above):
                log.info("peer.rejoin node=%016x incarnation=%d", hello.node, hello.incarnation)
                return p.PeerRejoin(above)
        if self._closed:
            return p.PeerRefusal("this coordinator goes down", retry=True)
        self._connect(hello, sock)
        self._perform([last])
        return None

    def _connect(self, hello: p.PeerHello, sock: socket.socket) -> None:
        node = hello.node
        link: Link = Link(
            sock,
            p.ToCoordinator,
            lambda message: self._heard(node, link, message),
            lambda error: self._gone(node, link, error),
        )
        self._close_link(node)
        self._links[node] = link
        own = _met(self._hello(), str(sock.getsockname()[0]))
        link.send(p.PeerWelcome(p.PEER_VERSION, own.node, own.control, own.gateway))
        link.send(p.PeerMembers((_as_member(own, "alive", self._since_unix_s),), first=True))
        self._told[node] = 0

    def _close_link(self, node: int) -> None:
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
        if isinstance(message, p.Heartbeat):
            self._loads[node] = message
        self._handler.from_node(node, message)

    def _gone(self, node: int, link: Link, error: Exception | None) -> None:
        if self._links.get(node) is not link:
            return  # it was closed here
        del self._links[node]
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
        self._loads.pop(node, None)
        self._told.pop(node, None)
        self._changed(node)

    def _changed(self, node: int) -> None:
        self._last_change += 1
        self._changes.pop(node, None)
        self._changes[node] = self._last_change

    def _spread(self) -> None:
        """Tells each agent the oldest changes that it does not know."""
        for node in self._changes.keys() - self._table.members.keys():
            del self._changes[node]  # forgotten
        news: dict[int, tuple[p.PeerMembers, int]] = {}
        for node, link in list(self._links.items()):
            told = self._told[node]
            if told == self._last_change:
                continue
            if told not in news:
                fresh = [(other, number) for other, number in self._changes.items() if number > told][: p.NEWS_MAX]
                until = fresh[-1][1] if len(fresh) == p.NEWS_MAX else self._last_change
                news[told] = p.PeerMembers(tuple(self._member(other) for other, _ in fresh)), until
            message, self._told[node] = news[told]
            link.send(message)

    def send(self, node: int, message: Message) -> None:
        link = self._links.get(node)
        if link is not None:
            link.send(message)

    def _member(self, node: int) -> p.PeerMember:
        member = self._table.members[node]
        since_unix_s = time.time() - (self._loop.time() - member.since_s)
        return _as_member(member.hello, member.state.value, since_unix_s)

    def rows(self) -> list[dict[str, Any]]:
        agents = [_row(self._member(node), "agent", self._loads.get(node)) for node in sorted(self._table.members)]
        own = _as_member(self._hello(), "alive", self._since_unix_s)
        return [_row(own, "coordinator", self._handler.load()), *agents]

    def close(self) -> None:
        self._closed = True
        self._timer.cancel()
        for node in list(self._links):
            self._close_link(node)


# ---- an agent ----------------------------------------------------------------------------------------------------


class _Refused(Exception):
    def __init__(self, text: str, retry: bool) -> None:
        super().__init__(text)
        self.text = text
        self.retry = retry


class _Agent:
    def __init__(self, hello: Callable[[], p.PeerHello], join: str, handler: Handler, timing: ms.Timing) -> None:
        split_address(join, "join")
        self._hello = hello
        self._join = join
        self._handler = handler
        self._timing = timing
        self._since_unix_s = time.time()
        self._coordinator = ""
        self._coordinator_node: int | None = None
        self._members: dict[int, p.PeerMember] = {}
        self._link: Link | None = None
        self._ended: asyncio.Future[None] | None = None
        self._lifeline: ms.Lifeline | None = None
        self._timer: Timer | None = None
        self._backoff = ms.Backoff(secrets.randbits(64))
        self._leaving = False
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self.trouble = f"not connected yet; dialling {join}"
        start(self._tasks, self._live())

    @property
    def connected(self) -> bool:
        return self._link is not None

    def answer(self, hello: p.PeerHello, sock: socket.socket, host: str) -> p.Greeting | None:
        if not self._coordinator:
            return p.PeerRefusal("this member has not found the coordinator itself yet; come again", retry=True)
        return p.PeerRedirect(self._coordinator)

    # ---- dialling

    async def _live(self) -> None:
        while not self._leaving:
            for address in dict.fromkeys(filter(None, (self._coordinator, self._join))):
                if await self._attempt(address):
                    break
            await asyncio.sleep(self._backoff.next_s())

    async def _attempt(self, address: str) -> bool:
        """One attempt at a member; when it welcomes the node, returns True after the connection has ended."""
        try:
            async with asyncio.timeout(GREETING_S):
                await self._enter(address)
        except (OSError, EOFError, TimeoutError) as error:
            self._failed(
                f"{address} cannot be reached: {str(error) or f'no answer within {GREETING_S:g} s'}", retry=True
            )
        except RemoteFault as error:
            self._failed(f"{address} is not the control port of a node of this version: {error}", retry=False)
        except _Refused as refused:
            self._failed(f"{address} refused: {refused.text}", refused.retry)
        else:
            began_s = self._loop.time()
            assert self._ended is not None
            await self._ended
            if self._loop.time() - began_s > self._timing.heartbeat_s:
                self._backoff.reset()
            return True
        return False

    def _failed(self, text: str, retry: bool) -> None:
        if text != self.trouble:
            log.warning("peer.join %s", text)
        self.trouble = text
        if not retry:
            self._handler.refused(text)

    async def _enter(self, address: str) -> None:
        """Follows redirects until a coordinator welcomes the node; then `_link` is set."""
        for _ in range(REDIRECTS_MAX + 1):
            sock = await self._dial(address)
            try:
                await self._loop.sock_sendall(sock, encode(self._hello()))
                answer = await read_frame(sock, p.Greeting)
            except BaseException:
                sock.close()
                raise
            if isinstance(answer, p.PeerWelcome):
                self._welcomed(sock, answer)
                return
            sock.close()
            match answer:
                case p.PeerRedirect(control):
                    address = control
                case p.PeerRejoin(above):
                    log.warning("peer.rejoin this life was held dead; coming back as one above %d", above)
                    self._handler.rejoin(above)
                case p.PeerRefusal(text, retry):
                    raise _Refused(text, retry)
        raise _Refused(f"sent on {REDIRECTS_MAX} times without a welcome", retry=True)

    async def _dial(self, address: str) -> socket.socket:
        try:
            host, port = split_address(address)
        except ConfigError as error:
            raise RemoteFault(f"a redirect goes to {error}") from error
        failure: OSError | None = None
        for family, kind, number, _name, where in await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, number)
            try:
                prepare(sock, self._timing.dead_s)
                await self._loop.sock_connect(sock, where)
            except OSError as error:
                failure = error
                sock.close()
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure or OSError("the host has no address")

    # ---- connected

    def _welcomed(self, sock: socket.socket, welcome: p.PeerWelcome) -> None:
        self._coordinator, self._coordinator_node = welcome.control, welcome.node
        self.trouble = ""
        self._ended = self._loop.create_future()
        self._lifeline = lifeline = ms.Lifeline(self._loop.time(), self._timing)
        self._link = Link(sock, p.ToAgent, self._heard, self._gone)
        self._timer = Timer(self._tick, lifeline.next_timer)
        self._timer.set()
        log.info("peer.joined coordinator=%016x control=%s", welcome.node, welcome.control)
        self._handler.coordinator_up(welcome)

    def _heard(self, message: Any) -> None:
        assert self._lifeline is not None
        self._lifeline.heard(self._loop.time())
        match message:
            case p.Heartbeat():
                pass
            case p.PeerMembers():
                self._note(message)
            case _:
                self._handler.order(message)

    def _note(self, news: p.PeerMembers) -> None:
        if news.first:
            self._members.clear()
        self._members |= {member.node: member for member in news.members}
        while len(self._members) > p.NODES_MAX + 1:  # the coordinator forgot those that are longest gone
            gone = [member for member in self._members.values() if member.state in ("dead", "left")]
            if not gone:
                break
            del self._members[min(gone, key=lambda member: member.since_unix_s).node]

    def _tick(self, now: float) -> None:
        assert self._lifeline is not None and self._link is not None
        for change in self._lifeline.tick(now):
            match change:
                case ms.Beat():
                    self._link.send(self._handler.load())
                case ms.Lost():
                    self.trouble = f"nothing was heard of the coordinator for {self._timing.dead_s:g} s"
                    self._link.close()
                    return

    def _gone(self, error: Exception | None) -> None:
        assert self._timer is not None and self._ended is not None
        self._timer.cancel()
        self._link = None
        self.trouble = self.trouble or f"the connection to the coordinator ended: {error or 'it was closed there'}"
        if not self._leaving:
            log.warning("peer.lost %s", self.trouble)
            self._handler.coordinator_down()
        if not self._ended.done():
            self._ended.set_result(None)

    def report(self, message: Message) -> None:
        if self._link is not None:
            self._link.send(message)

    def rows(self) -> list[dict[str, Any]]:
        if not self._members:
            return [_row(_as_member(self._hello(), "alive", self._since_unix_s), "agent", self._handler.load())]
        rows = []
        own = self._hello().node
        for node, member in self._members.items():
            role = "coordinator" if node == self._coordinator_node else "agent"
            away = role == "coordinator" and not self.connected
            seen = msgspec.structs.replace(member, state="suspect") if away else member
            rows.append(_row(seen, role, self._handler.load() if node == own else None))
        return rows

    # ---- the end

    async def leave(self) -> None:
        self._leaving = True
        if self._link is not None:
            assert self._ended is not None
            self._link.send(p.Leaving())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await asyncio.shield(self._ended)

    def close(self) -> None:
        self._leaving = True
        for task in list(self._tasks):
            task.cancel()
        if self._link is not None:
            self._link.close()

"""An agent's side of the control channel: it dials until a coordinator welcomes it, and again when the link ends.

It dials the coordinator as it knows it, then the member that it was told to join through, then waits a little longer
each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from lifl.core.config.values import split_address
from lifl.core.coordinator import membership as ms
from lifl.core.errors import ConfigError, Impossible, LocalFault, RemoteFault
from lifl.core.fields import Message
from lifl.core.limits import GREETING_S, NODES_MAX
from lifl.core.protocol import cluster as p
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import encode
from lifl.core.protocol.pages import split
from lifl.node.cluster.acceptor import CHANNEL, prepare, read_frame
from lifl.node.cluster.member_rows import as_member, row, unix_of
from lifl.node.cluster.timer import Timer
from lifl.node.link import Link
from lifl.node.security import Secured, Security
from lifl.node.tasks import start
from lifl.tls.faults import TlsFault
from lifl.tls.tls_socket import Stream
from lifl.tls.waits import sent

log = logging.getLogger("lifl.peers")

REDIRECTS_MAX = 4
LEAVE_S = 2.0
PROMOTION_S = 5.0
"""How long a node that was elected may take to coordinate: until then nobody else is dialled, whatever it says."""


class AgentHandler(Protocol):
    """What an agent does about its coordinator.  All calls come in the event loop."""

    def load(self) -> p.Heartbeat:
        """Return this node's next heartbeat."""
        ...

    def coordinator_up(self, welcome: p.PeerWelcome) -> None:
        """Answer with an Inventory: the node is connected, for the first time or again."""
        ...

    def coordinator_down(self) -> None:
        """Pause: the node is not connected any more; `Peers` dials again."""
        ...

    def rejoin(self, above: int) -> None:
        """Drop all branches: this life was declared dead; from now on `hello` has an incarnation above `above`."""
        ...

    def refused(self, text: str) -> None:
        """Note that the node was told that it cannot join, and why; `Peers` asks again now and then all the same."""
        ...

    def order(self, order: Any) -> None:
        """Obey an order of the coordinator."""
        ...


class _Refused(Exception):
    def __init__(self, text: str, retry: bool) -> None:
        super().__init__(text)
        self.text = text
        self.retry = retry


class AgentSide:
    """The link to the coordinator, while there is one."""

    def __init__(
        self,
        hello: Callable[[], p.PeerHello],
        join: str,
        handler: AgentHandler,
        timing: ms.Timing,
        security: Security,
        others: Sequence[str] = (),
    ) -> None:
        if join:
            split_address(join, "join")
        self._hello = hello
        self._join = join
        self._others = others  # members that may know who coordinates, where that moves
        self._term = 0  # the latest that is known of
        self._knows: frozenset[str] = frozenset()  # what the coordinator does
        self._pointed = asyncio.Event()  # somebody said whom to dial: that is not waited with
        self._elected = ("", 0.0)  # who that is, and until when it may not coordinate yet
        self._patience: asyncio.Timeout | None = None  # of the attempt that is under way
        self.welcomed = asyncio.Event()
        self.tried = asyncio.Event()  # the first attempt has come to an end, whichever
        self._handler = handler
        self._timing = timing
        self._security = security
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
        self._since_s = self._loop.time()
        self._tasks: set[asyncio.Task[None]] = set()
        self.trouble = f"not connected yet; dialling {join}" if join else "no node is known yet that coordinates"
        start(self._tasks, self._live(), CHANNEL)

    @property
    def connected(self) -> bool:
        return self._link is not None

    def answer(self, hello: p.PeerHello, secured: Secured, host: str) -> p.Greeting | None:
        if not self._coordinator:
            return p.PeerRefusal("this member has not found the coordinator itself yet; come again", retry=True)
        return p.PeerRedirect(self._coordinator)

    # ---- dialling

    async def _live(self) -> None:
        while not self._leaving:
            self._pointed.clear()
            for address in self._addresses():
                if await self._lived(address) or self._pointed.is_set() or self._begins(address):
                    break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.next_s()):
                    await self._pointed.wait()

    def _addresses(self) -> list[str]:
        """Return whom to dial, in order: where the coordinator moves any member may know where it is now."""
        own = self._hello().control
        moving = [member.control for member in self._members.values()] if self._term else []
        known = dict.fromkeys((self._coordinator, self._join, *moving, *self._others))
        return [address for address in known if address and address != own]

    def point(self, control: str, term: int) -> None:
        """Dial the coordinator of this term, at this address; a connection to an earlier one ends."""
        if term < self._term or (self._link is not None and term == self._term):
            return
        self._coordinator, self._term = control, term
        self._elected = (control, self._loop.time() + PROMOTION_S)
        self._backoff.reset()
        self._pointed.set()
        if self._patience is not None:
            self._patience.reschedule(self._loop.time())
        if self._link is not None:
            self.trouble = "another node coordinates now"
            self._link.close()

    def _begins(self, address: str) -> bool:
        """Return whether this is who was elected a moment ago: it may know the last coordinator only, or nobody."""
        elected, until_s = self._elected
        return address == elected and self._loop.time() < until_s

    async def _lived(self, address: str) -> bool:
        """Do as `_attempt` does; a fault of ours ends this connection, and the node dials again."""
        try:
            return await self._attempt(address)
        except Impossible:
            raise
        except Exception:
            log.exception("peer.join %s failed", address)
            if self._link is not None:
                self._link.close()
            return False

    async def _attempt(self, address: str) -> bool:
        """Try one member; when it welcomes the node, return True after the connection has ended."""
        try:
            async with asyncio.timeout(GREETING_S) as patience:
                self._patience = patience
                await self._enter(address)
                self._patience = None
        except TlsFault as fault:
            self._failed(f"{address} cannot be joined: {fault}", retry=not fault.lasting)
        except (OSError, EOFError, TimeoutError) as error:
            self._failed(
                f"{address} cannot be reached: {str(error) or f'no answer within {GREETING_S:g} s'}", retry=True
            )
        except RemoteFault as error:
            self._failed(f"{address} is not the control port of a node that works with this one: {error}", retry=False)
        except _Refused as refused:
            self._failed(f"{address} refused: {refused.text}", refused.retry)
        else:
            began_s = self._loop.time()
            assert self._ended is not None
            await self._ended
            if self._loop.time() - began_s > self._timing.heartbeat_s:
                self._backoff.reset()
            return True
        finally:
            self._patience = None
        return False

    def _failed(self, text: str, retry: bool) -> None:
        if text != self.trouble:
            log.warning("peer.join %s", text)
        self.trouble = text
        self.tried.set()
        if not retry:
            self._handler.refused(text)

    async def _enter(self, address: str) -> None:
        """Follow redirects until a coordinator welcomes the node; then `_link` is set."""
        # A member of an earlier version refuses, by its name, a field that it does not know, or that is too long.
        unsaid: list[Sequence[str]] = [p.EVERY_WORD, p.LATER, ()]
        for _ in range(REDIRECTS_MAX + 1):
            raw = await self._dial(address)
            try:
                sock = (await self._security.dialled(raw)).sock
                hello = self._hello()
                knows = tuple(word for word in hello.knows if word not in unsaid[-1])
                hello = msgspec.structs.replace(hello, knows=knows)
                await sent(sock, encode(hello))
                answer = await read_frame(sock, p.Greeting)
                if isinstance(answer, p.PeerWelcome):
                    p.check_version(answer.version)
            except BaseException:
                raw.close()
                raise
            if isinstance(answer, p.PeerWelcome) and answer.term >= self._term:
                self._welcomed(sock, answer)
                return
            sock.close()
            match answer:
                case p.PeerWelcome():
                    raise _Refused("it coordinates no longer, and has not noticed yet", retry=True)
                case p.PeerRedirect() if self._begins(address):
                    raise _Refused("it was elected, and does not coordinate yet", retry=True)
                case p.PeerRedirect(control):
                    address = control
                case p.PeerRejoin(above):
                    log.warning("peer.rejoin this life was declared dead; coming back as one above %d", above)
                    self._handler.rejoin(above)
                case p.PeerRefusal(text) if "knows`" in text and len(unsaid) > 1:
                    unsaid.pop()
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

    def _welcomed(self, sock: Stream, welcome: p.PeerWelcome) -> None:
        self._coordinator, self._coordinator_node, self._term = welcome.control, welcome.node, welcome.term
        self._knows = frozenset(welcome.knows)
        self.trouble = ""
        self.welcomed.set()
        self.tried.set()
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
        while len(self._members) > NODES_MAX + 1:  # the coordinator forgot those that are longest gone
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
        self.welcomed.clear()
        self.trouble = self.trouble or f"the connection to the coordinator ended: {error or 'it was closed there'}"
        if not self._leaving:
            log.warning("peer.lost %s", self.trouble)
            self._handler.coordinator_down()
        if not self._ended.done():
            self._ended.set_result(None)

    def report(self, message: Message) -> None:
        if self._link is None:
            return
        if isinstance(message, gm.ClientJoined) and p.PROPERTIES not in self._knows:
            message = msgspec.structs.replace(message, properties=msgspec.UNSET)
        if isinstance(message, p.Inventory) and p.LABELS not in self._knows:
            message = msgspec.structs.replace(message, labels={})
        if isinstance(message, p.Heartbeat) and p.HOSTED not in self._knows:
            message = msgspec.structs.replace(message, hosted_bytes=0)
        try:
            self._link.send(*split(message))
        except LocalFault as fault:  # it is too long for a frame; what the coordinator then misses, an Inventory tells
            log.error("peer.report %s", fault)
            self._loop.call_soon(self._link.close)

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for node, member in self._members.items():
            role = "coordinator" if node == self._coordinator_node else "agent"
            away = role == "coordinator" and not self.connected
            seen = msgspec.structs.replace(member, state="suspect") if away else member
            rows.append(row(seen, role))
        if self.own not in self._members:  # what the coordinator says of it comes with the next news
            rows.append(row(as_member(self._hello(), "alive", unix_of(self._since_s)), "agent"))
        return rows

    @property
    def own(self) -> int:
        return self._hello().node

    def living(self) -> dict[int, str]:
        """Return the gateways of the other nodes that live, by node."""
        own = self.own
        return {
            node: member.gateway for node, member in self._members.items() if node != own and member.state == "alive"
        }

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
        self.tried.set()
        for task in list(self._tasks):
            task.cancel()
        if self._link is not None:
            self._link.close()

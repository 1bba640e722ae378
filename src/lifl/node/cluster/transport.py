"""The control channel between nodes: a star of TCP links around the coordinator.

Each node listens on its control port.  The acceptor takes connections in and reads exactly one frame of each, the
PeerHello, in bounded time and memory; a stranger that sends anything else is told why and shut out, and no other
connection notices.  The coordinator (`coordinator_side.py`) asks `membership.py` whether the node may come in and then
owns a `Link` to it; an agent (`agent_side.py`) redirects a node that knocks to the coordinator, and itself dials for
ever.

A broken machine or cable does not close a connection, so both sides count heartbeats: the coordinator by the
membership's table, the agent by a `Lifeline`, at whose end it closes and dials again.  Nothing is sent twice and
nothing is kept for a node that is away: an agent that is welcomed says what it has (Inventory), and both sides go on
from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Protocol

from lifl.core.coordinator import membership as ms
from lifl.core.errors import LocalFault
from lifl.core.fields import Message
from lifl.core.limits import GATEWAYS_TOLD_MAX, GREETING_S
from lifl.core.protocol import cluster as p
from lifl.core.protocol import enrolment as e
from lifl.core.trust.revocation import Revocation, RevokedList
from lifl.node.cluster.acceptor import Acceptor
from lifl.node.cluster.agent_side import AgentHandler, AgentSide
from lifl.node.cluster.coordinator_side import CoordinatorHandler, CoordinatorSide, Send
from lifl.node.security import NODES, Secured, Security

__all__ = ["Handler", "Peers", "Send"]

TRIED_S = GREETING_S + 1.0
"""How long it is waited, at most, until a node has tried once to join."""


class Handler(CoordinatorHandler, AgentHandler, Protocol):
    """What a node does about its peers: it is made before it is known which side it will be on."""

    def turned_away(self, host: str, text: str) -> None:
        """Note that whoever came from `host` to the control port may not join, and why."""
        ...

    def asked(self, asking: e.Asking, secured: Secured, host: str) -> Message:
        """Return what is said to who wants a certificate.  Raise `TlsFault` when the one that it shows is of no use."""
        ...

    def commanded(self, secured: Secured, host: str) -> p.PeerRefusal | None:
        """Take over the connection of somebody's command line, or return why not.  Raise `TlsFault` as `asked` does."""
        ...


class Peers:
    """A node's end of the control channel.  Must be made in the running loop's thread; owns `listener` until `close`.

    `listener` is a listening TCP socket.  `hello` is asked before each attempt to join, and by the coordinator for its
    own addresses.  An agent dials `join`, the control address (HOST:PORT) of any member.  `security` is that of all
    connections: those of a cluster are secured, or none is.
    """

    def __init__(
        self,
        listener: socket.socket,
        hello: Callable[[], p.PeerHello],
        coordinator: bool,
        join: str,
        handler: Handler,
        timing: ms.Timing = ms.TIMING,
        security: Security | None = None,
    ) -> None:
        self._security = security = security or Security()
        self._hello = hello
        self._join = join
        self._timing = timing
        self._handler = handler
        self._side: CoordinatorSide | AgentSide
        self._side = (
            CoordinatorSide(hello, handler, timing)
            if coordinator
            else AgentSide(hello, join, handler, timing, security)
        )
        self._acceptor = Acceptor(listener, self._answer, handler.turned_away, security)

    def _answer(self, first: e.First, secured: Secured, host: str) -> Message | None:
        if isinstance(first, p.CommandHello):
            return self._handler.commanded(secured, host)
        if not isinstance(first, p.PeerHello):
            return self._handler.asked(first, secured, host)
        secured.check(NODES)
        return self._side.answer(first, secured, host)

    # ---- where the coordinator moves -----------------------------------------------------------------------------

    def lead(self, term: int) -> None:
        """Be the coordinator's side from now on: the others dial this node."""
        self._side.close()
        self._side = CoordinatorSide(self._hello, self._handler, self._timing, term)

    def follow(self) -> None:
        """Be an agent's side from now on: it dials the members that it knows, until it is told whom."""
        known = [str(row["control"]) for row in self._side.rows() if row["role"] == "agent"]
        self._side.close()
        self._side = AgentSide(self._hello, self._join, self._handler, self._timing, self._security, known)

    def point(self, control: str, term: int) -> None:
        """Dial the coordinator of this term, at this address; a connection to an earlier one ends."""
        if isinstance(self._side, AgentSide):
            self._side.point(control, term)

    async def tried(self) -> dict[str, Any]:
        """Return where the node joins, if it does, and whether it has by its first try; it goes on trying."""
        if not self._join:
            return {}
        if isinstance(self._side, AgentSide):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TRIED_S):
                    await self._side.tried.wait()
        return {"join": self._join, "joined": self.connected, "join_trouble": self.trouble}

    async def until_connected(self) -> None:
        """Return when an agent has its coordinator; at once on the coordinator."""
        if isinstance(self._side, AgentSide):
            await self._side.welcomed.wait()

    def send(self, node: int, message: Message) -> None:
        """Send to an agent, as the coordinator; the message is dropped when it is not connected."""
        if isinstance(self._side, AgentSide):
            raise LocalFault("only the coordinator sends to nodes")
        self._side.send(node, message)

    def report(self, message: Message) -> None:
        """Send to the coordinator, as an agent; the message is dropped while it is not connected."""
        if isinstance(self._side, CoordinatorSide):
            raise LocalFault("only an agent reports")
        self._side.report(message)

    @property
    def connected(self) -> bool:
        """Return whether an agent has its coordinator; True on the coordinator."""
        return isinstance(self._side, CoordinatorSide) or self._side.connected

    @property
    def trouble(self) -> str:
        """Why an agent is not connected; empty when it is, and on the coordinator."""
        return "" if isinstance(self._side, CoordinatorSide) else self._side.trouble

    def revoke(self, entries: tuple[Revocation, ...], revoked: RevokedList) -> None:
        """End the connections of nodes whose certificates are revoked, and tell the others, as the coordinator."""
        if isinstance(self._side, CoordinatorSide):
            self._side.revoke(entries, revoked)

    def has_authority(self, node: int) -> bool:
        """Return whether an agent's certificate says that it issues certificates, as the coordinator."""
        return isinstance(self._side, CoordinatorSide) and self._side.has_authority(node)

    def members(self) -> list[dict[str, Any]]:
        """Return all members, the coordinator first: the fields of PeerMember with `node` as 16 hex digits, and `role`.

        `role` is coordinator or agent.  An agent that is not connected tells what it knew last, and the coordinator is
        suspect.  News reach the agents with the coordinator's heartbeats.
        """
        return self._side.rows()

    def gateways(self) -> tuple[str, ...]:
        """Return the gateways of other nodes that live: of many, those whose numbers follow this node's."""
        own, living = self._side.own, self._side.living()
        order = sorted(living, key=lambda node: (node < own, node))
        return tuple(living[node] for node in order[:GATEWAYS_TOLD_MAX])

    def living(self) -> tuple[int, ...]:
        """Return the other nodes that live."""
        return tuple(self._side.living())

    async def leave(self) -> None:
        """End as `close` does; an agent says so to the coordinator first, and waits until that is noted."""
        if isinstance(self._side, AgentSide):
            await self._side.leave()
        self.close()

    def close(self) -> None:
        """End all connections; the handler is not called any more."""
        self._acceptor.close()
        self._side.close()

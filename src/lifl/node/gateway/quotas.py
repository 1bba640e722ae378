"""How much of a gateway a client may take: connections, requests, bytes.

Connections count from their arrival.  One that has not said who it is (Hello) has least: when the gateway is full, it
gives way to the next (`node/greetings.py`).  So half-open connections, however many, shut nobody out, and take nothing
from those that have greeted.

A client is who it is and the name that it uses: what it may do it may over all its connections together.  Requests and
bytes beyond the quota are not refused: who sends them waits (`Pace`, `Flow`), and is slowed by TCP meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lifl.core.errors import Refused
from lifl.node.gateway.budgets import Flow, Pace
from lifl.node.greetings import Ungreeted, source_of

LOCAL = "local "
"""How `who` begins for connections of this machine: they are of no address."""


class Limits(NamedTuple):
    """A node's quotas; 0: none (of requests: as many as by default)."""

    connections_max: int
    connections_per_client: int = 0
    connections_per_address: int = 0
    requests_per_s: int = 0
    client_bytes_per_s: int = 0


@dataclass
class _Client:
    """What the connections of one client share."""

    connections: int
    pace: Pace
    flow: Flow


class Quotas:
    """The connections of a gateway; `cut(number, because)` ends one."""

    def __init__(self, limits_: Limits, cut: Callable[[int, str], None]) -> None:
        self._limits = limits_
        self._cut = cut
        self._who: dict[int, str] = {}  # by connection
        self._addresses: Counter[str] = Counter()
        self._ungreeted = Ungreeted()
        self._names: dict[int, tuple[str, str]] = {}  # by connection that has greeted: who it is, and its client's name
        self._clients: dict[tuple[str, str], _Client] = {}

    # ---- connections -------------------------------------------------------------------------------------------------

    def arrived(self, number: int, who: str, now: float) -> None:
        """Let a connection in.  Raise `Refused` when there is no place for it."""
        most = 0 if who.startswith(LOCAL) else self._limits.connections_per_address
        if most and self._addresses[who] >= most and not self._make_place(who, now, own=True):
            text = f"{most} connections come from {who}, more are not taken (connections_per_address); try again later"
            raise Refused("quota", "connections_per_address", text)
        if len(self._who) >= self._limits.connections_max and not self._make_place(who, now):
            text = f"this node serves at most {self._limits.connections_max} connections; try again later"
            raise Refused("too-many-connections", "", text)
        self._who[number] = who
        self._addresses[who] += 1
        self._ungreeted.add(number, source_of(who), now)

    def _make_place(self, newcomer: str, now: float, own: bool = False) -> bool:
        """End a connection that has not greeted, for one from `newcomer`; return whether there was one.

        `own`: only one from there.
        """
        gone = self._ungreeted.to_give_way(source_of(newcomer), now, own)
        if not isinstance(gone, int):
            return False
        self.left(gone)
        self._cut(gone, "it did not say Hello, and others wait for its place")
        return True

    def greeted(self, number: int, who: str, client: str, now: float) -> None:
        """Note who a connection is of, by its certificate where that was asked for, else by its address; and the name
        that it uses.  Raise `Refused` when that has all the connections that it may.
        """
        if number not in self._ungreeted:
            return  # it is being ended
        at = (who, client)
        found, most = self._clients.get(at), self._limits.connections_per_client
        if found is not None and most and found.connections >= most:
            text = f"client {client!r} has {most} connections, more are not taken (connections_per_client); close some"
            raise Refused("quota", "connections_per_client", text)
        if found is None:
            pace = Pace(now, self._limits.requests_per_s)
            found = self._clients[at] = _Client(0, pace, Flow(self._limits.client_bytes_per_s))
        found.connections += 1
        self._ungreeted.remove(number)
        self._names[number] = at

    def left(self, number: int) -> None:
        """Forget a connection that has ended."""
        who = self._who.pop(number, None)
        if who is None:
            return
        self._addresses[who] -= 1
        if not self._addresses[who]:
            del self._addresses[who]
        self._ungreeted.remove(number)
        at = self._names.pop(number, None)
        if at is not None:
            self._clients[at].connections -= 1
            if not self._clients[at].connections:
                del self._clients[at]

    # ---- requests and bytes ------------------------------------------------------------------------------------------

    def request_wait_s(self, number: int, now: float) -> float:
        """Count a request; return how long its turn is to be waited for."""
        found = self._clients.get(self._names.get(number, ("", "")))
        return found.pace.wait_s(now) if found is not None else 0.0

    def taken(self, number: int) -> None:
        """Give back what the requests of a round cost: an update, or a partial, has been taken."""
        found = self._clients.get(self._names.get(number, ("", "")))
        if found is not None:
            found.pace.taken()

    def bytes_wait_s(self, number: int, job: Flow, nbytes: int, now: float) -> float:
        """Count a body that is to come or go, for the client and its `job`; return how long it is to wait."""
        found = self._clients.get(self._names.get(number, ("", "")))
        waits = [flow.wait_s(nbytes, now) for flow in (job, *([found.flow] if found is not None else []))]
        return max(waits)

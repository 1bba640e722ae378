"""How much of a gateway a client may take: connections, requests, bytes.

Connections count from their arrival.  One that has not said who it is (Hello) has least: when the gateway is full, one
gives way to the next: of those that are older than `UNGREETED_S`, or from an address that has more of them than the
newcomer's.  So half-open connections, however many, shut nobody out, and take nothing from those that have greeted.

A client is who it is and the name that it uses: what it may do it may over all its connections together.  Requests and
bytes beyond the quota are not refused: who sends them waits (`Pace`, `Flow`), and is slowed by TCP meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lifl.core import limits
from lifl.core.errors import Refused
from lifl.node.gateway.budgets import Flow, Pace

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


class _Ungreeted:
    """The connections that have not said Hello, by address; each step costs the same, however many there are."""

    def __init__(self) -> None:
        self._all: dict[int, float] = {}  # when they came, the oldest first
        self._of: dict[str, dict[int, float]] = {}
        self._by_count: dict[int, dict[str, None]] = {}  # how many addresses have so many, and which

    def __contains__(self, number: int) -> bool:
        return number in self._all

    def add(self, number: int, who: str, now: float) -> None:
        """Note a connection from `who`."""
        self._all[number] = now
        self._recount(who, lambda own: own.update({number: now}))

    def remove(self, number: int, who: str) -> None:
        """Forget a connection, if it is here."""
        if self._all.pop(number, None) is not None:
            self._recount(who, lambda own: own.pop(number))

    def _recount(self, who: str, change: Callable[[dict[int, float]], object]) -> None:
        own = self._of.setdefault(who, {})
        if own:
            self._by_count[len(own)].pop(who)
            if not self._by_count[len(own)]:
                del self._by_count[len(own)]
        change(own)
        if own:
            self._by_count.setdefault(len(own), {})[who] = None
        else:
            del self._of[who]

    def count(self, who: str) -> int:
        """Return how many come from an address."""
        return len(self._of.get(who, ()))

    def busiest(self) -> str:
        """Return the address that has most; empty: there is none."""
        return next(iter(self._by_count[max(self._by_count)])) if self._by_count else ""

    def oldest(self, who: str | None = None) -> tuple[int, float] | None:
        """Return the oldest of all, or of an address, and when it came."""
        return next(iter((self._all if who is None else self._of.get(who, {})).items()), None)


class Quotas:
    """The connections of a gateway; `cut(number, because)` ends one."""

    def __init__(self, limits_: Limits, cut: Callable[[int, str], None]) -> None:
        self._limits = limits_
        self._cut = cut
        self._who: dict[int, str] = {}  # by connection
        self._addresses: Counter[str] = Counter()
        self._ungreeted = _Ungreeted()
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
        self._ungreeted.add(number, who, now)

    def _make_place(self, newcomer: str, now: float, own: bool = False) -> bool:
        """End a connection that has not greeted, for one from `newcomer`; return whether there was one.

        `own`: only one from there.
        """
        busiest = newcomer if own else self._ungreeted.busiest()
        found = self._ungreeted.oldest(busiest)
        if found is None:
            return False
        if self._ungreeted.count(busiest) <= self._ungreeted.count(newcomer) + 1:
            found = found if own else self._ungreeted.oldest()
            if found is None or now - found[1] < limits.UNGREETED_S:
                return False
        self.left(found[0])
        self._cut(found[0], "it did not say Hello, and others wait for its place")
        return True

    def greeted(self, number: int, client: str, now: float) -> None:
        """Note the name that a connection uses.  Raise `Refused` when that has all the connections that it may."""
        if number not in self._ungreeted:
            return  # it is being ended
        at = (self._who[number], client)
        found, most = self._clients.get(at), self._limits.connections_per_client
        if found is not None and most and found.connections >= most:
            text = f"client {client!r} has {most} connections, more are not taken (connections_per_client); close some"
            raise Refused("quota", "connections_per_client", text)
        if found is None:
            pace = Pace(now, self._limits.requests_per_s)
            found = self._clients[at] = _Client(0, pace, Flow(self._limits.client_bytes_per_s))
        found.connections += 1
        self._ungreeted.remove(number, at[0])
        self._names[number] = at

    def left(self, number: int) -> None:
        """Forget a connection that has ended."""
        who = self._who.pop(number, None)
        if who is None:
            return
        self._addresses[who] -= 1
        if not self._addresses[who]:
            del self._addresses[who]
        self._ungreeted.remove(number, who)
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

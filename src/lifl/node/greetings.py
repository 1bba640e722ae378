"""Connections that have not said yet who they are, of all doors: which of them gives way when there is no room.

Whoever is honest has said so within milliseconds, and from then on counts no more here.  Where there is no room for a
newcomer, the oldest connection of the source that has most of them gives way at once, if that has more than the
newcomer's; else the oldest of all, once it has had `UNGREETED_S`; else the newcomer is turned away.  So connections
that say nothing, however many, keep nobody out that comes from elsewhere, and who has greeted never gives way.

A source is an IPv4 address, or the /64 that an IPv6 address is in, for who has one address there has all of them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Hashable

from lifl.core import limits

Cut = Callable[[], None]


class Ungreeted:
    """The books of one door; each step costs the same, however many there are."""

    def __init__(self) -> None:
        self._all: dict[Hashable, tuple[str, float]] = {}  # whence and when they came, the oldest first
        self._of: dict[str, dict[Hashable, float]] = {}  # the same by source
        self._by_count: dict[int, dict[str, None]] = {}  # which sources have so many

    def __contains__(self, who: Hashable) -> bool:
        return who in self._all

    def __len__(self) -> int:
        return len(self._all)

    def count(self, source: str) -> int:
        """Return how many come from a source."""
        return len(self._of.get(source, ()))

    def add(self, who: Hashable, source: str, now: float) -> None:
        """Note a connection."""
        self._all[who] = source, now
        self._recount(source, lambda own: own.update({who: now}))

    def remove(self, who: Hashable) -> None:
        """Forget a connection, if it is here: it has greeted, or ended."""
        found = self._all.pop(who, None)
        if found is not None:
            self._recount(found[0], lambda own: own.pop(who))

    def _recount(self, source: str, change: Callable[[dict[Hashable, float]], object]) -> None:
        own = self._of.setdefault(source, {})
        if own:
            self._by_count[len(own)].pop(source)
            if not self._by_count[len(own)]:
                del self._by_count[len(own)]
        change(own)
        if own:
            self._by_count.setdefault(len(own), {})[source] = None
        else:
            del self._of[source]

    def to_give_way(self, newcomer: str, now: float, own: bool = False) -> Hashable | None:
        """Return the connection that gives way to one from the source `newcomer`; None: none does.

        `own`: only one from there may.
        """
        if not self._all or (own and not self.count(newcomer)):
            return None
        if own:
            who, since_s = next(iter(self._of[newcomer].items()))
            return who if now - since_s >= limits.UNGREETED_S else None
        most = max(self._by_count)
        if most > self.count(newcomer) + 1:
            return next(iter(self._of[next(iter(self._by_count[most]))]))
        who, (_, since_s) = next(iter(self._all.items()))
        return who if now - since_s >= limits.UNGREETED_S else None


class Greetings:
    """The connections of a control port that greet: at most `all_max`, of one source at most `source_max`."""

    def __init__(self, all_max: int, source_max: int) -> None:
        self._all_max = all_max
        self._source_max = source_max
        self._ungreeted = Ungreeted()
        self._cuts: dict[Hashable, Cut] = {}

    def enter(self, who: Hashable, host: str, now: float, cut: Cut) -> bool:
        """Note a connection of `host`, to be ended by `cut`; return False when there is no room for it."""
        source, ungreeted = source_of(host), self._ungreeted
        own = ungreeted.count(source) >= self._source_max
        if own or len(ungreeted) >= self._all_max:
            gone = ungreeted.to_give_way(source, now, own)
            if gone is None:
                return False
            ends = self._cuts[gone]
            self.leave(gone)
            ends()
        ungreeted.add(who, source, now)
        self._cuts[who] = cut
        return True

    def leave(self, who: Hashable) -> None:
        """Note that a connection has ended, or said who it is; one that was cut may say so too."""
        self._ungreeted.remove(who)
        self._cuts.pop(who, None)


def cut(sock: socket.socket) -> None:
    """End a connection that another is to take the place of: its greeting wakes up."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def source_of(host: str) -> str:
    """Return what counts as one source: an address, of version 6 the network that one subscriber has."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)

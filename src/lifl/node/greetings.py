"""Connections that have not said yet who they are: how many there may be, in all and of one source.

Whoever is honest has said so within milliseconds.  So when there is no room, the one that has taken longest makes room
for the newcomer, of the same source or of the one that has most, once it has had `GREETING_GRACE_S`; else the newcomer
is turned away.  A source is an IPv4 address, or the /64 that an IPv6 address is in, for who has one address there has
all of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from lifl.core.limits import GREETING_GRACE_S

Cut = Callable[[], None]


class Greetings:
    """The connections under way: at most `all_max`, of one source at most `source_max`."""

    def __init__(self, all_max: int, source_max: int) -> None:
        self._all_max = all_max
        self._source_max = source_max
        self._sources: dict[str, dict[object, tuple[float, Cut]]] = {}  # each in the order of their coming
        self._count = 0

    def enter(self, who: object, host: str, now: float, cut: Cut) -> bool:
        """Note a connection of `host`, to be ended by `cut`; return False when there is no room for it."""
        source = source_of(host)
        if len(self._sources.get(source, ())) >= self._source_max:
            full: str | None = source
        elif self._count >= self._all_max:
            full = max(self._sources, key=lambda each: len(self._sources[each]))
        else:
            full = None
        if full is not None and not self._make_room(full, now):
            return False
        self._sources.setdefault(source, {})[who] = (now, cut)
        self._count += 1
        return True

    def _make_room(self, source: str, now: float) -> bool:
        who, (since_s, cut) = next(iter(self._sources[source].items()))
        if now - since_s < GREETING_GRACE_S:
            return False
        self._forget(source, who)
        cut()
        return True

    def leave(self, who: object, host: str) -> None:
        """Note that a connection has ended, or said who it is; one that was cut may say so too."""
        self._forget(source_of(host), who)

    def _forget(self, source: str, who: object) -> None:
        if self._sources.get(source, {}).pop(who, None) is not None:
            self._count -= 1
            if not self._sources[source]:
                del self._sources[source]


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

"""Where a round's requests go: to the gateway that its selection named, or home.

Model and update go over a connection made for that one request; what does not work there is done at home.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from lifl.client.books import Books
from lifl.client.home import AWAY_GREETING_S, Home, pause
from lifl.client.liveness import Watch, asking, greeted
from lifl.client.stream import Stream
from lifl.core.errors import LocalFault, Refused, RemoteFault
from lifl.core.protocol import client as cm

log = logging.getLogger("lifl.client")

UNREACHABLE_S = 3.0
"""A gateway that could not be reached is not tried again for so long: requests of that time are made at home."""
REDIRECTED_PAUSE_S = 1.0
"""When two redirects in a row have led to no gateway: how long until the next attempt."""
OVER_CODES = frozenset({"round-over", "wrong-round", "not-selected", "unknown-job"})
"""Refusals that are no fault of this client: the round went on without it."""
_ASK_HOME_CODES = OVER_CODES | {"protocol", "wrong-version"}
"""What another node's gateway may refuse because it knows less than the client's own."""

T = TypeVar("T")


class Gateways:
    """The gateways of a cluster, as one client uses them."""

    def __init__(self, client: str, home: Home, books: Books, closed: threading.Event) -> None:
        self._client = client
        self._home = home
        self._books = books
        self._closed = closed
        self._unreachable: tuple[str, float] = ("", 0.0)  # the last gateway that was not reached, and when

    def do(self, home: Stream, number: int, action: Callable[[Stream], T]) -> T:
        """Do `action` at the gateway that the round's selection named, or at that of a redirect."""
        address = self._books.gateway_of(number)
        for redirected in itertools.cycle((False, True)):
            try:
                return self._at(address, home, action)
            except Refused as refused:
                if refused.code != cm.USE_GATEWAY:
                    raise
                address = refused.field
            if redirected:
                pause(self._closed, REDIRECTED_PAUSE_S)
        raise AssertionError("a cycle has no end")

    def _at(self, address: str, home: Stream, action: Callable[[Stream], T]) -> T:
        """Do `action` over a connection to `address`; at home when that is there, or when it does not work."""
        away = self._dialled(address) if address and address != self._home.node else None
        if away is not None:
            try:
                with closing(away), asking(away):
                    return action(away)
            except Refused as refused:
                if refused.code not in _ASK_HOME_CODES:
                    raise
                log.info("gateway.refused gateway=%s why=%s", address, refused)
            except (OSError, RemoteFault) as error:
                log.info("gateway.lost gateway=%s error=%s", address, error)
                self._unreachable = (address, time.monotonic())
        with asking(home):
            return action(home)

    def _dialled(self, address: str) -> Stream | None:
        """Return a connection to another node's gateway, which takes the client; else None."""
        if address == self._unreachable[0] and time.monotonic() - self._unreachable[1] < UNREACHABLE_S:
            return None
        try:
            away = greeted(address, AWAY_GREETING_S, self._client, direct=False)
        except (OSError, LocalFault, Refused, RemoteFault) as error:
            log.info("gateway.unreachable gateway=%s error=%s", address, error)
            self._unreachable = (address, time.monotonic())
            return None

        def at_home() -> list[str]:
            return [self._home.node]

        away.watch = Watch(away, address, self._client, at_home, lambda: True, lambda _: None, lambda _: None)
        return away

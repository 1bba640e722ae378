"""Where a round's requests go: to the gateway that its selection named, or home.

Model and update go over a connection made for that one request; what does not work there is done at home.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from lifl.client.books import Books
from lifl.client.home import AWAY_GREETING_S, Home, HomeLost, pause
from lifl.client.liveness import Watch, asking
from lifl.client.stream import Stream, greeted
from lifl.core.errors import LiflError, Refused, RemoteFault
from lifl.core.protocol import client as cm

log = logging.getLogger("lifl.client")

UNREACHABLE_S = 30.0
"""A gateway that was silent, or could not be reached, is not tried again for so long: requests are made at home, where
the coordinator has another node take the update of who comes back.  Where it has none, the gateway is tried again."""
ASKED_HOME_MAX = 3
"""How often a request is made at home in place of a silent gateway, before that is tried."""
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

    def do(self, home: Stream, number: int, action: Callable[[Stream], T]) -> T:
        """Do `action` at the gateway that the round's selection named, or at that of a redirect."""
        address = self._books.gateway_of(number)
        for tries in itertools.count(1):
            try:
                return self._at(address, home, action, tries)
            except Refused as refused:
                if refused.code != cm.USE_GATEWAY:
                    raise
                address = refused.field
            if tries > 1:
                pause(self._closed, REDIRECTED_PAUSE_S)
        raise AssertionError("counting has no end")

    def _at(self, address: str, home: Stream, action: Callable[[Stream], T], tries: int) -> T:
        """Do `action` over a connection to `address`; at home when that is there, or when it does not work."""
        skipped = tries <= ASKED_HOME_MAX and self._home.is_silent(address, UNREACHABLE_S)
        away = self._dialled(address) if address and address != self._home.node and not skipped else None
        if away is not None:
            try:
                with closing(away), asking(away):
                    return action(away)
            except Refused as refused:
                if refused.code not in _ASK_HOME_CODES:
                    raise
                log.warning("gateway.refused gateway=%s why=%s", address, refused)
            except HomeLost:
                raise
            except (OSError, RemoteFault) as error:
                log.warning("gateway.lost gateway=%s error=%s", address, error)
                self._home.note_silent(address)
        with asking(home):
            return action(home)

    def _dialled(self, address: str) -> Stream | None:
        """Return a connection to another node's gateway, which takes the client; else None."""
        try:
            away = greeted(address, AWAY_GREETING_S, self._client, False, self._home.dialler)
        except (OSError, LiflError) as error:
            log.warning("gateway.unreachable gateway=%s error=%s", address, error)
            self._home.note_silent(address)
            return None

        def at_home() -> list[str]:
            return [self._home.node]

        away.watch = Watch(away, address, self._client, at_home, lambda: True, lambda _: None, lambda _: None)
        return away

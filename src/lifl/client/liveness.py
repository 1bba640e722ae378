"""How a client notices that its gateway is silent, and where it goes then.

A node can stand still, or be cut off, and its connections do not end.  So whoever waits for something looks after its
connection meanwhile, but only where there is another gateway to go to: nodes tell each other's with every Pong.

* A connection on which nothing is asked is asked itself, by Ping.
* While a request is under way its gateway does not read: then another connection is made, and asked (`probe`).  A body
  that waits for its turn at a busy gateway is so told apart from one that goes nowhere.
* A new connection is asked at once: a gateway takes connections in though its `lifld` stands still.
* Only when nothing is answered, and another gateway does answer, is the connection left.  A client that is cut off
  itself stays where it is.

A client that holds an update which is not committed yet, or has lately heard of a round, asks every `SILENT_S`; others
once in `REST_S`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from lifl.client.dialling import Dialler
from lifl.client.stream import Stream, greeted
from lifl.core.config.values import split_address
from lifl.core.errors import ConfigError, LiflError, RemoteFault
from lifl.core.protocol import client as cm

log = logging.getLogger("lifl.client")

SILENT_S = 2.0
"""A connection that has said nothing for so long is asked."""
ANSWER_S = 3.0
"""A gateway answers Hello and Ping within this time, or it is silent."""
FIRST_ANSWER_S = 1.0
"""The same on a new connection, of which nothing has been heard since the greeting, before others are asked."""
ACTIVE_S = 60.0
"""How long after it has heard of a round, or the like, a client asks often."""
REST_S = 60.0
OTHERS_TRIED_MAX = 2
"""Other gateways that are asked in a row, before the connection is listened to again."""
LOOK_S_MIN = 0.05


def probe(address: str, client: str, dialler: Dialler) -> cm.Pong | None:
    """Ask the gateway at `address` over a connection of its own; return its answer, None for none in time."""
    try:
        stream = greeted(address, ANSWER_S, client, False, dialler)
    except (OSError, LiflError):
        return None
    with closing(stream):
        try:
            if cm.PING not in stream.knows:
                return cm.Pong(REST_S)  # of an earlier version: that it greets is all that it can tell
            stream.patience(ANSWER_S)
            stream.send(cm.Ping())
            while not isinstance(answer := stream.receive(), cm.Pong):
                pass
        except (OSError, RemoteFault):
            return None
    return answer


def usable(gateways: Sequence[str]) -> list[str]:
    """Return those that are HOST:PORT, which is all that a node may send a client to; in an order of this client's."""
    found = []
    for address in gateways:
        try:
            split_address(address)
        except ConfigError:
            continue
        found.append(address)
    return random.sample(found, len(found))


class Watch:
    """Looks after `stream`, a connection of `client` to `address`.

    `others()` are the gateways to go to instead, as `learn(gateways)` is told them; `left(address)` is told which of
    them has answered.  `holds()` says whether something depends on the node being there.
    """

    def __init__(
        self,
        stream: Stream,
        address: str,
        client: str,
        others: Callable[[], Sequence[str]],
        holds: Callable[[], bool],
        left: Callable[[str], None],
        learn: Callable[[Sequence[str]], None],
    ) -> None:
        self.asking = False
        """A request is under way."""
        self._stream = stream
        self._address = address
        self._client = client
        self._others = others
        self._holds = holds
        self._left = left
        self._learn = learn
        self._heard_s = self._told_s = time.monotonic()
        self._pinged_s: float | None = None
        self._met = False  # something has been heard
        self._next_s = SILENT_S
        self._tried = 0

    def heard(self) -> None:
        """Note that the node has said something."""
        self._met = True
        self._heard_s = self._told_s = time.monotonic()
        self._pinged_s = None

    def moved(self) -> None:
        """Note that bytes have come or gone."""
        self._heard_s = time.monotonic()

    def answered(self, pong: cm.Pong) -> None:
        """Note that the node is there."""
        self._met = True
        self._heard_s = time.monotonic()
        self._pinged_s = None
        self._next_s = max(pong.next_s, SILENT_S)
        self._learn(pong.gateways)

    def ping(self) -> None:
        """Ask, over the connection itself."""
        if cm.PING in self._stream.knows:
            self._stream.send(cm.Ping())
            self._pinged_s = time.monotonic()

    def wait_s(self) -> float:
        """Return how long to wait for bytes before `silent` is called."""
        return max(LOOK_S_MIN, self._due_s() - time.monotonic())

    def _due_s(self) -> float:
        if not self._others():
            return self._heard_s + REST_S
        if self._pinged_s is not None and not self._met:
            return self._pinged_s + FIRST_ANSWER_S
        if self._pinged_s is not None and not self.asking:
            return self._pinged_s + ANSWER_S
        busy = self.asking or self._holds() or time.monotonic() - self._told_s < ACTIVE_S
        return self._heard_s + (self._next_s if busy else REST_S)

    def silent(self) -> None:
        """Do what is due.  Raise `ConnectionResetError` when the node is silent and another one answers."""
        if time.monotonic() < self._due_s():
            return
        if self.asking and self._others() and (self._met or self._pinged_s is None):
            pong = probe(self._address, self._client, self._stream.dialler)
            if pong is None:
                self._try_others()
            else:
                self.answered(pong)
        elif self._pinged_s is None or not self._others():
            self._heard_s = time.monotonic()
            self.ping()
        else:
            self._try_others()

    def _try_others(self) -> None:
        others = self._others()
        for _ in range(min(OTHERS_TRIED_MAX, len(others))):
            other = others[self._tried % len(others)]
            self._tried += 1
            if probe(other, self._client, self._stream.dialler) is not None:
                self._left(other)
                raise ConnectionResetError(f"{self._address} is silent, {other} answers")
        self._heard_s = time.monotonic()
        self._pinged_s = None


@contextmanager
def asking(stream: Stream) -> Iterator[None]:
    """Note that within this a request is under way on the connection."""
    if stream.watch is not None:
        stream.watch.asking = True
    try:
        yield
    finally:
        if stream.watch is not None:
            stream.watch.asking = False

"""The connection by which a client takes part, to a node of its own: made again when it breaks.

Pauses between tries grow and are jittered; of several nodes the next one is tried.  What was under way is then done
again, which is safe because an update's identity is (job, round, client).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lifl.client.books import Books
from lifl.client.liveness import ANSWER_S, Watch, usable
from lifl.client.outcomes import NodeUnreachable, RoundEnded, Settled
from lifl.client.stream import GREETING_S, Stream, greeted
from lifl.core.errors import LocalFault, Refused
from lifl.core.protocol import client as cm

log = logging.getLogger("lifl.client")

PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 15.0
AWAY_GREETING_S = ANSWER_S
"""Another node's gateway answers within this time, or the client's own is asked (of several nodes: the next one)."""

T = TypeVar("T")


def pause(closed: threading.Event, pause_s: float) -> None:
    """Wait.  Raise `LocalFault` when the client is closed meanwhile."""
    if closed.wait(pause_s):
        raise LocalFault("the client was closed while it waited for the node")


class Home:
    """The connection of `client` to the first of `nodes` that can be reached; `closed` ends all waiting."""

    def __init__(
        self,
        nodes: Sequence[str],
        books: Books,
        closed: threading.Event,
        *,
        job: str,
        client: str,
        direct: bool,
        give_up_after_s: float,
    ) -> None:
        self.stream: Stream | None = None
        """The connection, while there is one."""
        self._nodes = deque(nodes)
        self._given = tuple(nodes)
        self._silent = ("", 0.0)  # the last gateway that was not heard, or not reached, and when
        self._books = books
        self._closed = closed
        self._job = job
        self._client = client
        self._direct = direct
        self.give_up_after_s = give_up_after_s
        self._failing_since_s: float | None = None
        self._pause_s = PAUSE_FIRST_S

    @property
    def node(self) -> str:
        """The address of the node that the client is at, or tries next."""
        return self._nodes[0]

    @property
    def client(self) -> str:
        """The client's name."""
        return self._client

    def others(self) -> list[str]:
        """Return the addresses to go to when this node is silent."""
        return list(self._nodes)[1:]

    def learn(self, gateways: Sequence[str]) -> None:
        """Note which gateways of other nodes there are: those of before that were not given are forgotten."""
        fresh = [address for address in usable(gateways) if address not in self._nodes]
        kept = [address for address in self._nodes if address in self._given or address in gateways]
        here = self.node
        self._nodes = deque([here, *(address for address in kept if address != here), *fresh])

    def note_silent(self, address: str) -> None:
        """Note that a gateway says nothing, or cannot be reached."""
        self._silent = (address, time.monotonic())

    def is_silent(self, address: str, within_s: float) -> bool:
        """Return whether that was so lately."""
        silent, since_s = self._silent
        return address == silent and time.monotonic() - since_s < within_s

    def _leave_for(self, address: str) -> None:
        """Try this node next."""
        self.note_silent(self.node)
        log.warning("node.silent node=%s next=%s", self.node, address)
        self._nodes.remove(address)
        self._nodes.insert(1, address)

    def answer(self, stream: Stream, number: int, kinds: Any) -> Any:
        """Return the next message of `kinds` about the round; all others are noted."""
        while True:
            message = self._receive(stream, number)
            if isinstance(message, kinds) and (message.job, message.round) == (self._job, number):
                return message
            if isinstance(message, cm.Selected) and message.round == number and number not in self._books.fates:
                self._books.name_gateway(message)
                continue  # said again after a new connection: this is the round we are at, unless it began again
            self._books.note(message)

    def _receive(self, stream: Stream, number: int) -> cm.ToClient:
        """Return the next message from `stream`, or (when that is another gateway's) from home.

        Raise `Settled` when it says that the round, or the job, is over.  Then it is open whether an answer to what
        was asked is still to come: the connection is given up, and the next one begins in step.
        """
        home = self.stream
        message = (stream if home is None or stream is home else stream.wait_with(home)).receive()
        if isinstance(message, cm.JobOver) or (
            isinstance(message, cm.Committed | cm.RoundOver) and message.round == number
        ):
            self._books.note(message)
            if stream is home:
                self.disconnect()
            raise Settled(self._job, number, message)
        return message

    def retrying(self, action: Callable[[Stream], T]) -> T:
        """Do `action` on a connection, again on a new one when it breaks.  Raise `NodeUnreachable`."""
        while True:
            try:
                result = action(self._connected())
            except OSError as error:
                self.disconnect()
                self._back_off(error)
            except (Refused, RoundEnded):  # the stream is in step
                raise
            except BaseException:
                self.disconnect()
                raise
            else:
                return result

    def _connected(self) -> Stream:
        if self.stream is not None:
            return self.stream
        if self._closed.is_set():
            raise LocalFault("the client is closed")
        patience_s = GREETING_S if len(self._nodes) == 1 else AWAY_GREETING_S
        stream = greeted(self.node, patience_s, self._client, self._direct)
        try:
            stream.send(cm.Join(self._job, min(self._books.held, default=None), time.time_ns()))
            ways = (self.others, self._holds, self._leave_for, self.learn)
            stream.watch = Watch(stream, self.node, self._client, *ways)
            stream.watch.ping()
        except BaseException:
            stream.close()
            raise
        # The node is there.  What is asked of it now may take hours, so this is not left until it is answered.
        self._failing_since_s = None
        self._pause_s = PAUSE_FIRST_S
        self.stream = stream
        return stream

    def _holds(self) -> bool:
        return bool(self._books.held)

    def disconnect(self) -> None:
        """Close the connection, if there is one."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None
            self._books.forget_selections()

    def _back_off(self, error: OSError) -> None:
        now = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now
        away_s = now - self._failing_since_s
        if away_s + self._pause_s > self.give_up_after_s:
            nodes = " or ".join(self._nodes)
            raise NodeUnreachable(
                f"no node could be reached at {nodes} for {away_s:.0f} s: {error}; is `lifl up` running there?"
            ) from error
        log.info("node.unreachable node=%s error=%s pause_s=%.2f", self.node, error, self._pause_s)
        self._nodes.rotate(-1)
        pause(self._closed, random.uniform(self._pause_s / 2, self._pause_s))
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

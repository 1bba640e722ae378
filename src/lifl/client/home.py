"""The connection by which a client takes part, to a node of its own: made again when it breaks.

Pauses between tries grow and are jittered.  A node that ended the connection is tried once more, for it may have sent
all away when the coordinator changed; then, of several nodes, the next one.  What was under way is done again, which is
safe because an update's identity is (job, round, client).

One thread at a time uses the client.  `close` may come from any: it wakes the one that waits.  A forked child has no
part in it: its copies of the connections are closed (`stream.py`), and all it asks is refused.
"""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import msgspec

from lifl.client.books import Books
from lifl.client.dialling import Dialler, Sockets
from lifl.client.liveness import ANSWER_S, Watch, usable
from lifl.client.outcomes import NodeUnreachable, RoundEnded, Settled
from lifl.client.stream import GREETING_S, OtherLost, Stream, greeted
from lifl.core.errors import LocalFault, Refused
from lifl.core.fields import Properties
from lifl.core.protocol import client as cm
from lifl.tls.faults import TlsFault

log = logging.getLogger("lifl.client")

PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 15.0
PAUSE_GROWTH = 2.0
SENT_AWAY_GROWTH = 1.25
"""From one pause to the next where nodes are there and send the client away: each is about a quarter of the time that
it has lasted, so that who coordinates again is found soon."""
STAYED_S = 1.0
"""A connection that ended sooner was none to take part by: nobody coordinates now, or the node is about to go."""
JOB_PAUSE_MAX_S = 5.0
"""How long between two questions for a job that does not exist yet."""
CLAIMS_MAX = 3
"""How often a client that has moved from node to node takes its name back before it believes another has it."""
AWAY_GREETING_S = ANSWER_S
"""Another node's gateway answers within this time, or the client's own is asked (of several nodes: the next one)."""

T = TypeVar("T")


def pause(closed: threading.Event, pause_s: float) -> None:
    """Wait.  Raise `LocalFault` when the client is closed meanwhile."""
    if closed.wait(pause_s):
        raise LocalFault("the client was closed while it waited for the node")


class _Patience:
    """Growing pauses while something fails, and since when it does."""

    def __init__(self, pause_max_s: float, growth: float = PAUSE_GROWTH) -> None:
        self._pause_max_s = pause_max_s
        self._growth = growth
        self.reset()

    def reset(self) -> None:
        """Note that it does not fail any more."""
        self.since_s: float | None = None
        self._pause_s = PAUSE_FIRST_S

    def waited_s(self) -> float:
        """Return for how long it has failed."""
        now = time.monotonic()
        if self.since_s is None:
            self.since_s = now
        return now - self.since_s

    def next_s(self, give_up_after_s: float) -> float | None:
        """Return how long to pause now; None when that would be longer than the user wants to wait in all."""
        pause_s = self._pause_s
        if self.waited_s() + pause_s > give_up_after_s:
            return None
        self._pause_s = min(self._growth * pause_s, self._pause_max_s)
        return random.uniform(pause_s / 2, pause_s)


class HomeLost(ConnectionResetError):
    """Home broke while the client was at another gateway, which is not to blame."""


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
        identity: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        token_file: str | os.PathLike[str] | None = None,
        properties: Properties | None = None,
        streams: int = 0,
    ) -> None:
        self._properties = properties
        self.dialler = Dialler(nodes, identity, insecure, self.opened, token_file, streams=streams)
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
        self.give_up_after_s = 0.0
        self.joined = False
        """Whether there ever was a connection, or a try."""
        self._met_s: float | None = None  # when the connection was made that there is
        self._has_met = False  # there was one: what is wrong with certificates now may be mended while it waits
        self._tried_again = False  # the node that ended the last connection, or it is not to be
        self._unreachable = _Patience(PAUSE_MAX_S)
        self._sent_away = _Patience(PAUSE_MAX_S, SENT_AWAY_GROWTH)
        self._jobless = _Patience(JOB_PAUSE_MAX_S)
        self._claims_left = 1  # how often it joins once more when its name was taken by another connection
        self._joined_ns = 0
        self._pid = os.getpid()
        self._in_use = threading.Lock()
        self._sockets = Sockets()

    @property
    def node(self) -> str:
        """The address of the node that the client is at, or tries next."""
        return self._nodes[0]

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
        self._tried_again = True
        log.warning("node.silent node=%s next=%s", self.node, address)
        self._nodes.remove(address)
        self._nodes.insert(1, address)

    # ---- what is said and heard ------------------------------------------------------------------------------------

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
        message: cm.ToClient | None = None
        while message is None:  # it was the answer to a Ping, and the other one may have something
            source = stream
            try:
                if home is not None and stream is not home:
                    source = stream.wait_with(home)
                message = source.take()
            except OSError as error:
                if source is stream and not isinstance(error, OtherLost):
                    raise
                raise HomeLost(f"the connection home broke: {error}") from error
        if isinstance(message, cm.JobOver) or (
            isinstance(message, cm.Committed | cm.RoundOver) and message.round == number
        ):
            self._books.note(message)
            if stream is home:
                self.disconnect()
            raise Settled(self._job, number, message)
        return message

    def hear(self, stream: Stream) -> None:
        """Note what has come already, without waiting."""
        while not self._books.is_job_over() and (message := stream.pending()) is not None:
            self._books.note(message)

    def say(self, *messages: cm.FromClient) -> None:
        """Say something that has no answer, if the node is there: a new connection needs no such word."""
        with self._used():
            try:
                for message in messages:
                    if self.stream is not None:
                        self.stream.send(message)
            except OSError:
                self.disconnect()

    def join(self, stream: Stream | None = None) -> cm.Join:
        """Return the words by which the client takes part (again), over the connection that there is or this one."""
        stream = stream or self.stream
        tells = self._properties is not None and stream is not None and cm.PROPERTIES in stream.knows
        # A clock that stands or goes back: to earlier versions of the node a later connection has a later time.
        self._joined_ns = max(self._joined_ns + 1, time.time_ns())
        properties = self._properties if tells and self._properties is not None else msgspec.UNSET
        return cm.Join(self._job, min(self._books.held, default=None), self._joined_ns, properties)

    # ---- the connection --------------------------------------------------------------------------------------------

    def retrying(self, action: Callable[[Stream], T]) -> T:
        """Do `action` on a connection, again on a new one when it breaks.  Raise `NodeUnreachable`."""
        with self._used():
            self.joined = True
            while True:
                try:
                    result = action(self._connected())
                except TlsFault as fault:
                    self.disconnect()
                    if fault.lasting and not self._has_met:
                        raise Refused("not-secured", "node", str(fault)) from fault
                    self._check_usable()
                    self._back_off(fault)
                except OSError as error:
                    self.disconnect()
                    self._check_usable()
                    self._back_off(error)
                except Refused as refused:
                    if not self._overcome(refused):
                        raise
                except (RoundEnded, Settled):  # the stream is in step
                    raise
                except BaseException:
                    self.disconnect()
                    raise
                else:
                    self._jobless.reset()
                    return result

    def _overcome(self, refused: Refused) -> bool:
        """Return whether a refusal ends nothing yet: the stream is in step, and it is tried once more."""
        if refused.code == cm.REPLACED and self._claims_left:
            # What was said over an earlier connection of this client, to another node, may have come to the coordinator
            # after what was said over this one: once for each.  Another client of its name takes it away again.
            log.warning("client.replaced job=%s client=%s: joining once more", self._job, self._client)
            self._claims_left -= 1
            self.disconnect()
            return True
        if refused.code == "unknown-job" and self.stream is not None:
            waited_s = self._jobless.waited_s()
            pause_s = self._jobless.next_s(self.give_up_after_s)
            if pause_s is None:
                return False
            log.warning("job.unknown job=%s node=%s waited_s=%.1f: waiting for it", self._job, self.node, waited_s)
            pause(self._closed, pause_s)
            with suppress(OSError):  # then the next word finds out
                self.stream.send(self.join())
            return True
        return False

    @contextmanager
    def _used(self) -> Iterator[None]:
        self._check_usable()
        if not self._in_use.acquire(blocking=False):
            raise LocalFault("the client is in use: one thread at a time, and none of it within `progress`")
        try:
            yield
        finally:
            self._in_use.release()

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise LocalFault("a forked process cannot use its parent's client: make a Client of its own in it")
        if self._closed.is_set():
            raise LocalFault("the client is closed")

    def opened(self, sock: socket.socket) -> None:
        """Note a socket that is about to be waited on, so that `close` can wake who waits."""
        self._sockets.note(sock)
        self._check_usable()  # closed just before: then it was not seen

    def _connected(self) -> Stream:
        if self.stream is not None:
            return self.stream
        self._check_usable()
        patience_s = GREETING_S if len(self._nodes) == 1 else AWAY_GREETING_S
        stream = greeted(self.node, patience_s, self._client, self._direct, self.dialler)
        try:
            stream.send(self.join(stream))
            if self._books.declined is not None and cm.DECLINE in stream.knows:
                stream.send(self._books.declined)
            ways = (self.others, self._holds, self._leave_for, self.learn)
            stream.watch = Watch(stream, self.node, self._client, *ways)
            stream.watch.ping()
        except BaseException:
            stream.close()
            raise
        # The node is there.  What is asked of it now may take hours, so this is not left until it is answered.
        if self._unreachable.since_s is not None:
            log.warning("node.reached node=%s away_s=%.1f", self.node, self._unreachable.waited_s())
        self._unreachable.reset()
        self._met_s = time.monotonic()
        self._has_met = True
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
        self._claims_left = min(self._claims_left + 1, CLAIMS_MAX)  # the connection that broke may overtake the next
        self._jobless.reset()
        was_there = self._met_s is not None
        away_s = self._unreachable.waited_s()
        pause_s = self._unreachable.next_s(self.give_up_after_s)
        if pause_s is None:
            nodes = " or ".join(self._nodes)
            raise NodeUnreachable(
                f"no node could be reached at {nodes} for {away_s:.0f} s: {error}; is `lifl up` running there?"
            ) from error
        if self._met_s is not None:
            if time.monotonic() - self._met_s >= STAYED_S:
                self._sent_away.reset()
            self._met_s, pause_s = None, self._sent_away.next_s(math.inf) or pause_s
        log.warning("node.unreachable node=%s error=%s pause_s=%.2f", self.node, error, pause_s)
        self._tried_again = was_there and not self._tried_again
        if not self._tried_again:
            self._nodes.rotate(-1)
        pause(self._closed, pause_s)

    def close(self) -> None:
        """Leave, from whatever thread; `closed` is set.  A forked child's copy is closed already."""
        if os.getpid() != self._pid:
            return
        if self._in_use.acquire(blocking=False):
            try:
                if self.stream is not None:
                    with suppress(OSError):  # the node is gone: it knows
                        self.stream.send(cm.Leave(self._job))
                    self.disconnect()
            finally:
                self._in_use.release()
            return
        # Someone waits for the node, or sends: what is sent may be cut, and the end of the connection says the rest.
        self._sockets.cut()

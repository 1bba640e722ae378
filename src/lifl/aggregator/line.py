"""The one connection of an `Aggregator`, which its threads share.

One request at a time is answered; a thread of its own reads what comes.  What the node says by itself, that a fold is
done or over, goes to `on_news`.  When the connection breaks, who waits is told, and the next request makes it again:
what was under way is then done again, which is safe because an update's identity is (fold, client), and a fold is named
by its host.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from queue import SimpleQueue
from typing import TypeVar

import msgspec

from lifl.client.dialling import Dialler, Sockets
from lifl.client.outcomes import NodeUnreachable
from lifl.client.split import Split, ways_of
from lifl.client.stream import GREETING_S, Stream, greeted, shut
from lifl.core.errors import LiflError, LocalFault, Refused, RemoteFault
from lifl.core.protocol import client as cm

PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 2.0

T = TypeVar("T")
Message = cm.ToClient


class Broken(OSError):
    """The connection is of no use any more: it broke, or is out of step."""


def _into(view: memoryview, ways: Split) -> Callable[[cm.Model], None]:
    """Return what receives a model's bytes."""

    def receive(model: cm.Model) -> None:
        if len(view) != model.data_bytes:
            raise Broken("the node sends a model of another size than was asked for")
        ways.receive_into(model.transfer, view)

    return receive


class Line:
    """The connection to `address()`, as `client`; `greet` is done first on each that is made."""

    def __init__(
        self,
        address: Callable[[], str],
        client: str,
        identity: str | None,
        return_within_s: float,
        on_news: Callable[[Message], bool],
        on_broken: Callable[[], None],
        streams: int = 0,
    ) -> None:
        self.greet: Callable[[], None] = lambda: None
        self._closing = threading.Event()
        self._pid = os.getpid()
        self._address = address
        self._client = client
        self._identity = identity
        self._return_within_s = return_within_s
        self._on_news = on_news
        self._on_broken = on_broken
        self._turn = threading.RLock()
        self._stream: Stream | None = None
        self._streams = streams
        self._dialler: Dialler | None = None
        self._sockets = Sockets()
        self._reader: threading.Thread | None = None
        self._answers: SimpleQueue[Message | OSError] = SimpleQueue()
        self._sink: Callable[[cm.Model], None] | None = None  # receives what follows a Model
        self._unix = ""
        self.dialled = ""
        """Where the connection was made to: HOST:PORT, a state folder or ``unix:PATH``."""
        self.asked: cm.FromClient | None = None
        """What is to be answered now."""
        self.node = ""
        """The node's number, in hexadecimal digits."""
        self.life = 0
        """Counts the connections that have ended."""

    @property
    def is_up(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._stream is not None and self._reader is not None and self._reader.is_alive()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closing.is_set()

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that has made the line."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raise `LocalFault` in a child of the process that has made the line: connection and node are the parent's."""
        if self.is_forked:
            text = (
                f"the aggregator is that of process {self._pid}, and this is its child {os.getpid()}: make another one"
            )
            raise LocalFault(f"{text} here, or bring updates by a ticket (`fold.ticket`, `lifl.take_part`)")

    def rest(self, pause_s: float) -> None:
        """Wait.  Raise `LocalFault` when the line is closed meanwhile."""
        if self._closing.wait(pause_s):
            raise LocalFault("the aggregator is closed")

    # ---- requests ----------------------------------------------------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[Stream]:
        """Have the connection for one request.  Raise `OSError` when there is none, and when it breaks."""
        self.check_process()  # before the lock: another thread of the parent may have had it
        with self._turn:
            stream = self._connected()
            try:
                yield stream
            except (Refused, LocalFault):
                raise
            except BaseException:  # it may be out of step
                self._drop(stream)
                raise

    def ask(self, message: cm.FromClient) -> Message:
        """Send a request and return its answer."""
        with self.turn() as stream:
            return self.exchange(stream, message, message)

    def fetch(self, message: cm.GetModel, sink: memoryview) -> Message:
        """Send a request for a model and return the answer; what follows a Model is received into `sink`."""
        with self.turn() as stream, self.ways(stream, len(sink)) as ways:
            asked = msgspec.structs.replace(message, streams=ways.asked)
            self._sink = _into(sink, ways)
            return self.exchange(stream, asked, asked)

    def ways(self, stream: Stream, nbytes: int) -> AbstractContextManager[Split]:
        """Provide, within a turn, the ways of a body that is asked for or offered: several where one is too slow."""
        return ways_of(stream, self._client, nbytes)

    def tell(self, message: cm.FromClient) -> None:
        """Send what is answered by news, if the connection stands.  Raise `OSError` when it breaks."""
        self.check_process()
        with self._turn:
            if self.is_up:
                with self.turn() as stream:
                    stream.send(message)

    def ask_checked(self, message: cm.GetModel, sink: memoryview) -> tuple[Message, Message | None]:
        """Send a request for a model with its checksum; return the answer and, behind a Model, what follows it."""
        with self.turn() as stream:
            self._sink, self.asked = _into(sink, Split(stream, (), None)), message
            try:
                stream.send(message)
                answer = self._answer()
                return answer, self._answer() if isinstance(answer, cm.Model) else None
            finally:
                self.asked = None

    def _answer(self) -> Message:
        answer = self._answers.get()
        if isinstance(answer, OSError):
            raise answer
        return answer

    def reach(self) -> None:
        """Have the connection stand.  Raise `OSError` when it cannot."""
        with self.turn():
            pass

    def exchange(self, stream: Stream, about: cm.FromClient, said: cm.FromClient | Callable[[], None]) -> Message:
        """Within a turn, send a message, or what `said` sends, and wait for the answer, which is `about` a message."""
        self.asked = about  # before it is sent: the answer may be here before the last byte's `send` returns
        try:
            if callable(said):
                said()
            else:
                stream.send(said)
            return self._answer()
        finally:
            self.asked = None

    def give_up(self, why: str) -> None:
        """Let who waits for an answer do so no longer: what it was about is over, and the connection out of step."""
        self._answers.put(Broken(why))

    def retrying(self, act: Callable[[], T]) -> T:
        """Do what is safe to do again, until the connection stands.

        Raise `NodeUnreachable` when the node was away for longer than it may be, and what `act` raises.
        """
        since_s: float | None = None
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                return act()
            except (OSError, RemoteFault) as error:
                if self.closed:
                    raise LocalFault("the aggregator is closed") from error
                now = time.monotonic()
                since_s = now if since_s is None else since_s
                if now - since_s + pause_s > self._return_within_s:
                    text = f"the aggregator's node was away for {now - since_s:.0f} s (return_within_s): {error}"
                    raise NodeUnreachable(f"{text}; is `lifl up` running there?") from error
                self.rest(random.uniform(pause_s / 2, pause_s))
                pause_s = min(2 * pause_s, PAUSE_MAX_S)

    @property
    def is_local(self) -> bool:
        """Whether the node is on this machine, and its socket the way to it."""
        return bool(self._unix)

    def another(self) -> Stream:
        """Return a connection beside this one, which is the caller's.  Raise `OSError`, `Refused`, `RemoteFault`."""
        return greeted(self.dialled, GREETING_S, self._client, True, Dialler([self.dialled], self._identity))

    def authority(self, addresses: Sequence[str]) -> str:
        """Return the digest of the authority that vouches for the node, which takes others' updates at the addresses.

        Raise `NodeUnreachable` when it is at none of them from here, and `Refused` where nobody needs a certificate.
        """
        failed: Exception | None = None
        for address in (*addresses, self.dialled):
            if address.startswith("unix:") or os.path.isdir(address):
                continue
            try:
                return Dialler([address], self._identity).authority(address, GREETING_S)
            except (OSError, RemoteFault) as error:
                failed = error
        raise NodeUnreachable(f"the node tells its authority at none of {', '.join(addresses)}: {failed}") from failed

    def own_addresses(self) -> list[str]:
        """Return where else the node can be reached from its own machine: its socket, if that is known."""
        return [f"unix:{self._unix}"] if self._unix else []

    # ---- the connection ----------------------------------------------------------------------------------------------

    def _connected(self) -> Stream:
        if self.closed:
            raise LocalFault("the aggregator is closed")
        if self._stream is not None and self.is_up:
            return self._stream
        if self._stream is not None:
            self._drop(self._stream)
        address = self._address()
        if self._dialler is None:  # the address stays the same, too
            self._dialler = Dialler([address], self._identity, opened=self._sockets.note, streams=self._streams)
        stream = greeted(address, GREETING_S, self._client, True, self._dialler)
        if cm.FOLDS not in stream.knows:
            stream.close()
            raise Refused("old-node", "node", f"the node at {address} is of a version that knows no folds; upgrade it")
        self.node, self.dialled = stream.node, address
        path = os.path.join(address, "gateway.sock") if os.path.isdir(address) else address.removeprefix("unix:")
        self._unix = os.path.abspath(path) if stream.is_local else ""
        self._answers = SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(stream, self._answers), daemon=True, name="lifl-line")
        self._stream = stream
        self._reader.start()
        try:
            self.greet()
        except BaseException:
            self._drop(stream)
            raise
        return stream

    def _read(self, stream: Stream, answers: SimpleQueue[Message | OSError]) -> None:
        try:
            while True:
                stream.wait()
                message = stream.pending()
                if message is None:
                    continue
                if isinstance(message, cm.Model):
                    sink, self._sink = self._sink, None
                    if sink is None:
                        raise Broken("the node sends a model that nobody asked for")
                    sink(message)
                if self._on_news(message):
                    continue
                if self.asked is None:
                    raise Broken(f"the node says {type(message).__name__}, which nobody asked for")
                answers.put(message)
        except (OSError, LiflError) as error:
            self.life += 1
            answers.put(error if isinstance(error, OSError) else Broken(str(error)))
        self._on_broken()

    def _drop(self, stream: Stream) -> None:
        if self._stream is not stream:
            return
        self._stream = None
        shut(stream)
        reader, self._reader = self._reader, None
        begun = reader is not None and reader.ident is not None  # not so when an interrupt (Ctrl-C) came in between
        if reader is not None and begun and reader is not threading.current_thread():
            reader.join()
        stream.close()

    def close(self) -> None:
        """End the connection; who waits, on it or for a node that is busy or away, is told."""
        self._closing.set()
        self._sockets.cut()
        with self._turn:
            if self._stream is not None:
                self._drop(self._stream)

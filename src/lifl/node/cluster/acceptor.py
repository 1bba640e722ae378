"""How a control port takes connections in: of each it reads one frame, in bounded time and memory.

That is a PeerHello, or what somebody says who wants a certificate (`core/protocol/enrolment.py`).  Where connections
are secured (`node/security.py`) the handshake comes first, within the same time; whose certificate may go on is for the
one to say who answers.  How many may be under way, in all and of one source, `node/greetings.py` says.
A stranger that sends anything else is told why in a PeerRefusal and shut out; no other connection notices.
After the PeerHello nothing more is read here: the socket goes on to the side that answers.  `read_frame` is for the
side that dials, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from lifl.core.errors import RemoteFault
from lifl.core.fields import Message
from lifl.core.limits import (
    GREETING_BYTES_MAX,
    GREETING_S,
    GREETINGS_MAX,
    GREETINGS_PER_SOURCE_MAX,
    REFUSAL_CHARS_MAX,
)
from lifl.core.protocol import cluster as p
from lifl.core.protocol import enrolment as e
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.node.door_log import DoorLog
from lifl.node.greetings import Greetings, cut
from lifl.node.listening import Listening
from lifl.node.security import PlainSpeech, Secured, Security
from lifl.node.tasks import start
from lifl.tls.faults import TlsFault
from lifl.tls.tls_socket import Stream
from lifl.tls.waits import received, sent

CHANNEL = "the control channel"
LINGER_S = 1.0
LINGER_BYTES_MAX = 256 * 1024


class Acceptor:
    """Takes connections in, and reads the PeerHello of each; owns `listener`.

    `answer(first, secured, host)` takes the socket over and returns None, or returns what to say before it is closed;
    `turned_away(host, text)` is told of each that is refused for good.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[e.First, Secured, str], Message | None],
        turned_away: Callable[[str, str], None],
        security: Security,
    ) -> None:
        self._turned_away = turned_away
        self._answer = answer
        self._security = security
        self._tasks: set[asyncio.Task[None]] = set()
        self._greetings = Greetings(GREETINGS_MAX, GREETINGS_PER_SOURCE_MAX)
        self._door_log = DoorLog()
        self._loop = asyncio.get_running_loop()
        self._listening = Listening("peer", listener, self._taken)

    def _taken(self, sock: socket.socket, where: Any) -> None:
        host = str(where[0])
        if not self._greetings.enter(sock, host, self._loop.time(), lambda: cut(sock)):
            if not self._security.is_on:
                with contextlib.suppress(OSError):
                    sock.send(encode(p.PeerRefusal("many other nodes are knocking; come again", retry=True)))
            sock.close()
            return
        start(self._tasks, self._greet(sock, host), CHANNEL)

    async def _greet(self, raw: socket.socket, host: str) -> None:
        taken: Secured | None = None
        kept = False
        try:
            prepare(raw)
            answer: Message | None = None
            try:
                async with asyncio.timeout(GREETING_S):
                    taken = await self._security.taken(raw)
                    first = e.read_first(await read_frame(taken.sock, msgspec.Raw))
                if _hung_up(raw):
                    return
                answer = self._answer(first, taken, host)
                kept = answer is None
            except TimeoutError:
                answer = p.PeerRefusal(f"no PeerHello was complete within {GREETING_S:g} s")
            except PlainSpeech as error:
                taken, answer = Secured(raw), _no(error)
            except (RemoteFault, TlsFault) as error:
                answer = _no(error)
            if isinstance(answer, p.PeerRefusal):
                self._door_log.say("peer.refused", host, answer.text)
                if not answer.retry:
                    self._turned_away(host, answer.text)
            if answer is not None and taken is not None:  # else TLS has failed, and has told it by an alert
                async with asyncio.timeout(LINGER_S):
                    await _say_last(taken.sock, answer)
        except (OSError, EOFError, TimeoutError) as error:
            self._door_log.say("peer.gone", host, f"before it was greeted: {str(error) or 'it does not read'}")
        finally:
            self._greetings.leave(raw)
            if not kept:
                raw.close()

    def close(self) -> None:
        """Take no more connections, and end those that are not greeted yet."""
        self._listening.close()
        for task in list(self._tasks):
            task.cancel()
        self._door_log.flush()


async def read_frame(sock: Stream, kinds: Any) -> Any:
    """Return the next frame, of at most `GREETING_BYTES_MAX`, and not a byte of what follows.  Raise `EOFError` too."""
    decoder: FrameDecoder[Any] = FrameDecoder(kinds, GREETING_BYTES_MAX)
    while (message := decoder.next_message()) is None:
        data = await received(sock, decoder.missing_bytes)
        if not data:
            raise EOFError("the peer closed the connection")
        decoder.feed(data)
    return message


def _no(error: Exception) -> p.PeerRefusal:
    text = f"this is the control port of a node of LIFL, for other nodes: {error}"
    return p.PeerRefusal(text[:REFUSAL_CHARS_MAX])


async def _say_last(sock: Stream, message: Message) -> None:
    """Send a message and wait for the peer to close: closing with unread bytes would take the message back."""
    await sent(sock, encode(message))
    sock.shutdown(socket.SHUT_WR)
    left = LINGER_BYTES_MAX
    while left > 0 and (data := await received(sock, min(left, 65_536))):
        left -= len(data)


def _hung_up(sock: socket.socket) -> bool:
    """Return whether the peer closed: its PeerHello is one of those that waited here while it tried again and again."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def prepare(sock: socket.socket, timeout_s: float = p.DEAD_S) -> None:
    """Set a control connection's options: no delays, and an end when nothing is acknowledged for `timeout_s`."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))

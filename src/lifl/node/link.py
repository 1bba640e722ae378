"""A link: frames of `protocol/frames.py` over a stream socket, in an asyncio (uvloop) event loop.

The daemon has one over AF_UNIX to each child and each command-line client, and one over TCP (with TLS, where that is
secured) to each of its peers; the gateway has one to the daemon.  A link reads in the
loop's callbacks and hands every message to `on_message`.  `send` never blocks: what the socket does not take at once
waits in the link, at most `LINK_WAITING_BYTES_MAX`; a peer that is so far behind is as good as dead and the link
closes.
Descriptors may go along with a message; the peer gets them with the frame's first byte.

What is said of each update is said by `gather`: those of one turn of the loop leave in one system call, and wake the
peer once.

A link ends once, by `on_closed(error)`: None when the peer closed or `close` was called, `RemoteFault` when
the peer sent what the channel forbids, `ResourceFault` when it was too far behind, `OSError` when the socket failed.
"""

from __future__ import annotations

import array
import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lifl.core.errors import Impossible, RemoteFault, ResourceFault
from lifl.core.limits import LINK_WAITING_BYTES_MAX
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.tls.tls_socket import Stream, TlsSocket

log = logging.getLogger("lifl.link")

CONGESTED_BYTES = 1024 * 1024
"""From here on a careful sender (`drained`) stops producing."""
GATHERED_MAX = 16
"""So many messages are not kept back any longer: the peer may begin with them."""
READ_BYTES = 256 * 1024
RIGHTS_MAX = 16
"""Descriptors that come along with what is read at once."""
_READ = memoryview(bytearray(READ_BYTES))
"""Where all links read to, in turn: a fresh buffer for each read would cost more than the read itself."""


class Link:
    """One end of a link; takes ownership of `sock`.  Must be made in the running loop's thread.

    `kinds` is the union of messages that the peer may send.  What `on_message(message)` raises ends this link and
    nothing else: `RemoteFault` like any other breach of the protocol, and a fault of ours, which goes to the log.  Only
    `Impossible` passes on to the loop.

    `takes_descriptors`: the peer may send some along with its messages (AF_UNIX only), one with each of those that say
    so.

    `in_turn`: the next message is handed over when what was said to the one before has left and the loop has had its
    turn, so a peer that asks without end, or does not read the answers, is slowed by TCP and holds up nobody.  From
    `hold` to `release` nothing is handed over at all.
    """

    def __init__(
        self,
        sock: Stream,
        kinds: Any,
        on_message: Callable[[Any], None],
        on_closed: Callable[[Exception | None], None],
        waiting_bytes_max: int = LINK_WAITING_BYTES_MAX,
        in_turn: bool = False,
        takes_descriptors: bool = False,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder: FrameDecoder[Any] = FrameDecoder(kinds)
        self._on_message = on_message
        self._on_closed = on_closed
        self._waiting_bytes_max = waiting_bytes_max
        self._waiting: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._waiting_bytes = 0
        self._gathered: list[bytes] = []  # frames that leave within this turn of the loop
        self._congested_until: asyncio.Future[None] | None = None
        self._closed = False
        self._hurries = False
        self._in_turn = in_turn
        self._takes_descriptors = takes_descriptors
        self._descriptors: deque[int] = deque()
        self._rests = False  # nothing is handed over until what waits has left
        self._held = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        self._read_pending()

    @property
    def closed(self) -> bool:
        """True from the moment that the link ended."""
        return self._closed

    def send(self, *messages: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Send messages at once, or keep them until the socket takes them; on a closed link they are dropped.

        Raise `FrameTooLong`, with nothing sent, when one of them cannot travel.

        `descriptors` are duplicated where they have to wait, so the caller may close its own at once.
        """
        if self._closed or not messages:
            return
        frame = b"".join(map(encode, messages))
        self.flush()
        self._leave(frame, descriptors)

    def gather(self, *messages: msgspec.Struct) -> None:
        """Send messages soon: with what else is said in this turn of the loop, in its order; else as `send` does."""
        if self._closed or not messages:
            return
        frames = list(map(encode, messages))
        if not self._gathered:
            self._loop.call_soon(self.flush)
        self._gathered += frames
        if len(self._gathered) >= GATHERED_MAX:
            self.flush()

    def flush(self) -> None:
        """Send what has been gathered at once, before what cannot wait for the loop's turn, or holds it up."""
        if self._gathered:
            frame, self._gathered = b"".join(self._gathered), []
            if not self._closed:
                self._leave(frame)

    def _leave(self, encoded: bytes, descriptors: Sequence[int] = ()) -> None:
        frame = memoryview(encoded)
        if not self._waiting:
            try:
                frame = frame[_send(self._sock, frame, descriptors) :]
            except BlockingIOError:
                pass
            except OSError as error:
                self._end_soon(error)
                return
            else:
                descriptors = ()
            if not frame:
                return
            self._loop.add_writer(self._sock.fileno(), self._writable)
        try:
            copies = tuple(map(os.dup, descriptors))
        except (
            OSError
        ) as error:  # no descriptor is left: the message cannot wait, and those behind it must not go first
            self._end_soon(error)
            return
        self._waiting.append((frame, copies))
        self._waiting_bytes += len(frame)
        if self._waiting_bytes > self._waiting_bytes_max:
            text = f"the peer of a link is {self._waiting_bytes} bytes behind; it was disconnected"
            self._end_soon(ResourceFault(text))

    async def drained(self) -> None:
        """Return when less than `CONGESTED_BYTES` wait (at once, usually), or when the link has ended, or hurries."""
        if self._waiting_bytes < CONGESTED_BYTES or self._closed or self._hurries:
            return
        if self._congested_until is None:
            self._congested_until = self._loop.create_future()
        await asyncio.shield(self._congested_until)

    def hurry(self) -> None:
        """Have nobody wait for the peer any more: it may read nothing until this process has ended."""
        self._hurries = True
        self._release()

    def pause_reading(self) -> None:
        """Take no more messages from the socket until `resume_reading`; what was read already still comes."""
        if not self._closed:
            self._loop.remove_reader(self._sock.fileno())

    def resume_reading(self) -> None:
        """Take messages again."""
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def close(self) -> None:
        """End the link; what still waits for the socket is dropped."""
        self.flush()
        self._end(None)

    def _readable(self) -> None:
        if self._closed:
            return
        try:
            nbytes = self._receive_with_rights() if self._takes_descriptors else self._sock.recv_into(_READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if not nbytes:
            self._end(None)
            return
        self._decoder.feed(_READ[:nbytes])
        self._hand_over()

    def _receive_with_rights(self) -> int:
        """Receive, and keep the descriptors that come along for `taken_descriptor`, of a peer that may send them."""
        assert isinstance(self._sock, socket.socket)
        room = socket.CMSG_SPACE(RIGHTS_MAX * array.array("i").itemsize)
        nbytes, ancillary, flags, _ = self._sock.recvmsg_into([_READ], room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) // received.itemsize * received.itemsize])
                self._descriptors.extend(received)
        if flags & socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, "descriptors that came along with a message are lost")
        return nbytes

    def taken_descriptor(self) -> int:
        """Return the descriptor that came along with the message that is being handed over; it is the caller's.

        Raise `RemoteFault` when none did.
        """
        if not self._descriptors:
            raise RemoteFault("a message came without its descriptor")
        return self._descriptors.popleft()

    def _hand_over(self) -> None:
        try:
            while not self._closed and (message := self._decoder.next_message()) is not None:
                self._on_message(message)
                if self._in_turn:
                    self._rest()
                    return
        except RemoteFault as error:
            self._end(error)
        except Impossible:
            raise
        except Exception as error:
            log.exception("link.failed a message could not be taken in; its link is closed")
            self._end(error)
        else:
            self._read_pending()

    def _rest(self) -> None:
        if not self._closed:
            self._loop.remove_reader(self._sock.fileno())
            self._rests = True
            if not self._waiting:
                self._go_on()

    def _go_on(self) -> None:
        """Have the next message handed over, when the loop has had its turn."""

        def hand_over() -> None:
            if not self._closed:
                self._loop.add_reader(self._sock.fileno(), self._readable)
                self._hand_over()

        if self._rests and not self._held:
            self._rests = False
            self._loop.call_soon(hand_over)

    def hold(self) -> None:
        """Hand over no more messages, of a link that does so `in_turn`, until `release`; called from `on_message`."""
        self._held = True

    def release(self) -> None:
        """Hand over the next one, when its turn has come."""
        self._held = False
        if not self._waiting:
            self._go_on()

    def _read_pending(self) -> None:
        """See to it that what TLS has decrypted already is read: the descriptor tells nothing of it."""
        if isinstance(self._sock, TlsSocket) and not self._closed and self._sock.pending:
            self._loop.call_soon(self._readable)

    def _writable(self) -> None:
        while self._waiting:
            frame, descriptors = self._waiting[0]
            try:
                sent = _send(self._sock, frame, descriptors)
            except BlockingIOError:
                break
            except OSError as error:
                self._end(error)
                return
            for fd in descriptors:
                os.close(fd)
            self._waiting_bytes -= sent
            if sent < len(frame):
                self._waiting[0] = (frame[sent:], ())
            else:
                self._waiting.popleft()
        if not self._waiting:
            self._loop.remove_writer(self._sock.fileno())
            self._go_on()
        self._release()

    def _release(self) -> None:
        """Wake the senders that wait for room."""
        if self._congested_until is not None and (self._waiting_bytes < CONGESTED_BYTES or self._hurries):
            self._congested_until.set_result(None)
            self._congested_until = None

    def _end_soon(self, error: Exception) -> None:
        """End the link and tell so later: the sender is in the middle of something that the news may overtake."""
        if self._shut():
            self._loop.call_soon(self._on_closed, error)

    def _end(self, error: Exception | None) -> None:
        if self._shut():
            self._on_closed(error)

    def _shut(self) -> bool:
        """Close the socket and drop what waits; return False when that was done before."""
        if self._closed:
            return False
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        for _frame, descriptors in self._waiting:
            for fd in descriptors:
                os.close(fd)
        self._waiting.clear()
        self._gathered.clear()
        self._waiting_bytes = 0
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self._release()
        self._sock.close()
        return True


def _send(sock: Stream, frame: memoryview, descriptors: Sequence[int]) -> int:
    if not descriptors:
        return sock.send(frame)
    rights = array.array("i", descriptors)
    return sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

"""What goes to a client: frames, and the bodies of models, in order.

A frame is sent at once when the socket takes it; else it waits in line (also behind the bytes of a model), at most
`WAITING_BYTES_MAX`: a client that reads too slowly is disconnected.  One task flushes the line, while there
is one.
"""

from __future__ import annotations

import array
import asyncio
import socket
from collections import deque

from lifl.core import limits
from lifl.core.fields import Message
from lifl.core.protocol.frames import encode
from lifl.node.gateway.body_moves import Departed, Send
from lifl.node.gateway.budgets import WaitingBytes
from lifl.node.gateway.client_socket import ClientSocket
from lifl.tls.waits import ready, sent

Waiting = tuple[memoryview, tuple[int, ...], int]
"""The rest of a frame, the descriptors that go with its first byte, and what it counts for."""
ENTRY_BYTES = 256
"""What keeping a frame in line takes beside its bytes."""

NOTHING = memoryview(b"")


def _after(pieces: list[memoryview], sent: int) -> list[memoryview]:
    """Return what is left of the pieces behind so many bytes."""
    left = []
    for piece in pieces:
        if sent < len(piece):
            left.append(piece[sent:])
        sent = max(0, sent - len(piece))
    return left


class Outbox:
    """The line of what waits for one client."""

    def __init__(self, client_socket: ClientSocket, all_waiting: WaitingBytes) -> None:
        self.flusher: asyncio.Task[None] | None = None
        """The task that sends what waits, while something does."""
        self._socket = client_socket
        self._sock = client_socket.sock
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Waiting | Send] = deque()
        self._waiting_bytes = 0
        self._all_waiting = all_waiting
        self._body_sent: asyncio.Future[None] | None = None

    def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        """Send a message, or put it in line; a client that is too far behind is disconnected."""
        self.send_frame(encode(message), descriptors=descriptors)

    def send_frame(self, frame: bytes, shared: memoryview = NOTHING, descriptors: tuple[int, ...] = ()) -> None:
        """Do as `send` does, with a message in its frame, whose end may be `shared` with what others are sent."""
        if self._socket.is_shut:
            return
        pieces = [memoryview(frame), shared] if shared else [memoryview(frame)]
        if self.flusher is None:
            try:
                left_bytes = self._send_now(pieces, descriptors)
            except BlockingIOError:
                left_bytes = 0
            except OSError:
                self._socket.shut()
                return
            if left_bytes:
                pieces, descriptors = _after(pieces, left_bytes), ()
            if not pieces:
                return
        for piece in pieces:
            own_bytes = 0 if piece.obj is shared.obj else len(piece) + ENTRY_BYTES
            self._waiting.append((piece, descriptors, own_bytes))
            self._all_waiting.add(self._socket, own_bytes)
            self._waiting_bytes += len(piece)
            descriptors = ()
        if self._waiting_bytes > limits.WAITING_BYTES_MAX:
            self._socket.cut(f"it does not read: {self._waiting_bytes} bytes wait for it")
        self._flush_soon()

    def send_body(self, view: memoryview, departed: Departed | None) -> asyncio.Future[None]:
        """Put a body in line; the future is done when it is sent, or has the `OSError` that ended the connection."""
        self._body_sent = self._loop.create_future()
        self._waiting.append(Send(self._sock, view, departed))
        self._flush_soon()
        return self._body_sent

    def _send_now(self, pieces: list[memoryview], descriptors: tuple[int, ...]) -> int:
        if descriptors:
            rights = array.array("i", descriptors)
            return self._sock.sendmsg(pieces, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        return self._sock.send(pieces[0]) if len(pieces) == 1 else self._sock.sendmsg(pieces)

    def _flush_soon(self) -> None:
        if self.flusher is None:
            self.flusher = self._loop.create_task(self._flush())

    async def _flush(self) -> None:
        """Send what waits, in order."""
        failed: Exception | None = None
        try:
            while self._waiting:
                item = self._waiting.popleft()
                if isinstance(item, Send):
                    await self._socket.move(item, limits.BODY_STALL_S)
                    self._settle_body(None)
                else:
                    frame, descriptors, own_bytes = item
                    async with asyncio.timeout(limits.BODY_STALL_S):
                        await self._send_waiting(frame, descriptors)
                    self._waiting_bytes -= len(frame)
                    if not self._socket.is_shut:  # else nothing of it is counted any more
                        self._all_waiting.add(self._socket, -own_bytes)
        except (OSError, TimeoutError) as error:
            failed = error
            if isinstance(error, TimeoutError):
                self._socket.cut(self._socket.reason(error))
            self._socket.shut()
        finally:
            self.flusher = None
            if failed is not None or not self._waiting:
                self._all_waiting.forget(self._socket)
            if failed is not None:
                self._waiting.clear()
                self._settle_body(ConnectionResetError(f"the client is gone: {failed}"))

    def _settle_body(self, error: OSError | None) -> None:
        if self._body_sent is not None and not self._body_sent.done():
            if error is None:
                self._body_sent.set_result(None)
            else:
                self._body_sent.set_exception(error)

    async def _send_waiting(self, frame: memoryview, descriptors: tuple[int, ...]) -> None:
        while descriptors:
            try:
                frame, descriptors = frame[self._send_now([frame], descriptors) :], ()
            except BlockingIOError:
                await ready(self._sock, write=True)
        await sent(self._sock, frame)

"""The socket of a connection: how it ends, and how bodies move over it.

A connection that must end is shut down, which wakes the coroutine that reads and whatever moves bytes with an error or
the end of the stream; why it was cut is kept, because what follows a cut only looks like something else.  Only the
connection closes the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable

from lifl.core import limits
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.node.gateway.body_moves import STALL_BYTES, Movers, Receive, Send, move
from lifl.node.gateway.read_waiter import ReadWaiter
from lifl.node.who import is_same_user, who_is
from lifl.tls.tls_socket import Stream


class ClientSocket:
    """`sock` with its end; `on_shut` is called once, when it is shut down."""

    def __init__(self, sock: Stream, movers: Movers, read_waiter: ReadWaiter, on_shut: Callable[[], None]) -> None:
        self.sock = sock
        self.who = who_is(sock)
        self.client = ""
        """The name that it uses, from Hello on."""
        self.is_shut = False
        self.ended = asyncio.Event()
        """Set when it is shut, for who waits for something else."""
        self.cut_because = ""
        self._movers = movers
        self._read_waiter = read_waiter
        self._on_shut = on_shut

    def shut(self) -> None:
        """End the connection: everything that waits for the socket wakes up with an error or the end of the stream."""
        if not self.is_shut:
            self.is_shut = True
            self.ended.set()
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # the peer was faster
                pass
            self._on_shut()

    def cut(self, because: str) -> None:
        """Disconnect a client that is too slow."""
        self.cut_because = self.cut_because or because
        self.shut()

    def reason(self, error: Exception) -> str:
        """Return why the connection, or what was under way, ended with this error."""
        text = str(error) or ("a frame took too long" if isinstance(error, TimeoutError) else type(error).__name__)
        return self.cut_because or text[:TEXT_CHARS_MAX]

    def is_same_user(self) -> bool:
        """Return whether the peer is a process of this machine that may do what this one may."""
        return is_same_user(self.sock)

    async def rest(self, wait_s: float) -> None:
        """Wait so long.  Raise `ConnectionResetError` when the connection is shut, or the client has left meanwhile.

        What it has sent before is not handled then: it would be at once, and count for the client's other connections.
        """
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.ended.wait()
        if self.is_shut or (wait_s > 0 and self._has_left()):
            raise ConnectionResetError("the connection ended while its request waited for its turn")

    def _has_left(self) -> bool:
        """Return whether the client has closed the connection, whatever it has sent before."""
        ends = select.poll()
        ends.register(self.sock, select.POLLRDHUP)
        return bool(ends.poll(0))

    async def move(self, body: Receive | Send, stall_s: float) -> None:
        """Have a body moved; a small one is received here, as soon as it is all there: no other thread is woken."""
        if isinstance(body, Send) or body.total_bytes > limits.SMALL_BODY_BYTES or not await self._receive_soon(body):
            text = f"less than {STALL_BYTES} bytes of a body moved in {stall_s:g} s"
            await move(self._movers, body, stall_s, lambda: self.cut(text))

    async def _receive_soon(self, body: Receive) -> bool:
        """Return whether all of it came within `SOON_S`; what has come is kept."""
        try:
            async with asyncio.timeout(limits.SOON_S):
                while not body.step():
                    await self._read_waiter.readable(self.sock)
        except TimeoutError:
            return False
        except OSError:
            body.finish()
            raise
        body.finish()
        return True


def tune(sock: socket.socket, unacknowledged_s: float = limits.UNACKNOWLEDGED_S) -> None:
    """Have TCP send at once, and find out when the peer's machine is gone, without anything to wake up for here."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, limits.KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, limits.KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, limits.KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(unacknowledged_s * 1000))

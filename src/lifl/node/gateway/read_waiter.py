"""Waiting for many sockets to have bytes, at the price of one system call each.

An event loop that is asked to wait for one read registers the socket, waits, and takes it out again, which for uvloop
are nine system calls and a few objects.  Here all sockets stay in one epoll, which itself is one descriptor of the
loop; each is armed for one event at a time, so that no wait ends while movers or the client itself have the socket.
The kernel takes a socket out when it is closed.

What TLS has received already is not in the socket any more: then there is nothing to wait for.
"""

from __future__ import annotations

import asyncio
import select

from lifl.tls.tls_socket import Stream, TlsSocket

_ONCE = select.EPOLLIN | select.EPOLLONESHOT


class ReadWaiter:
    """The sockets of one event loop that are waited for; must be made in the running loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._loop.add_reader(self._epoll.fileno(), self._look)

    async def readable(self, sock: Stream) -> None:
        """Return when `sock` has bytes, its end or an error; the loop has had its turn in any case."""
        if isinstance(sock, TlsSocket) and sock.pending:
            await asyncio.sleep(0)
            return
        fd = sock.fileno()
        self._waiting[fd] = ready = self._loop.create_future()
        try:
            self._epoll.modify(fd, _ONCE)
        except FileNotFoundError:
            self._epoll.register(fd, _ONCE)
        try:
            await ready
        finally:
            del self._waiting[fd]

    def _look(self) -> None:
        for fd, _events in self._epoll.poll(0):
            ready = self._waiting.get(fd)  # None: the wait was given up
            if ready is not None and not ready.done():
                ready.set_result(None)

    def close(self) -> None:
        """Close the epoll; there is no wait any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

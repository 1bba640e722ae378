"""A connection's steps in an event loop: each does what it can, and waits for the descriptor when it must.

The handshake, too, is a few short steps between which the loop has its turn.  The caller bounds the time.
"""

from __future__ import annotations

import asyncio
import socket

from lifl.tls.tls_socket import Stream, TlsSocket

LINGER_BYTES = 64 * 1024
"""What is read, and thrown away, at a time."""


async def shaken(sock: TlsSocket) -> None:
    """Make the handshake of a non-blocking connection.  Raise `OSError`; `TlsFault` is one."""
    while True:
        try:
            sock.do_handshake()
            return
        except BlockingIOError:
            await ready(sock, write=sock.wants_write)


async def received(sock: Stream, nbytes: int) -> bytes:
    """Return at most so many bytes; none at the end of the stream.  Raise `OSError`."""
    while True:
        try:
            return sock.recv(nbytes)
        except BlockingIOError:
            await ready(sock)


async def sent(sock: Stream, data: bytes | memoryview) -> None:
    """Send all of it.  Raise `OSError`."""
    left = memoryview(data)
    while left:
        try:
            left = left[sock.send(left) :]
        except BlockingIOError:
            await ready(sock, write=True)


async def lingered(sock: Stream) -> None:
    """End a connection this way, and wait until the other side has: closed with unread bytes, it would be reset, and
    the last word lost.  Raise `OSError`.
    """
    sock.shutdown(socket.SHUT_WR)
    while await received(sock, LINGER_BYTES):
        await asyncio.sleep(0)  # whoever sends as fast as it is read keeps nobody else from a turn


async def ready(sock: Stream, write: bool = False) -> None:
    """Return when the descriptor can be written to, or has bytes, its end or an error."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    fd = sock.fileno()
    add(fd, _wake, woken)
    try:
        await woken
    finally:
        remove(fd)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)

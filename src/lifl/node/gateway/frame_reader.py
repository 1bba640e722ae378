"""Frames of a client, read exactly: the bytes of a body stay in the kernel until a mover receives them into the arena.

Waiting for a frame costs nothing and has no deadline (TCP keepalive finds dead peers); a frame that has begun has one.
"""

from __future__ import annotations

import asyncio

from lifl.core import limits
from lifl.core.errors import RemoteFault
from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import LENGTH_BYTES, FrameDecoder
from lifl.node.gateway.client_socket import ClientSocket
from lifl.node.gateway.shared import Shared


class FrameReader:
    """Reads the frames of one connection, in turn."""

    def __init__(self, client_socket: ClientSocket, shared: Shared) -> None:
        self.greeted = False
        """The client has said Hello: from now on it may send what is longer."""
        self.hosts = False
        """The client may host folds: so it may send the schema of a job that is not here yet."""
        self._socket = client_socket
        self._sock = client_socket.sock
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._decoder: FrameDecoder[cm.FromClient] = FrameDecoder(cm.FromClient)

    async def read(self) -> cm.FromClient:
        """Return the next message.  Raise `RemoteFault`, `EOFError`, `TimeoutError` or `OSError`."""
        while not await self._receive(LENGTH_BYTES, "closed by the client"):
            pass
        if (message := self._next_small()) is not None:  # nearly always: the whole frame has come at once
            return message
        async with asyncio.timeout(limits.FRAME_S):
            while self._missing_bytes() <= limits.SMALL_FRAME_BYTES:
                await self._receive(self._missing_bytes())
                if (message := self._next_small()) is not None:
                    return message
            return await self._read_large()

    async def _read_large(self) -> cm.FromClient:
        frames, holder = self._shared.large_frames, self._socket
        try:
            while (message := self._decoder.next_message()) is None:
                missing_bytes = self._decoder.missing_bytes
                await self._receive(min(missing_bytes, limits.SMALL_FRAME_BYTES))
                frames.add(holder, missing_bytes - self._decoder.missing_bytes, self._loop.time())
            return message
        finally:
            frames.forget(holder)

    def _next_small(self) -> cm.FromClient | None:
        """Return the message that has begun, if the rest of its frame is here and not large."""
        while (message := self._decoder.next_message()) is None:
            missing_bytes = self._missing_bytes()
            if missing_bytes > limits.SMALL_FRAME_BYTES or not self._receive_now(missing_bytes):
                return None
        return message

    def _missing_bytes(self) -> int:
        missing_bytes = self._decoder.missing_bytes
        if missing_bytes <= limits.HELLO_BYTES_MAX:
            return missing_bytes
        limit = self._shared.frame_bytes_max(self.hosts) if self.greeted else limits.HELLO_BYTES_MAX
        if missing_bytes > limit:
            raise RemoteFault(f"a frame announces {missing_bytes} bytes; at most {limit} are taken here")
        return missing_bytes

    async def _receive(self, nbytes: int, at_end: str = "closed by the client within a frame") -> bool:
        """Wait for bytes of a frame and take at most `nbytes`; return whether there were any."""
        await self._shared.read_waiter.readable(self._sock)
        return self._receive_now(nbytes, at_end)

    def _receive_now(self, nbytes: int, at_end: str = "closed by the client within a frame") -> bool:
        try:
            data = self._sock.recv(nbytes)
        except BlockingIOError:
            return False
        if not data:
            raise EOFError(at_end)
        self._decoder.feed(data)
        return True

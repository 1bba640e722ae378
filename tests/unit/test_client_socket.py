"""What a client has sent before its connection ended is not handled any more, least of all at once."""

from __future__ import annotations

import asyncio
import socket

import pytest

from lifl.node.gateway.client_socket import ClientSocket


def waiting(sock: socket.socket) -> ClientSocket:
    return ClientSocket(sock, None, None, lambda: None)  # type: ignore[arg-type]


def test_a_request_that_waits_ends_with_its_connection() -> None:
    """Cut connections went on with what the kernel had of them, thousands of requests, without waiting for any."""

    async def scene() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"what is still to be read")
            client = waiting(ours)
            await client.rest(0.0)
            await client.rest(0.001)
            resting = asyncio.ensure_future(client.rest(3600.0))
            await asyncio.sleep(0)
            client.cut("it takes too much")
            with pytest.raises(ConnectionResetError):
                await resting
            with pytest.raises(ConnectionResetError):
                await client.rest(0.0)

    asyncio.run(scene())


def test_one_whose_client_has_left_is_not_gone_on_with() -> None:
    """It would use up what the client may ask over its next connection; who is within its pace is not looked at."""

    async def scene() -> None:
        ours, theirs = socket.socketpair()
        with ours:
            theirs.sendall(b"what is still to be read")
            theirs.close()
            client = waiting(ours)
            await client.rest(0.0)
            with pytest.raises(ConnectionResetError):
                await client.rest(0.001)

    asyncio.run(scene())

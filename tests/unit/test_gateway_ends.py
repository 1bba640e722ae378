"""A gateway that is told to end waits for no answer of `lifld`, which waits for that end and says nothing meanwhile."""

from __future__ import annotations

import asyncio
import socket

import pytest

from lifl.core.protocol import gateway as gm
from lifl.node.gateway.grant_waiter import GrantWaiter
from lifl.node.link import CONGESTED_BYTES, Link


async def _linked() -> tuple[Link, socket.socket]:
    """A link of a gateway, and the end of a lifld that reads nothing."""
    ours, theirs = socket.socketpair()
    return Link(ours, gm.ToGateway, lambda _message: None, lambda _error: None), theirs


def test_a_message_that_was_read_before_its_connection_was_cut_asks_nothing_after_that() -> None:
    async def ask() -> None:
        link, lifld = await _linked()
        grants = GrantWaiter(link)
        grants.connection_ended()
        with pytest.raises(ConnectionResetError):
            await grants.ask(gm.WantModel(1, "j", 1))
        link.close()
        assert not lifld.recv(1), "it was asked"
        lifld.close()

    asyncio.run(ask())


def test_who_waits_for_a_lifld_that_is_behind_goes_on_when_the_gateway_ends() -> None:
    async def wait() -> None:
        link, lifld = await _linked()
        refused = gm.Disconnected(1, "c", "x" * 1000, "local")
        while link._waiting_bytes < CONGESTED_BYTES:
            link.send(*[refused] * 1000)
        waiting = asyncio.ensure_future(link.drained())
        await asyncio.sleep(0)
        assert not waiting.done()
        link.hurry()
        await waiting
        await link.drained()
        assert not link.closed, "what the socket takes is still said"
        link.close()
        lifld.close()

    asyncio.run(wait())

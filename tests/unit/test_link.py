"""A link: what is gathered leaves together, in its order, and before what holds the loop up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import FrameDecoder
from lifl.node import link as link_module
from lifl.node.link import GATHERED_MAX, Link


class Sends:
    """What each system call sends."""

    def __init__(self) -> None:
        self.numbers: list[list[int]] = []

    def note(self, frame: memoryview) -> None:
        decoder: FrameDecoder[Any] = FrameDecoder(gm.ToGateway)
        decoder.feed(frame)
        self.numbers.append([])
        while (message := decoder.next_message()) is not None:
            self.numbers[-1].append(message.conn)


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> Sends:
    found, send = Sends(), link_module._send

    def noted(sock: Any, frame: memoryview, descriptors: Any) -> int:
        found.note(frame)
        return send(sock, frame, descriptors)

    monkeypatch.setattr(link_module, "_send", noted)
    return found


def told(number: int) -> gm.HangUp:
    return gm.HangUp(number)


def in_a_loop(act: Callable[[Link], None]) -> None:
    """Act on a link within a turn of the loop, and let it have its next turns."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            link = Link(ours, gm.FromGateway, lambda _message: None, lambda _error: None)
            act(link)
            await asyncio.sleep(0)
            link.close()

    asyncio.run(main())


def test_what_is_gathered_in_a_turn_leaves_in_one_call(sends: Sends) -> None:
    def act(link: Link) -> None:
        link.gather(told(1), told(2))
        link.gather(told(3))
        assert sends.numbers == []

    in_a_loop(act)
    assert sends.numbers == [[1, 2, 3]]


def test_what_is_sent_at_once_overtakes_nothing(sends: Sends) -> None:
    def act(link: Link) -> None:
        link.gather(told(1))
        link.send(told(2))
        link.gather(told(3))
        link.flush()
        link.gather(told(4))

    in_a_loop(act)
    assert sends.numbers == [[1], [2], [3], [4]]


def test_many_do_not_wait_for_the_turns_end(sends: Sends) -> None:
    def act(link: Link) -> None:
        for number in range(GATHERED_MAX + 1):
            link.gather(told(number))

    in_a_loop(act)
    assert sends.numbers == [list(range(GATHERED_MAX)), [GATHERED_MAX]]


def test_a_link_that_is_closed_has_said_what_was_gathered(sends: Sends) -> None:
    def act(link: Link) -> None:
        link.gather(told(1))
        link.close()
        link.gather(told(2))

    in_a_loop(act)
    assert sends.numbers == [[1]]

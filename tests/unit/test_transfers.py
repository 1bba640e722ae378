"""A body over several connections, as the gateway's books have it: who may carry what, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import pytest

from lifl.core.errors import Refused
from lifl.core.protocol.body_ranges import SPLIT_BYTES_MIN, BodyRange
from lifl.node.gateway.client_socket import ClientSocket
from lifl.node.gateway.outbox import Outbox
from lifl.node.gateway.transfers import Carrier, Transfers, Way

STALL_S = 60.0
"""Only a failing test waits so long."""


class Socket:
    def __init__(self, client: str = "c1", who: str = "client c1") -> None:
        self.who, self.client = who, client
        self.ended = asyncio.Event()
        self.because = ""

    def cut(self, because: str) -> None:
        self.because = self.because or because
        self.ended.set()


def way(*who: str) -> Way:
    return Way(cast(ClientSocket, Socket(*who)), cast(Outbox, None))


def because(one: Way) -> str:
    return cast(Socket, one.socket).because


class Scene:
    """A transfer of three ranges; each is carried until the test says so, or its connection is cut."""

    def __init__(self) -> None:
        self.transfers = Transfers(4)
        self.first = way()
        self.carried: list[int] = []
        self.let = [asyncio.Event() for _ in range(3)]
        self.fails: dict[int, OSError] = {}
        self.touched: set[int] = set()
        self.id = ""

    def carrier(self, number: int) -> Carrier:
        async def carry(one: Way) -> None:
            self.touched.add(number)
            waits = [asyncio.ensure_future(event.wait()) for event in (self.let[number], one.socket.ended)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
                await asyncio.sleep(0)  # a mover ends in its own time
                self.touched.remove(number)
            if number in self.fails:
                raise self.fails[number]
            if not self.let[number].is_set():
                raise ConnectionResetError("the peer closed")
            self.carried.append(number)

        return carry

    def begin(self, told: str | msgspec.UnsetType) -> None:
        self.id = str(told)

    def run(self, stall_s: float = STALL_S) -> asyncio.Future[None]:
        carriers = [self.carrier(number) for number in range(3)]
        return asyncio.ensure_future(self.transfers.run(self.first, carriers, stall_s, self.begin))

    def lend(self, number: int, one: Way | None = None, transfer: str = "") -> Awaitable[None]:
        return self.transfers.lend(BodyRange(transfer or self.id, number), one or way())


def lives(test: Callable[[Scene], Awaitable[None]]) -> Callable[[], None]:
    async def life() -> None:
        async with asyncio.timeout(STALL_S):
            await test(Scene())

    def run() -> None:
        asyncio.run(life())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def soon() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@lives
async def test_all_ranges_are_carried_and_then_it_is_not_known_any_more(scene: Scene) -> None:
    moving = scene.run()
    await soon()
    sides = [asyncio.ensure_future(scene.lend(number)) for number in (2, 1)]
    for number in (2, 0, 1):
        assert not moving.done()
        scene.let[number].set()
        await soon()
    await moving
    await asyncio.gather(*sides)
    assert sorted(scene.carried) == [0, 1, 2]
    assert because(scene.first) == ""
    with pytest.raises(Refused, match="no transfer"):
        scene.lend(1)


@lives
async def test_who_may_not_carry_a_range_is_told_the_same_whatever_is_wrong(scene: Scene) -> None:
    moving = scene.run()
    await soon()
    scene.lend(1)
    wrong: list[dict[str, Any]] = [
        {"number": 1},
        {"number": 3},
        {"number": 2, "one": way("c2")},
        {"number": 2, "one": way("c1", "client c2")},
        {"number": 2, "transfer": scene.id[:-1] + "x"},
    ]
    texts = set()
    for each in wrong:
        with pytest.raises(Refused) as caught:
            scene.lend(**each)
        assert caught.value.code == "unknown-transfer"
        texts.add(caught.value.text.replace(str(each["number"]), "N"))
    assert len(texts) == 1
    scene.lend(2)
    for let in scene.let:
        let.set()
    await moving


@pytest.mark.parametrize("fault", ["range 1 fails", "the first ends", "the first ends, its range being carried"])
def test_it_ends_as_a_whole_and_nothing_is_touched_any_more(fault: str) -> None:
    @lives
    async def life(scene: Scene) -> None:
        moving = scene.run()
        await soon()
        one, two = way(), way()
        sides = [asyncio.ensure_future(scene.lend(1, one)), asyncio.ensure_future(scene.lend(2, two))]
        await soon()
        assert scene.touched == {0, 1, 2}
        if fault.startswith("range 1"):
            scene.fails[1] = ConnectionResetError("a cable was pulled")
            scene.let[1].set()
        else:
            if "carried" in fault:
                scene.let[0].set()
                await soon()
            scene.first.socket.cut("the daemon says so")
        with pytest.raises(ConnectionResetError):
            await moving
        assert scene.touched == set()
        await asyncio.gather(*sides)
        assert all(because(each) for each in (scene.first, one, two))
        if fault.startswith("range 1"):
            assert "a cable was pulled" in because(scene.first)
        with pytest.raises(Refused):
            scene.lend(2)

    life()


@lives
async def test_a_range_for_which_nobody_comes_ends_it_in_time(scene: Scene) -> None:
    moving = scene.run(stall_s=0.01)
    await soon()
    scene.lend(1)
    with pytest.raises(TimeoutError, match="no connection came for range 2 of a body within"):
        await moving
    assert scene.touched == set() and because(scene.first)


def test_what_is_split() -> None:
    transfers = Transfers(4)
    least = SPLIT_BYTES_MIN
    assert transfers.streams_of(4, least) == 4
    assert transfers.streams_of(2, least) == 2
    assert transfers.streams_of(4, least - 1) == 1
    assert transfers.streams_of(5, least) == 1
    assert transfers.streams_of(msgspec.UNSET, least) == 1
    assert Transfers(1).streams_of(2, least) == 1

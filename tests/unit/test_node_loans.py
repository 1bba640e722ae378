"""What `lifld` hands out with a model that is lent, and how it hears that the loan is over."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lifl.core.agent.model_service import LOAN
from lifl.core.errors import StaleKey
from lifl.core.ids import Key, Kind
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.node.children import Child
from lifl.node.gateway.grant_waiter import Loan
from lifl.node.gateway.lending import pass_on
from lifl.node.gateway.outbox import Outbox
from lifl.node.gateway.shared import Shared
from lifl.node.loans import Loans
from lifl.shm.owned_arena import OwnedArena

KEY, OTHER = Key(1, 1, 7), Key(2, 1, 7)
GRANTED = gm.ModelGranted(5, "j", 3, KEY.pack(), lent=True)
OVER = gm.ModelSent(LOAN, KEY.pack(), 0)


class Scene:
    """The loans of a node without its arena and its gateway, which keeps what it gets."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.sent: list[gm.ModelGranted] = []
        self.descriptors: list[tuple[int, ...]] = []
        self.over: list[gm.ModelSent] = []
        self.changed = asyncio.Event()
        self.memory = os.memfd_create("lifl-test")
        self.loans = Loans(cast(OwnedArena, self), cast(Child, self), self.ended)

    def lend(self, _key: Key) -> None:
        if self.fault is not None:
            raise self.fault

    def place(self, _key: Key) -> tuple[int, int, int]:
        return self.memory, 0, 4096

    def live(self) -> list[tuple[Key, Any]]:
        return [(KEY, SimpleNamespace(kind=Kind.MODEL)), (OTHER, SimpleNamespace(kind=Kind.UPDATE))]

    def send(self, granted: gm.ModelGranted, descriptors: Sequence[int] = ()) -> None:
        self.sent.append(granted)
        if descriptors:
            self.descriptors.append(tuple(map(os.dup, descriptors)))

    def ended(self, sent: gm.ModelSent) -> None:
        self.over.append(sent)
        self.changed.set()

    async def until_over(self) -> None:
        await self.changed.wait()
        self.changed.clear()


def play(act: Callable[[Scene], Awaitable[Any]]) -> None:
    async def played() -> None:
        scene = Scene()
        await act(scene)
        scene.loans.close()
        for fds in ((scene.memory,), *scene.descriptors):
            for fd in fds:
                os.close(fd)

    asyncio.run(played())


def test_a_loan_is_over_when_all_copies_of_its_end_are_closed() -> None:
    async def act(scene: Scene) -> None:
        scene.loans.grant(GRANTED)
        scene.loans.grant(GRANTED)
        ((segment, end), other) = scene.descriptors
        scene.descriptors = [other]
        copy = os.dup(end)
        os.write(end, b"says nothing")
        os.close(end)
        os.close(segment)
        await asyncio.sleep(0)
        assert not scene.over
        os.close(copy)
        await scene.until_over()
        assert scene.over == [OVER], "the other one is not"

    play(act)


@pytest.mark.parametrize("fault", [OSError("no /proc"), StaleKey("gone")])
@pytest.mark.parametrize("gateway_dies", [False, True])
def test_what_cannot_be_lent_is_sent_and_the_loan_is_over_with_that(fault: Exception, gateway_dies: bool) -> None:
    async def act(scene: Scene) -> None:
        scene.fault = fault
        scene.loans.grant(GRANTED)
        assert scene.sent == [gm.ModelGranted(5, "j", 3, KEY.pack(), lent=False)]
        other = gm.ModelSent(6, KEY.pack(), 9)
        assert scene.loans.told(other) == other
        if gateway_dies:
            scene.loans.gateway_gone()
            assert scene.over == [OVER]
        else:
            assert scene.loans.told(gm.ModelSent(5, KEY.pack(), 9)) == gm.ModelSent(LOAN, KEY.pack(), 9)
        sent = gm.ModelSent(5, KEY.pack(), 9)
        assert scene.loans.told(sent) == sent, "a later one is its own"

    play(act)


def test_so_is_what_finds_no_descriptor_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_flags: int) -> None:
        raise OSError("too many open files")

    async def act(scene: Scene) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pipe2", full)
            scene.loans.grant(GRANTED)
        assert not scene.sent[0].lent and not scene.descriptors

    play(act)


def test_a_loan_that_the_gateway_does_not_hand_on_is_given_back() -> None:
    async def act(scene: Scene) -> None:
        for _ in range(2):
            scene.loans.grant(GRANTED)
            loan = Loan(GRANTED, *scene.descriptors.pop())
            if scene.over:
                del loan  # nobody has it any more
                gc.collect()
            else:
                loan.close()
                loan.close()
            await scene.until_over()
        assert scene.over == [OVER, OVER]

    play(act)


def test_what_waits_in_line_for_a_client_has_its_descriptors_when_its_connection_ends() -> None:
    async def act(scene: Scene) -> None:
        scene.loans.grant(GRANTED)
        loan = Loan(GRANTED, *scene.descriptors.pop())
        line: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        outbox = SimpleNamespace(flusher=line, send_frame=lambda *_, **__: None)
        job = SimpleNamespace(layout=SimpleNamespace(data_bytes=4096), model=lambda *_: (b"",))
        arena = SimpleNamespace(offset=lambda _: 0, entry=lambda _: SimpleNamespace(checksum=0))
        shared = SimpleNamespace(job=lambda _: job, arena=arena)
        handing_on = pass_on(loan, cm.GetModel("j", 3), cast(Shared, shared), cast(Outbox, outbox))
        passing = asyncio.create_task(handing_on)
        await asyncio.sleep(0)
        passing.cancel()
        await asyncio.wait({passing})
        assert passing.cancelled() and loan.descriptors, "another file would be sent in their place"
        line.set_result(None)
        await scene.until_over()
        assert not loan.descriptors

    play(act)


def test_the_next_lifld_finds_what_is_lent_and_hears_of_its_end() -> None:
    async def act(scene: Scene) -> None:
        assert scene.loans.found() == ()
        scene.loans.grant(GRANTED)
        following = Loans(cast(OwnedArena, scene), cast(Child, scene), scene.ended)
        assert following.found() == (KEY,)
        scene.loans.close()  # the lifld that has lent it is gone
        for fd in scene.descriptors.pop():
            os.close(fd)
        await scene.until_over()
        assert scene.over == [OVER]

    play(act)

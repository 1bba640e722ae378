"""Bodies that go over several connections at once (`core/protocol/body_ranges.py`), either way.

The connection that asked, the first one, owns the transfer, and carries range 0.  Each other range waits for a side
connection that names the transfer and is of the same client: who it is and the name that it uses.  Its coroutine then
lends its socket, and rests until the range is over.

A transfer ends as a whole: when a connection of it ends, or a range does not come, all the others are cut.  `run`
returns when no mover touches the body any more, so that its object can be given back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from lifl.core import limits
from lifl.core.errors import Refused
from lifl.core.protocol.body_ranges import SPLIT_BYTES_MIN, BodyRange, Streams, body_ranges
from lifl.node.gateway.body_moves import Departed, Receive
from lifl.node.gateway.client_socket import ClientSocket
from lifl.node.gateway.outbox import Outbox
from lifl.shm.ingest_check import IngestCheck, RangesCheck

ID_BYTES = 16


class Way(NamedTuple):
    """A connection, as far as a range needs it."""

    socket: ClientSocket
    outbox: Outbox

    @property
    def owner(self) -> tuple[str, str]:
        """Who is at the other end, and the name that it uses."""
        return self.socket.who, self.socket.client


Begin = Callable[[str | msgspec.UnsetType], None]
Carrier = Callable[[Way], Awaitable[None]]
"""Carries one range over a connection; ends, also when it is cancelled, when no mover touches the range any more."""


class Transfer:
    """One body that the `first` connection asked for, its ranges carried by `carriers`; made in the running loop."""

    def __init__(self, first: Way, carriers: Sequence[Carrier]) -> None:
        self.id = secrets.token_hex(ID_BYTES)
        self._first = first
        self._carriers = carriers
        loop = asyncio.get_running_loop()
        self._ways: list[asyncio.Future[Way]] = [loop.create_future() for _ in carriers]
        self._over: list[asyncio.Future[None]] = [loop.create_future() for _ in carriers]
        self._ways[0].set_result(first)

    def lend(self, number: int, way: Way) -> Awaitable[None]:
        """Have range `number` go over a connection; return what is done when it is over.  Raise `Refused`."""
        if way.owner != self._first.owner or number >= len(self._ways) or self._ways[number].done():
            raise _unknown(number)
        self._ways[number].set_result(way)
        return self._over[number]

    async def run(self, stall_s: float) -> None:
        """Have all ranges carried.  Raise `OSError`."""
        ended = asyncio.ensure_future(self._first.socket.ended.wait())
        tasks = [asyncio.ensure_future(self._carry(number, stall_s)) for number in range(len(self._carriers))]
        carried = asyncio.gather(*tasks)
        try:
            either: set[asyncio.Future[Any]] = {carried, ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not carried.done():
                raise ConnectionResetError("the connection that asked for it ended")
            carried.result()
        except BaseException as error:
            self._end(str(error))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise
        finally:
            ended.cancel()
            for over in self._over:
                if not over.done():
                    over.set_result(None)

    async def _carry(self, number: int, stall_s: float) -> None:
        try:
            async with asyncio.timeout(stall_s):
                way = await self._ways[number]
        except TimeoutError:
            raise TimeoutError(f"no connection came for range {number} of a body within {stall_s:g} s") from None
        await self._carriers[number](way)

    def _end(self, why: str) -> None:
        """Cut all connections that there are, which ends what moves over them."""
        for way in self._ways:
            if way.done() and not way.cancelled():
                way.result().socket.cut(f"a range of its body was not carried: {why}"[: limits.TEXT_CHARS_MAX])


class Transfers:
    """Those of a gateway, which splits a body over at most `streams` connections."""

    def __init__(self, streams: int) -> None:
        self.streams = streams
        self._open: dict[str, Transfer] = {}

    def streams_of(self, asked: Streams | msgspec.UnsetType, nbytes: int) -> int:
        """Return over how many connections a body goes of which so many were asked for; 1: it is not split."""
        if isinstance(asked, msgspec.UnsetType) or asked > self.streams or nbytes < SPLIT_BYTES_MIN:
            return 1
        return asked

    async def run(self, first: Way, carriers: Sequence[Carrier], stall_s: float, begin: Begin) -> None:
        """Carry a body; `begin` is told the transfer's id, or UNSET when it goes over the first connection alone.

        Raise `OSError`.
        """
        if len(carriers) == 1:
            begin(msgspec.UNSET)
            await carriers[0](first)
            return
        transfer = Transfer(first, carriers)
        self._open[transfer.id] = transfer
        try:
            begin(transfer.id)
            await transfer.run(stall_s)
        finally:
            del self._open[transfer.id]

    async def send(
        self, first: Way, view: memoryview, departed: Sequence[Departed | None], stall_s: float, begin: Begin
    ) -> None:
        """Carry the body that is `view`, in as many ranges as have a `departed`."""
        ranges = body_ranges(len(view), len(departed))
        carriers = [_sender(view[b:e], told) for (b, e), told in zip(ranges, departed, strict=True)]
        await self.run(first, carriers, stall_s, begin)

    def lend(self, asked: BodyRange, way: Way) -> Awaitable[None]:
        """Have a range go over a connection; return what is done when it is over.  Raise `Refused`."""
        found = self._open.get(asked.transfer)
        if found is None:
            raise _unknown(asked.number)
        return found.lend(asked.number, way)


def _unknown(number: int) -> Refused:
    return Refused("unknown-transfer", "transfer", f"no transfer of this client waits for a range {number} by that id")


class Arrival:
    """An object's bytes while they come, in as many ranges as `check` has parts: how far they are."""

    def __init__(self, check: IngestCheck | RangesCheck) -> None:
        self._parts = check.parts
        self._bodies: list[Receive | None] = [None] * len(self._parts)
        self._report: Callable[[int], None] | None = None

    def carriers(self, stall_s: float) -> list[Carrier]:
        """Return what receives each range."""
        return [self._carrier(number, stall_s) for number in range(len(self._parts))]

    def _carrier(self, number: int, stall_s: float) -> Carrier:
        async def receive(way: Way) -> None:
            body = self._bodies[number] = Receive(way.socket.sock, self._parts[number])
            if self._report is not None:
                self._follow(body, self._report)
            await way.socket.move(body, stall_s)

        return receive

    def follow(self, report: Callable[[int], None]) -> None:
        """Have `report` called, in a mover's thread, with how many bytes from the object's front are there."""
        self._report = report
        for body in filter(None, self._bodies):
            self._follow(body, report)

    def _follow(self, body: Receive, report: Callable[[int], None]) -> None:
        body.follow(lambda moved_bytes: report(moved_bytes if len(self._parts) == 1 else self._front_bytes()))

    def _front_bytes(self) -> int:
        front_bytes = 0
        for body, part in zip(self._bodies, self._parts, strict=True):
            moved_bytes = body.moved_bytes if body is not None else 0
            front_bytes += moved_bytes
            if moved_bytes < part.nbytes:
                break
        return front_bytes

    def seen_bytes(self) -> int:
        """Return what has been moved, and what waits in the kernel."""
        return sum(body.seen_bytes() for body in self._bodies if body is not None)


def _sender(view: memoryview, departed: Departed | None) -> Carrier:
    """Return what sends `view`, behind whatever waits to be sent over the connection already."""

    async def send(way: Way) -> None:
        sent = way.outbox.send_body(view, departed)
        try:
            await asyncio.shield(sent)
        except asyncio.CancelledError:
            way.socket.cut("the body is not to be sent any more")
            await asyncio.wait({sent})
            sent.exception()
            raise

    return send

"""The gateway's way to other nodes' gateways: partials are brought there, models fetched from there.

It dials the other gateway and speaks as a client does, from arena to arena: the bytes leave an object's memory and
are received into another's, with no copy between.  Checksums follow the bytes, because the object is then read once,
for sending and for the checksum; the one that an object was sealed with is taken where there is one, so that what
happened to it in memory is found too.

A large body goes over several connections, where both gateways use them (`core/protocol/body_ranges.py`).

Each try has its own connection, and a whole try is repeated when it fails for a reason that may pass (`TRIES_MAX`).
That is safe: the other node answers Accepted at once when it has the partial already, and a model is only sealed when
all of it has come.  So the daemon may order the same again, here or in the next gateway's life.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from lifl import failpoints
from lifl.core import limits
from lifl.core.config.values import split_address
from lifl.core.errors import ConfigError, LiflError, LocalFault, Refused, RemoteFault
from lifl.core.ids import Key
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.body_ranges import SPLIT_BYTES_MIN, STREAMS, BodyRange, body_ranges
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.node.gateway.body_moves import BodyMove, Receive, Send, move
from lifl.node.gateway.client_socket import tune
from lifl.node.gateway.content import Sums
from lifl.node.gateway.intake import DAMAGED
from lifl.node.gateway.shared import Shared
from lifl.shm.checksum import checksum
from lifl.shm.ingest_check import check_of
from lifl.shm.layout import ObjectState
from lifl.tls.tls_socket import Stream
from lifl.tls.waits import received, sent

log = logging.getLogger("lifl.gateway")

TRIES_MAX = 5
PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 5.0
"""Pauses between tries: doubled from the first on, jittered; about 6 s for all tries, at most 20 s when the other is
busy."""
CONNECT_S = 2.0
ANSWER_S = 30.0
"""Each question is answered within this time: the other gateway may be starting, its daemon waiting for room."""
UNDER_WAY_MAX = 32
"""Carries and fetches at a time; more of them wait in line."""
PASSING_CODES = frozenset({DAMAGED, "unknown-job", *cm.NO_PLACE})
"""Refusals that may not be given again: a job can become known a moment later."""

TransferRequest = gm.Carry | gm.Fetch


class _NotNow(Exception):
    """A try failed for a reason that may pass."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class PeerTransfers:
    """All carries and fetches of a gateway.  `start_task` runs a coroutine, and ends the process when it has a bug."""

    def __init__(self, shared: Shared, start_task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._shared = shared
        self._start_task = start_task
        self._under_way: dict[bytes, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(UNDER_WAY_MAX)

    def start(self, request: TransferRequest) -> None:
        """Do what the daemon asks for, to its answer; it takes the place of an earlier one for the same object."""
        task = self._start_task(self._do(request, self._under_way.get(request.key)))
        self._under_way[request.key] = task
        task.add_done_callback(lambda task: self._forget(request.key, task))

    def end(self, key: bytes) -> None:
        """End the fetch of an object, if it is under way, and say so; else that has been said."""
        task = self._under_way.pop(key, None)
        if task is not None and not task.done():
            self._start_task(self._end(key, task))

    async def _end(self, key: bytes, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task})  # nothing touches the object any more
        if task.cancelled():
            self._shared.link.send(gm.FetchEnded(key, "it is not wanted from there any more", 0))

    def stop(self) -> None:
        """End all that is under way, unanswered."""
        for task in self._under_way.values():
            task.cancel()

    def _forget(self, key: bytes, task: asyncio.Task[None]) -> None:
        if self._under_way.get(key) is task:
            del self._under_way[key]

    async def _do(self, request: TransferRequest, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            earlier.cancel()
            await asyncio.wait({earlier})  # nothing else touches the object
        trip = _Trip(self._shared, request)
        async with self._places:
            try:
                error = await trip.make()
            except Exception as bug:  # whatever it is, the daemon hears of it
                log.exception("gateway.transfer of %s failed", type(request).__name__)
                error = f"{type(bug).__name__}: {bug}"
        text = error[:TEXT_CHARS_MAX]
        if isinstance(request, gm.Carry):
            self._shared.link.send(gm.CarryEnded(request.key, text, trip.moved_bytes))
        else:
            self._shared.link.send(gm.FetchEnded(request.key, text, trip.moved_bytes))


class _Trip:
    """One request with all its tries.  `moved_bytes` are the bodies' bytes that went over the wire."""

    def __init__(self, shared: Shared, request: TransferRequest) -> None:
        self.moved_bytes = 0
        self._shared = shared
        self._request = request
        self._key = Key.unpack(request.key)
        self._splits = True  # until a try with several connections has failed

    async def make(self) -> str:
        """Return the last try's error; empty when it is done."""
        pause_s = PAUSE_FIRST_S
        for left in reversed(range(TRIES_MAX)):
            after_s = 0.0
            try:
                await self._try()
                return ""
            except (Refused, LocalFault, ConfigError) as error:
                return str(error)
            except _NotNow as error:
                why, after_s = str(error), min(error.after_s, PAUSE_MAX_S)
            except (OSError, RemoteFault) as error:
                why = str(error) or type(error).__name__
            if left:
                await asyncio.sleep(max(after_s, random.uniform(pause_s / 2, pause_s)))
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
        return f"{self._request.address}: {why}; it was tried {TRIES_MAX} times"

    async def _try(self) -> None:
        request = self._request
        if isinstance(request, gm.Fetch) and self._shared.arena.entry(self._key).state == ObjectState.SEALED:
            return  # in the life of an earlier gateway
        async with _dialled(request.address, self._shared) as peer, AsyncExitStack() as opened:
            sides = await self._sides(request.address, peer.streams, opened)
            self._splits = not sides
            if isinstance(request, gm.Carry):
                await self._carry(request, peer, sides)
            else:
                await self._fetch(request, peer, sides)

    async def _sides(self, address: str, streams: int, opened: AsyncExitStack) -> list[_Peer]:
        """Return the side connections for the body: fewer where not so many are to be had."""
        if not self._splits or len(self._shared.arena.data(self._key)) < SPLIT_BYTES_MIN:
            return []
        dialling = [opened.enter_async_context(_dialled(address, self._shared)) for _ in range(streams - 1)]
        found = await asyncio.gather(*dialling, return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, OSError | LiflError | _NotNow):
                raise error
        return [side for side in found if isinstance(side, _Peer)]

    async def _carry(self, request: gm.Carry, peer: _Peer, sides: list[_Peer]) -> None:
        arena = self._shared.arena
        entry = arena.entry(self._key)
        if entry.state != ObjectState.SEALED:
            raise LocalFault(f"object {self._key} is to be carried but is not sealed")
        what = (entry.weight, entry.contributions, entry.data_bytes, entry.meta_bytes)
        failpoints.hit("gateway.carry.before")
        streams = 1 + len(sides)
        await peer.say(cm.Offer(request.number, request.epoch, request.branch, *what, request.secret, streams))
        answer = await peer.hear()
        if isinstance(answer, cm.Accepted):
            return
        if not isinstance(answer, cm.Go):
            raise _no(answer)
        data, meta = arena.data(self._key), arena.meta(self._key)
        peers = _taken(peer, sides, answer.transfer)
        sums = Sums(arena, self._key, streams=len(peers))
        meta_sum = checksum(meta)
        if data:
            views = [data[begin:end] for begin, end in body_ranges(len(data), len(peers))]
            bodies = [Send(p.sock, view, told) for p, view, told in zip(peers, views, sums.departed, strict=True)]
            await self._move_all(peers, bodies, answer.transfer)
        if meta:
            await self._move(peer, Send(peer.sock, meta))
        arena.entry(self._key)  # were it gone by now, other bytes than its own might have been sent
        await peer.say(cm.Checksums(sums.finish(), meta_sum))
        answer = await peer.hear()
        if not isinstance(answer, cm.Accepted):
            raise _no(answer)
        failpoints.hit("gateway.carry.after")

    async def _fetch(self, request: gm.Fetch, peer: _Peer, sides: list[_Peer]) -> None:
        arena = self._shared.arena
        view = arena.data(self._key)
        job = self._shared.jobs.get(request.job)
        digest = msgspec.UNSET if job is None else job.digest
        part = msgspec.UNSET if request.part is None else request.part
        streams = 1 + len(sides) if sides else msgspec.UNSET
        asked = cm.GetModel(request.job, request.round, checked=True, digest=digest, part=part, streams=streams)
        await peer.say(asked)
        model = await peer.hear()
        if not isinstance(model, cm.Model):
            raise _no(model)
        if model.data_bytes != len(view):
            text = f"the model has {model.data_bytes} bytes there, {len(view)} here"
            raise Refused("wrong-size", "data_bytes", text)
        if job is not None and job.digest != model.digest:
            raise Refused("wrong-schema", "tensors", f"the tensors of job {request.job!r} are others there than here")
        peers = _taken(peer, sides, model.transfer)
        arriving = check_of(view, (), len(peers))
        if view:
            bodies = [Receive(p.sock, part) for p, part in zip(peers, arriving.parts, strict=True)]
            await self._move_all(peers, bodies, model.transfer)
        sums = await peer.hear()
        if not isinstance(sums, cm.Checksums):
            raise _no(sums)
        data = arriving.finish()
        if data != sums.data:
            raise _NotNow("the model's bytes were changed on their way")
        failpoints.hit("gateway.model_seal.before")
        arena.seal(self._key, 0.0, 0, checksum=data)
        failpoints.hit("gateway.model_seal.after")

    async def _move_all(
        self, peers: list[_Peer], bodies: Sequence[BodyMove], transfer: str | msgspec.UnsetType
    ) -> None:
        """Move the ranges of a body, each over its connection; return when none is moved any more."""

        async def move_range(number: int) -> None:
            if isinstance(transfer, str) and number:
                await peers[number].say(BodyRange(transfer, number))
            await self._move(peers[number], bodies[number])

        moving = [asyncio.ensure_future(move_range(number)) for number in range(len(bodies))]
        try:
            await asyncio.gather(*moving)
        except BaseException:
            for peer in peers:
                peer.shut()
            await asyncio.wait(moving)
            raise

    async def _move(self, peer: _Peer, body: BodyMove) -> None:
        try:
            await move(self._shared.movers, body, limits.PEER_STALL_S, peer.shut)
        finally:
            self.moved_bytes += body.moved_bytes
            if isinstance(body, Send):
                self._shared.sent_bytes += body.moved_bytes
            else:
                self._shared.received_bytes += body.moved_bytes


def _taken(peer: _Peer, sides: list[_Peer], transfer: str | msgspec.UnsetType) -> list[_Peer]:
    """Return the connections that the body goes over."""
    return [peer, *sides] if isinstance(transfer, str) else [peer]


def _no(answer: cm.ToClient) -> Exception:
    """Return what an answer means that is not the one hoped for."""
    match answer:
        case cm.Busy(retry_after_s=after_s):
            return _NotNow("the other node has no room", after_s)
        case cm.Refusal(code, field, text):
            return _NotNow(text) if code in PASSING_CODES else Refused(code, field, text)
        case _:
            return RemoteFault(f"a {type(answer).__name__} is no answer to what was asked")


# ---- a connection ------------------------------------------------------------------------------------------------


class _Peer:
    """The dialled connection; frames are read exactly, so that bodies stay in the kernel for the movers."""

    def __init__(self, sock: Stream) -> None:
        self.sock = sock
        self.streams = 1
        """Over how many connections a large body may go."""
        self._decoder: FrameDecoder[cm.ToClient] = FrameDecoder(cm.ToClient)

    async def say(self, message: cm.FromClient) -> None:
        """Send a frame."""
        async with asyncio.timeout(limits.PEER_STALL_S):
            await sent(self.sock, encode(message))

    async def hear(self) -> cm.ToClient:
        """Return the next frame.  Raise `OSError` (`TimeoutError` is one) and `RemoteFault`."""
        async with asyncio.timeout(ANSWER_S):
            while (message := self._decoder.next_message()) is None:
                data = await received(self.sock, self._decoder.missing_bytes)
                if not data:
                    raise ConnectionResetError("the other gateway closed the connection")
                self._decoder.feed(data)
        return message

    def shut(self) -> None:
        """Wake a mover that waits for the socket."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other was faster
            pass


@asynccontextmanager
async def _dialled(address: str, shared: Shared) -> AsyncIterator[_Peer]:
    """Provide a connection to the gateway at `address`, as this node; closed at the end."""
    loop = asyncio.get_running_loop()
    host, port = split_address(address, "address")
    async with asyncio.timeout(CONNECT_S):
        family, _, _, _, where = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        tune(sock, limits.PEER_STALL_S)
        async with asyncio.timeout(CONNECT_S):
            await loop.sock_connect(sock, where)
            secured = await shared.security.dialled(sock)
        peer = _Peer(secured.sock)
        own = shared.transfers.streams
        knows = (STREAMS,) if own > 1 else ()
        await peer.say(cm.Hello(cm.PROTOCOL_VERSION, f"node-{shared.arena.node:016x}", knows=knows))
        welcome = await peer.hear()
        if not isinstance(welcome, cm.Welcome):
            raise _no(welcome)
        if fault := cm.SPOKEN.fault(welcome.version, "this node", f"the gateway at {address}"):
            raise RemoteFault(fault)
        peer.streams = min(own, welcome.streams)
        yield peer

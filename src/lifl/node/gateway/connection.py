"""One client's connection, as one coroutine that reads frames and answers them in order.

Another node's gateway is a client like any other (`peer_transfer` is its side); it offers partials, and gets models.

Waiting for a frame costs nothing and has no deadline (TCP keepalive finds dead peers); a frame or a body that has
begun has one.  Frames are read exactly, so that the bytes of a body stay in the kernel until a mover receives them into
the arena.  While the daemon thinks about a request, or a body moves, the coroutine does not read: a client that
sends more is slowed by TCP.

Messages to the client are sent at once when the socket takes them; else they wait in line (also behind the bytes of a
model), at most `WAITING_BYTES_MAX`.  Whoever reads too slowly, sends garbage or stalls is disconnected: the socket is
shut down, which wakes the coroutine and whatever moves bytes; the coroutine alone closes.
"""

from __future__ import annotations

import array
import asyncio
import math
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec

from lifl import failpoints
from lifl.core.errors import Refused, RemoteFault, StaleKey
from lifl.core.fields import Message
from lifl.core.ids import Key
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.admission import check_submit
from lifl.core.protocol.frames import FRAME_BYTES_MAX, LENGTH_BYTES, FrameDecoder, encode, framed
from lifl.node.gateway.body_moves import STALL_BYTES, Movers, Receive, Send, move
from lifl.node.gateway.content import Content, Job, Sums, check_members, check_room
from lifl.node.gateway.read_waiter import Readiness
from lifl.node.link import Link
from lifl.shm.arena import Arena
from lifl.shm.ingest_check import arrival

HELLO_S = 10.0
"""A new connection says Hello within this time."""
FRAME_S = 60.0
"""A frame that has begun is complete within this time."""
BODY_STALL_S = 60.0
"""A body (either way) moves at least `STALL_BYTES` in this time, or the connection ends."""
PEER_STALL_S = 10.0
"""The same between nodes, which are nearer to each other; and what the peer's TCP may leave unacknowledged."""
HELLO_BYTES_MAX = 4096
SMALL_FRAME_BYTES = 64 * 1024
"""Frames up to here are read from all clients at a time; longer ones are schemas, `LARGE_FRAMES_MAX` at a time."""
LARGE_FRAMES_MAX = 8
SMALL_BODY_BYTES = 256 * 1024
"""Bodies up to here are received and checked (tens of microseconds) by the event loop's thread itself."""
SOON_S = 1.0
"""A small body that takes longer is left to the movers, which see whether it stalls."""
WAITING_BYTES_MAX = 2 * FRAME_BYTES_MAX
"""What may wait for one client that reads slowly."""
LINGER_S = 1.0
"""How long a refused connection is kept so that the peer can read why."""
PARTIAL = "partial"
"""Stands for a job's name where a message needs one and there is none."""
DAMAGED = "damaged"
"""The code of a Refusal of bytes that arrived other than they were sent."""
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3
UNACKNOWLEDGED_S = 60.0
"""A peer that acknowledges nothing for so long is gone."""
_CREDENTIALS = struct.Struct("3i")
_TO_CLIENT = msgspec.msgpack.Decoder(cm.ToClient)

Waiting = tuple[memoryview, int]
"""The rest of a frame, and the descriptor that goes with its first byte (-1: none)."""


@dataclass
class Shared:
    """What all connections use.  The byte counters are the gateway's totals."""

    link: Link
    arena: Arena
    movers: Movers
    checks: ThreadPoolExecutor
    readiness: Readiness
    node: str
    jobs: dict[str, Job] = field(default_factory=dict)
    connections: dict[int, Connection] = field(default_factory=dict)
    large_frames: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_FRAMES_MAX))
    received_bytes: int = 0
    sent_bytes: int = 0

    def frame_bytes_max(self) -> int:
        """The longest frame that a client can have a reason to send: its model's schema in a Submit."""
        longest = max((job.schema_bytes for job in self.jobs.values()), default=0)
        return min(FRAME_BYTES_MAX, longest + SMALL_FRAME_BYTES)


class Connection:
    """Connection `number` of the gateway; owns `sock`, a non-blocking stream socket."""

    def __init__(self, shared: Shared, number: int, sock: socket.socket) -> None:
        self.number = number
        self.client = ""
        self._shared = shared
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder: FrameDecoder[cm.FromClient] = FrameDecoder(cm.FromClient)
        self._direct = False
        self._followed = b""  # the key of an update whose progress is wanted
        self._receiving: tuple[bytes, Receive] | None = None  # the key and body of an update that is being received
        self._filling = False  # the client writes to its slot itself, now
        self._question: tuple[str, int] | None = None
        self._answer: asyncio.Future[gm.Granted | gm.ModelGranted | None] | None = None
        self._waiting: deque[Waiting | Send] = deque()
        self._waiting_bytes = 0
        self._flusher: asyncio.Task[None] | None = None
        self._model_sent: asyncio.Future[None] | None = None
        self._shut = False
        self._cut_because = ""

    # ---- the life of a connection ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serves the client until it leaves or must go."""
        try:
            await self._greet()
            while True:
                await self._shared.link.drained()
                await self._handle(await self._read())
        except RemoteFault as error:
            self._cut_because = self._reason(error)
            self.send(cm.Refusal("protocol", "", str(error)[:TEXT_CHARS_MAX]))
            await self._linger()
        except Refused as refused:
            self._cut_because = self._reason(refused)
            self.send(cm.Refusal(refused.code, refused.field, refused.text))
            await self._linger()
        except TimeoutError as error:
            self._cut_because = self._reason(error)
        except (OSError, EOFError):  # it left, or `_cut` made it
            pass
        finally:
            self.shut()
            if self._flusher is not None:
                await asyncio.wait({self._flusher})
            self._sock.close()
            if self._cut_because:
                self._shared.link.send(gm.Disconnected(self.number, self.client, self._cut_because))
            if self.client:
                self._shared.link.send(gm.ClientLeft(self.number))

    def shut(self) -> None:
        """Ends the connection: everything that waits for the socket wakes up with an error or the end of the stream."""
        if not self._shut:
            self._shut = True
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # the peer was faster
                pass
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(ConnectionResetError("the connection ended before the daemon answered"))

    def _cut(self, because: str) -> None:
        """Disconnects a client that is too slow."""
        self._cut_because = self._cut_because or because
        self.shut()

    def _reason(self, error: Exception) -> str:
        """Why the connection, or what was under way, ended with this error: what follows a cut only looks otherwise."""
        text = str(error) or ("a frame took too long" if isinstance(error, TimeoutError) else type(error).__name__)
        return self._cut_because or text[:TEXT_CHARS_MAX]

    async def _linger(self) -> None:
        """Lets the peer read the last frame: closing with unread bytes would reset the connection and lose it."""
        try:
            async with asyncio.timeout(LINGER_S):
                if self._flusher is not None:
                    await asyncio.shield(self._flusher)
                self._sock.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(self._sock, SMALL_FRAME_BYTES):
                    pass
        except (OSError, TimeoutError):
            return

    async def _greet(self) -> None:
        async with asyncio.timeout(HELLO_S):
            hello = await self._read()
        if not isinstance(hello, cm.Hello):
            raise RemoteFault(f"the first message must be Hello, not {type(hello).__name__}")
        if hello.version != cm.PROTOCOL_VERSION:
            raise Refused(
                "wrong-version",
                "version",
                f"the client speaks version {hello.version} of the protocol, this node {cm.PROTOCOL_VERSION}; install"
                " the same version of LIFL on both",
            )
        self.client = hello.client
        self._direct = hello.direct and self._is_same_user()
        self.send(cm.Welcome(cm.PROTOCOL_VERSION, self._shared.node, self._direct))

    def _is_same_user(self) -> bool:
        if self._sock.family != socket.AF_UNIX:
            return False
        credentials = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _pid, uid, _gid = _CREDENTIALS.unpack(credentials)
        return uid in (0, os.geteuid())

    # ---- reading ---------------------------------------------------------------------------------------------------

    async def _read(self) -> cm.FromClient:
        """The next message.  Raises `RemoteFault`, `EOFError`, `TimeoutError` or `OSError`."""
        while not await self._receive(LENGTH_BYTES, "closed by the client"):
            pass
        if (message := self._next_small()) is not None:  # nearly always: the whole frame has come at once
            return message
        async with asyncio.timeout(FRAME_S):
            while self._missing_bytes() <= SMALL_FRAME_BYTES:
                await self._receive(self._missing_bytes())
                if (message := self._next_small()) is not None:
                    return message
            async with self._shared.large_frames:
                while (message := self._decoder.next_message()) is None:
                    await self._receive(min(self._decoder.missing_bytes, SMALL_FRAME_BYTES))
                return message

    def _next_small(self) -> cm.FromClient | None:
        """The message that has begun, if the rest of its frame is here and not large."""
        while (message := self._decoder.next_message()) is None:
            missing_bytes = self._missing_bytes()
            if missing_bytes > SMALL_FRAME_BYTES or not self._receive_now(missing_bytes):
                return None
        return message

    def _missing_bytes(self) -> int:
        missing_bytes = self._decoder.missing_bytes
        if missing_bytes <= HELLO_BYTES_MAX:
            return missing_bytes
        limit = self._shared.frame_bytes_max() if self.client else HELLO_BYTES_MAX
        if missing_bytes > limit:
            raise RemoteFault(f"a frame announces {missing_bytes} bytes; at most {limit} are taken here")
        return missing_bytes

    async def _receive(self, nbytes: int, at_end: str = "closed by the client within a frame") -> bool:
        """Waits for bytes of a frame, and takes at most `nbytes`; whether there were any."""
        await self._shared.readiness.readable(self._sock)
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

    # ---- what clients ask ------------------------------------------------------------------------------------------

    async def _handle(self, message: cm.FromClient) -> None:
        try:
            match message:
                case cm.Join(job, holding, connected_ns):
                    self._shared.link.send(gm.ClientJoined(self.number, self.client, job, holding, connected_ns))
                case cm.Leave(job):
                    self._shared.link.send(gm.ClientLeft(self.number, job))
                case cm.GetModel():
                    await self._send_model(message)
                case cm.Submit():
                    await self._submit(message)
                case cm.Offer():
                    await self._take(message)
                case _:
                    raise RemoteFault(f"a {type(message).__name__} makes no sense here")
        except Refused as refused:
            about = (message.job, message.round) if isinstance(message, cm.Submit | cm.GetModel) else ("", -1)
            self.send(cm.Refusal(refused.code, refused.field, refused.text, *about))

    async def _ask(self, question: gm.Admit | gm.WantModel | gm.Offered) -> gm.Granted | gm.ModelGranted | None:
        """The daemon's grant; None when it answered the client itself (accepted already, busy, refused)."""
        self._question = None if isinstance(question, gm.Offered) else (question.job, question.round)
        self._answer = self._loop.create_future()
        self._shared.link.send(question)
        try:
            return await self._answer
        finally:
            self._question = self._answer = None

    def granted(self, grant: gm.Granted | gm.ModelGranted) -> bool:
        """The daemon's answer to a question; False when nothing was asked."""
        if self._answer is None or self._answer.done():
            return False
        self._answer.set_result(grant)
        return True

    def deliver(self, encoded: bytes) -> None:
        """The daemon has a message for the client; it may be the answer to a question."""
        is_ack = failpoints.on and isinstance(_TO_CLIENT.decode(encoded), cm.Accepted)
        if is_ack:
            failpoints.hit("gateway.ack.before")
        self._send_frame(framed(encoded))
        if is_ack:
            failpoints.hit("gateway.ack.after")
        if self._answer is None or self._answer.done():
            return
        try:
            message = _TO_CLIENT.decode(encoded)
        except msgspec.DecodeError as error:
            raise RemoteFault(f"lifld delivers what no client understands: {error}") from error
        if isinstance(message, cm.Accepted | cm.Busy | cm.Refusal) and self._question in (
            None,
            (message.job, message.round),
        ):
            self._answer.set_result(None)

    # ---- an update -------------------------------------------------------------------------------------------------

    async def _submit(self, submit: cm.Submit) -> None:
        job = self._job(submit.job)
        check_submit(job.layout, submit)
        grant = await self._ask(
            gm.Admit(self.number, self.client, submit.job, submit.round, submit.weight, submit.metrics, self._direct)
        )
        if not isinstance(grant, gm.Granted):
            return
        await self._land(grant, self._fill(submit, job, grant), submit.data_bytes)

    async def _land(self, grant: gm.Granted, filling: Awaitable[None], received_bytes: int) -> None:
        """Has a granted object filled and sealed, and tells the daemon how it ended."""
        try:
            await filling
        except (Refused, RemoteFault, OSError, EOFError, TimeoutError, StaleKey) as error:
            writing = self._filling and not self._is_gone(error)
            self._shared.link.send(gm.Aborted(self.number, grant.key, self._reason(error), writing))
            if isinstance(error, StaleKey):
                raise Refused("round-over", "round", "the round ended while the bytes were on their way") from error
            raise
        finally:
            self._filling = False
        self._shared.link.send(gm.Sealed(self.number, grant.key, received_bytes))

    def _is_gone(self, error: Exception) -> bool:
        """Whether it was the client that closed the connection: then it writes to its slot no more."""
        return isinstance(error, EOFError | ConnectionError) and not self._shut

    async def _fill(self, submit: cm.Submit, job: Job, grant: gm.Granted) -> None:
        """Has the update's bytes written, checked and sealed."""
        key = Key.unpack(grant.key)
        view = self._shared.arena.data(key)
        if len(view) != submit.data_bytes:
            raise Refused("wrong-size", "data_bytes", f"the slot has {len(view)} bytes, the update another size")
        content = Content(job.layout, view)
        if self._direct:
            offset = self._shared.arena.offset(key)
            self.send(cm.Go(submit.job, submit.round, direct=True, offset=offset), self._shared.arena.fd)
            # No deadline: while this client lives it may still write to the slot, which is nobody else's so long.
            self._filling = True
            filled = await self._read()
            if filled != cm.Filled(submit.job, submit.round):
                raise RemoteFault(f"Go was answered by {type(filled).__name__}, not by Filled of that round")
            self._filling = False
            await self._loop.run_in_executor(self._shared.checks, content.look_at_all)
        else:
            self.send(cm.Go(submit.job, submit.round))
            await self._receive_update(grant.key, Receive(self._sock, content.arrival))
        self._shared.received_bytes += submit.data_bytes
        failpoints.hit("gateway.seal.before")
        self._shared.arena.seal(key, submit.weight, 1, grant.member, content.finish())
        failpoints.hit("gateway.seal.after")

    async def _receive_update(self, key: bytes, body: Receive) -> None:
        self._receiving = key, body
        try:
            if self._followed == key:
                self._follow_body(key, body)
            await self._move(body, BODY_STALL_S)
        finally:
            self._receiving = None

    def follow(self, key: bytes) -> None:
        """The daemon wants to know how far the update with this key is, now or when it begins."""
        self._followed = key
        if self._receiving is not None and self._receiving[0] == key:
            self._follow_body(*self._receiving)

    def _follow_body(self, key: bytes, body: Receive) -> None:
        def report(moved_bytes: int) -> None:  # in a mover's thread
            self._loop.call_soon_threadsafe(self._shared.link.send, gm.Progress(key, moved_bytes))

        body.follow(report)

    def _job(self, name: str) -> Job:
        job = self._shared.jobs.get(name)
        if job is None:
            raise Refused("unknown-job", "job", f"this node runs no job {name!r}; see `lifl jobs`")
        return job

    # ---- a partial of another node ---------------------------------------------------------------------------------

    async def _take(self, offer: cm.Offer) -> None:
        if not (math.isfinite(offer.weight) and offer.weight > 0):
            raise Refused("bad-weight", "weight", f"a partial's weight is positive and finite, not {offer.weight}")
        grant = await self._ask(
            gm.Offered(
                self.number,
                offer.number,
                offer.epoch,
                offer.branch,
                offer.members,
                offer.data_bytes,
                offer.meta_bytes,
            )
        )
        if isinstance(grant, gm.Granted):
            await self._land(grant, self._fill_partial(offer, grant), offer.data_bytes + offer.meta_bytes)

    async def _fill_partial(self, offer: cm.Offer, grant: gm.Granted) -> None:
        """Has data and members received, data straight into the object; sealed when both are what was sent."""
        arena = self._shared.arena
        key = Key.unpack(grant.key)
        entry = arena.entry(key)
        check_room(offer, entry)
        view = arena.data(key)
        meta = bytearray(offer.meta_bytes)
        arriving, arriving_meta = arrival(view), arrival(memoryview(meta))
        self.send(cm.Go(PARTIAL, offer.epoch))
        if view:
            await self._move(Receive(self._sock, arriving), PEER_STALL_S)
        if meta:
            await self._move(Receive(self._sock, arriving_meta), PEER_STALL_S)
        async with asyncio.timeout(PEER_STALL_S):
            sums = await self._read()
        if not isinstance(sums, cm.Checksums):
            raise RemoteFault(f"a partial's bytes are followed by {type(sums).__name__}, not by Checksums")
        self._shared.received_bytes += offer.data_bytes + offer.meta_bytes
        data = arriving.finish()
        if (data, arriving_meta.finish()) != (sums.data, sums.meta):
            raise Refused(DAMAGED, "checksum", "the partial's bytes were changed on their way; send it again")
        await self._loop.run_in_executor(self._shared.checks, check_members, offer, meta)
        failpoints.hit("gateway.partial_seal.before")
        arena.seal(key, offer.weight, offer.members, bytes(meta), data)
        failpoints.hit("gateway.partial_seal.after")

    # ---- a model ---------------------------------------------------------------------------------------------------

    async def _send_model(self, want: cm.GetModel) -> None:
        grant = await self._ask(gm.WantModel(self.number, want.job, want.round))
        if not isinstance(grant, gm.ModelGranted):
            return
        sent_bytes = 0
        try:
            job = self._job(want.job)
            layout = job.layout
            key = Key.unpack(grant.key)
            sums = Sums(self._shared.arena, key, want.checked)
            view = self._shared.arena.data(key)
            self.send(cm.Model(grant.job, grant.round, layout.tensors, layout.data_bytes))
            if self._shut:
                raise ConnectionResetError("the connection ended before the model was sent")
            self._model_sent = self._loop.create_future()
            self._waiting.append(Send(self._sock, view, sums.departed))
            self._flush_soon()
            await self._model_sent
            sent_bytes = layout.data_bytes
            self._shared.sent_bytes += sent_bytes
            if want.checked:
                self.send(cm.Checksums(sums.finish()))
        except StaleKey as error:
            raise Refused("round-over", "round", "the round's model is gone; wait for the next selection") from error
        finally:
            self._shared.link.send(gm.ModelSent(self.number, grant.key, sent_bytes))

    async def _move(self, transfer: Receive | Send, stall_s: float) -> None:
        """Has a body moved; a small one is received here, as soon as it is all there: no other thread is woken."""
        if (
            isinstance(transfer, Send)
            or transfer.total_bytes > SMALL_BODY_BYTES
            or not await self._receive_soon(transfer)
        ):
            text = f"less than {STALL_BYTES} bytes of a body moved in {stall_s:g} s"
            await move(self._shared.movers, transfer, stall_s, lambda: self._cut(text))

    async def _receive_soon(self, body: Receive) -> bool:
        """Whether all of it came within `SOON_S`; what has come is kept."""
        try:
            async with asyncio.timeout(SOON_S):
                while not body.step():
                    await self._shared.readiness.readable(self._sock)
        except TimeoutError:
            return False
        except OSError:
            body.finish()
            raise
        body.finish()
        return True

    # ---- writing ---------------------------------------------------------------------------------------------------

    def send(self, message: Message, descriptor: int = -1) -> None:
        """Sends a message, or puts it in line; a client that is too far behind is disconnected."""
        self._send_frame(encode(message), descriptor)

    def _send_frame(self, encoded: bytes, descriptor: int = -1) -> None:
        if self._shut:
            return
        frame = memoryview(encoded)
        if self._flusher is None:
            try:
                sent = self._send_now(frame, descriptor)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.shut()
                return
            if sent == len(frame):
                return
            if sent:
                frame, descriptor = frame[sent:], -1
        self._waiting.append((frame, descriptor))
        self._waiting_bytes += len(frame)
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self._cut(f"it does not read: {self._waiting_bytes} bytes wait for it")
        self._flush_soon()

    def _send_now(self, frame: memoryview, descriptor: int) -> int:
        if descriptor < 0:
            return self._sock.send(frame)
        rights = array.array("i", [descriptor])
        return self._sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def _flush_soon(self) -> None:
        if self._flusher is None:
            self._flusher = self._loop.create_task(self._flush())

    async def _flush(self) -> None:
        """Sends what waits, in order."""
        failed: Exception | None = None
        try:
            while self._waiting:
                item = self._waiting.popleft()
                if isinstance(item, Send):
                    await self._move(item, BODY_STALL_S)
                    self._settle_model(None)
                else:
                    async with asyncio.timeout(BODY_STALL_S):
                        await self._send_waiting(*item)
                    self._waiting_bytes -= len(item[0])
        except (OSError, TimeoutError) as error:
            failed = error
            if isinstance(error, TimeoutError):
                self._cut(self._reason(error))
            self.shut()
        finally:
            self._flusher = None
            if failed is not None:
                self._waiting.clear()
                self._settle_model(ConnectionResetError(f"the client is gone: {failed}"))

    def _settle_model(self, error: OSError | None) -> None:
        if self._model_sent is not None and not self._model_sent.done():
            if error is None:
                self._model_sent.set_result(None)
            else:
                self._model_sent.set_exception(error)

    async def _send_waiting(self, frame: memoryview, descriptor: int) -> None:
        if descriptor >= 0:
            while True:
                try:
                    frame = frame[self._send_now(frame, descriptor) :]
                    break
                except BlockingIOError:
                    await self._writable()
        await self._loop.sock_sendall(self._sock, frame)

    async def _writable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(self._sock.fileno(), ready.set_result, None)
        try:
            await ready
        finally:
            self._loop.remove_writer(self._sock.fileno())


def tune(sock: socket.socket, unacknowledged_s: float = UNACKNOWLEDGED_S) -> None:
    """Answers at once, and finds out when the peer's machine is gone, without anything to wake up for here."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(unacknowledged_s * 1000))

"""One client's connection, as one coroutine that reads frames and answers them in order.

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
import logging
import os
import socket
import struct
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lifl.core import messages as m
from lifl.core.admission import check_submit
from lifl.core.errors import Refused, RemoteFault, StaleKey
from lifl.core.ids import Key
from lifl.core.wire import FRAME_BYTES_MAX, LENGTH_BYTES, FrameDecoder, encode
from lifl.node.gateway_content import Content, Job
from lifl.node.gateway_transfer import Movers, Receive, Send, Transfer
from lifl.node.link import Link
from lifl.shm.arena import Arena

log = logging.getLogger("gateway")

HELLO_S = 10.0
"""A new connection says Hello within this time."""
FRAME_S = 60.0
"""A frame that has begun is complete within this time."""
BODY_STALL_S = 60.0
"""A body (either way) moves at least `BODY_STALL_BYTES` in this time, or the connection ends."""
BODY_STALL_BYTES = 64 * 1024
HELLO_BYTES_MAX = 4096
SMALL_FRAME_BYTES = 64 * 1024
"""Frames up to here are read from all clients at a time; longer ones are schemas, `LARGE_FRAMES_MAX` at a time."""
LARGE_FRAMES_MAX = 8
WAITING_BYTES_MAX = 2 * FRAME_BYTES_MAX
"""What may wait for one client that reads slowly."""
LINGER_S = 1.0
"""How long a refused connection is kept so that the peer can read why."""
_CREDENTIALS = struct.Struct("3i")

Waiting = tuple[memoryview, int]
"""The rest of a frame, and the descriptor that goes with its first byte (-1: none)."""


@dataclass
class Shared:
    """What all connections use.  The byte counters are the gateway's totals."""

    link: Link
    arena: Arena
    movers: Movers
    checks: ThreadPoolExecutor
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
        self._decoder: FrameDecoder[m.FromClient] = FrameDecoder(m.FromClient)
        self._direct = False
        self._filling = False  # the client writes to its slot itself, now
        self._question: tuple[str, int] | None = None
        self._answer: asyncio.Future[m.Admitted | m.ModelGranted | None] | None = None
        self._waiting: deque[Waiting | Send] = deque()
        self._waiting_bytes = 0
        self._flusher: asyncio.Task[None] | None = None
        self._model_sent: asyncio.Future[None] | None = None
        self._shut = False

    # ---- the life of a connection ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serves the client until it leaves or must go."""
        why = "closed"
        try:
            await self._greet()
            while True:
                await self._shared.link.drained()
                await self._handle(await self._read())
        except RemoteFault as error:
            why = f"protocol: {error}"
            self.send(m.Refusal("protocol", "", str(error)[: m.TEXT_CHARS_MAX]))
            await self._linger()
        except Refused as refused:
            why = refused.text
            self.send(m.Refusal(refused.code, refused.field, refused.text))
            await self._linger()
        except (OSError, EOFError, TimeoutError) as error:
            why = str(error) or type(error).__name__
        finally:
            self.shut()
            if self._flusher is not None:
                await asyncio.wait({self._flusher})
            self._sock.close()
            if self.client:
                self._shared.link.send(m.ClientLeft(self.number))
            log.info("connection.closed conn=%d client=%s why=%s", self.number, self.client or "-", why)

    def shut(self) -> None:
        """Ends the connection: everything that waits for the socket wakes up with an error or the end of the stream."""
        if not self._shut:
            self._shut = True
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # the peer was faster
                pass

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
        if not isinstance(hello, m.Hello):
            raise RemoteFault(f"the first message must be Hello, not {type(hello).__name__}")
        if hello.version != m.PROTOCOL_VERSION:
            raise Refused(
                "wrong-version",
                "version",
                f"the client speaks version {hello.version} of the protocol, this node {m.PROTOCOL_VERSION}; install"
                " the same version of LIFL on both",
            )
        self.client = hello.client
        self._direct = hello.direct and self._is_same_user()
        self.send(m.Welcome(m.PROTOCOL_VERSION, self._shared.node, self._direct))

    def _is_same_user(self) -> bool:
        if self._sock.family != socket.AF_UNIX:
            return False
        credentials = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _pid, uid, _gid = _CREDENTIALS.unpack(credentials)
        return uid in (0, os.geteuid())

    # ---- reading ---------------------------------------------------------------------------------------------------

    async def _read(self) -> m.FromClient:
        """The next message.  Raises `RemoteFault`, `EOFError`, `TimeoutError` or `OSError`."""
        head = await self._loop.sock_recv(self._sock, LENGTH_BYTES)
        if not head:
            raise EOFError("closed by the client")
        async with asyncio.timeout(FRAME_S):
            while len(head) < LENGTH_BYTES:
                head += await self._receive_some(LENGTH_BYTES - len(head))
            self._decoder.feed(head)
            length = self._decoder.missing_bytes
            limit = self._shared.frame_bytes_max() if self.client else HELLO_BYTES_MAX
            if length > limit:
                raise RemoteFault(f"a frame announces {length} bytes; at most {limit} are taken here")
            if length <= SMALL_FRAME_BYTES:
                return await self._read_rest()
            async with self._shared.large_frames:
                return await self._read_rest()

    async def _read_rest(self) -> m.FromClient:
        while (message := self._decoder.next_message()) is None:
            self._decoder.feed(await self._receive_some(min(self._decoder.missing_bytes, SMALL_FRAME_BYTES)))
        return message

    async def _receive_some(self, nbytes: int) -> bytes:
        data = await self._loop.sock_recv(self._sock, nbytes)
        if not data:
            raise EOFError("closed by the client within a frame")
        return data

    # ---- what clients ask ------------------------------------------------------------------------------------------

    async def _handle(self, message: m.FromClient) -> None:
        try:
            match message:
                case m.Join(job, holding):
                    self._shared.link.send(m.ClientJoined(self.number, self.client, job, holding))
                case m.Leave(job):
                    self._shared.link.send(m.ClientLeft(self.number, job))
                case m.GetModel():
                    await self._send_model(message)
                case m.Submit():
                    await self._submit(message)
                case _:
                    raise RemoteFault(f"a {type(message).__name__} makes no sense here")
        except Refused as refused:
            assert isinstance(message, m.Submit | m.GetModel)  # nothing else is checked
            self.send(m.Refusal(refused.code, refused.field, refused.text, message.job, message.round))

    async def _ask(self, question: m.Admit | m.WantModel) -> m.Admitted | m.ModelGranted | None:
        """The daemon's grant; None when it answered the client itself (accepted already, busy, refused)."""
        self._question = (question.job, question.round)
        self._answer = self._loop.create_future()
        self._shared.link.send(question)
        try:
            return await self._answer
        finally:
            self._question = self._answer = None

    def granted(self, grant: m.Admitted | m.ModelGranted) -> bool:
        """The daemon's answer to a question; False when nothing was asked."""
        if self._answer is None or self._answer.done():
            return False
        self._answer.set_result(grant)
        return True

    def deliver(self, message: m.ToClient) -> None:
        """The daemon has a message for the client; it may be the answer to a question."""
        self.send(message)
        if (
            self._answer is not None
            and not self._answer.done()
            and isinstance(message, m.Accepted | m.Busy | m.Refusal)
            and (message.job, message.round) == self._question
        ):
            self._answer.set_result(None)

    # ---- an update -------------------------------------------------------------------------------------------------

    async def _submit(self, submit: m.Submit) -> None:
        job = self._job(submit.job)
        check_submit(job.layout, submit)
        grant = await self._ask(
            m.Admit(self.number, self.client, submit.job, submit.round, submit.weight, submit.metrics, self._direct)
        )
        if not isinstance(grant, m.Admitted):
            return
        key = Key.unpack(grant.key)
        try:
            checksum = await self._receive_body(submit, job, key)
            self._shared.arena.seal(key, submit.weight, 1, grant.member, checksum)
        except (Refused, RemoteFault, OSError, EOFError, TimeoutError, StaleKey) as error:
            reason = (str(error) or type(error).__name__)[: m.TEXT_CHARS_MAX]
            writing = self._filling and not self._is_gone(error)
            self._shared.link.send(m.Aborted(self.number, grant.key, reason, writing))
            if isinstance(error, StaleKey):
                raise Refused("round-over", "round", "the round ended while the update was on its way") from error
            raise
        finally:
            self._filling = False
        self._shared.link.send(m.Sealed(self.number, grant.key, submit.data_bytes))

    def _is_gone(self, error: Exception) -> bool:
        """Whether it was the client that closed the connection: then it writes to its slot no more."""
        return isinstance(error, EOFError | ConnectionError) and not self._shut

    async def _receive_body(self, submit: m.Submit, job: Job, key: Key) -> int:
        """Has the object's bytes written and checked; returns the checksum."""
        view = self._shared.arena.data(key)
        if len(view) != submit.data_bytes:
            raise Refused("wrong-size", "data_bytes", f"the slot has {len(view)} bytes, the update another size")
        content = Content(job.layout, view)
        if self._direct:
            offset = self._shared.arena.offset(key)
            self.send(m.Go(submit.job, submit.round, direct=True, offset=offset), self._shared.arena.fd)
            # No deadline: while this client lives it may still write to the slot, which is nobody else's so long.
            self._filling = True
            filled = await self._read()
            if filled != m.Filled(submit.job, submit.round):
                raise RemoteFault(f"Go was answered by {type(filled).__name__}, not by Filled of that round")
            self._filling = False
            await self._loop.run_in_executor(self._shared.checks, content.look_at_all)
        else:
            self.send(m.Go(submit.job, submit.round))
            await self._move(Receive(self._sock, view[:], content.advance))
        self._shared.received_bytes += submit.data_bytes
        return content.finish()

    def _job(self, name: str) -> Job:
        job = self._shared.jobs.get(name)
        if job is None:
            raise Refused("unknown-job", "job", f"this node runs no job {name!r}; see `lifl jobs`")
        return job

    # ---- a model ---------------------------------------------------------------------------------------------------

    async def _send_model(self, want: m.GetModel) -> None:
        grant = await self._ask(m.WantModel(self.number, want.job, want.round))
        if not isinstance(grant, m.ModelGranted):
            return
        sent_bytes = 0
        try:
            job = self._job(want.job)
            layout = job.layout
            view = self._shared.arena.data(Key.unpack(grant.key))
            self.send(m.Model(grant.job, grant.round, layout.tensors, layout.data_bytes))
            if self._shut:
                raise ConnectionResetError("the connection ended before the model was sent")
            self._model_sent = self._loop.create_future()
            self._waiting.append(Send(self._sock, view))
            self._flush_soon()
            await self._model_sent
            sent_bytes = layout.data_bytes
            self._shared.sent_bytes += sent_bytes
        except StaleKey as error:
            raise Refused("round-over", "round", "the round's model is gone; wait for the next selection") from error
        finally:
            self._shared.link.send(m.ModelSent(self.number, grant.key, sent_bytes))

    async def _move(self, transfer: Transfer) -> None:
        """Has the movers do a transfer.  Raises `OSError`; it returns only when no mover touches it any more."""
        done: asyncio.Future[None] = self._loop.create_future()

        def settle(error: OSError | None) -> None:
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def ended(_transfer: Transfer, error: OSError | None) -> None:
            self._loop.call_soon_threadsafe(settle, error)

        self._shared.movers.start(transfer, ended)
        seen_bytes = 0
        while not (await asyncio.wait({done}, timeout=BODY_STALL_S))[0]:
            before, seen_bytes = seen_bytes, transfer.seen_bytes()
            if seen_bytes - before < BODY_STALL_BYTES:
                log.info("body.stalled conn=%d client=%s bytes=%d", self.number, self.client, seen_bytes)
                self.shut()
        done.result()

    # ---- writing ---------------------------------------------------------------------------------------------------

    def send(self, message: m.Message, descriptor: int = -1) -> None:
        """Sends a message, or puts it in line; a client that is too far behind is disconnected."""
        if self._shut:
            return
        frame = memoryview(encode(message))
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
            log.info("connection.slow conn=%d client=%s behind_bytes=%d", self.number, self.client, self._waiting_bytes)
            self.shut()
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
                    await self._move(item)
                    self._settle_model(None)
                else:
                    async with asyncio.timeout(BODY_STALL_S):
                        await self._send_frame(*item)
                    self._waiting_bytes -= len(item[0])
        except (OSError, TimeoutError) as error:
            failed = error
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

    async def _send_frame(self, frame: memoryview, descriptor: int) -> None:
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

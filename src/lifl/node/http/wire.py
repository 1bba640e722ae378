"""HTTP/1.1 on one connection: h11 reads the heads and writes the answers; bodies are received to where they stay.

h11 does no I/O.  It is fed until a request's head is whole; the body that follows, of an announced length, is then read
from the socket straight into the memory that a handler names, and each request begins with an h11 of its own.  A body
whose length is not announced (chunked) is refused: what comes is never larger than was said.

An answer that comes before a body was read ends the connection, once the client had time to read it; where the client
waits for "100 Continue" it then sends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import h11
import msgspec

from lifl.core import limits
from lifl.core.limits import HTTP_HEAD_BYTES_MAX
from lifl.node.gateway.body_moves import SEND_BYTES, STALL_BYTES
from lifl.tls.tls_socket import Stream
from lifl.tls.waits import lingered, ready, sent

READ_BYTES = 16 * 1024
BODY_READ_BYTES = 1024 * 1024
LOW_WATER_BYTES = 512 * 1024
"""A socket that waits for a body wakes when this much has come: fewer, larger pieces (`gateway/body_moves.py`)."""
TURN_BYTES = 4 * 1024 * 1024
"""What one body may move before other connections have their turn."""
JSON = "application/json"
T = TypeVar("T")


class Problem(Exception):
    """An answer that is no success: `code`, `field` and `text` are as in the native protocol's Refusal."""

    def __init__(
        self,
        status: int,
        code: str,
        text: str,
        field: str = "",
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self.body = {"code": code, "field": field, "text": text} | more


class ClientGone(ConnectionError):
    """The client has closed the connection, or stands still."""


class _Patience:
    """Until when a body is waited for: it moves `STALL_BYTES` in `BODY_STALL_S`, in however small pieces."""

    def __init__(self) -> None:
        self._moved_bytes = -STALL_BYTES
        self._since_s = 0.0

    def until_s(self, moved_bytes: int) -> float:
        """Return it, in the loop's time, for a body of which so much has moved."""
        if moved_bytes - self._moved_bytes >= STALL_BYTES:
            self._moved_bytes, self._since_s = moved_bytes, asyncio.get_running_loop().time()
        return self._since_s + limits.BODY_STALL_S


class Exchange:
    """One request and its answer."""

    def __init__(self, sock: Stream, parser: h11.Connection, request: h11.Request, early: bytes) -> None:
        self.method = request.method.decode()
        target = request.target.decode("latin-1")
        path, _, query = target.partition("?")
        self.path = path
        self.segments = [unquote(each) for each in path.split("/")[1:]]
        self.query = query
        self.headers: dict[str, str] = {}
        for name, value in request.headers:
            self.headers[name.decode("latin-1")] = value.decode("latin-1")
        self.length = _length(self.headers)
        """Bytes of the body."""
        self.left = self.length
        """Those that were not read yet."""
        self.keeps = True
        """The connection may go on behind the answer."""
        self.answered = False
        self.common: Mapping[str, str] = {}
        """Headers of any answer."""
        self._sock = sock
        self._parser = parser
        self._early = memoryview(early)
        self._awaited = parser.they_are_waiting_for_100_continue and self.length > 0
        self._low_water_bytes = 1
        self._patience = _Patience()

    def arguments(self) -> dict[str, str]:
        """Return the query's arguments.  Raise `Problem`."""
        try:
            pairs = parse_qsl(self.query, keep_blank_values=True, strict_parsing=bool(self.query), max_num_fields=32)
        except ValueError as error:
            raise Problem(400, "protocol", f"the query cannot be read: {error}", "query") from error
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Problem(400, "protocol", "an argument stands there twice", "query")
        return found

    # ---- the body --------------------------------------------------------------------------------------------------

    async def go_on(self) -> None:
        """Have the client send its body, if it waits for that."""
        if self._awaited:
            self._awaited = False
            await self._send(self._parser.send(h11.InformationalResponse(status_code=100, headers=[])))

    async def receive_into(self, where: Callable[[], memoryview]) -> int:
        """Fill the front of `where()` with the next bytes of the body; return how many.

        It is asked when they are there, and they are in it before anything else is done: memory that was lent may be
        another's after each wait.  Raise `OSError`, and what `where` raises.
        """
        if self._early:
            room = where()
            got = min(len(self._early), len(room), self.left)
            room[:got] = self._early[:got]
            self._early = self._early[got:]
        else:
            got = await self._receive(where)
        self.left -= got
        if not self.left:
            self._wake_at(1)
        return got

    async def _receive(self, where: Callable[[], memoryview]) -> int:
        while True:
            try:
                got = self._sock.recv_into(where()[: min(self.left, BODY_READ_BYTES)])
            except BlockingIOError:
                await self._more()
                continue
            if not got:
                raise ClientGone("the client closed the connection within a body")
            return got

    async def _more(self) -> None:
        """Return when more of the body is there.  Raise `ClientGone` when it stands still."""
        self._wake_at(max(1, min(self.left, LOW_WATER_BYTES)))
        try:
            async with asyncio.timeout_at(self._patience.until_s(self.length - self.left)):
                await ready(self._sock)
        except TimeoutError:
            self._wake_at(1)
            if _waiting_bytes(self._sock) < min(STALL_BYTES, self.left):
                text = f"less than {STALL_BYTES} bytes of a body came in {limits.BODY_STALL_S:g} s"
                raise ClientGone(text) from None

    def _wake_at(self, low_water_bytes: int) -> None:
        if low_water_bytes != self._low_water_bytes and isinstance(self._sock, socket.socket):
            self._low_water_bytes = low_water_bytes
            with contextlib.suppress(OSError):  # it has ended
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water_bytes)

    async def read(self, most: int) -> bytes:
        """Return the whole body, which is a short one.  Raise `Problem`, `OSError`."""
        if self.length > most:
            raise Problem(413, "too-large", f"the body has {self.length} bytes, at most {most} are taken here", "body")
        await self.go_on()
        body = bytearray(self.length)
        view = memoryview(body)
        while self.left:
            await self.receive_into(lambda: view[self.length - self.left :])
        return bytes(body)

    async def discard(self) -> None:
        """Read the rest of the body, and forget it, unless the client waits to be told to send it.  Raise `OSError`."""
        if self._awaited:
            return
        room = memoryview(bytearray(min(self.left, BODY_READ_BYTES)))
        while self.left:
            await self.receive_into(lambda: room)
            await asyncio.sleep(0)

    # ---- the answer ------------------------------------------------------------------------------------------------

    async def answer(
        self, status: int, body: object = None, headers: Mapping[str, str] | None = None, kind: str = JSON
    ) -> None:
        """Answer with a body: bytes, or what becomes JSON; None: with none.  Raise `OSError`."""
        data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body) + b"\n"
        found = {"Content-Type": kind} if body is not None else {}
        await self.begin(status, len(data), found | dict(headers or {}), b"" if self.method == "HEAD" else data)

    async def begin(self, status: int, length: int, headers: Mapping[str, str], data: bytes = b"") -> None:
        """Send the head of an answer whose body has so many bytes, and the front of that.  Raise `OSError`."""
        self.answered = True
        self.keeps = self.keeps and not self.left
        found = {"Date": formatdate(usegmt=True), "Server": "lifl", **self.common, **headers}
        if status not in (204, 304):
            found["Content-Length"] = str(length)
        if not self.keeps:
            found["Connection"] = "close"
        response = h11.Response(status_code=status, headers=list(found.items()), reason=HTTPStatus(status).phrase)
        await self._send((self._parser.send(response) or b"") + data)
        self.keeps = self.keeps and self._parser.our_state is h11.SEND_BODY and self._lives_on()

    async def begin_stream(self, kind: str) -> None:
        """Send the head of an answer that goes on until the connection ends.  Raise `OSError`."""
        self.answered, self.keeps = True, False
        found = {"Date": formatdate(usegmt=True), "Server": "lifl", **self.common, "Content-Type": kind}
        found["Connection"] = "close"
        response = h11.Response(status_code=200, headers=list(found.items()), reason="OK")
        await self._send(self._parser.send(response))

    async def push(self, data: bytes) -> None:
        """Send more of it, at once.  Raise `OSError`."""
        await self._send(self._parser.send(h11.Data(data=data)))

    async def gone(self) -> None:
        """Return when the client, who is being told something and has nothing to say, has left or says something."""
        with contextlib.suppress(OSError):
            await ready(self._sock)

    async def attended(self, wait: Coroutine[Any, Any, T]) -> T:
        """Return what a wait has come to, while the client is there.

        What it says meanwhile is kept: the next request.  Raise `ClientGone` as soon as it has left, and what `wait`
        raises.
        """
        waiting, leaving = asyncio.ensure_future(wait), asyncio.ensure_future(self._leaves())
        try:
            await asyncio.wait([waiting, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientGone("the client has left while it waited to be told something")
            return waiting.result()
        finally:
            waiting.cancel()
            leaving.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)

    async def _leaves(self) -> None:
        """Return when the client has left; not if it says more than is kept."""
        while len(self._early) < READ_BYTES:
            try:
                more = self._sock.recv(READ_BYTES)
            except BlockingIOError:
                await ready(self._sock)
                continue
            except OSError:  # cut off
                return
            if not more:
                return
            self._early = memoryview(bytes(self._early) + more)
        await asyncio.get_running_loop().create_future()

    async def end_stream(self) -> None:
        """Say that this was all.  Raise `OSError`."""
        await self._send(self._parser.send(h11.EndOfMessage()))

    def _lives_on(self) -> bool:
        """Return whether client and h11 have the connection go on."""
        return "close" not in self.headers.get("connection", "").lower() and self._parser.their_http_version != b"1.0"

    async def send(self, view: memoryview, check: Callable[[], None] = lambda: None) -> None:
        """Send more of the answer's body.

        `check` is called before each piece, with no wait between: it raises when the bytes are not the client's any
        more.  Raise `OSError`, and what `check` raises.
        """
        turn_bytes, whole, patience = 0, len(view), _Patience()
        while view:
            check()
            try:
                step = self._sock.send(view[:SEND_BYTES])
            except BlockingIOError:
                try:
                    async with asyncio.timeout_at(patience.until_s(whole - len(view))):
                        await ready(self._sock, write=True)
                except TimeoutError:
                    raise ClientGone("the client does not read") from None
                continue
            view = view[step:]
            turn_bytes += step
            if turn_bytes >= TURN_BYTES:
                turn_bytes = 0
                await asyncio.sleep(0)

    async def _send(self, data: bytes | None) -> None:
        try:
            async with asyncio.timeout(limits.BODY_STALL_S):
                await sent(self._sock, data or b"")
        except TimeoutError:
            raise ClientGone("the client does not read") from None

    def cut(self) -> None:
        """End the connection: another one has taken its place."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def rest(self) -> bytes:
        """Return what has come behind the request already: the next one's beginning."""
        return bytes(self._early)


class Requests:
    """The requests of one connection, in turn."""

    def __init__(self, sock: Stream) -> None:
        self._sock = sock
        self._pending = b""

    async def next(self, patience_s: float) -> Exchange | None:
        """Return the next request; None at the end.  Raise `Problem` for what is none, `OSError`, `TimeoutError`."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HTTP_HEAD_BYTES_MAX)
        try:
            if not self._pending:
                async with asyncio.timeout(patience_s):
                    self._pending = await self._read()
            if not self._pending:
                return None
            head_bytes = 0
            async with asyncio.timeout(limits.HTTP_HEAD_S):
                while True:
                    head_bytes += len(self._pending)
                    parser.receive_data(self._pending)
                    event = parser.next_event()
                    if isinstance(event, h11.Request):
                        break
                    if event is not h11.NEED_DATA:
                        return None
                    self._pending = await self._read()
            early = parser.trailing_data[0]
            if head_bytes - len(early) > HTTP_HEAD_BYTES_MAX:  # h11 looks at what is not whole yet
                raise h11.RemoteProtocolError("the head is too long", error_status_hint=431)
            return Exchange(self._sock, parser, event, early)
        except h11.RemoteProtocolError as error:
            raise Problem(error.error_status_hint, "protocol", f"that is no request of HTTP/1.1: {error}") from error

    async def _read(self) -> bytes:
        while True:
            try:
                return self._sock.recv(READ_BYTES)
            except BlockingIOError:
                await ready(self._sock)

    def done(self, exchange: Exchange) -> None:
        """Go on behind a request whose body was read."""
        self._pending = exchange.rest()

    async def say_last(self, problem: Problem) -> None:
        """Answer what is no request, and end the connection."""
        body = msgspec.json.encode(problem.body) + b"\n"
        lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}", f"Content-Type: {JSON}"]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", ""])
        async with asyncio.timeout(limits.LINGER_S):
            await sent(self._sock, head.encode() + body)
            await lingered(self._sock)


def _length(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise Problem(411, "protocol", "a body comes with its Content-Length, not in chunks", "Content-Length")
    return int(headers.get("content-length", "0"))


def _waiting_bytes(sock: Stream) -> int:
    try:
        return len(sock.recv(STALL_BYTES, socket.MSG_PEEK)) if isinstance(sock, socket.socket) else 0
    except BlockingIOError:
        return 0

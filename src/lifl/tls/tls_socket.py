"""A TLS connection with the methods of a socket that LIFL's code uses, over a socket that stays what it was.

OpenSSL works on memory here (`ssl.SSLObject`): what is received and sent passes the raw socket in larger pieces than
one record of 16 KB, whose descriptor, options and end are used as those of any socket.  From the end of the handshake
on a compiled part does that (`compiled.py`), where it could be built; what is here does the same without it.
Non-blocking, blocking or with a timeout: it does as the raw socket does, and raises what that raises.

Receiving decrypts into the caller's memory.  What was received from the kernel and not yet asked for is `pending`: then
there is something to read although the descriptor is silent.

A record is encrypted once and cannot be taken back, so `send` counts bytes when all of their record has left.  After a
`BlockingIOError`, or a part that was sent, the same bytes must be offered again, in the same order: what a stream does.

One lock is held within each call: a thread that moves a body and the loop that sends a frame may use the connection at
the same time, which OpenSSL's objects by themselves do not allow.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any

from lifl.tls import records
from lifl.tls.compiled import CompiledWay
from lifl.tls.faults import TlsFault, fault_of
from lifl.tls.outgoing import Outgoing
from lifl.tls.peer import Peer, peer_of

READ_BYTES = 64 * 1024
"""What is taken from the kernel at a time; the connection keeps a buffer of this size when it has received a body."""
WRITE_BYTES = 64 * 1024
"""What is encrypted at a time."""
RECORD_BYTES = 16 * 1024 + 256
"""The longest record: so much of what was received may wait in OpenSSL for its end."""
OVERHEAD = 64
"""What a byte of data may cost in received bytes: a record with one byte in it has 23."""
IDLE_READ_BYTES = 4 * 1024
"""What is taken from the kernel at a time when there was no data in what was taken last."""
OVERHEAD_BYTES_MAX = RECORD_BYTES + IDLE_READ_BYTES
"""And so many bytes may come beyond that, such as new keys, which cost us more than their sender.

Asked when OpenSSL has nothing left to do: a record that is not complete is less.  So a call that finds ever more to
read ends, and what OpenSSL answers by itself, which leaves with the next data that is sent, does not pile up.
"""
_BUSY = "TLS failed: it sends messages of TLS without end, and hardly any data"

_scratch = threading.local()


class TlsSocket:
    """TLS over `raw`, a connected stream socket that it owns; `host` is whom a client wants, checked if the context
    checks hosts.
    """

    def __init__(self, raw: socket.socket, context: ssl.SSLContext, *, server: bool = False, host: str = "") -> None:
        self.raw = raw
        self.family = raw.family
        self.wants_write = False
        """What the last `BlockingIOError` waits for: room to send; False: bytes."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), Outgoing(raw)
        self._tls = context.wrap_bio(self._incoming, self._outgoing.memory, server, host.partition("%")[0] or None)
        self._read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]
        self._compiled = records.COMPILED
        self._way: CompiledWay | None = None  # from the handshake's end on, where it is compiled
        if self._compiled is not None:
            self._compiled.prefer_ciphers(self._tls)
        self._lock = threading.Lock()
        self._said_end = False
        self._failed: TlsFault | None = None  # behind the bytes that were received last
        self._overhead_bytes = 0  # of what was received: no data, and more than belongs to the data that came
        self._had_data = False  # what was taken from the kernel last

    # ---- the handshake ---------------------------------------------------------------------------------------------

    def do_handshake(self) -> None:
        """Go on with the handshake.  Raise `BlockingIOError` while it needs more (see `wants_write`), `TlsFault`."""
        with self._lock:
            while True:
                self.wants_write = True
                self._outgoing.flush()
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    self._outgoing.flush()
                    if not self._fill():
                        raise ConnectionResetError("the connection ended within the TLS handshake") from None
                except ssl.SSLError as error:
                    self._tell_why()
                    raise fault_of(error) from error
                else:
                    self._overhead_bytes = 0
                    self._outgoing.flush()
                    if self._compiled is not None and self._way is None:
                        self._way = CompiledWay(self.raw, self._compiled.channel(self._tls), _BUSY)
                    return

    def _tell_why(self) -> None:
        """Have the alert sent, if the kernel takes it now."""
        try:
            if self._way is not None:
                self._way.flush()
            else:
                self._outgoing.flush()
        except OSError:
            pass

    @property
    def peer(self) -> Peer | None:
        """Who is at the other end, from the handshake on; None when it has shown no certificate, as a server may allow.

        Raise `RemoteFault` when the certificate is no identity.
        """
        certificate = self._tls.getpeercert()
        return peer_of(certificate) if certificate else None

    @property
    def peer_certificate(self) -> bytes:
        """The peer's certificate (DER); empty when there is none."""
        return self._tls.getpeercert(binary_form=True) or b""

    @property
    def cipher(self) -> str:
        """The cipher's name."""
        found = self._tls.cipher()
        return found[0] if found else ""

    # ---- receiving -------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there is something to read without the descriptor: to be asked before it is waited for."""
        if self._way is not None:
            return self._way.pending
        return bool(self._incoming.pending or self._tls.pending() or self._failed)

    @property
    def buffered_bytes_max(self) -> int:
        """At most so many bytes of what the peer has sent have left the kernel and cannot be read yet."""
        return self._incoming.pending + RECORD_BYTES

    def recv(self, nbytes: int) -> bytes:
        """Receive at most so many bytes; none at the peer's end."""
        if self._said_end:
            return self.raw.recv(nbytes)  # nobody reads it: only the end is waited for
        room = bytearray(nbytes)
        with memoryview(room) as view:
            got = self.recv_into(view)
        return bytes(room[:got])

    def recv_into(self, room: memoryview | bytearray, nbytes: int = 0) -> int:
        """Decrypt into `room` what has come; return how many bytes, 0 at the peer's end.  Raise `BlockingIOError`."""
        with self._lock, memoryview(room) as view:
            if self._failed is not None:
                raise self._failed
            wanted = nbytes or len(view)
            if self._way is not None:
                self.wants_write = False
                with view[:wanted] as rest:
                    return self._way.receive(rest)
            got = 0
            while got < wanted:
                try:
                    with view[got:wanted] as rest:
                        step = self._read(wanted - got, rest)
                except ssl.SSLWantReadError:
                    if got:
                        break
                    if max(self._overhead_bytes, self._outgoing.memory.pending) > OVERHEAD_BYTES_MAX:
                        self._failed = TlsFault(_BUSY)
                        raise self._failed from None
                    self._fill()
                    continue
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    break
                except ssl.SSLError as error:
                    self._failed = fault_of(error)
                    if got:
                        break
                    raise self._failed from error
                if not step:
                    break
                got += step
                self._overhead_bytes = max(0, self._overhead_bytes - OVERHEAD * step)
                self._had_data = True
            return got

    def _fill(self) -> bool:
        """Take more from the kernel; return False at the end of the stream."""
        room: bytearray | None = getattr(_scratch, "room", None)
        if room is None:
            room = _scratch.room = bytearray(READ_BYTES)
        self.wants_write = False
        nbytes = self.raw.recv_into(room, READ_BYTES if self._had_data else IDLE_READ_BYTES)
        self._had_data = False
        if not nbytes:
            self._incoming.write_eof()
            return False
        self._overhead_bytes += nbytes
        with memoryview(room) as view:
            self._incoming.write(view[:nbytes])
        return True

    # ---- sending ---------------------------------------------------------------------------------------------------

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the kernel takes; return how many bytes have left.  Raise `BlockingIOError` when none have."""
        with self._lock, memoryview(data) as view, view.cast("B") as plain:
            return self._send(plain)

    def sendmsg(self, buffers: Sequence[memoryview | bytes], ancillary: Sequence[Any] = ()) -> int:
        """Send the bytes of several buffers, as `send` does; nothing can go along with them."""
        if ancillary:
            raise TlsFault("descriptors do not travel over TLS")
        sent = 0
        with self._lock:
            for piece in _gathered(buffers):
                try:
                    step = self._send(piece)
                except (BlockingIOError, TimeoutError):
                    if not sent:
                        raise
                    break
                sent += step
                if step < len(piece):
                    break
        return sent

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """Send all; for sockets that wait."""
        with memoryview(data) as view, view.cast("B") as plain:
            sent = 0
            while sent < len(plain):
                sent += self.send(plain[sent:])

    def _send(self, plain: memoryview) -> int:
        out, sent = self._outgoing, 0
        self.wants_write = True
        if self._way is not None:
            return self._way.send(plain)
        while sent < len(plain):
            if not out.waiting and not out.credit:
                self._encrypt(plain[sent : sent + WRITE_BYTES])
            try:
                if out.waiting:
                    out.push()
            except (BlockingIOError, TimeoutError):
                if not sent and not out.credit:
                    raise
            step = min(out.credit, len(plain) - sent)
            out.credit -= step
            sent += step
            if out.waiting and sent:
                break
        return sent

    def _encrypt(self, plain: memoryview) -> None:
        """Make records of all of `plain`."""
        done = 0
        try:
            while done < len(plain):
                step = self._tls.write(plain[done:])
                self._outgoing.note(step)
                done += step
        except ssl.SSLError as error:
            raise fault_of(error) from error

    # ---- the end, and what the raw socket does ---------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End the connection one way, which the peer is told, or both; this takes no lock: it wakes who holds it."""
        if how == socket.SHUT_WR:
            with self._lock:
                self._say_end()
        self.raw.shutdown(how)

    def _say_end(self) -> None:
        self._said_end = True
        try:
            self._tls.unwrap()
        except ssl.SSLError:  # the peer has not said so itself yet
            pass
        self._tell_why()

    def close(self) -> None:
        """Close the socket."""
        self.raw.close()

    def fileno(self) -> int:
        """Return the raw socket's descriptor."""
        return self.raw.fileno()

    def setblocking(self, flag: bool) -> None:
        """Do as the raw socket."""
        self.raw.setblocking(flag)

    def settimeout(self, seconds: float | None) -> None:
        """Do as the raw socket."""
        self.raw.settimeout(seconds)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Do as the raw socket."""
        self.raw.setsockopt(level, option, value)

    def getsockname(self) -> Any:
        """Do as the raw socket."""
        return self.raw.getsockname()

    def getpeername(self) -> Any:
        """Do as the raw socket."""
        return self.raw.getpeername()


Stream = socket.socket | TlsSocket
"""A connected stream socket, with TLS or without."""


def _gathered(buffers: Sequence[memoryview | bytes]) -> list[memoryview]:
    """Return the same bytes in fewer pieces: small buffers are put together, to fill records."""
    pieces: list[memoryview] = []
    small: list[memoryview | bytes] = []
    small_bytes = 0
    for buffer in buffers:
        nbytes = len(buffer)
        if nbytes < RECORD_BYTES:
            small.append(buffer)
            small_bytes += nbytes
        if small and (nbytes >= RECORD_BYTES or small_bytes >= WRITE_BYTES):
            pieces.append(memoryview(b"".join(small)))
            small, small_bytes = [], 0
        if nbytes >= RECORD_BYTES:
            pieces.append(memoryview(buffer))
    if small:
        pieces.append(memoryview(b"".join(small)))
    return pieces

"""A client's connection to a gateway: frames and raw bytes on one blocking socket, with TLS or without (`dialling.py`).

Frames are read exactly, so the bytes of a model that follow one stay in the kernel until they are received into
their array.  Over AF_UNIX the descriptor of a segment of the arena may come along with a frame.

A connection belongs to one thread.  A forked child closes its copy, so that it neither holds the connection open nor
ends it.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from lifl.client.dialling import Dialler
from lifl.core.config.values import is_loopback, joined_address
from lifl.core.errors import Refused, RemoteFault
from lifl.core.protocol import client as cm
from lifl.core.protocol.body_ranges import STREAMS, streams_for
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.schema import TensorSpec
from lifl.core.trust.cookie import proof_of
from lifl.tls.polling import readable
from lifl.tls.tls_socket import TlsSocket

if TYPE_CHECKING:
    from lifl.shm.mapping import Readable

Progress = Callable[[int, int], None]
"""Called with (bytes sent, all bytes)."""

GREETING_S = 30.0
"""A node answers a new connection within this time; later waiting has no limit, for it is what clients do."""
SEND_VIEWS_MAX = 256
"""Buffers in one `sendmsg`; the kernel takes at most 1024."""
SEND_BYTES = 4 * 1024 * 1024
"""Bytes in one `sendmsg`: how often progress is told."""
RECEIVE_BYTES = 1024 * 1024
DESCRIPTORS_MAX = 2
"""Of them come along with a frame."""

T = TypeVar("T")


class Watched(Protocol):
    """What looks after a connection while something is waited for on it (`liveness.Watch`)."""

    asking: bool

    def heard(self) -> None: ...

    def moved(self) -> None: ...

    def answered(self, pong: cm.Pong) -> None: ...

    def ping(self) -> None: ...

    def wait_s(self) -> float: ...

    def silent(self) -> None: ...


_streams: weakref.WeakSet[Stream] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Close a forked child's copies of connections, which are its parent's: nothing is said, nothing is shut down."""
    for stream in list(_streams):
        stream.close()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_in_child)


class OtherLost(ConnectionResetError):
    """Of two connections that were waited for, the other one is lost."""


class OlderNode(Refused):
    """The node does not understand what this client says that it knows; it is to say less."""


def greeted(address: str, patience_s: float, client: str, direct: bool, dialler: Dialler) -> Stream:
    """Return a connection to a node that takes the client.  Raise `OSError`, `LocalFault`, `Refused`, `RemoteFault`."""
    said = [(), cm.KNOWS, (*cm.KNOWS, STREAMS)]
    while True:
        stream = Stream(address, patience_s, dialler)
        if stream.streams == 1 and len(said) > 2:
            said.pop()
        try:
            stream.greet(client, direct, said[-1])
        except OlderNode:
            stream.close()
            said.pop()
        except BaseException:
            stream.close()
            raise
        else:
            return stream


class Stream:
    """One connection.  Everything raises `OSError` when it breaks and `RemoteFault` when the peer sends garbage."""

    def __init__(self, address: str, patience_s: float, dialler: Dialler) -> None:
        self.knows: frozenset[str] = frozenset()
        """What the node knows beyond the first version of the protocol."""
        self.node = ""
        """The node's number, in hexadecimal digits."""
        self.watch: Watched | None = None
        self.dialler = dialler
        self.address = address
        self._sock = dialler.connect(address, patience_s)
        _streams.add(self)
        self.is_local = self._sock.family == getattr(socket, "AF_UNIX", None)
        secured = isinstance(self._sock, TlsSocket)
        self.direct = False
        """The node has said that it lets us have its memory."""
        self.streams = 1 if self.is_local else streams_for(dialler.streams, _cores(), secured)
        """Over how many connections a large body may go: by this client, and from `greet` on by the node, too."""
        self._decoder: FrameDecoder[cm.ToClient] = FrameDecoder(cm.ToClient)
        self._tensors: dict[str, tuple[TensorSpec, ...]] = {}  # by job: those that were told over this connection
        self._descriptors: list[int] = []
        self._segment: memoryview | None = None
        self._segment_is: tuple[int, int] | None = None  # its device and inode

    def greet(self, client: str, direct: bool, knows: tuple[str, ...] = cm.KNOWS) -> None:
        """Say Hello and take the answer.  Raise `Refused` too; `OlderNode` when the node has no word for `knows`."""
        shown = self.dialler.access.message_for(self._sock) if self.dialler.access is not None else None
        if shown is not None:
            self.send(shown)
        self.send(cm.Hello(cm.PROTOCOL_VERSION, client, direct=direct and self.is_local, knows=knows))
        answer = self._answer()
        if isinstance(answer, cm.Challenge) and self._is_loopback():
            answer = self._prove(answer)
        if isinstance(answer, cm.Refusal):
            if answer.code in cm.NO_PLACE:
                raise ConnectionRefusedError(answer.text)
            if answer.code == "protocol" and knows:
                raise OlderNode(answer.code, answer.field, answer.text)
            raise Refused(answer.code, answer.field, answer.text)
        if not isinstance(answer, cm.Welcome):
            raise RemoteFault(f"the node answers Hello by {type(answer).__name__}; is it a LIFL gateway?")
        if fault := cm.SPOKEN.fault(answer.version, "this client", "the node"):
            raise Refused("wrong-version", "version", fault)
        self.knows = frozenset(answer.knows)
        self.node = answer.node
        self.direct = answer.direct
        self.streams = min(self.streams, answer.streams)
        self.patience(None)

    def _answer(self) -> cm.ToClient:
        """Return the first word of whoever listens there."""
        try:
            return self.receive()
        except RemoteFault as fault:
            text = f"who listens there is no gateway of LIFL: clients come to a node's --listen address ({fault})"
            raise RemoteFault(text) from fault

    def _is_loopback(self) -> bool:
        return not self.is_local and is_loopback(str(self._sock.getpeername()[0]))

    def _prove(self, challenge: cm.Challenge) -> cm.ToClient:
        """Show that this is the node's own account, and return what it says to that.  Raise `Refused` else."""
        from lifl.tls.cookie_file import told

        host, port = self._sock.getpeername()[:2]
        address = joined_address(host, port)
        cookie = told(challenge.cookie, address)
        self.send(cm.Prove(proof_of(cookie, challenge.nonce, address)))
        return self.receive()

    def patience(self, patience_s: float | None) -> None:
        """Wait so long from now on; None: as long as it takes, or as the watch says."""
        self._sock.settimeout(patience_s)

    def patiently(self, act: Callable[[], T]) -> T:
        """Do what may have to wait; the watch, if there is one, says for how long."""
        if self.watch is None:
            return act()
        while True:
            self._sock.settimeout(self.watch.wait_s())
            try:
                done = act()
            except TimeoutError as error:
                if error.errno is not None:  # the network's, not ours
                    raise
                self.watch.silent()
            else:
                self.watch.moved()
                return done

    def wait_with(self, other: Stream) -> Stream:
        """Wait until there is something to receive; return on which of the two, the other one first.

        Each is looked after meanwhile: the answer may come over either.  Raise `OtherLost` when the other one's node is
        silent, and another answers.
        """
        both = (other, self)
        for stream in both:
            if stream._has_decrypted():
                return stream
        sockets = [stream._sock for stream in both]
        watches = [stream.watch for stream in both if stream.watch is not None]
        while not (ready := readable(sockets, min((watch.wait_s() for watch in watches), default=None))):
            if self.watch is not None:
                self.watch.silent()
            try:
                if other.watch is not None:
                    other.watch.silent()
            except OSError as error:
                raise OtherLost(str(error)) from error
        return both[ready[0]]

    def has_come(self) -> bool:
        """Return whether something can be received without waiting: a message, part of one, or the end."""
        if not self._decoder.missing_bytes or self._has_decrypted():
            return True
        return bool(readable([self._sock], 0.0))

    def wait(self) -> None:
        """Wait until something can be received; another thread may send meanwhile, also where it is TLS."""
        if not self._has_decrypted():
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            poll.poll()

    def _has_decrypted(self) -> bool:
        """Return whether there is something to receive that the descriptor does not tell of."""
        return isinstance(self._sock, TlsSocket) and self._sock.pending

    def send(self, message: cm.FromClient) -> None:
        """Send one frame."""
        frame = memoryview(encode(message))
        while frame:
            frame = frame[self.patiently(partial(self._sock.send, frame)) :]

    def receive(self) -> cm.ToClient:
        """Wait for the next frame and return its message; the answers to its questions are the watch's."""
        while (message := self.take()) is None:
            pass
        return message

    def pending(self) -> cm.ToClient | None:
        """Return the next message if it has come, or part of it; None when nothing is to be received."""
        while self.has_come():
            message = self.take()
            if message is not None:
                return message
        return None

    def take(self) -> cm.ToClient | None:
        """Wait for the next frame and return its message; None for an answer to the watch's question."""
        while (message := self._decoder.next_message()) is None:
            data = self.patiently(self._receive_some)
            if not data:
                raise ConnectionResetError("the node closed the connection")
            self._decoder.feed(data)
        if self.watch is not None and isinstance(message, cm.Pong):
            self.watch.answered(message)
            return None
        if self.watch is not None:
            self.watch.heard()
        return self._completed(message) if isinstance(message, cm.Selected) else message

    def _receive_some(self) -> bytes:
        wanted = min(self._decoder.missing_bytes, RECEIVE_BYTES)
        if isinstance(self._sock, TlsSocket) or not self.is_local:
            return self._sock.recv(wanted)
        return self._receive_with_rights(self._sock, wanted)

    def _completed(self, selected: cm.Selected) -> cm.Selected:
        """Return the selection with the job's tensors, which are told once."""
        if selected.digest is msgspec.UNSET or selected.tensors:
            self._tensors[selected.job] = selected.tensors
            return selected
        if selected.job not in self._tensors:
            raise RemoteFault(f"the node selects for job {selected.job!r} and has not told its tensors")
        return msgspec.structs.replace(selected, tensors=self._tensors[selected.job])

    def _receive_with_rights(self, sock: socket.socket, nbytes: int) -> bytes:
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
        data, ancillary, _flags, _address = sock.recvmsg(nbytes, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors += array.array("i", rights)
        return data

    def window(self, offset: int, nbytes: int) -> memoryview:
        """Return bytes of a segment of the node's arena, to be written.

        Its descriptor has come along with the last Go(direct=True); one that is mapped already is not mapped again.
        """
        from lifl.shm.mapping import Mapped, populate  # Linux's

        if not self._descriptors:
            raise RemoteFault("the node lets us write to its arena but sent no descriptor of it")
        try:
            about = os.fstat(self._descriptors[-1])
            if self._segment is None or self._segment_is != (about.st_dev, about.st_ino):
                self._segment = Mapped(self._descriptors[-1], about.st_size).view
                self._segment_is = (about.st_dev, about.st_ino)
        finally:
            self._close_descriptors()
        begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
        populate(self._segment[begin : offset + nbytes])
        return self._segment[offset : offset + nbytes]

    def fill(self, go: cm.Go, nbytes: int, write: Callable[[memoryview, Callable[[int], None]], int]) -> cm.Filled:
        """Have the slot of a Go(direct=True) written by `write(slot, before_piece)`; return what to say of it.

        `before_piece(bytes that are there)` ends the writing when the node is gone, for then others get the slot.
        """
        hung_up = select.poll()
        hung_up.register(self._sock, select.POLLRDHUP)

        def before_piece(_end_bytes: int) -> None:
            if hung_up.poll(0):  # also behind messages not yet read
                raise ConnectionResetError("the node closed the connection")

        return cm.Filled(go.job, go.round, write(self.window(go.offset, nbytes), before_piece))

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def receive_into(self, view: memoryview) -> None:
        """Fill `view`."""
        got = 0
        while got < len(view):
            rest = view[got : got + RECEIVE_BYTES]
            step = self.patiently(partial(self._sock.recv_into, rest))
            if not step:
                raise ConnectionResetError(f"the node closed the connection after {got} of {len(view)} bytes")
            got += step

    def send_views(self, views: Sequence[memoryview], progress: Progress | None) -> None:
        """Send the bytes of `views` one after the other, straight from where they are."""
        waiting = [view for view in views if view.nbytes]
        total = sum(view.nbytes for view in waiting)
        sent = index = offset = 0
        while index < len(waiting):
            batch: list[memoryview] = []
            nbytes = 0
            for place in range(index, min(index + SEND_VIEWS_MAX, len(waiting))):
                start = offset if place == index else 0
                piece = waiting[place][start : start + SEND_BYTES - nbytes]
                batch.append(piece)
                nbytes += len(piece)
                if nbytes == SEND_BYTES:
                    break
            step = self.patiently(partial(self._send_some, batch))
            sent += step
            offset += step
            while index < len(waiting) and offset >= len(waiting[index]):
                offset -= len(waiting[index])
                index += 1
            if progress is not None:
                progress(sent, total)

    def _send_some(self, batch: list[memoryview]) -> int:
        if not hasattr(self._sock, "sendmsg"):  # Windows
            return self._sock.send(batch[0])
        return self._sock.sendmsg(batch)

    def close(self) -> None:
        """Close the connection; may be called twice."""
        self._sock.close()
        self._close_descriptors()
        self._segment = None  # unmapped with its last view


def _cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Windows, macOS


def shut(stream: Stream) -> None:
    """End a connection: a thread that waits on it wakes with an error, or the end; it is still to be closed."""
    with suppress(OSError):  # it has ended
        stream._sock.shutdown(socket.SHUT_RDWR)


def loan_of(stream: Stream) -> tuple[int, int]:
    """Return the two descriptors that have come with a model that is lent; they are the caller's: segment and end."""
    if len(stream._descriptors) != DESCRIPTORS_MAX:
        raise RemoteFault("the node lends us a model but sent no descriptors of it")
    segment, end = stream._descriptors
    stream._descriptors = []
    return segment, end


def lent_bytes(stream: Stream, offset: int, nbytes: int) -> Readable:
    """Return bytes of a segment of the node's arena, to be read; its descriptor has come along just before."""
    from lifl.shm.mapping import Readable  # Linux's

    if not stream._descriptors:
        raise RemoteFault("the node lets us read its arena but sent no descriptor of it")
    try:
        return Readable(stream._descriptors[-1], offset, nbytes)
    finally:
        stream._close_descriptors()

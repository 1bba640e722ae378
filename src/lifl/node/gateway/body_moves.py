"""The bytes of tensors, moved by a few threads that share one epoll.

A move takes the bytes of one object between a socket and the arena: `Receive` by `recv_into` straight into the
object's slot, `Send` straight out of it.  Both release the GIL while the kernel copies, so two threads keep two cores
busy.  The threads wait on one epoll; every socket is registered one-shot, so exactly one thread holds it: it moves
what the kernel has (at most `TURN_BYTES`), then arms it again.  A slow client therefore holds no thread, an idle one
costs nothing, and no move is bound to one thread.

Of the sockets that are ready the move that began first has its turn, and it keeps its thread as long as its peer
keeps up (`STAY_MS`).  When many clients send at once their updates so become complete one after the other, not all at
the end, and are folded while the others still arrive; it takes no longer in all.  A client that waits for a turn is
slowed by its own socket's window.

Over TLS it is the same, but what was received already may wait in the connection's own memory, of which the epoll knows
nothing: a move goes on with that first (`has_more`), and the low-water mark leaves room for it.

What is received is looked at right after the kernel wrote it, while it is in the cache (`shm/ingest_check`, which also
receives); what is sent may be looked at in the same way.  The end of a move, good or bad, is told once, by
`done`; `move` waits for it in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import heapq
import os
import select
import socket
import sys
import termios
import threading
from collections.abc import Callable

from lifl.shm.ingest_check import IngestCheck
from lifl.tls.tls_socket import Stream, TlsSocket

LOW_WATER_BYTES = 512 * 1024
"""A waiting receiver is woken when this much has come (or the last bytes): fewer, larger pieces.  Not more: the kernel
gives a socket that is read in this way a buffer of about 1.6 MB, and a lone sender stands still while it is full.
Measured, one client: 0.98 of what a bare loop receives with 512 and 640 KiB, 0.87 with 768 KiB and 1 MiB."""
TURN_BYTES = 16 * 1024 * 1024
"""What one socket may move before it is looked whether an older one is ready."""
STAY_MS = 2
"""How long a thread waits for more from a peer whose bytes it has just moved, before it looks for another.  A peer of
the same machine needs the processor to go on, which it would not get while the thread moves what others have sent."""
STAY_AGAIN_BYTES = 4 * 1024 * 1024
"""A peer that did not keep up is waited for again when it has sent so much more: such peers cost a thread `STAY_MS` for
each of these, no more."""
REPORTS = 8
"""How often it is told how far a body is that the daemon follows."""
SEND_BYTES = 1024 * 1024
"""What one `send` offers to the kernel."""
MOVER_NICE = 5
"""A worker that has something to fold goes before more that comes in to wait for it: when the last update is in,
less is left to do."""
STALL_BYTES = 64 * 1024
"""A body moves at least so much in the time it is given, or it has stalled."""


Departed = Callable[[int], None]
"""Called with how many bytes of a body, from its front, have left."""


class Receive:
    """Fills the data of `check` from `sock`."""

    events = select.EPOLLIN

    def __init__(self, sock: Stream, check: IngestCheck) -> None:
        self.sock = sock
        self.moved_bytes = 0
        self.total_bytes = check.nbytes
        self._check = check
        self._low_water_bytes = 1
        self._turn = threading.Lock()
        self.turn_bytes = TURN_BYTES
        self.stay_at_bytes = 0
        self._report: Callable[[int], None] | None = None
        self._reported_bytes = 0

    def follow(self, report: Callable[[int], None]) -> None:
        """Call `report(moved_bytes)` now if some have come, and about `REPORTS` times in the thread that moves."""
        self.turn_bytes = self.total_bytes // REPORTS
        self._reported_bytes = self.moved_bytes
        self._report = report
        if self._reported_bytes:
            report(self._reported_bytes)

    def step(self) -> bool:
        """Move what can be moved now; return True when all is there.  Raise `OSError` when the peer is gone."""
        turn_end = min(self.moved_bytes + self.turn_bytes, self.total_bytes)
        with self._turn:
            try:
                self._check.receive(self.sock, self.moved_bytes, turn_end)
            finally:
                self.moved_bytes = self._check.received_bytes
        left = self.total_bytes - self.moved_bytes
        if left:
            hidden_bytes = self.sock.buffered_bytes_max if isinstance(self.sock, TlsSocket) else 0
            self._wake_at(max(1, min(left - hidden_bytes, LOW_WATER_BYTES)))
            if self._report is not None and self.moved_bytes >= self._reported_bytes + self.turn_bytes:
                self._reported_bytes = self.moved_bytes
                self._report(self.moved_bytes)
        return not left

    def _wake_at(self, low_water_bytes: int) -> None:
        if low_water_bytes != self._low_water_bytes:
            self._low_water_bytes = low_water_bytes
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water_bytes)

    def seen_bytes(self) -> int:
        """Return what has been moved, and what waits in the kernel for the low-water mark.

        Not within a turn, when bytes have left the kernel and are not yet counted: it waits for the turn's end, some
        milliseconds.
        """
        with self._turn:
            return self.moved_bytes + self._waiting_bytes()

    def has_more(self) -> bool:
        """Return whether it can go on whatever the descriptor says."""
        return isinstance(self.sock, TlsSocket) and self.sock.pending

    def waits_for_turn(self) -> bool:
        """Return whether it stands still because others were first, not because of its peer."""
        return self.has_more() or self._waiting_bytes() >= min(self.total_bytes - self.moved_bytes, LOW_WATER_BYTES)

    def _waiting_bytes(self) -> int:
        return int.from_bytes(fcntl.ioctl(self.sock.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)

    def finish(self) -> None:
        """Give the socket back as it was."""
        self._wake_at(1)


class Send:
    """Sends `view` to `sock`; `departed(end)` is called after each piece."""

    events = select.EPOLLOUT
    turn_bytes = TURN_BYTES

    def __init__(self, sock: Stream, view: memoryview, departed: Departed | None = None) -> None:
        self.sock = sock
        self.stay_at_bytes = 0
        self.moved_bytes = 0
        self.total_bytes = len(view)
        self._view = view
        self._departed = departed

    def step(self) -> bool:
        """Move what can be moved now; return True when all is sent.  Raise `OSError` when the peer is gone."""
        turn_end = min(self.moved_bytes + TURN_BYTES, self.total_bytes)
        while self.moved_bytes < turn_end:
            start = self.moved_bytes
            try:
                self.moved_bytes += self.sock.send(self._view[start : start + SEND_BYTES])
            except BlockingIOError:
                break
            if self._departed is not None:
                self._departed(self.moved_bytes)
        return self.moved_bytes == self.total_bytes

    def seen_bytes(self) -> int:
        """Return what the kernel has taken."""
        return self.moved_bytes

    def has_more(self) -> bool:
        """Return whether it can go on whatever the descriptor says."""
        return False

    def waits_for_turn(self) -> bool:
        """Return whether it stands still because others were first, not because of its peer."""
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        return bool(poll.poll(0))

    def finish(self) -> None:
        """Let go of the memory."""
        self._view.release()


BodyMove = Receive | Send
Done = Callable[[BodyMove, OSError | None], None]


class Movers:
    """The threads.  `done(body, error)` is called by a thread; it hands over to the loop."""

    def __init__(self, threads: int) -> None:
        self._epoll = select.epoll()
        self._stop = os.eventfd(0)
        self._epoll.register(self._stop, select.EPOLLIN)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._moving: dict[int, tuple[int, BodyMove, Done]] = {}  # by descriptor, with the number of the move
        self._next = 0
        self._ready: list[tuple[int, int]] = []  # a heap of (number, descriptor): disarmed, and in no thread
        self._picking = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, name=f"mover-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, body: BodyMove, done: Done) -> None:
        """Begin a move.  Its socket must be non-blocking, stay open until `done`, and be in no other move."""
        fd = body.sock.fileno()
        self._next += 1
        self._moving[fd] = (self._next, body, done)
        self._wait_for(fd, body)
        if body.has_more():
            os.eventfd_write(self._wake, 1)

    def _wait_for(self, fd: int, body: BodyMove) -> None:
        """Have a thread take the move when its socket is ready; at once, when it can go on without that."""
        if body.has_more():
            with self._picking:
                heapq.heappush(self._ready, (self._moving[fd][0], fd))
            return
        try:
            self._epoll.modify(fd, body.events | select.EPOLLONESHOT)
        except FileNotFoundError:
            self._epoll.register(fd, body.events | select.EPOLLONESHOT)

    def stop(self) -> None:
        """End the threads; moves that are under way are dropped without `done`."""
        os.eventfd_write(self._stop, 1)
        for thread in self._threads:
            thread.join()
        self._epoll.close()
        os.close(self._stop)
        os.close(self._wake)

    def _run(self) -> None:
        this = (os.PRIO_PROCESS, 0)  # to Linux this thread alone
        if os.getpriority(*this) < MOVER_NICE:  # a node that is nicer itself may not take that back
            os.setpriority(*this, MOVER_NICE)
        while (fd := self._pick()) != self._stop:
            self._turn(fd)

    def _pick(self) -> int:
        """Wait for a move that is ready, and return the oldest one's descriptor, or the end's."""
        while True:
            with self._picking:
                for fd, _events in self._epoll.poll(0):
                    if fd == self._stop:
                        return fd
                    self._note_ready(fd)
                if self._ready:
                    return heapq.heappop(self._ready)[1]
            ((fd, _events),) = self._epoll.poll(maxevents=1)
            if fd == self._stop:
                return fd
            with self._picking:
                self._note_ready(fd)

    def _note_ready(self, fd: int) -> None:
        if fd != self._wake:
            heapq.heappush(self._ready, (self._moving[fd][0], fd))
            return
        with contextlib.suppress(BlockingIOError):  # another thread was woken, too
            os.eventfd_read(self._wake)

    def _turn(self, fd: int) -> None:
        _number, body, done = self._moving[fd]
        error = None
        try:
            moved_bytes = body.moved_bytes
            while not body.step():
                if not self._stays(body, moved_bytes):
                    self._wait_for(fd, body)
                    return
        except OSError as caught:
            error = caught
        del self._moving[fd]
        with contextlib.suppress(FileNotFoundError):  # it was never waited for
            self._epoll.unregister(fd)
        body.finish()
        done(body, error)

    @staticmethod
    def _stays(body: BodyMove, moved_before_bytes: int) -> bool:
        """Return whether the move goes on: its turn is not over, and its peer keeps up."""
        over = body.moved_bytes - moved_before_bytes >= body.turn_bytes
        if over or body.moved_bytes < body.stay_at_bytes:
            return False
        if body.has_more():
            return True
        more = select.poll()
        more.register(body.sock, body.events)
        if more.poll(STAY_MS):
            return True
        body.stay_at_bytes = body.moved_bytes + STAY_AGAIN_BYTES
        return False


async def move(movers: Movers, body: BodyMove, stall_s: float, shut: Callable[[], None]) -> None:
    """Have the movers do a move; return only when no mover touches it any more.  Raise `OSError`.

    `shut()` must shut the socket down; it is called when the body stalls for `stall_s` or the caller is cancelled.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: OSError | None) -> None:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def ended(_body: BodyMove, error: OSError | None) -> None:
        loop.call_soon_threadsafe(settle, error)

    movers.start(body, ended)
    seen_bytes = 0
    try:
        while not (await asyncio.wait({done}, timeout=stall_s))[0]:
            before, seen_bytes = seen_bytes, body.seen_bytes()
            if seen_bytes - before < STALL_BYTES and not body.waits_for_turn():
                shut()
    except asyncio.CancelledError:
        shut()
        await asyncio.wait({done})
        done.exception()
        raise
    done.result()

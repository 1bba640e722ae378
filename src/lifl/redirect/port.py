"""A worker's end of the redirector.

`receive` never blocks: poll `fileno()`.  `send` waits only for a receiver that is full, and for that no longer than
`PATIENCE_S`; then the records go to the daemon, which holds them until the receiver has room, and further records for
that receiver do not wait again before one was delivered.  After it, the order of records to that receiver is not kept.
Nobody else is held up: other receivers have room of their own.
"""

from __future__ import annotations

import os
import select
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from lifl.core.errors import LocalFault, ResourceFault
from lifl.core.ids import DAEMON_ADDRESS, RECORD_BYTES, RECORDS_PER_SEND_MAX, Record, pack_records
from lifl.redirect.framing import batches, parse, wake
from lifl.redirect.tables import (
    CONSUMED,
    GENERATION,
    HELD,
    LAST_NS,
    MALFORMED,
    ROUTES_WORDS,
    SENT,
    SLOT_WORDS,
    SLOTS_WORDS,
    Words,
    entry_generation,
    entry_slot,
    fence,
)
from lifl.redirect.unix import (
    DEAD,
    DELIVERED,
    MATRIX_AT,
    OVER,
    READS_PER_CALL_MAX,
    RECEIVE_BYTES,
    REFUSED,
    ROW_WORDS,
    RUNS,
    SENDER_WORDS,
    SENDERS_AT,
    SHARED_WORDS,
    UNKNOWN,
    inbox_path,
)

PATIENCE_S = 2.0
CONNECTIONS_MAX = 64
"""AF_UNIX: a sender keeps connections to so many receivers, the latest used."""
_DELAY_MIN_S, _DELAY_MAX_S = 20e-6, 2e-3
_RESERVE = 16 * RECORDS_PER_SEND_MAX
_READ_BYTES = 65_536
_TCP_ESTABLISHED = 1
_DAEMON_GONE = "the daemon's end of this worker's port is closed: the daemon is gone, or has retired the worker"


class Port(Protocol):
    """A worker's sending and receiving end; used by one thread."""

    slot: int
    """The worker's slot, given by the daemon."""

    def fileno(self) -> int:
        """A descriptor that polls readable when `receive` has something, or the daemon is gone."""

    def send(self, records: Sequence[Record]) -> None:
        """Sends records, each to its address (0: the daemon); many for one address are cheapest in a row.

        Raises `LocalFault` for an impossible address, `EOFError` when the daemon is gone, `ResourceFault` when the
        kernel has no memory for it.
        """

    def receive(self) -> list[Record]:
        """The records that are there now, perhaps none.  Raises `EOFError` when the daemon is gone."""

    def close(self) -> None:
        """Closes everything; what was not received is lost."""


def open_port(port: dict[str, Any], descriptors: list[int]) -> Port:
    """The port of a `Registration`, in the process that got its descriptors; they belong to the port from now on."""
    kind = port.get("kind")
    if kind == "sockmap" and len(descriptors) == 3:
        return SockmapPort(port, descriptors)
    if kind == "unix" and len(descriptors) == 4:
        return UnixPort(port, descriptors)
    raise LocalFault(f"a port of kind {kind!r} with {len(descriptors)} descriptors is none that a redirector registers")


class _BasePort(ABC):
    """The words of the own slot, and sending in batches."""

    _routes: Words
    _slots: Words

    def __init__(self, port: dict[str, Any]) -> None:
        self.slot: int = port["slot"]
        self._generation: int = port["generation"]
        self._row = self.slot * SLOT_WORDS
        self._consumed = 0
        self._malformed = 0

    def send(self, records: Sequence[Record]) -> None:
        """See `Port.send`."""
        if self._slots.words[self._row + GENERATION] != self._generation:
            raise EOFError(_DAEMON_GONE)  # retired; the slot may be another worker's already
        for batch in batches(records):
            self._send(batch[0].address, pack_records(batch), len(batch))

    @abstractmethod
    def _send(self, address: int, data: bytes, count: int) -> None:
        """Sends `count` packed records."""

    def _taken(self, data: bytes, count: int) -> list[Record]:
        """Parses what came in, `count` records by the sender's counting; pieces that are none are left out."""
        records, malformed = parse(data)
        self._consumed += count
        words = self._slots.words
        words[self._row + CONSUMED] = self._consumed
        if malformed:
            self._malformed += malformed
            words[self._row + MALFORMED] = self._malformed
        return records

    def _wake_daemon(self) -> None:
        """There is room again: what the daemon holds may come."""
        self._slots.words[self._row + HELD] = 0
        self._send(DAEMON_ADDRESS, pack_records([wake(self.slot)]), 1)


class SockmapPort(_BasePort):
    """End A of the worker's connection; the kernel's program routes what it sends (see `sockmap.py`)."""

    def __init__(self, port: dict[str, Any], descriptors: list[int]) -> None:
        super().__init__(port)
        self._window: int = port["window"]
        # Other senders look and send at the same time: a reserve keeps all together within the window.
        self._limit = self._window - min(_RESERVE, self._window // 4)
        self._full: set[int] = set()
        self._rest = b""
        end, routes, slots = descriptors
        self._socket = socket.socket(fileno=end)
        self._socket.setblocking(True)
        self._routes = Words(routes, ROUTES_WORDS, writable=False)
        self._slots = Words(slots, SLOTS_WORDS, writable=True)
        os.close(routes)
        os.close(slots)

    def fileno(self) -> int:
        """See `Port.fileno`."""
        return self._socket.fileno()

    def _send(self, address: int, data: bytes, count: int) -> None:
        if address:
            self._await_room(address, count)
        delay_s, deadline_s = _DELAY_MIN_S, 0.0
        while data:
            try:
                data = data[self._socket.send(data, socket.MSG_NOSIGNAL) :]  # a second piece goes to the daemon
                continue
            except BrokenPipeError as error:
                # Either the receiver died between look-up and delivery: the next try is routed anew.
                if self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED:
                    raise EOFError(_DAEMON_GONE) from error
                failure: OSError = error
            except ConnectionResetError as error:
                raise EOFError(_DAEMON_GONE) from error
            except OSError as error:
                failure = error
            now_s = time.monotonic()
            deadline_s = deadline_s or now_s + PATIENCE_S
            if now_s > deadline_s:
                raise ResourceFault(f"no record can be sent to address {address}: {failure}") from failure
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, _DELAY_MAX_S)

    def _await_room(self, address: int, count: int) -> None:
        """Waits while the receiver's window is full.  The program enforces it in any case: this only spares bounces."""
        words = self._slots.words
        delay_s, deadline_s = _DELAY_MIN_S, 0.0
        while True:
            slot = entry_slot(self._routes.words[address])
            row = slot * SLOT_WORDS
            if not slot or slot == self.slot or words[row + SENT] + count - words[row + CONSUMED] <= self._limit:
                self._full.discard(slot)
                return
            if slot in self._full:
                return
            now_s = time.monotonic()
            deadline_s = deadline_s or now_s + PATIENCE_S
            if now_s > deadline_s:
                self._full.add(slot)
                return
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, _DELAY_MAX_S)

    def receive(self) -> list[Record]:
        """See `Port.receive`."""
        try:
            data = self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionError as error:
            raise EOFError(_DAEMON_GONE) from error
        if not data:
            raise EOFError(_DAEMON_GONE)
        whole = self._rest + data
        cut = len(whole) - len(whole) % RECORD_BYTES
        self._rest = whole[cut:]
        records = self._taken(whole[:cut], cut // RECORD_BYTES)
        fence()
        words = self._slots.words
        if words[self._row + HELD] and words[self._row + SENT] - self._consumed <= self._window // 2:
            self._wake_daemon()
        return records

    def close(self) -> None:
        """See `Port.close`."""
        self._socket.close()
        self._routes.close()
        self._slots.close()


class UnixPort(_BasePort):
    """The worker's channel, its inbox, and connections to the inboxes it sends to (see `unix.py`)."""

    def __init__(self, port: dict[str, Any], descriptors: list[int]) -> None:
        super().__init__(port)
        channel, inbox, self._folder, memory = descriptors
        self._channel = socket.socket(fileno=channel)
        self._inbox = socket.socket(fileno=inbox)
        self._channel.setblocking(True)
        self._routes = Words(memory, ROUTES_WORDS, writable=False)
        self._slots = Words(memory, SHARED_WORDS, writable=True, offset_words=ROUTES_WORDS)
        os.close(memory)
        self._sender = SENDERS_AT + self.slot * SENDER_WORDS
        self._matrix = MATRIX_AT + self.slot * ROW_WORDS
        self._connections: dict[int, socket.socket] = {}
        self._full: set[int] = set()
        self._poll = select.epoll()
        self._poll.register(self._channel, select.EPOLLIN)
        self._poll.register(self._inbox, select.EPOLLIN)

    def fileno(self) -> int:
        """See `Port.fileno`."""
        return self._poll.fileno()

    def _send(self, address: int, data: bytes, count: int) -> None:
        words = self._slots.words
        words[self._sender + RUNS] += 1
        if address:
            entry = self._routes.words[address]
            fault = self._deliver(entry, data, count) if entry else UNKNOWN
            if fault is None:
                return
            words[self._sender + fault] += 1
        try:
            self._channel.send(data, socket.MSG_NOSIGNAL)
        except ConnectionError as error:
            raise EOFError(_DAEMON_GONE) from error
        except OSError as error:
            raise ResourceFault(f"no record can be sent to the daemon: {error}") from error

    def _deliver(self, entry: int, data: bytes, count: int) -> int | None:
        """Sends straight to the worker; returns why that is not possible (`DEAD`, `OVER`)."""
        slot = entry_slot(entry)
        words = self._slots.words
        deadline_s = 0.0
        try:
            connection = self._connection(entry)
            while True:
                try:
                    connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    break
                except BlockingIOError:
                    now_s = time.monotonic()
                    deadline_s = deadline_s or now_s + PATIENCE_S
                    if entry in self._full or slot == self.slot or now_s >= deadline_s:
                        self._full.add(entry)
                        words[self._matrix + 2 * slot + REFUSED] += count
                        return OVER
                    room = select.poll()
                    room.register(connection, select.POLLOUT)
                    room.poll(1e3 * (deadline_s - now_s))
        except OSError:  # its socket is closed, or its name gone
            self._disconnect(entry)
            return DEAD
        self._full.discard(entry)
        words[self._matrix + 2 * slot + DELIVERED] += count
        words[slot * SLOT_WORDS + LAST_NS] = time.monotonic_ns()
        return None

    def _connection(self, entry: int) -> socket.socket:
        """A socket that is connected to the entry's inbox."""
        connection = self._connections.pop(entry, None)
        if connection is None:
            if len(self._connections) >= CONNECTIONS_MAX:
                self._disconnect(next(iter(self._connections)))
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                connection.connect(inbox_path(self._folder, entry_slot(entry), entry_generation(entry)))
            except OSError:
                connection.close()
                raise
        self._connections[entry] = connection  # the last one is the latest used
        return connection

    def _disconnect(self, entry: int) -> None:
        self._full.discard(entry)
        if connection := self._connections.pop(entry, None):
            connection.close()

    def receive(self) -> list[Record]:
        """See `Port.receive`."""
        records: list[Record] = []
        for fd, _events in self._poll.poll(0):
            if fd == self._inbox.fileno():
                self._drain(self._inbox, records)
            else:
                self._drain(self._channel, records)
                # Not only when a read has found it empty: the last read of a call may have emptied it unseen, and
                # then no event comes any more.
                fence()
                if self._slots.words[self._row + HELD]:
                    self._wake_daemon()
        return records

    def _drain(self, source: socket.socket, records: list[Record]) -> None:
        """Takes what is there, up to a bound."""
        for _ in range(READS_PER_CALL_MAX):
            try:
                message = source.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                message = b""
            if message:
                records += self._taken(message, len(message) // RECORD_BYTES)
            elif source is self._channel:
                if records:
                    return  # it will be there again
                raise EOFError(_DAEMON_GONE)

    def close(self) -> None:
        """See `Port.close`."""
        for connection in self._connections.values():
            connection.close()
        self._poll.close()
        self._channel.close()
        self._inbox.close()
        os.close(self._folder)
        self._routes.close()
        self._slots.close()

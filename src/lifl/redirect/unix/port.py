"""A worker's end of the redirector without eBPF: it looks addresses up itself and sends to the inboxes of others."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Any

from lifl.core.errors import ResourceFault
from lifl.core.ids import RECORD_BYTES, Record
from lifl.redirect.base_port import DAEMON_GONE, PATIENCE_S, BasePort
from lifl.redirect.tables import HELD, LAST_NS, ROUTES_WORDS, SLOT_WORDS, Words, entry_generation, entry_slot, fence
from lifl.redirect.unix.layout import (
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

CONNECTIONS_MAX = 64
"""A sender keeps connections to so many receivers, the latest used."""


class UnixPort(BasePort):
    """The worker's channel, its inbox, and connections to the inboxes it sends to (see `unix/redirector.py`)."""

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
            raise EOFError(DAEMON_GONE) from error
        except OSError as error:
            raise ResourceFault(f"no record can be sent to the daemon: {error}") from error

    def _deliver(self, entry: int, data: bytes, count: int) -> int | None:
        """Send straight to the worker; return why that is not possible (`DEAD`, `OVER`)."""
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
        """Return a socket that is connected to the entry's inbox."""
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
        """Take what is there, up to a bound."""
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
                raise EOFError(DAEMON_GONE)

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

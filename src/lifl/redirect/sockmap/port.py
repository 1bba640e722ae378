"""A worker's end of the redirector in the kernel: end A of its TCP connection, and the program's tables."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from lifl.core.errors import ResourceFault
from lifl.core.ids import RECORD_BYTES, RECORDS_PER_SEND_MAX, Record
from lifl.redirect.base_port import DAEMON_GONE, PATIENCE_S, BasePort
from lifl.redirect.tables import (
    CONSUMED,
    HELD,
    ROUTES_WORDS,
    SENT,
    SLOT_WORDS,
    SLOTS_WORDS,
    Words,
    entry_slot,
    fence,
)

_DELAY_MIN_S, _DELAY_MAX_S = 20e-6, 2e-3
_RESERVE = 16 * RECORDS_PER_SEND_MAX
_READ_BYTES = 65_536
_TCP_ESTABLISHED = 1


class SockmapPort(BasePort):
    """End A of the worker's connection; the kernel's program routes what it sends (see `sockmap/redirector.py`)."""

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
                    raise EOFError(DAEMON_GONE) from error
                failure: OSError = error
            except ConnectionResetError as error:
                raise EOFError(DAEMON_GONE) from error
            except OSError as error:
                failure = error
            now_s = time.monotonic()
            deadline_s = deadline_s or now_s + PATIENCE_S
            if now_s > deadline_s:
                raise ResourceFault(f"no record can be sent to address {address}: {failure}") from failure
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, _DELAY_MAX_S)

    def _await_room(self, address: int, count: int) -> None:
        """Wait while the receiver's window is full.  The program enforces it in any case: this only spares bounces."""
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
            raise EOFError(DAEMON_GONE) from error
        if not data:
            raise EOFError(DAEMON_GONE)
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

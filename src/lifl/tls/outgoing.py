"""What OpenSSL has encrypted and the kernel has not taken yet, and how much in plain has left."""

from __future__ import annotations

import socket
import ssl
from collections import deque


class Outgoing:
    """The way out of a TLS connection, to `raw`: records, in order.

    A record cannot be taken back, so bytes in plain count as sent when all of their record has left: `credit` are those
    that have, and that nobody was told of yet.
    """

    def __init__(self, raw: socket.socket) -> None:
        self.memory = ssl.MemoryBIO()
        """Where OpenSSL writes to."""
        self.credit = 0
        self._raw = raw
        self._unsent = memoryview(b"")
        self._records: deque[tuple[int, int]] = deque()  # of what is unsent: bytes until its end, bytes in plain
        self._noted_bytes = 0  # of what is in `memory`: up to here it stands in `_records`

    @property
    def waiting(self) -> bool:
        """Whether something has not left."""
        return bool(self._unsent) or bool(self.memory.pending)

    def note(self, plain_bytes: int) -> None:
        """Note that what was just written to `memory` is a record of so many bytes in plain; 0: it is OpenSSL's own."""
        self._records.append((self.memory.pending - self._noted_bytes, plain_bytes))
        self._noted_bytes = self.memory.pending

    def push(self) -> None:
        """Give the kernel what it takes, once.  Raise `BlockingIOError` and whatever else the raw socket raises."""
        if not self._unsent:
            if self.memory.pending > self._noted_bytes:
                self.note(0)
            self._unsent = memoryview(self.memory.read())
            self._noted_bytes = 0
        left = self._raw.send(self._unsent)
        self._unsent = self._unsent[left:]
        while self._records and self._records[0][0] <= left:
            cipher_bytes, plain_bytes = self._records.popleft()
            left -= cipher_bytes
            self.credit += plain_bytes
        if self._records:
            self._records[0] = (self._records[0][0] - left, self._records[0][1])

    def flush(self) -> None:
        """Give it all, as in a handshake.  Raise `BlockingIOError` when some of it has to wait."""
        while self.waiting:
            self.push()

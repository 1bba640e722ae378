"""What a connection does by its channel of compiled records (`records.py`), with the manners of its raw socket."""

from __future__ import annotations

import errno
import os
import socket

from lifl.tls import records
from lifl.tls.faults import TlsFault, fault_of_reason
from lifl.tls.polling import readable, writable


class CompiledWay:
    """A connection's bytes after its handshake, both ways; its calls exclude each other, which is the caller's part."""

    def __init__(self, raw: socket.socket, channel: records.Channel, busy: str) -> None:
        self._raw = raw
        self._channel = channel
        self._busy = busy
        self._failed: TlsFault | None = None  # behind the bytes that were received last

    @property
    def pending(self) -> bool:
        """Whether there may be something to read without the descriptor."""
        return self._failed is not None or self._channel.pending

    def receive(self, room: memoryview) -> int:
        """Decrypt into `room` what has come; return how many bytes, 0 at the end.  Raise what the raw socket would."""
        channel = self._channel
        while room:
            if self._failed is not None:
                raise self._failed
            got = channel.receive(self._raw.fileno(), room, self._waits)
            outcome = channel.outcome
            if outcome == records.FAILED:
                self._failed = fault_of_reason(channel.reason)
            elif outcome == records.BUSY:
                self._failed = TlsFault(self._busy)
            elif not got and outcome != records.ENDED:
                self._wait(outcome)
                continue
            if got or outcome == records.ENDED:
                return got
        return 0

    def send(self, plain: memoryview) -> int:
        """Send what the kernel takes; return how many bytes have left.  Raise what the raw socket would."""
        channel = self._channel
        while plain:
            sent = channel.send(self._raw.fileno(), plain, self._waits)
            if sent:
                return sent
            if channel.outcome == records.FAILED:
                raise fault_of_reason(channel.reason)
            self._wait(channel.outcome, write=True)
        return 0

    def flush(self) -> None:
        """Send what is encrypted already, as far as the kernel takes it."""
        self._channel.flush(self._raw.fileno(), self._waits)

    @property
    def _waits(self) -> bool:
        """Whether the descriptor itself does."""
        return self._raw.gettimeout() is None

    def _wait(self, outcome: int, write: bool = False) -> None:
        """Return when what had to wait may go on."""
        if outcome == records.SYSTEM:
            raise self._channel.system_error()
        if outcome == records.AGAIN:
            timeout_s = self._raw.gettimeout()
            if not timeout_s:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if not (writable(self._raw, timeout_s) if write else readable([self._raw], timeout_s)):
                raise TimeoutError("timed out")

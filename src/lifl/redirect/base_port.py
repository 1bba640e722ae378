"""What both redirectors have in common on the worker's side: the words of its slot, and sending in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lifl.core.ids import DAEMON_ADDRESS, Record, pack_records
from lifl.redirect.framing import batches, parse, wake
from lifl.redirect.tables import CONSUMED, GENERATION, HELD, MALFORMED, SLOT_WORDS, Words

PATIENCE_S = 2.0
DAEMON_GONE = "the daemon's end of this worker's port is closed: the daemon is gone, or has retired the worker"


class BasePort(ABC):
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
            raise EOFError(DAEMON_GONE)  # retired; the slot may be another worker's already
        for batch in batches(records):
            self._send(batch[0].address, pack_records(batch), len(batch))

    @abstractmethod
    def _send(self, address: int, data: bytes, count: int) -> None:
        """Send `count` packed records."""

    def _taken(self, data: bytes, count: int) -> list[Record]:
        """Parse what came in, `count` records by the sender's counting; pieces that are none are left out."""
        records, malformed = parse(data)
        self._consumed += count
        words = self._slots.words
        words[self._row + CONSUMED] = self._consumed
        if malformed:
            self._malformed += malformed
            words[self._row + MALFORMED] = self._malformed
        return records

    def _wake_daemon(self) -> None:
        """Tell the daemon that there is room again: what it holds may come."""
        self._slots.words[self._row + HELD] = 0
        self._send(DAEMON_ADDRESS, pack_records([wake(self.slot)]), 1)

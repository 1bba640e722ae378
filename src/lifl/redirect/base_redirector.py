"""What both redirectors have in common on the daemon's side: slots, routes, and the workers' channels.

Each worker has a *channel*: a socket whose other end it holds.  Its undeliverable records come in on the channel, and
its end of file is the worker's death.  How a record is delivered, and where it is counted, is the subclass's.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from lifl.core.errors import LocalFault, RemoteFault, ResourceFault
from lifl.core.ids import ADDRESSES_MAX, Record
from lifl.redirect.framing import batches, is_wake
from lifl.redirect.interface import Registration, SlotCounters, Totals
from lifl.redirect.tables import (
    GENERATION,
    MALFORMED,
    SLOT_WORDS,
    SlotPool,
    Words,
    entry_slot,
    route_entry,
)

_GENERATION_MAX = 0xFFFF_FFFF


def _ignore(_fd: int) -> None:
    """Do nothing: no event loop listens yet."""


@dataclass
class Receiver:
    """A registered worker, as the daemon sees it; slot 0 is the daemon's own sending end."""

    slot: int
    channel: socket.socket
    registration: Registration | None
    fd: int = -1
    addresses: set[int] = field(default_factory=set)
    rest: bytes = b""
    """The beginning of a record whose end has not come yet."""
    broken: bool = False
    """It sent what are no records; the channel is shut and only waits to be retired."""

    def __post_init__(self) -> None:
        self.fd = self.channel.fileno()


class BaseRedirector(ABC):
    """Slots, routes and channels; subclasses make the workers' sockets and move the records."""

    name: str

    def __init__(self, why: str) -> None:
        self.why = why
        self._pool = SlotPool()
        self._generation = 0
        self._receivers: dict[int, Receiver] = {}
        self._by_fd: dict[int, Receiver] = {}
        self._watch: Callable[[int], None] = _ignore
        self._unwatch: Callable[[int], None] = _ignore
        self._malformed = 0
        self._routes: Words
        self._slots: Words

    # ---- to be made by the subclass ----------------------------------------------------------------------------

    @abstractmethod
    def _make_receiver(self, slot: int, generation: int) -> Receiver:
        """Make the sockets of a new worker; the slot's words are fresh already.  Leave nothing behind on an error."""

    @abstractmethod
    def _end_receiver(self, receiver: Receiver) -> None:
        """Take the slot's socket out of reach; its counters stay."""

    @abstractmethod
    def _push(self, slot: int, records: Sequence[Record]) -> int:
        """Deliver one send to the slot without blocking; return how many records were taken."""

    @abstractmethod
    def _read(self, receiver: Receiver) -> tuple[list[Record], int, bool]:
        """Return what the channel has: records, pieces that are none, and whether it is at its end."""

    @abstractmethod
    def counters(self, slot: int) -> SlotCounters:
        """See `Redirector.counters`."""

    @abstractmethod
    def totals(self) -> Totals:
        """See `Redirector.totals`."""

    @abstractmethod
    def _end(self) -> None:
        """Close what the subclass has opened; also after a constructor that failed halfway."""

    # ---- the interface -----------------------------------------------------------------------------------------

    def register(self) -> Registration:
        """See `Redirector.register`."""
        slot = self._pool.take()
        self._generation = self._generation % _GENERATION_MAX + 1
        row = slot * SLOT_WORDS
        words = self._slots.words
        self._malformed += words[row + MALFORMED]
        for word in range(SLOT_WORDS):
            words[row + word] = 0
        words[row + GENERATION] = self._generation
        try:
            receiver = self._make_receiver(slot, self._generation)
        except OSError as error:
            self._pool.give(slot)
            raise ResourceFault(
                f"no sockets for a new worker: {error}; raise the limit of open files (ulimit -n), or lower workers_max"
            ) from error
        self._add(receiver)
        assert receiver.registration is not None
        return receiver.registration

    def retire(self, slot: int) -> None:
        """See `Redirector.retire`."""
        receiver = self._receivers.pop(slot, None)
        if receiver is None or slot == 0:
            raise LocalFault(f"slot {slot} has no worker to retire")
        self._slots.words[slot * SLOT_WORDS + GENERATION] = 0
        for address in receiver.addresses:
            self._routes.words[address] = 0
        self._drop(receiver)
        self._pool.give(slot)

    def route(self, address: int, slot: int | None) -> None:
        """See `Redirector.route`."""
        if not 1 <= address < ADDRESSES_MAX:
            raise LocalFault(f"address {address} is not between 1 and {ADDRESSES_MAX - 1}")
        receiver = self._receivers.get(slot) if slot else None
        if slot is not None and receiver is None:
            raise LocalFault(f"slot {slot} has no worker; register one before routing address {address} to it")
        before = self._receivers.get(entry_slot(self._routes.words[address]))
        if before is not None:
            before.addresses.discard(address)
        if receiver is None:
            self._routes.words[address] = 0
            return
        receiver.addresses.add(address)
        generation = self._slots.words[receiver.slot * SLOT_WORDS + GENERATION]
        self._routes.words[address] = route_entry(receiver.slot, generation)

    def send(self, records: Sequence[Record]) -> list[Record]:
        """See `Redirector.send`."""
        left: list[Record] = []
        stopped: set[int] = set()
        for batch in batches(records):
            address = batch[0].address
            if address == 0:
                raise LocalFault("address 0 is the daemon itself, which does not send to itself")
            slot = entry_slot(self._routes.words[address])
            taken = self._push(slot, batch) if slot and address not in stopped else 0
            if taken < len(batch):
                stopped.add(address)  # a later one must not overtake
                left += batch[taken:]
        return left

    def fallback_fds(self) -> tuple[int, ...]:
        """See `Redirector.fallback_fds`."""
        return tuple(self._by_fd)

    def on_fallback(self, watch: Callable[[int], None], unwatch: Callable[[int], None]) -> None:
        """See `Redirector.on_fallback`."""
        self._watch, self._unwatch = watch, unwatch
        for fd in self._by_fd:
            watch(fd)

    def slot_of(self, fd: int) -> int:
        """See `Redirector.slot_of`."""
        for receiver in self._receivers.values():
            if receiver.fd == fd:
                return receiver.slot
        raise LocalFault(f"descriptor {fd} is no channel of the redirector")

    def receive(self, fd: int) -> list[Record]:
        """See `Redirector.receive`."""
        receiver = self._by_fd.get(fd)
        if receiver is None:  # retired by an earlier event of the same turn of the loop
            return []
        records, malformed, ended = ([], 0, True) if receiver.broken else self._read(receiver)
        if malformed:
            self._malformed += malformed
            receiver.broken = True
            with suppress(OSError):  # its end may be gone already
                receiver.channel.shutdown(socket.SHUT_RDWR)  # so that the descriptor is readable once more
        if records or not (ended or malformed):
            return [self._checked(record, receiver) for record in records]
        self._by_fd.pop(fd)
        self._unwatch(fd)
        if receiver.broken:
            raise RemoteFault(f"the worker in slot {receiver.slot} sent bytes that are no records; end it")
        raise EOFError(f"the worker in slot {receiver.slot} is gone")

    def close(self) -> None:
        """See `Redirector.close`."""
        for slot in [slot for slot in self._receivers if slot]:
            self.retire(slot)
        if own := self._receivers.pop(0, None):
            self._drop(own)
        self._end()

    # ---- for both ----------------------------------------------------------------------------------------------

    @staticmethod
    def _checked(record: Record, receiver: Receiver) -> Record:
        """Return the record; a wake speaks for its sender's slot only, whatever it says."""
        return record._replace(sender=receiver.slot) if is_wake(record) else record

    def _add(self, receiver: Receiver) -> None:
        self._receivers[receiver.slot] = receiver
        self._by_fd[receiver.fd] = receiver
        self._watch(receiver.fd)

    def _drop(self, receiver: Receiver) -> None:
        if self._by_fd.pop(receiver.fd, None):
            self._unwatch(receiver.fd)
        if receiver.registration is not None:
            receiver.registration.handed_over()
        self._end_receiver(receiver)
        with suppress(OSError):  # the other end may be gone
            receiver.channel.shutdown(socket.SHUT_RDWR)  # a fork of this process may hold a copy of it
        receiver.channel.close()

    def _malformed_total(self) -> int:
        words = self._slots.words
        own = words[MALFORMED : self._pool.used * SLOT_WORDS : SLOT_WORDS]
        return self._malformed + sum(own)

"""What the daemon and the workers see of a redirector, whichever it is: types only (`open.py` chooses one).

A redirector carries 64-byte records (`core/ids.Record`) from any worker to the worker that serves an *address*,
without a process in between.  The daemon registers workers under *slots*, says which slot serves which address, and
gets the records that no worker can take: those to address 0, to an address without a route, to a worker that died,
and those for which the receiver has no room.

    registration = redirector.register()         descriptors for the worker, by SCM_RIGHTS
    registration.handed_over()                   the daemon's copies are closed: only so is a dead worker noticed
    redirector.route(address, registration.slot)
    redirector.send([Record(address, key)])      never blocks; returns what could not be taken
    redirector.receive(fd)                       for each descriptor of `fallback_fds`, whenever it is readable

The zygote, which hands the descriptors on, must close its copies as well.  A copy of a worker's socket that outlives
the worker is a black hole: the worker looks alive and its records go nowhere.

What the daemon holds (because `send` did not take it) it tries again when a route changes and when `receive` returns a
*wake* (`is_wake`): the receiver in slot `record.sender` has room again; for sender 0 try all.  Records of one sender
to one receiver arrive in order as long as they do not pass through the daemon.  A worker's death loses what it had not
yet read, never more: at most `messages - consumed` of its slot's counters, readable until the slot is used again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from lifl.core.ids import Record

Wanted = Literal["auto", "sockmap", "unix"]


class SlotCounters(NamedTuple):
    """What went to one slot since it was registered.

    `messages` and `bytes` were delivered to its socket, the last one at `last_ns` (CLOCK_MONOTONIC; 0: none yet);
    `consumed` records were read from it by the worker; `over` records found it full and went to the daemon.
    While a worker dies its `messages` may count tries that then went elsewhere: what it lost is at most the difference.
    """

    messages: int
    bytes: int
    last_ns: int
    consumed: int
    over: int


class Totals(NamedTuple):
    """What all senders did since the redirector was opened.

    `runs` counts sends; `unknown`, `dead` and `over` the sends that went to the daemon because the address had no
    route, its worker was dead, or its worker was full; `malformed` what was not whole records.
    """

    runs: int
    unknown: int
    dead: int
    over: int
    malformed: int


class Registration:
    """A worker's place: its `slot` and `generation`, and what `open_port` needs in the worker's process.

    `port` is plain data for msgpack; `descriptors` go with it by SCM_RIGHTS, in this order.
    """

    def __init__(
        self, slot: int, generation: int, port: dict[str, Any], descriptors: list[int], lent: list[int]
    ) -> None:
        self.slot = slot
        self.generation = generation
        self.port = port
        self.descriptors = descriptors
        self._lent = lent

    def handed_over(self) -> None:
        """Close the daemon's copies of the worker's sockets; again: nothing.  `descriptors` are invalid after it."""
        while self._lent:
            os.close(self._lent.pop())
        self.descriptors = []


class Redirector(Protocol):
    """One node's redirector; used by one thread."""

    name: str
    """``sockmap`` or ``unix``."""
    why: str
    """Why this one runs, and what to do to get the other."""

    def register(self) -> Registration:
        """Return a place for a new worker.  Raise `ResourceFault` when slots or descriptors are used up."""

    def retire(self, slot: int) -> None:
        """Take a slot from its worker, which is gone or must not be reached any more: unset its routes, end its port"""

    def route(self, address: int, slot: int | None) -> None:
        """Send what goes to `address` (1 to ADDRESSES_MAX - 1) to `slot` from now on; None: to the daemon.

        Raise `LocalFault` for another address or for a slot without a worker.
        """

    def send(self, records: Sequence[Record]) -> list[Record]:
        """Send to addresses, without blocking; return, in order, those that could not be delivered now."""

    def fallback_fds(self) -> tuple[int, ...]:
        """Return the descriptors whose readability the event loop must watch now."""

    def on_fallback(self, watch: Callable[[int], None], unwatch: Callable[[int], None]) -> None:
        """Tell when `fallback_fds` changes; `watch` is called for the present ones at once."""

    def slot_of(self, fd: int) -> int:
        """Return the slot whose descriptor that is (0: the daemon's own).  Raise `LocalFault` if it is none."""

    def receive(self, fd: int) -> list[Record]:
        """Return the records that came to the daemon on `fd`, without blocking; ask again while it is readable.

        Raise `EOFError` when the worker is gone, and `RemoteFault` when it sent what are no records: kill it.  In both
        cases the descriptor is unwatched already, and `retire(slot_of(fd))` is due.
        """

    def counters(self, slot: int) -> SlotCounters:
        """Return the counters of a slot, valid until it is registered again; no system call."""

    def totals(self) -> Totals:
        """Return the counters of the whole redirector; no system call."""

    def close(self) -> None:
        """End everything: every port gets EOF; no descriptor, BPF object or socket file is left."""


class Port(Protocol):
    """A worker's sending and receiving end; used by one thread.

    `receive` never blocks: poll `fileno()`.  `send` waits only for a receiver that is full, and no longer than
    `PATIENCE_S`; then the records go to the daemon, which holds them until the receiver has room, and further records
    for that receiver do not wait again before one was delivered.  From then on the order of records to that receiver
    is not kept.  Records for other receivers are not held up: each receiver has room of its own.
    """

    slot: int
    """The worker's slot, given by the daemon."""

    def fileno(self) -> int:
        """Return a descriptor that polls readable when `receive` has something, or the daemon is gone."""

    def send(self, records: Sequence[Record]) -> None:
        """Send records, each to its address (0: the daemon); many for one address are cheapest in a row.

        Raise `LocalFault` for an impossible address, `EOFError` when the daemon is gone, `ResourceFault` when the
        kernel has no memory for it.
        """

    def receive(self) -> list[Record]:
        """Return the records that are there now, perhaps none.  Raise `EOFError` when the daemon is gone."""

    def close(self) -> None:
        """Close everything; what was not received is lost."""

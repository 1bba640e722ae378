"""The redirector in the kernel, the daemon's side: `bpf/redirector.c` on a SOCKHASH of the workers' sockets.

A worker has end A of a TCP connection over loopback, and A is in the SOCKHASH under the worker's slot; the daemon
keeps the other end B as the worker's channel.  A record that is routed goes from A's send straight to the receive
queue of the destination's A.  What the program leaves alone arrives at the sender's B: so what is undeliverable
needs no extra path, but the daemon must always drain B, since a full B would block that sender.

The daemon sends from an A of its own (slot 0) that is in the SOCKHASH as well; what bounces comes to its B, the *loop*.

The order of a registration matters.  The pair is made, the accepted peer is checked to be our own, the slot's words are
zeroed, A is put under the free slot, A goes to the worker, the daemon closes its copy, and only then is a route set.
Deleting A from the map discards what it had not read, so it stays until its worker is gone.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence

from lifl.core.errors import ResourceFault
from lifl.core.ids import (
    ADDRESSES_MAX,
    RECORD_BYTES,
    RECORD_MAGIC,
    RECORDS_PER_SEND_MAX,
    SLOTS_MAX,
    Key,
    Record,
    pack_records,
)
from lifl.redirect.base_redirector import BaseRedirector, Receiver
from lifl.redirect.framing import parse, wake
from lifl.redirect.interface import Registration, SlotCounters, Totals
from lifl.redirect.sockmap import bpf, loader
from lifl.redirect.tables import (
    BYTES,
    CONSUMED,
    HELD,
    LAST_NS,
    OVER,
    ROUTES_WORDS,
    SENT,
    SLOT_WORDS,
    SLOTS_WORDS,
    Words,
    fence,
)

WINDOW_RECORDS = 4_096
"""So many unread records (256 KiB) may wait at one worker; the next ones go to the daemon."""
_TOTALS_WORDS = 5
_RUNS, _UNKNOWN, _DEAD, _OVER, _MALFORMED = range(_TOTALS_WORDS)
_READ_BYTES = 65_536
_PROOF_TIMEOUT_S = 2.0
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


def loopback_pair() -> tuple[socket.socket, socket.socket]:
    """Return a TCP connection to ourselves over 127.0.0.1: the connecting and the accepted end.  Raise `OSError`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            near.connect(listener.getsockname())
            while True:
                far, peer = listener.accept()
                if peer == near.getsockname():
                    break
                far.close()  # some other process of this machine was faster
        except OSError:
            near.close()
            raise
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def load_program(window_records: int = WINDOW_RECORDS) -> dict[str, int]:
    """Load the program for workers' windows of so many records; return descriptors as `loader.load` does."""
    return loader.load(
        {
            "RECORD_BYTES": RECORD_BYTES,
            "RECORD_MAGIC": RECORD_MAGIC,
            "RECORDS_PER_SEND_MAX": RECORDS_PER_SEND_MAX,
            "ADDRESSES_MAX": ADDRESSES_MAX,
            "SLOTS_MAX": SLOTS_MAX,
            "WINDOW": window_records,
        }
    )


class SockmapRedirector(BaseRedirector):
    """See `lifl.redirect.interface.Redirector`.  Raises `ResourceFault` if it cannot run on this machine."""

    name = "sockmap"

    def __init__(
        self,
        window_records: int = WINDOW_RECORDS,
        load: Callable[[int], dict[str, int]] | None = None,
    ) -> None:
        super().__init__(
            'records go from socket to socket inside the kernel; redirector = "unix" takes AF_UNIX sockets instead'
        )
        self._window = window_records
        self._load = load or load_program
        self._unsent = b""
        self._starved = False
        self._fds: dict[str, int] = {}
        try:
            self._out, loop = loopback_pair()
        except OSError as error:
            raise ResourceFault(f"no TCP over 127.0.0.1 ({error}); bring it up: ip link set lo up") from error
        self._add(Receiver(0, loop, None))
        try:
            self._open()
        except BaseException:
            self._let_go()  # first: what is in the maps goes with them, and the kernel may refuse to be asked
            self.close()
            raise

    def _open(self) -> None:
        """Load the program, map its tables, take the daemon's place and prove that it works."""
        self._fds = self._load(self._window)
        try:
            self._routes = Words(self._fds["routes"], ROUTES_WORDS, writable=True)
            self._slots = Words(self._fds["slots"], SLOTS_WORDS, writable=True)
            self._totals = Words(self._fds["totals"], _TOTALS_WORDS, writable=True)
            bpf.put_socket(self._fds["sockets"], 0, self._out.fileno())
            self._prove()
        except OSError as error:
            needed = "Linux 5.10 or newer is needed"
            if error.errno == errno.EPERM:  # all but the loading is done without rights
                needed = "Linux 5.19 or newer is needed, or kernel.unprivileged_bpf_disabled = 0 (sysctl)"
            raise ResourceFault(
                f"the eBPF program is loaded, but no record came through it ({error}); {needed}"
            ) from error

    def _prove(self) -> None:
        """Send one record through, because only that says that this kernel does it."""
        registration = self.register()
        with socket.socket(fileno=os.dup(registration.descriptors[0])) as end:
            self.route(1, registration.slot)
            record = Record(1, Key(1, 1, 1))
            left = self.send([record])
            end.settimeout(_PROOF_TIMEOUT_S)
            arrived = [] if left else parse(end.recv(_READ_BYTES))[0]
            if arrived != [record] or self.counters(registration.slot).messages != 1:
                raise OSError(f"{record} was sent, {arrived} arrived")
            self.retire(registration.slot)
        for word in range(_TOTALS_WORDS):
            self._totals.words[word] = 0

    # ---- the workers' sockets ----------------------------------------------------------------------------------

    def _make_receiver(self, slot: int, generation: int) -> Receiver:
        near, far = loopback_pair()
        try:
            bpf.put_socket(self._fds["sockets"], slot, near.fileno())
        except OSError:
            near.close()
            far.close()
            raise
        end = near.detach()
        port = {"kind": self.name, "slot": slot, "generation": generation, "window": self._window}
        descriptors = [end, self._fds["routes"], self._fds["slots"]]
        return Receiver(slot, far, Registration(slot, generation, port, descriptors, [end]))

    def _end_receiver(self, receiver: Receiver) -> None:
        if self._fds:
            bpf.remove_socket(self._fds["sockets"], receiver.slot)

    # ---- records -----------------------------------------------------------------------------------------------

    def _room(self, slot: int) -> int:
        words = self._slots.words
        row = slot * SLOT_WORDS
        return max(0, self._window - (words[row + SENT] - words[row + CONSUMED]))

    def _push(self, slot: int, records: Sequence[Record]) -> int:
        room = self._room(slot)
        if room < len(records):
            self._slots.words[slot * SLOT_WORDS + HELD] = 1
            fence()
            room = self._room(slot)
        records = records[:room]
        if not records or not self._flush():
            return 0
        data = pack_records(records)
        try:
            sent = self._out.send(data, _SEND_FLAGS)
        except BlockingIOError:
            self._starved = True
            return 0
        except BrokenPipeError:  # the receiver has just died; its channel will say so
            return 0
        self._unsent = data[sent:]  # a send in pieces bounces to the loop, piece by piece
        return len(records)

    def _flush(self) -> bool:
        """Return whether the last send is out completely."""
        if self._unsent:
            try:
                self._unsent = self._unsent[self._out.send(self._unsent, _SEND_FLAGS) :]
            except BlockingIOError:
                pass
            self._starved |= bool(self._unsent)
        return not self._unsent

    def _read(self, receiver: Receiver) -> tuple[list[Record], int, bool]:
        try:
            data = receiver.channel.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return [], 0, False
        except ConnectionError:
            data = b""
        if not data:
            return [], 0, True
        whole = receiver.rest + data
        cut = len(whole) - len(whole) % RECORD_BYTES
        receiver.rest = whole[cut:]
        records, malformed = parse(whole[:cut])
        if receiver.slot == 0 and self._flush() and self._starved:
            self._starved = False
            records.append(wake(0))
        return records, malformed, False

    # ---- figures -----------------------------------------------------------------------------------------------

    def counters(self, slot: int) -> SlotCounters:
        """See `Redirector.counters`."""
        row = self._slots.words[slot * SLOT_WORDS : (slot + 1) * SLOT_WORDS]
        return SlotCounters(row[SENT], row[BYTES], row[LAST_NS], row[CONSUMED], row[OVER])

    def totals(self) -> Totals:
        """See `Redirector.totals`."""
        words = self._totals.words
        malformed = words[_MALFORMED] + self._malformed_total()
        return Totals(words[_RUNS], words[_UNKNOWN], words[_DEAD], words[_OVER], malformed)

    def _end(self) -> None:
        self._out.close()
        for table in ("_routes", "_slots", "_totals"):
            if table in vars(self):
                getattr(self, table).close()
        self._let_go()

    def _let_go(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

"""The redirector without eBPF, the daemon's side: AF_UNIX sockets, and tables in a memfd.

The senders do themselves what the program would do in the kernel: a port looks the address up in the mapped routes and
sends straight to the socket of the worker that serves it, without a process in between.  A worker has

* its *inbox*, a datagram socket bound to ``<slot>.<generation>`` in a folder of mode 0700: other workers send to it.
  The kernel bounds it (net.unix.max_dgram_qlen sends wait, 10 by default) and refuses when the worker is dead;
* its *channel*, a SOCK_SEQPACKET pair with the daemon: what is undeliverable goes up on it, what the daemon sends
  comes down, and its end of file tells either side of the other's death.

Socket addresses are made of ``/proc/self/fd/N`` and so do not depend on how long the folder's path is (an AF_UNIX path
has 108 bytes).
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lifl.core.errors import ResourceFault
from lifl.core.ids import RECORD_BYTES, Record, pack_records
from lifl.redirect.base_redirector import BaseRedirector, Receiver
from lifl.redirect.framing import parse
from lifl.redirect.interface import Registration, SlotCounters, Totals
from lifl.redirect.tables import (
    CONSUMED,
    HELD,
    LAST_NS,
    ROUTES_WORDS,
    SLOT_WORDS,
    WORD_BYTES,
    Words,
    fence,
)
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

_SOCKET_NAME = re.compile(r"\d+\.\d+")
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


def _open_folder(parent: Path) -> tuple[Path, int]:
    """Return the folder of the inboxes, empty, and a descriptor of it."""
    path = parent / "redirect"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        text = f"no folder for the redirector's sockets: {error}; `lifl doctor --repair` mends it, or says who can"
        raise ResourceFault(text) from error
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(descriptor)
        raise ResourceFault(
            f"{path} must belong to this user and be closed to others (chmod 700): a process that gets in can send keys"
        )
    for name in os.listdir(path):  # left by a daemon that was killed
        if _SOCKET_NAME.fullmatch(name):
            os.unlink(path / name)
    return path, descriptor


class UnixRedirector(BaseRedirector):
    """See `lifl.redirect.interface.Redirector`.  Raises `ResourceFault` if the folder cannot be used."""

    name = "unix"

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(why)
        self._base: dict[int, tuple[int, int]] = {}
        self._path, self._folder = _open_folder(folder)
        self._memory = os.memfd_create("lifl-redirect", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._memory, (ROUTES_WORDS + SHARED_WORDS) * WORD_BYTES)
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._routes = Words(self._memory, ROUTES_WORDS, writable=True)
        self._slots = Words(self._memory, SHARED_WORDS, writable=True, offset_words=ROUTES_WORDS)

    # ---- the workers' sockets ----------------------------------------------------------------------------------

    def _make_receiver(self, slot: int, generation: int) -> Receiver:
        self._base[slot] = self._column(slot)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                inbox.bind(inbox_path(self._folder, slot, generation))
            except OSError:
                inbox.close()
                raise
        except OSError:
            ours.close()
            theirs.close()
            raise
        lent = [theirs.detach(), inbox.detach()]
        port = {"kind": self.name, "slot": slot, "generation": generation}
        descriptors = [*lent, self._folder, self._memory]
        return Receiver(slot, ours, Registration(slot, generation, port, descriptors, lent))

    def _end_receiver(self, receiver: Receiver) -> None:
        assert receiver.registration is not None
        with suppress(FileNotFoundError):
            os.unlink(inbox_path(self._folder, receiver.slot, receiver.registration.generation))

    # ---- records -----------------------------------------------------------------------------------------------

    def _push(self, slot: int, records: Sequence[Record]) -> int:
        channel = self._receivers[slot].channel
        data = pack_records(records)
        words = self._slots.words
        try:
            channel.send(data, _SEND_FLAGS)
        except BlockingIOError:
            words[slot * SLOT_WORDS + HELD] = 1
            fence()
            try:
                channel.send(data, _SEND_FLAGS)
            except OSError:
                return 0
        except OSError:  # the worker has just died; its channel will say so
            return 0
        words[SENDERS_AT + RUNS] += 1
        words[MATRIX_AT + 2 * slot + DELIVERED] += len(records)
        words[slot * SLOT_WORDS + LAST_NS] = time.monotonic_ns()
        return len(records)

    def _read(self, receiver: Receiver) -> tuple[list[Record], int, bool]:
        records: list[Record] = []
        for _ in range(READS_PER_CALL_MAX):
            try:
                message = receiver.channel.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionError:
                message = b""
            if not message:
                return records, 0, True
            some, malformed = parse(message)
            records += some
            if malformed:
                return records, malformed, False
            if int.from_bytes(message[2:4], "little") != len(some):
                self._malformed += 1
        return records, 0, False

    # ---- figures -----------------------------------------------------------------------------------------------

    def _column(self, slot: int) -> tuple[int, int]:
        """Return the records delivered to a slot and refused by it, ever."""
        end = MATRIX_AT + self._pool.used * ROW_WORDS
        first = MATRIX_AT + 2 * slot
        words = self._slots.words
        return (
            sum(words[first + DELIVERED : end : ROW_WORDS]),
            sum(words[first + REFUSED : end : ROW_WORDS]),
        )

    def counters(self, slot: int) -> SlotCounters:
        """See `Redirector.counters`."""
        delivered, refused = self._column(slot)
        delivered_before, refused_before = self._base.get(slot, (0, 0))
        row = self._slots.words[slot * SLOT_WORDS : (slot + 1) * SLOT_WORDS]
        messages = delivered - delivered_before
        return SlotCounters(messages, messages * RECORD_BYTES, row[LAST_NS], row[CONSUMED], refused - refused_before)

    def totals(self) -> Totals:
        """See `Redirector.totals`."""
        words = self._slots.words
        end = SENDERS_AT + self._pool.used * SENDER_WORDS
        runs, unknown, dead, over = (
            sum(words[SENDERS_AT + word : end : SENDER_WORDS]) for word in (RUNS, UNKNOWN, DEAD, OVER)
        )
        return Totals(runs, unknown, dead, over, self._malformed_total())

    def _end(self) -> None:
        if self._memory < 0:
            return
        self._routes.close()
        self._slots.close()
        os.close(self._memory)
        os.close(self._folder)
        self._memory = -1
        with suppress(OSError):  # something that is not ours is in it
            self._path.rmdir()

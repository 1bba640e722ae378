"""Hand-off of one update between two processes of a node, by key.

The bench process is the daemon: it has the arena and the redirector, and registers a sender and a receiver, which are
processes of their own with real ports.  The receiver sleeps in poll(2), as workers do.  Measured is from just before
the sender sends the key until the receiver has read the record, found the object in the table and has read numbers at
the beginning, in the middle and at the end of its data.

For scale, the same update copied by the sender into another object of the (warm) arena before the key is sent.

    python bench/node_handoff.py send|receive ARENA PORT DESCRIPTORS     (the helpers' own entry)
"""

from __future__ import annotations

import json
import os
import select
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from measure import REPLY_S, Cell, Group, Helper, Target, answer, grown_bytes, orders
from redirectors import kinds

from lifl.core.ids import Key, Kind, Record
from lifl.core.schema import Segment
from lifl.redirect import Port, open_port, open_redirector
from lifl.shm.arena import Arena
from lifl.shm.owned_arena import OwnedArena
from lifl.worker.task import vector

SIZES_BYTES = {"46.8 MB": 46_800_000, "87.2 MB": 87_200_000, "240.8 MB": 240_800_000}
"""ResNet-18, -34 and -152 as float32."""
QUICK_BYTES = {"1.0 MB": 1_000_000, "4.0 MB": 4_000_000}
REPETITIONS, QUICK_REPETITIONS = 101, 5
COPY_EVERY = 5
"""Copies take so much longer that fewer of them do."""
COPY = "copy, then key"
ADDRESS = 1
WARM_UP = 3
TARGET_MS = 0.3


class Handoffs:
    """An arena with an update of each size, and a sender and a receiver for each redirector."""

    def __init__(self, opened: ExitStack, sizes: dict[str, int]) -> None:
        arena = OwnedArena.create(
            f"/lifl-bench-{os.getpid()}", sum(sizes.values()) + max(sizes.values()) + (8 << 20), 1
        )
        opened.callback(arena.close, unlink=True)
        self._keys = {size: _update(arena, nbytes) for size, nbytes in sizes.items()}
        self._spare = arena.alloc(Kind.UPDATE, 1, 1, max(sizes.values()))
        self._pairs = {kind: opened.enter_context(_pair(kind, arena)) for kind in kinds()}

    def measure(self, size: str, way: str) -> tuple[float, float]:
        """Do one hand-off; return its ms, and the CPU ms of both processes."""
        copied = way == COPY
        sender, receiver = self._pair_of(way)
        sender.order(key=self._keys[size].pack().hex(), copy_to=self._spare.pack().hex() if copied else "")
        spent_s = sender.reply()["cpu_s"]
        got = receiver.reply()
        return got["ns"] / 1e6, (spent_s + got["cpu_s"]) * 1e3

    def pids(self, way: str) -> list[int]:
        """Return the processes on the way."""
        return [helper.pid for helper in self._pair_of(way)]

    def _pair_of(self, way: str) -> tuple[Helper, Helper]:
        return self._pairs["unix" if way == COPY else way]


def run(quick: bool) -> Group:
    """Measure all sizes and ways, interleaved."""
    sizes = QUICK_BYTES if quick else SIZES_BYTES
    repetitions = QUICK_REPETITIONS if quick else REPETITIONS
    with ExitStack() as opened:
        handoffs = Handoffs(opened, sizes)
        cells = {(size, way): Cell(f"{size}, {way}", "ms") for size in sizes for way in (*kinds(), COPY)}
        for repetition in range(-WARM_UP, repetitions):
            for (size, way), cell in cells.items():
                if way == COPY and repetition % COPY_EVERY and repetition >= 0:
                    continue
                with grown_bytes(handoffs.pids(way)) as grown:
                    measured = handoffs.measure(size, way)
                if repetition >= 0:
                    cell.add(*measured, grown[0] / 1e6)
        return Group(
            "handoff",
            "Hand-off of one update between two processes, by key",
            "From before the sender sends the key until the receiver has found the object and has read numbers at its"
            " beginning, middle and end. “copy” is for scale: what one copy within warm shared memory adds.",
            "ms of both processes",
            list(cells.values()),
            [
                Target(f"hand-off of {size}, {way}", "ms", TARGET_MS, cell.median)
                for (size, way), cell in cells.items()
                if way in kinds()
            ],
        )


def _update(arena: Arena, nbytes: int) -> Key:
    key = arena.alloc(Kind.UPDATE, 1, 1, nbytes)
    whole = nbytes // 4
    data = arena.data(key)
    vector(data, Segment("float32", 0, whole))[:] = 1.0
    data.release()
    arena.seal(key, 1.0, 1)
    return key


@contextmanager
def _pair(kind: str, arena: Arena) -> Iterator[tuple[Helper, Helper]]:
    """Provide a sender and a receiver of a redirector of their own; the receiver gets what is sent to `ADDRESS`."""
    with tempfile.TemporaryDirectory(prefix="lb-") as folder, ExitStack() as opened:
        redirector = open_redirector("sockmap" if kind == "sockmap" else "unix", Path(folder))
        opened.callback(redirector.close)
        helpers = []
        for role in ("send", "receive"):
            place = redirector.register()
            numbers = json.dumps(place.descriptors)
            arguments = [role, arena.name, json.dumps(place.port), numbers]
            helper = Helper("node_handoff.py", arguments, place.descriptors)
            opened.callback(helper.close)
            place.handed_over()
            helper.reply()
            helpers.append(helper)
        redirector.route(ADDRESS, place.slot)
        yield helpers[0], helpers[1]


# ---- the helpers ---------------------------------------------------------------------------------------------------


def send(arena: Arena, port: Port) -> None:
    """Do a hand-off for each order."""
    answer(ready=True)
    for what in orders():
        key = Key.unpack(bytes.fromhex(what["key"]))
        source = arena.data(key)
        begun_s, begun_ns = time.process_time(), time.monotonic_ns()
        if what["copy_to"]:
            target = arena.data(Key.unpack(bytes.fromhex(what["copy_to"])))
            target[: len(source)] = source
        port.send([Record(ADDRESS, key, sent_ns=begun_ns)])
        answer(cpu_s=time.process_time() - begun_s)


def receive(arena: Arena, port: Port) -> None:
    """Read what each key names, until stdin ends."""
    poll = select.poll()
    poll.register(port.fileno(), select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN)
    answer(ready=True)
    while True:
        begun_s = time.process_time()
        ready = {fd for fd, _events in poll.poll(REPLY_S * 1e3)}
        if sys.stdin.fileno() in ready or not ready:
            return
        for record in port.receive():
            entry = arena.entry(record.key)
            numbers = vector(arena.data(record.key), Segment("float32", 0, entry.data_bytes // 4))
            touched = float(numbers[0] + numbers[len(numbers) // 2] + numbers[-1])
            done_ns = time.monotonic_ns()
            answer(ns=done_ns - record.sent_ns, cpu_s=time.process_time() - begun_s, touched=touched)


def main() -> None:
    """Run a helper."""
    role, name, described, descriptors = sys.argv[1:]
    arena = Arena.attach(name)
    port = open_port(json.loads(described), json.loads(descriptors))
    (send if role == "send" else receive)(arena, port)


if __name__ == "__main__":
    main()

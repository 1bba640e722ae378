"""Starting an aggregator: cold (forked by the zygote), warm (a worker that waits), promoted (one that just was a leaf).

The bench process does what `lifld` does, with the real zygote, redirector and arena: it registers a worker, has it
forked, and sends it a leaf task as soon as it says that it is ready.  The first instruction of the task is the clock
that the worker reads when it makes the task (`TaskDone.started_ns`).  Cold is measured from before the worker is
registered; warm from before the TaskStart is sent to a worker that sleeps; promoted from before the TaskStart of a
middle task is sent to the worker whose leaf task has just been done, until that is read.

The third thing measured is a key's way: from before the key of an update is sent to a worker whose task is open and
waits for it, until the daemon's side has read that the task is done (a tiny fold, its seal, two wake-ups).
"""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import psutil
from measure import HELPER_ENVIRONMENT, REPLY_S, Cell, Group, Target, cpu_s, grown_bytes
from redirectors import kinds

from lifl.core.fields import Message
from lifl.core.ids import Key, Kind, Record
from lifl.core.protocol import worker as wm
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.schema import Layout, TensorSpec
from lifl.redirect import open_redirector
from lifl.shm.owned_arena import OwnedArena

LAYOUT = Layout([TensorSpec("w", "float32", (1024,))])
ARENA_BYTES = 1 << 30
"""A node's default: the zygote has it mapped when it forks."""
QUICK_ARENA_BYTES = 64 << 20
COLD, QUICK_COLD = 60, 3
WARM_PER_COLD = 4
META_ROOM_BYTES = 1024
ADDRESS = 1
ASLEEP_S = 0.005
"""So long a warm worker is left alone, so that it really sleeps."""
COLD_MS, WARM_MS = 6.0, 0.3
Measured = tuple[float, float, float]
"""ms; CPU ms; MB of memory of its own that the worker took, of a cold start all that it has."""


def run(quick: bool) -> Group:
    """Measure the redirectors that can run here, interleaved."""
    cold = {kind: Cell(f"cold start, {kind}", "ms") for kind in kinds()}
    warm = {kind: Cell(f"warm start, {kind}", "ms") for kind in kinds()}
    promoted = {kind: Cell(f"promoted from leaf to middle, {kind}", "ms") for kind in kinds()}
    keyed = {kind: Cell(f"key sent to task done, {kind}", "ms") for kind in kinds()}
    with ExitStack() as opened:
        bench = Bench(opened, QUICK_ARENA_BYTES if quick else ARENA_BYTES)
        redirectors = {}
        for kind in kinds():
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-"))
            redirectors[kind] = open_redirector(kind, Path(folder))
            opened.callback(redirectors[kind].close)
        for repetition in range(-1, QUICK_COLD if quick else COLD):
            for kind, redirector in redirectors.items():
                with ExitStack() as life:
                    first, others, keys, next_ones = bench.life(redirector, life)
                if repetition >= 0:
                    cold[kind].add(*first)
                    for each in others:
                        warm[kind].add(*each)
                    for each in keys:
                        keyed[kind].add(*each)
                    for each in next_ones:
                        promoted[kind].add(*each)
    return Group(
        "start",
        "Starting an aggregator, to the first instruction of its first task",
        "Cold: registration, fork from the zygote, port opened, ready, TaskStart read. Warm: TaskStart to a worker that"
        " sleeps. Promoted: a middle task's TaskStart to the worker whose leaf task was just done. Key sent to task"
        " done: the key of a 4 kB update wakes a worker that waits for it; fold, seal and the"
        " message back are in it. Memory: what is the worker's alone, of a cold start all that it has.",
        "ms of zygote and worker",
        [*cold.values(), *warm.values(), *promoted.values(), *keyed.values()],
        [Target(cell.name, "ms", COLD_MS, cell.median) for cell in cold.values()]
        + [Target(cell.name, "ms", WARM_MS, cell.median) for cell in warm.values()],
    )


class Bench:
    """Arena and zygote, as `lifld` has them."""

    def __init__(self, opened: ExitStack, arena_bytes: int) -> None:
        name = f"/lifl-bench-{os.getpid()}"
        self.arena = OwnedArena.create(name, arena_bytes, 1)
        opened.callback(self.arena.close, unlink=True)
        here, there = socket.socketpair()
        command = [sys.executable, "-m", "lifl.worker.zygote", "--fd", str(there.fileno()), "--arena", name]
        with there:
            process = subprocess.Popen(
                command, pass_fds=[there.fileno()], env={**os.environ, **HELPER_ENVIRONMENT}, stdin=subprocess.DEVNULL
            )
        opened.callback(process.wait, REPLY_S)
        opened.callback(here.close)  # its end is the zygote's order to go
        self._zygote = Link(here, wm.FromZygote)
        self._zygote_pid = self._zygote.take(wm.ZygoteReady).pid
        self._worker = 0
        self._update = self._sealed_update()

    def _sealed_update(self) -> Key:
        key = self.arena.alloc(Kind.UPDATE, 1, 1, LAYOUT.data_bytes, META_ROOM_BYTES)
        self.arena.data(key)[:] = bytes(LAYOUT.data_bytes)
        self.arena.seal(key, 1.0, 1)
        return key

    def life(self, redirector: Any, life: ExitStack) -> tuple[Measured, list[Measured], list[Measured], list[Measured]]:
        """Live one worker's life: its cold start; its warm ones, keys' ways and promotions."""
        self._worker += 1
        zygote_s = cpu_s([self._zygote_pid])
        begun_ns = time.monotonic_ns()
        place = redirector.register()
        here, there = socket.socketpair()
        link = Link(here, wm.FromWorker)
        life.callback(here.close)
        with there:
            descriptors = [there.fileno(), *place.descriptors]
            self._zygote.send(wm.Fork(self._worker, place.port, len(descriptors)), descriptors)
        place.handed_over()
        pid = link.take(wm.WorkerReady).pid
        output = self._start(link)
        worker_s = cpu_s([pid])  # as soon as the order is on its way; what the fork cost is the zygote's
        started_ns, _done_ns, _ = self._complete(redirector, link, place.slot, self._update)
        self.arena.free(output)
        spent_ms = (worker_s + cpu_s([self._zygote_pid]) - zygote_s) * 1e3
        cold = ((started_ns - begun_ns) / 1e6, spent_ms, psutil.Process(pid).memory_full_info().uss / 1e6)
        warm, keyed, promoted = [], [], []
        for _ in range(WARM_PER_COLD):
            time.sleep(ASLEEP_S)
            with grown_bytes([pid]) as grown:
                before_s = cpu_s([pid])
                begun_ns = time.monotonic_ns()
                output = self._start(link)
                started_ns, done_ns, sent_ns = self._complete(redirector, link, place.slot, self._update)
                spent_ms = (cpu_s([pid]) - before_s) * 1e3
            warm.append(((started_ns - begun_ns) / 1e6, spent_ms, grown[0] / 1e6))
            keyed.append(((done_ns - sent_ns) / 1e6, spent_ms, grown[0] / 1e6))
            with grown_bytes([pid]) as grown:
                before_s = cpu_s([pid])
                begun_ns = time.monotonic_ns()
                merged = self._start(link, "middle")
                started_ns, _, _ = self._complete(redirector, link, place.slot, output)
                spent_ms = (cpu_s([pid]) - before_s) * 1e3
            promoted.append(((started_ns - begun_ns) / 1e6, spent_ms, grown[0] / 1e6))
            self.arena.free(output)
            self.arena.free(merged)
        link.send(wm.Retire())
        self._zygote.take(wm.Exited)
        redirector.retire(place.slot)
        return cold, warm, keyed, promoted

    def _start(self, link: Link, role: Literal["leaf", "middle"] = "leaf") -> Key:
        output = self.arena.alloc(Kind.PARTIAL, 1, 1, LAYOUT.accumulator_bytes, META_ROOM_BYTES)
        link.send(
            wm.TaskStart(
                address=ADDRESS,
                attempt=1,
                role=role,
                job="bench",
                round=1,
                rule="fedavg",
                options={},
                rule_folder="",
                eager=True,
                expect=1,
                parent=0,
                output=output.pack(),
                inputs=LAYOUT.segments if role == "leaf" else LAYOUT.accumulators,
                outputs=LAYOUT.accumulators,
            )
        )
        return output

    def _complete(self, redirector: Any, link: Link, slot: int, key: Key) -> tuple[int, int, int]:
        """Send the task's one key once it waits for it; return when it began, was done and was sent."""
        # A Drop of a task that is not there is answered when everything before it has been done.
        link.send(wm.Drop(ADDRESS + 1, 1))
        link.take(wm.TaskDropped)
        redirector.route(ADDRESS, slot)
        sent_ns = time.monotonic_ns()
        if redirector.send([Record(ADDRESS, key, 1, 0, sent_ns)]):
            raise RuntimeError("a key was not delivered to a worker that waits for it")
        done = link.take(wm.TaskDone)
        done_ns = time.monotonic_ns()
        redirector.route(ADDRESS, None)
        return done.started_ns, done_ns, sent_ns


class Link:
    """A link seen from the daemon: frames out (with descriptors), messages in."""

    def __init__(self, sock: socket.socket, kinds: Any) -> None:
        sock.settimeout(REPLY_S)
        self._sock = sock
        self._decoder: FrameDecoder[Any] = FrameDecoder(kinds)

    def send(self, message: Message, descriptors: list[int] | None = None) -> None:
        """Send one frame."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._sock.sendmsg([encode(message)], rights)

    def take(self, kind: type) -> Any:
        """Return the next message of `kind`; others are passed over."""
        while True:
            message = self._decoder.next_message()
            if isinstance(message, kind):
                return message
            if message is None:
                data = self._sock.recv(65536)
                if not data:
                    raise EOFError(f"the link ended before a {kind.__name__} came")
                self._decoder.feed(data)

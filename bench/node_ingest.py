"""Ingest of updates: the gateway by TCP, the direct path, and beside them a bare receive loop.

The gateway is the real process; the bench process stands in for `lifld` on its link: it grants slots of the arena,
says ACCEPTED when an update is sealed, and frees it, so slots are recycled warm.  Clients are processes that speak the
real protocol: Submit with its schema, Go, the body, Accepted; every check runs.  The direct path is the same over the
node's AF_UNIX socket: the client writes its slot itself, the gateway checks it.

The bare loop is what a socket can do at best: a process with a blocking thread per connection that calls `recv_into`
into a warm slot of the same arena, checks nothing and answers each update by one byte.  Its clients are the same
processes with the same arrays and the same `sendmsg`.

A repetition runs all ways one after the other, so that the fractions compare neighbours in time.

    python bench/node_ingest.py send NAME BYTES | bare ARENA KEYS DESCRIPTOR      (the helpers' own entry)
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from measure import END_S, HELPER_ENVIRONMENT, Cell, Group, Helper, Target, answer, cpu_s, grown_bytes, orders

from lifl.client.dialling import Dialler
from lifl.client.stream import GREETING_S, Stream
from lifl.client.tensors import Update
from lifl.core.fields import Message
from lifl.core.ids import Key, Kind
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution, pack_contribution
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.schema import Layout, TensorSpec
from lifl.node.cli_server import listen_unix
from lifl.node.machine import listen_tcp
from lifl.shm.arena import Arena
from lifl.shm.layout import data_offset
from lifl.shm.mapping import populate
from lifl.shm.owned_arena import OwnedArena

UPDATE_BYTES, QUICK_BYTES = 46_800_000, 2_000_000
TENSORS = 60
CLIENTS = (1, 4, 16)
UPDATES = {1: 20, 4: 8, 16: 3}
QUICK_UPDATES = {1: 4, 4: 2, 16: 1}
"""How many updates each client sends in one repetition."""
REPETITIONS, QUICK_REPETITIONS = 11, 2
WAYS = ("bare loop", "gateway", "direct")
BARE_READ_BYTES = 1 << 20
JOB = "bench"
TARGET_FRACTION = 0.9
JUDGED = (1, 4)
"""With how many clients the gateway is to reach it."""

T = TypeVar("T")


def layout_of(nbytes: int) -> Layout:
    """Return a model of `TENSORS` float32 tensors and about `nbytes` bytes."""
    size = nbytes // 4 // TENSORS
    return Layout([TensorSpec(f"layer{number}.weight", "float32", (size,)) for number in range(TENSORS)])


def run(quick: bool) -> Group:
    """Measure every way with every number of clients, interleaved."""
    layout = layout_of(QUICK_BYTES if quick else UPDATE_BYTES)
    updates = QUICK_UPDATES if quick else UPDATES
    rates = {(way, n): Cell(f"{way}, {clients(n)}", "GB/s") for n in CLIENTS for way in WAYS}
    senders_cpu = {key: Cell(f"{cell.name}: CPU of the senders", "s per GB") for key, cell in rates.items()}
    fractions = {
        (way, n): Cell(f"{way} / bare loop, {clients(n)}", "") for n in CLIENTS for way in WAYS if way != WAYS[0]
    }
    with ExitStack() as opened:
        arena = OwnedArena.create(
            f"/lifl-bench-{os.getpid()}", (2 * max(CLIENTS) + 2) * (layout.data_bytes + (1 << 20)) + (4 << 20), 1
        )
        opened.callback(arena.close, unlink=True)
        bare_address, bare_pid = opened.enter_context(bare_loop(arena, layout))
        gateway = opened.enter_context(Gateway(arena, layout))
        senders = []
        for number in range(max(CLIENTS)):
            senders.append(Helper("node_ingest.py", ["send", f"c{number}", str(layout.data_bytes)]))
            opened.callback(senders[-1].close)
        for sender in senders:
            sender.reply()
        addresses = {"bare loop": bare_address, "gateway": gateway.tcp, "direct": f"unix:{gateway.unix}"}
        pids = {"bare loop": bare_pid, "gateway": gateway.pid, "direct": gateway.pid}
        for repetition in range(-1, QUICK_REPETITIONS if quick else REPETITIONS):
            for n in CLIENTS:
                rate: dict[str, float] = {}
                for way in WAYS:
                    before_s = cpu_s([pids[way]])
                    with grown_bytes([pids[way]]) as grown:
                        rate[way], sent_cpu = burst(senders[:n], way, addresses[way], updates[n], layout)
                    gigabytes = n * updates[n] * layout.data_bytes / 1e9
                    if repetition >= 0:
                        spent_s = (cpu_s([pids[way]]) - before_s) / gigabytes
                        rates[way, n].add(rate[way], spent_s, grown[0] / 1e6)
                        senders_cpu[way, n].add(sent_cpu / gigabytes)
                        if way != WAYS[0]:
                            fractions[way, n].add(rate[way] / rate[WAYS[0]])
    return _group(layout, rates, senders_cpu, fractions)


def _group(
    layout: Layout,
    rates: dict[tuple[str, int], Cell],
    senders_cpu: dict[tuple[str, int], Cell],
    fractions: dict[tuple[str, int], Cell],
) -> Group:
    return Group(
        "ingest",
        f"Ingest of updates of {layout.data_bytes / 1e6:.1f} MB into warm shared memory",
        "From the first Submit to the last Accepted of a burst; the gateway checks every number and computes the"
        " checksum, the bare loop (a blocking thread per connection, 1 MiB per `recv_into`) looks at nothing.",
        "receiver, s per GB",
        [*rates.values(), *fractions.values(), *senders_cpu.values()],
        [
            Target(f"gateway ingest / bare loop, {clients(n)}", "", TARGET_FRACTION, cell.median, at_least=True)
            for (way, n), cell in fractions.items()
            if way == "gateway" and n in JUDGED
        ],
    )


def clients(n: int) -> str:
    return f"{n} client{'s' if n > 1 else ''}"


def burst(senders: list[Helper], way: str, address: str, updates: int, layout: Layout) -> tuple[float, float]:
    """Return GB/s of all senders together, and their CPU seconds."""
    for sender in senders:
        sender.order(way=way, address=address)
    for sender in senders:
        sender.reply()  # connected
    for sender in senders:
        sender.order(updates=updates)
    told = [sender.reply() for sender in senders]
    wall_s = (max(t["end_ns"] for t in told) - min(t["begin_ns"] for t in told)) / 1e9
    return len(senders) * updates * layout.data_bytes / 1e9 / wall_s, sum(t["cpu_s"] for t in told)


# ---- the gateway, and the daemon's side of its link ----------------------------------------------------------------


class Gateway:
    """The gateway's process and, in a thread, what `lifld` answers it."""

    def __init__(self, arena: Arena, layout: Layout, identity: Path | None = None, streams: int = 1) -> None:
        self._arena = arena
        self._secured = ["--identity", str(identity)] if identity is not None else []
        self._secured += ["--streams", str(streams)]
        self._layout = layout
        self._opened = ExitStack()
        self._admitted: dict[bytes, tuple[int, int]] = {}
        self._ready = threading.Event()

    def __enter__(self) -> Gateway:
        with ExitStack() as opened:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-")))
            tcp = opened.enter_context(listen_tcp("127.0.0.1:0"))
            self.unix = str(folder / "gateway.sock")
            unix = opened.enter_context(listen_unix(Path(self.unix)))
            self.tcp = "{}:{}".format(*tcp.getsockname())
            self._link, theirs = socket.socketpair()
            opened.enter_context(self._link)
            passed = [theirs.fileno(), tcp.fileno(), unix.fileno()]
            log = opened.enter_context(open(folder / "gateway.log", "wb"))
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "lifl.node.gateway.main", "--arena", self._arena.name, *self._secured]
                    + [f"--{name}={fd}" for name, fd in zip(("fd", "tcp-fd", "unix-fd"), passed, strict=True)],
                    pass_fds=passed,
                    stderr=log,
                    env={**os.environ, **HELPER_ENVIRONMENT},
                )
            opened.callback(self._end)
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
            self._say(gm.JobSchema(JOB, 1, self._layout.tensors))
            if not self._ready.wait(END_S):
                raise RuntimeError(f"the gateway was not ready within {END_S:g} s")
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._opened.close()

    @property
    def pid(self) -> int:
        """The gateway's process."""
        return self._process.pid

    def _end(self) -> None:
        self._link.shutdown(socket.SHUT_RDWR)  # its end is the gateway's order to go
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(END_S)

    def _say(self, message: Message) -> None:
        self._link.sendall(encode(message))

    def _serve(self) -> None:
        decoder: FrameDecoder[gm.FromGateway] = FrameDecoder(gm.FromGateway)
        while data := self._link.recv(65536):
            decoder.feed(data)
            while (message := decoder.next_message()) is not None:
                self._answer(message)

    def _answer(self, message: gm.FromGateway) -> None:
        match message:
            case gm.GatewayReady():
                self._ready.set()
            case gm.Admit(conn, client, _job, number, weight):
                key = self._arena.alloc(Kind.UPDATE, 1, number, self._layout.data_bytes, CONTRIBUTION_BYTES_MAX, slab=1)
                self._admitted[key.pack()] = (conn, number)
                self._say(gm.Granted(conn, key.pack(), pack_contribution(Contribution(client, weight))))
            case gm.Sealed(conn, key_bytes):
                _, number = self._admitted.pop(key_bytes)
                self._arena.free(Key.unpack(key_bytes))
                self._say(gm.TellClient(conn, cm.packed(cm.Accepted(JOB, number))))
            case gm.Aborted(_, key_bytes):
                self._arena.free(Key.unpack(key_bytes))


@contextmanager
def bare_loop(arena: Arena, layout: Layout) -> Iterator[tuple[str, int]]:
    """Provide the bare loop's process: its address and pid."""
    # Of the one job that there is: the gateway is told of no segment that is made when it runs.
    keys = [arena.alloc(Kind.UPDATE, 1, 1, layout.data_bytes).pack().hex() for _ in range(max(CLIENTS))]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        helper = Helper(
            "node_ingest.py", ["bare", arena.name, json.dumps(keys), str(listener.fileno())], [listener.fileno()]
        )
        try:
            helper.reply()
            yield "{}:{}".format(*listener.getsockname()), helper.pid
        finally:
            helper.close()


# ---- the helpers ---------------------------------------------------------------------------------------------------


def send(name: str, nbytes: int) -> None:
    """Be a client: connect when told a way, then send the updates, one after the other."""
    layout = layout_of(nbytes)
    random = np.random.default_rng(1)
    update = Update(layout, {t.name: random.random(t.shape, np.float32) for t in layout.tensors})
    views = update.views
    answer(ready=True)
    told = iter(orders())
    number = 0
    for what in told:
        stream = Stream(what["address"], GREETING_S, Dialler([what["address"]]))
        if what["way"] != "bare loop":
            stream.send(cm.Hello(cm.PROTOCOL_VERSION, name, direct=what["way"] == "direct"))
            expect(stream, cm.Welcome)
        answer(connected=True)
        updates = next(told)["updates"]
        begin_cpu_s, begin_ns = time.process_time(), time.monotonic_ns()
        for _ in range(updates):
            number += 1
            if what["way"] == "bare loop":
                stream.send_views(views, None)
                stream.receive_into(memoryview(bytearray(1)))
            else:
                submit(stream, number, update, views)
        end_ns, end_cpu_s = time.monotonic_ns(), time.process_time()
        stream.close()
        answer(begin_ns=begin_ns, end_ns=end_ns, cpu_s=end_cpu_s - begin_cpu_s)


def submit(stream: Stream, number: int, update: Update, views: list[memoryview]) -> None:
    layout = update.layout
    stream.send(cm.Submit(JOB, number, 1.0, layout.data_bytes, layout.tensors))
    go = expect(stream, cm.Go)
    if go.direct:
        update.write_to(stream.window(go.offset, layout.data_bytes))
        stream.send(cm.Filled(JOB, number))
    else:
        stream.send_views(views, None)
    expect(stream, cm.Accepted)


def expect(stream: Stream, kind: type[T]) -> T:
    message = stream.receive()
    if not isinstance(message, kind):
        raise RuntimeError(f"the gateway answers {message}, not {kind.__name__}")
    return message


def bare(name: str, keys: list[str], descriptor: int) -> None:
    """Run the bare loop: a thread per connection, each with a slot of its own; end with stdin."""
    arena = Arena.attach(name)
    arena.segments.open_all()
    populate(arena.segments.views()[1][data_offset(arena.entries) :])  # the one that there is holds all
    slots = [arena.data(Key.unpack(bytes.fromhex(key))) for key in keys]
    listener = socket.socket(fileno=descriptor)

    def receive(sock: socket.socket, slot: memoryview) -> None:
        with sock:
            while True:
                got = 0
                while got < len(slot):
                    step = sock.recv_into(slot[got : got + BARE_READ_BYTES])
                    if not step:
                        return
                    got += step
                sock.sendall(b"\1")

    def accept() -> None:
        # At most as many connections as slots are open at a time, and those of a burst come in a row.
        for slot in itertools.cycle(slots):
            sock, _ = listener.accept()
            threading.Thread(target=receive, args=(sock, slot), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    answer(ready=True)
    for _ in orders():
        pass


def main() -> None:
    """Run a helper."""
    if sys.argv[1] == "send":
        send(sys.argv[2], int(sys.argv[3]))
    else:
        bare(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))


if __name__ == "__main__":
    main()

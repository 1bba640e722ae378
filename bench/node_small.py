"""Many clients of a small model: the node's CPU for an update, by its processes.

A node by `lifl up -d` (port on loopback, insecure) has a job whose rounds need every client.  The clients are a process
of their own, and train nothing: they submit as soon as they are selected, with or without fetching the model first.  A
node of each of the two takes turns with the other; each repetition is some rounds.

    python bench/node_small.py ADDRESS CLIENTS FETCH      (the helper's own entry)
"""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import Cell, Group, Helper, Target, answer, cpu_by_part, orders
from node_rest import COMMAND_S, LIFL, started
from safetensors.numpy import save_file

from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import LENGTH_BYTES, encode

CLIENTS, QUICK_CLIENTS = 100, 10
REPETITIONS, QUICK_REPETITIONS = 9, 2
ROUNDS, QUICK_ROUNDS = 4, 1
FLOATS = 2500
JOB = "small"
ROUNDS_MAX = 10_000
WORKERS_S = 600
"""Workers do not end while they are watched."""
UPDATE_US, FETCHED_US = 150, 250
PARTS = ("lifld", "gateway", "workers")


def run(quick: bool) -> Group:
    """Measure rounds of all clients."""
    count = QUICK_CLIENTS if quick else CLIENTS
    repetitions, rounds = (QUICK_REPETITIONS, QUICK_ROUNDS) if quick else (REPETITIONS, ROUNDS)
    cells = {
        fetch: [Cell(f"{part}, {'with the model fetched' if fetch else 'submit only'}", "µs") for part in PARTS]
        for fetch in (False, True)
    }
    sums = {fetch: Cell(f"all, {'with the model fetched' if fetch else 'submit only'}", "µs") for fetch in cells}
    with ExitStack() as opened:
        nodes = {fetch: _joined(opened, count, fetch) for fetch in cells}
        for number in range(repetitions + 1):  # the first warms up
            for fetch, (node, helper) in nodes.items():
                before = cpu_by_part(node)
                helper.ask(rounds=rounds)
                spent = {part: after - before[part] for part, after in cpu_by_part(node).items()}
                if number:
                    for part, cell in zip(PARTS, cells[fetch], strict=True):
                        cell.add(spent[part] / rounds / count * 1e6)
                    sums[fetch].add(sum(spent.values()) / rounds / count * 1e6)
    return Group(
        "small",
        f"{count} clients by TCP, a model of {FLOATS * 4 / 1e3:g} kB: the node's CPU for an update",
        f"Rounds of all clients, {rounds} in each repetition; its journal and SQLite's are on a disk.",
        "",
        [*cells[False], sums[False], *cells[True], sums[True]],
        [
            Target("CPU of the node for an update of 10 kB", "µs", UPDATE_US, sums[False].median),
            Target("CPU of the node for an update of 10 kB, the model fetched", "µs", FETCHED_US, sums[True].median),
        ],
    )


def _joined(opened: ExitStack, count: int, fetch: bool) -> tuple[psutil.Process, Helper]:
    """Return a node with a job, and its clients."""
    flags = ["--insecure", "--arena-bytes", "256MiB", "--idle-timeout-s", str(WORKERS_S)]
    folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-"))
    info = opened.enter_context(started(*flags))
    save_file({"w": np.zeros(FLOATS, np.float32)}, f"{folder}/model.safetensors")
    job = f'[job]\nname = "{JOB}"\nrounds = {ROUNDS_MAX}\n[model]\npath = "model.safetensors"\n[selection]\n'
    Path(folder, "job.toml").write_text(f"{job}clients_per_round = {count}\n")
    submit = [*LIFL, "submit", f"{folder}/job.toml", "--state", info["state_dir"]]
    subprocess.run(submit, stdout=subprocess.DEVNULL, timeout=COMMAND_S, check=True)
    helper = Helper("node_small.py", [info["listen"][0], str(count), "fetch" if fetch else ""])
    opened.callback(helper.close)
    helper.reply()
    return psutil.Process(info["pid"]), helper


# ---- the clients -----------------------------------------------------------------------------------------------------


class Rounds:
    """How far all clients are: they begin a round together, when they are let."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.selected: list[One] = []
        self.all_selected = asyncio.Event()

    def note(self, client: One) -> None:
        """Note that a client is selected."""
        self.selected.append(client)
        if len(self.selected) == self.count:
            self.all_selected.set()

    async def do(self) -> None:
        """Do one round, until all clients are selected for the next one."""
        ready, self.selected = self.selected, []
        self.all_selected.clear()
        for client in ready:
            client.begin()
        await self.all_selected.wait()


class One(asyncio.Protocol):
    """One client."""

    def __init__(self, name: str, rounds: Rounds, fetch: bool) -> None:
        self._name, self._rounds, self._fetch = name, rounds, fetch
        self._buffer = b""
        self._digest = b""
        self._round = self._body_bytes = 0
        self._update = np.ones(FLOATS, np.float32).tobytes()
        self._update += bytes(-len(self._update) % 64)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(encode(cm.Hello(cm.PROTOCOL_VERSION, self._name, knows=cm.KNOWS)))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            if self._body_bytes:
                if len(self._buffer) < self._body_bytes:
                    return
                self._buffer, self._body_bytes = self._buffer[self._body_bytes :], 0
                self._submit()
                continue
            if len(self._buffer) < LENGTH_BYTES:
                return
            end = LENGTH_BYTES + struct.unpack_from("<I", self._buffer)[0]
            if len(self._buffer) < end:
                return
            body, self._buffer = self._buffer[LENGTH_BYTES:end], self._buffer[end:]
            self._hear(cm.unpacked(body))

    def _hear(self, message: Any) -> None:
        match message:
            case cm.Welcome():
                self._transport.write(encode(cm.Join(JOB)))
            case cm.Selected():
                self._round, self._digest = message.round, message.digest
                self._rounds.note(self)
            case cm.Model():
                self._body_bytes = message.data_bytes
            case cm.Go():
                self._transport.write(self._update)
            case cm.Accepted() | cm.Committed():
                pass
            case _:
                raise RuntimeError(f"the node says {message!r}")

    def begin(self) -> None:
        """Begin the round that it is selected for."""
        if self._fetch:
            self._transport.write(encode(cm.GetModel(JOB, self._round, digest=self._digest)))
        else:
            self._submit()

    def _submit(self) -> None:
        what = (JOB, self._round, 1.0, len(self._update))
        self._transport.write(encode(cm.Submit(*what, tensors=(), metrics={}, digest=self._digest)))


async def _take_part(address: str, count: int, fetch: bool) -> None:
    """Do as many rounds as each order says."""
    host, _, port = address.rpartition(":")
    loop, rounds = asyncio.get_running_loop(), Rounds(count)
    for number in range(count):
        await loop.create_connection(lambda n=number: One(f"c{n}", rounds, fetch), host, int(port))
    await rounds.all_selected.wait()
    answer(ready=True)
    for what in orders():
        for _ in range(what["rounds"]):
            await rounds.do()
        answer(done=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_take_part(sys.argv[1], int(sys.argv[2]), bool(sys.argv[3])))

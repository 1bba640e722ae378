"""Many clients at rest at one node: what each costs, and a round that selects them all.

A node by `lifl up -d` (port on loopback, insecure) has a job whose round needs every client.  A helper makes the
connections, says Hello and Join on all but one, and reads nothing but what comes.  Then the node rests; then the last
client joins, and it is measured until every one of them has its selection.  Memory is what the node's processes have
beside shared memory, before and after, by the number of connections.  Under TLS the gateway alone is asked, with
connections that have said Hello.

    python bench/node_connections.py ADDRESS      (the helper's own entry)
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import Cell, Group, Helper, Target, answer, cpu_s, orders
from node_ingest import QUICK_BYTES, Gateway, layout_of
from node_rest import COMMAND_S, LIFL, settle, started
from node_tls import NODE, make_identities, rested
from safetensors.numpy import save_file

from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import LENGTH_BYTES, encode
from lifl.shm.owned_arena import OwnedArena

CONNECTIONS, QUICK_CONNECTIONS = 10_000, 100
SECURED, QUICK_SECURED = 1000, 20
REPETITIONS = 3
IDLE_S, QUICK_IDLE_S = 10.0, 1.0
AT_ONCE = 200
JOB = "all"
MODEL_FLOATS = 2500
ROUND_S = 60.0
WORKERS_S = 600
"""Workers do not end while the node is watched."""
MEMORY_KB, MEMORY_SECURED_KB, SELECTED_S = 16, 48, 1.0


def run(quick: bool) -> Group:
    """Measure the connections, plain ones of a node and secured ones of a gateway."""
    count, secured = (QUICK_CONNECTIONS, QUICK_SECURED) if quick else (CONNECTIONS, SECURED)
    memory = Cell("memory of a connection", "kB")
    idle = Cell("CPU of the node, all at rest", "s")
    selected = Cell("the last client joins until all are selected", "s")
    under_tls = Cell("memory of a connection under TLS (gateway)", "kB")
    for _ in range(1 if quick else REPETITIONS):
        _plain(count, QUICK_IDLE_S if quick else IDLE_S, memory, idle, selected)
    _under_tls(secured, under_tls)
    return Group(
        "connections",
        f"{count} clients at one node, by TCP ({secured} under TLS)",
        f"The node at rest is watched for {QUICK_IDLE_S if quick else IDLE_S:g} s.",
        "the node, s",
        [memory, under_tls, idle, selected],
        [
            Target("memory of a connection", "kB", MEMORY_KB, memory.median),
            Target("memory of a connection under TLS", "kB", MEMORY_SECURED_KB, under_tls.median),
            Target("CPU of the node, all at rest", "s", 0.0, round(max(idle.values), 2)),
            Target("the last client joins until all are selected", "s", SELECTED_S, selected.median),
        ],
    )


def _plain(count: int, idle_s: float, memory: Cell, idle: Cell, selected: Cell) -> None:
    flags = ["--insecure", "--connections-max", str(count), "--idle-timeout-s", str(WORKERS_S)]
    with tempfile.TemporaryDirectory(prefix="lb-") as folder, started(*flags) as info:
        save_file({"w": np.zeros(MODEL_FLOATS, np.float32)}, f"{folder}/model.safetensors")
        job = f'[job]\nname = "{JOB}"\nrounds = 1\n[model]\npath = "model.safetensors"\n[selection]\n'
        Path(folder, "job.toml").write_text(f"{job}clients_per_round = {count}\ndeadline_s = {ROUND_S}\n")
        submit = [*LIFL, "submit", f"{folder}/job.toml", "--state", info["state_dir"]]
        subprocess.run(submit, stdout=subprocess.DEVNULL, timeout=COMMAND_S, check=True)
        node = psutil.Process(info["pid"])
        settle(node)
        before = _private_bytes(node)
        helper = Helper("node_connections.py", [info["listen"][0]])
        try:
            helper.reply()
            helper.order(first=0, count=count - 1)
            helper.reply()
            settle(node)
            memory.add((_private_bytes(node) - before) / count / 1e3)
            family = [node.pid, *(child.pid for child in node.children(recursive=True))]
            before_s = cpu_s(family)
            time.sleep(idle_s)
            idle.add(cpu_s(family) - before_s)
            before_s = cpu_s(family)
            helper.order(first=count - 1, count=1, selected=count)
            selected.add(helper.reply()["took_s"], cpu_s(family) - before_s)
        finally:
            helper.close()


def _private_bytes(node: psutil.Process) -> int:
    told = [process.memory_info() for process in (node, *node.children(recursive=True))]
    return sum(each.rss - each.shared for each in told)


def _under_tls(count: int, memory: Cell) -> None:
    layout = layout_of(QUICK_BYTES)
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lc-")))
        make_identities(folder)
        arena = OwnedArena.create(f"/lifl-bench-{os.getpid()}", 16 * (layout.data_bytes + (1 << 20)) + (4 << 20), 1)
        opened.callback(arena.close, unlink=True)
        gateway = opened.enter_context(Gateway(arena, layout, folder / NODE))
        rested([gateway.pid])
        process = psutil.Process(gateway.pid)
        before = _private_bytes(process)
        knocker = Helper("node_handshakes.py", [str(folder), "c2", gateway.tcp])
        opened.callback(knocker.close)
        knocker.reply()
        knocker.order(count=count, within_s=0.0)
        knocker.reply()
        rested([gateway.pid])
        memory.add((_private_bytes(process) - before) / count / 1e3)


# ---- the helper ------------------------------------------------------------------------------------------------------


class Clients:
    """What all connections have heard."""

    def __init__(self) -> None:
        self.joined = self.selected = 0
        self.heard = asyncio.Event()

    def note(self, body: bytes) -> bool:
        """Take a message; return whether it is the answer to Hello."""
        kind = next((kind for kind in ("Welcome", "Selected") if kind.encode() in body[:20]), "")
        self.selected += kind == "Selected"
        self.heard.set()
        if kind not in ("Welcome", "Selected"):
            raise RuntimeError(f"the node says {body[:200]!r}")
        return kind == "Welcome"


class One(asyncio.Protocol):
    """One client: Hello, Join, and what comes."""

    def __init__(self, name: str, clients: Clients) -> None:
        self._name, self._clients, self._buffer = name, clients, b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(encode(cm.Hello(cm.PROTOCOL_VERSION, self._name, knows=cm.KNOWS)))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= LENGTH_BYTES:
            end = LENGTH_BYTES + struct.unpack_from("<I", self._buffer)[0]
            if len(self._buffer) < end:
                return
            body, self._buffer = self._buffer[LENGTH_BYTES:end], self._buffer[end:]
            if self._clients.note(body):
                self._transport.write(encode(cm.Join(JOB)))
                self._clients.joined += 1


async def _connect(address: str) -> None:
    """Make connections, when told how many; with `selected`, wait until so many have their selection."""
    host, _, port = address.rpartition(":")
    loop, clients = asyncio.get_running_loop(), Clients()
    answer(ready=True)
    for what in orders():
        begun_s, whole = time.perf_counter(), clients.joined + what["count"]
        for start in range(what["first"], what["first"] + what["count"], AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, what["first"] + what["count"]))
            made = (loop.create_connection(lambda n=n: One(f"c{n}", clients), host, int(port)) for n in numbers)
            await asyncio.gather(*made)
        while clients.joined < whole or clients.selected < what.get("selected", 0):
            clients.heard.clear()
            await clients.heard.wait()
        answer(took_s=time.perf_counter() - begun_s)


if __name__ == "__main__":
    import resource

    import uvloop

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_connect(sys.argv[1]))

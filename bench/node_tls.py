"""Ingest of updates over TLS: the gateway with an identity, beside itself without one, and beside bare loops of both.

As in `node_ingest`: real gateways, clients that speak the real protocol, and a bare loop that receives into warm slots
and looks at nothing.  The bare loop with TLS is the same with Python's `ssl`: `SSLSocket.recv_into` and `sendall`.

The cipher by itself is what OpenSSL's AES-128-GCM does with records of 16 KiB that stay in the cache, on one core.
What it allows is told by the CPU: the bare loop's of both ends, and the cipher's at both ends, on the cores that there
are.

With `--connections K` of bench/node.py there is one way more: each update goes over K connections of its client.

    python bench/node_tls.py send NAME BYTES FOLDER [CONNECTIONS] | bare ARENA KEYS DESCRIPTOR FOLDER    (the helpers')
"""

from __future__ import annotations

import _ssl
import ctypes
import json
import math
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import node_ingest
import numpy as np
from measure import Cell, Group, Helper, Target, answer, cpu_s, orders
from node_ingest import BARE_READ_BYTES, JOB, UPDATE_BYTES, Gateway, clients, expect, layout_of, submit

from lifl.client.dialling import Dialler
from lifl.client.split import ways_of
from lifl.client.stream import GREETING_S, Stream, greeted
from lifl.client.tensors import Update
from lifl.core.identity import Identity
from lifl.core.ids import Key, Kind
from lifl.core.protocol import client as cm
from lifl.core.schema import Layout
from lifl.node.authority.certificate_authority import make_authority
from lifl.shm.arena import Arena
from lifl.shm.layout import data_offset
from lifl.shm.mapping import populate
from lifl.shm.owned_arena import OwnedArena
from lifl.tls.contexts import Contexts
from lifl.tls.folder import load, save
from lifl.tls.signing_request import new_key

PLAIN, SSL, GATEWAY, SECURED, SPLIT = ("bare loop", "bare ssl", "gateway, plain", "gateway, TLS", "gateway, TLS, split")
CLIENTS = (1, 4)
UPDATES = {1: 12, 4: 5}
QUICK_UPDATES = {1: 2, 4: 1}
REPETITIONS, QUICK_REPETITIONS = 9, 1
TARGETS = {1: 0.45, 4: 0.35}
RECORD_BYTES = 16 * 1024
CIPHER_RECORDS = 20_000
NODE = "node"
REST_S, REST_CPU_S, RESTS_MAX = 1.0, 0.01, 30


def run(quick: bool, connections: int = 1) -> Group:
    """Measure every way with every number of clients, interleaved; with several `connections` also such updates."""
    ways = (PLAIN, SSL, GATEWAY, SECURED, *([SPLIT] if connections > 1 else []))
    layout = layout_of(node_ingest.QUICK_BYTES if quick else UPDATE_BYTES)
    updates = QUICK_UPDATES if quick else UPDATES
    rates = {(way, n): Cell(f"{way}, {clients(n)}", "GB/s") for n in CLIENTS for way in ways}
    senders_cpu = {key: Cell(f"{cell.name}: CPU of the senders", "s per GB") for key, cell in rates.items()}
    fractions = {(way, n): Cell(f"{way} / {PLAIN}, {clients(n)}", "") for n in CLIENTS for way in ways[1:]}
    cipher = Cell("the cipher by itself, one core", "GB/s")
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lt-")))
        make_identities(folder)
        room = 4 * (max(CLIENTS) + 1)
        arena = OwnedArena.create(f"/lifl-bench-{os.getpid()}", room * (layout.data_bytes + (1 << 20)) + (4 << 20), 1)
        opened.callback(arena.close, unlink=True)
        addresses, pids = {}, {}
        for way in (PLAIN, SSL):
            addresses[way], pids[way] = opened.enter_context(_bare(arena, layout, folder if way == SSL else None))
        gateways = [(GATEWAY, None, 1), (SECURED, folder / NODE, 1), (SPLIT, folder / NODE, connections)]
        for way, identity, streams in gateways[: len(ways) - 2]:
            gateway = opened.enter_context(Gateway(arena, layout, identity, streams))
            addresses[way], pids[way] = gateway.tcp, gateway.pid
        senders = []
        for number in range(max(CLIENTS)):
            arguments = ["send", f"c{number}", str(layout.data_bytes), str(folder), str(connections)]
            senders.append(Helper("node_tls.py", arguments))
            opened.callback(senders[-1].close)
        for sender in senders:
            sender.reply()
        rested(pids.values())
        for repetition in range(-1, QUICK_REPETITIONS if quick else REPETITIONS):
            for n in CLIENTS:
                rate: dict[str, float] = {}
                for way in ways:
                    before_s = cpu_s([pids[way]])
                    rate[way], sent_cpu = node_ingest.burst(senders[:n], way, addresses[way], updates[n], layout)
                    gigabytes = n * updates[n] * layout.data_bytes / 1e9
                    if repetition >= 0:
                        rates[way, n].add(rate[way], (cpu_s([pids[way]]) - before_s) / gigabytes)
                        senders_cpu[way, n].add(sent_cpu / gigabytes)
                        if way != PLAIN:
                            fractions[way, n].add(rate[way] / rate[PLAIN])
            if repetition >= 0:
                cipher.add(cipher_rate())
    return _group(layout, rates, senders_cpu, fractions, cipher)


def _group(
    layout: Layout,
    rates: dict[tuple[str, int], Cell],
    senders_cpu: dict[tuple[str, int], Cell],
    fractions: dict[tuple[str, int], Cell],
    cipher: Cell,
) -> Group:
    allowed = {n: Cell(f"what the cipher allows / {PLAIN}, {clients(n)}", "") for n in CLIENTS}
    for n, cell in allowed.items():
        plain = rates[PLAIN, n]
        both = zip(plain.values, plain.cpu, senders_cpu[PLAIN, n].values, cipher.values, strict=True)
        for rate, receiver_s, sender_s, sealed in both:
            ends = (receiver_s + 1 / sealed, sender_s + 1 / sealed)
            most = 1 / max(ends) if n == 1 else min(n, os.cpu_count() or 1) / sum(ends)
            cell.add(most / rate)
    return Group(
        "tls",
        f"Ingest of updates of {layout.data_bytes / 1e6:.1f} MB over TLS 1.3",
        "From the first Submit to the last Accepted of a burst, clients and receiver on the same cores. The gateway"
        " checks every number and computes the checksum, the bare loops (a blocking thread per connection, 1 MiB per"
        " `recv_into`) look at nothing. What the cipher allows: with the CPU of the bare loop and of the cipher at both"
        " ends and nothing else; one client and its receiver have a core each.",
        "receiver, s per GB",
        [*rates.values(), *fractions.values(), *allowed.values(), cipher, *senders_cpu.values()],
        [
            Target(f"{SECURED} / {PLAIN}, {clients(n)}", "", least, fractions[SECURED, n].median, at_least=True)
            for n, least in TARGETS.items()
        ],
    )


def rested(pids: Collection[int]) -> None:
    """Return when the gateways have made the arena's pages ready, which they do by themselves at their start; or when
    that has taken too long, on a machine that does much else.
    """
    for _ in range(RESTS_MAX):
        spent_s = cpu_s(pids)
        time.sleep(REST_S)
        if cpu_s(pids) - spent_s < REST_CPU_S:
            return


def make_identities(folder: Path) -> None:
    """Make a CA, and of it a node's identity and those of the clients, each in a folder of its name."""
    authority = make_authority("bench", time.time())
    identities = {f"c{number}": (Identity("client", f"c{number}"), []) for number in range(max(CLIENTS))}
    for name, (identity, hosts) in {NODE: (Identity("node", NODE), ["127.0.0.1"]), **identities}.items():
        made = new_key()
        issued = authority.issue(made.request, identity, (), hosts, time.time(), time.time())
        save(folder / name, ca=authority.pem(), certificate=issued.chain, key=made.key)


def contexts_of(folder: Path) -> Contexts:
    """Return the contexts of an identity that was made."""
    files = load(folder)
    assert files is not None
    return Contexts(files)


def cipher_rate() -> float:
    """Return at how many GB/s one core encrypts records that stay in its cache, with OpenSSL's AES-128-GCM."""
    crypto = ctypes.CDLL(_ssl.__file__)
    for name in ("EVP_CIPHER_CTX_new", "EVP_aes_128_gcm"):
        getattr(crypto, name).restype = ctypes.c_void_p
    context, kind = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new()), ctypes.c_void_p(crypto.EVP_aes_128_gcm())
    key, data = bytes(16), ctypes.create_string_buffer(RECORD_BYTES)
    made = ctypes.c_int()
    begun_s = time.thread_time()
    for _ in range(CIPHER_RECORDS):
        crypto.EVP_EncryptInit_ex(context, kind, None, key, bytes(12))
        crypto.EVP_EncryptUpdate(context, data, ctypes.byref(made), data, RECORD_BYTES)
        crypto.EVP_EncryptFinal_ex(context, data, ctypes.byref(made))
    spent_s = time.thread_time() - begun_s
    crypto.EVP_CIPHER_CTX_free(context)
    return CIPHER_RECORDS * RECORD_BYTES / 1e9 / spent_s


@contextmanager
def _bare(arena: Arena, layout: Layout, folder: Path | None) -> Iterator[tuple[str, int]]:
    """Provide a bare loop's process: its address and pid."""
    keys = [arena.alloc(Kind.UPDATE, 1, 1, layout.data_bytes).pack().hex() for _ in range(max(CLIENTS))]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = ["bare", arena.name, json.dumps(keys), str(listener.fileno()), str(folder or "")]
        helper = Helper("node_tls.py", arguments, [listener.fileno()])
        try:
            helper.reply()
            yield "{}:{}".format(*listener.getsockname()), helper.pid
        finally:
            helper.close()


# ---- the helpers ---------------------------------------------------------------------------------------------------


def send(name: str, nbytes: int, folder: Path, connections: int) -> None:
    """Be a client: connect when told a way, then send the updates, one after the other."""
    layout = layout_of(nbytes)
    random = np.random.default_rng(1)
    update = Update(layout, {t.name: random.random(t.shape, np.float32) for t in layout.tensors})
    answer(ready=True)
    told = iter(orders())
    number = 0
    for what in told:
        way, address = what["way"], what["address"]
        sock = _bare_ssl(address, contexts_of(folder / name)) if way == SSL else None
        identity = folder / name if way in (SECURED, SPLIT) else None
        dialler = Dialler([address], identity, streams=connections if way == SPLIT else 1)
        stream = None
        if way == SPLIT:
            stream = greeted(address, GREETING_S, name, False, dialler)
        elif sock is None:
            stream = Stream(address, GREETING_S, dialler)
        if stream is not None and way not in (PLAIN, SPLIT):
            stream.send(cm.Hello(cm.PROTOCOL_VERSION, name))
            expect(stream, cm.Welcome)
        answer(connected=True)
        asked = next(told)
        updates, until_s = asked.get("updates", sys.maxsize), time.monotonic() + asked.get("seconds", math.inf)
        begin_cpu_s, begin_ns = time.process_time(), time.monotonic_ns()
        first = number
        while number - first < updates and time.monotonic() < until_s:
            number += 1
            if sock is not None:
                for view in update.views:
                    sock.sendall(view)
                assert sock.recv(1)
            elif way == PLAIN:
                assert stream is not None
                stream.send_views(update.views, None)
                stream.receive_into(memoryview(bytearray(1)))
            elif way == SPLIT:
                assert stream is not None
                submit_split(stream, name, number, update)
            else:
                submit(stream, number, update, update.views)
        end_ns, end_cpu_s = time.monotonic_ns(), time.process_time()
        closing: Any = sock or stream
        closing.close()
        answer(updates=number - first, begin_ns=begin_ns, end_ns=end_ns, cpu_s=end_cpu_s - begin_cpu_s)


def submit_split(stream: Stream, client: str, number: int, update: Update) -> None:
    """Submit an update over several connections, which are made for it."""
    layout = update.layout
    with ways_of(stream, client, layout.data_bytes) as ways:
        stream.send(cm.Submit(JOB, number, 1.0, layout.data_bytes, layout.tensors, streams=ways.asked))
        ways.send(expect(stream, cm.Go).transfer, update.views, None)
        expect(stream, cm.Accepted)


def _bare_ssl(address: str, contexts: Contexts) -> ssl.SSLSocket:
    host, port = address.split(":")
    raw = socket.create_connection((host, int(port)))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return contexts.client().wrap_socket(raw, server_hostname=host)


def bare(name: str, keys: list[str], descriptor: int, folder: str) -> None:
    """Run a bare loop: a thread per connection, each with a slot of its own; end with stdin."""
    arena = Arena.attach(name)
    arena.segments.open_all()
    populate(arena.segments.views()[1][data_offset(arena.entries) :])  # the one that there is holds all
    slots = [arena.data(Key.unpack(bytes.fromhex(key))) for key in keys]
    listener = socket.socket(fileno=descriptor)
    contexts = contexts_of(Path(folder) / NODE) if folder else None

    def receive(raw: socket.socket, slot: memoryview) -> None:
        sock: socket.socket = raw if contexts is None else contexts.server().wrap_socket(raw, server_side=True)
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
        number = 0
        while True:  # at most as many connections as slots are open at a time, and those of a burst come in a row
            sock, _ = listener.accept()
            threading.Thread(target=receive, args=(sock, slots[number % len(slots)]), daemon=True).start()
            number += 1

    threading.Thread(target=accept, daemon=True).start()
    answer(ready=True)
    for _ in orders():
        pass


def main() -> None:
    """Run a helper."""
    if sys.argv[1] == "send":
        send(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]) if len(sys.argv) > 5 else 1)
    else:
        bare(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]), sys.argv[5])


if __name__ == "__main__":
    main()

"""Ingest of updates by HTTP beside the native protocol, both over TCP from the same processes, in turns.

Gateway and HTTP door are the real processes; the bench process stands in for `lifld` on both links (`node_ingest.py`).
A client sends PUT with a safetensors file that is in its memory, over a connection that it keeps.

    python bench/node_http.py [REPETITIONS] | send NAME BYTES
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from statistics import median

import numpy as np
from measure import END_S, HELPER_ENVIRONMENT, Helper, answer, cpu_s, orders
from node_ingest import JOB, UPDATE_BYTES, Gateway, expect, layout_of, submit

from lifl.client.dialling import Dialler
from lifl.client.stream import GREETING_S, Stream
from lifl.client.tensors import Update
from lifl.core.modelfile import encode_header, model_pieces
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import http as hm
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.node.machine import listen_tcp
from lifl.shm.owned_arena import OwnedArena

CLIENTS, UPDATES, REPETITIONS = 4, 6, 7


class Doors(Gateway):
    """The gateway with an HTTP door before it."""

    def __enter__(self) -> Doors:
        super().__enter__()
        self._listener = listen_tcp("127.0.0.1:0")
        self.http = "{}:{}".format(*self._listener.getsockname())
        self._door_link, theirs = socket.socketpair()
        passed = [theirs.fileno(), self._listener.fileno()]
        with theirs:
            self.door = subprocess.Popen(
                [sys.executable, "-m", "lifl.node.http.main", f"--fd={passed[0]}", f"--http-fd={passed[1]}"]
                + ["--requests-per-s=100000"],
                pass_fds=passed,
                env={**os.environ, **HELPER_ENVIRONMENT},
            )
        threading.Thread(target=self._serve_door, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._door_link.shutdown(socket.SHUT_RDWR)
        self.door.wait(END_S)
        self._listener.close()
        super().__exit__(*error)

    def _serve_door(self) -> None:
        decoder: FrameDecoder[hm.FromHttp] = FrameDecoder(hm.FromHttp)
        descriptors: list[int] = []
        while True:
            data, more, _flags, _address = socket.recv_fds(self._door_link, 65536, 16)
            if not data:
                return
            descriptors += more
            decoder.feed(data)
            while (message := decoder.next_message()) is not None:
                if isinstance(message, gm.ClientCame):
                    fd = descriptors.pop(0)
                    socket.send_fds(self._link, [encode(message)], [fd])
                    os.close(fd)

    def _answer(self, message: gm.FromGateway) -> None:
        if isinstance(message, gm.ClientJoined):
            selected = cm.Selected(JOB, 1, 60.0, (), self._layout.data_bytes)
            self._say(gm.TellClient(message.conn, cm.packed(selected), JOB))
        super()._answer(message)


def run(repetitions: int) -> None:
    """Print GB/s of both ways and their ratio, by repetition and in the median."""
    layout = layout_of(UPDATE_BYTES)
    with ExitStack() as opened:
        nbytes = (2 * CLIENTS + 2) * (layout.data_bytes + (1 << 20)) + (4 << 20)
        arena = OwnedArena.create(f"/lifl-bench-{os.getpid()}", nbytes, 1)
        opened.callback(arena.close, unlink=True)
        doors = opened.enter_context(Doors(arena, layout))
        senders = []
        for number in range(CLIENTS):
            senders.append(Helper("node_http.py", ["send", f"c{number}", str(layout.data_bytes)]))
            opened.callback(senders[-1].close)
        for sender in senders:
            sender.reply()
        found: list[dict[str, float]] = []
        for repetition in range(-1, repetitions):
            line: dict[str, float] = {}
            for way, address, pids in (
                ("native", doors.tcp, [doors.pid]),
                ("http", doors.http, [doors.pid, doors.door.pid]),
            ):
                before_s = cpu_s(pids)
                for sender in senders:
                    sender.order(way=way, address=address)
                for sender in senders:
                    sender.reply()
                for sender in senders:
                    sender.order(updates=UPDATES)
                told = [sender.reply() for sender in senders]
                wall_s = (max(t["end_ns"] for t in told) - min(t["begin_ns"] for t in told)) / 1e9
                gigabytes = CLIENTS * UPDATES * layout.data_bytes / 1e9
                line |= {way: gigabytes / wall_s, f"{way}_cpu_s_per_gb": (cpu_s(pids) - before_s) / gigabytes}
            line["ratio"] = line["http"] / line["native"]
            if repetition >= 0:
                found.append(line)
                print(json.dumps({name: round(value, 3) for name, value in line.items()}), flush=True)
        print("median", json.dumps({name: round(median(each[name] for each in found), 3) for name in found[0]}))


def send(name: str, nbytes: int) -> None:
    """Be a client: connect when told a way, then send the updates, one after the other."""
    layout = layout_of(nbytes)
    random = np.random.default_rng(1)
    update = Update(layout, {t.name: random.random(t.shape, np.float32) for t in layout.tensors})
    head, _spans = encode_header(model_pieces(layout), {})
    length = len(head) + sum(view.nbytes for view in update.views)
    answer(ready=True)
    told = iter(orders())
    number = 0
    for what in told:
        host, _, port = what["address"].rpartition(":")
        stream = None
        if what["way"] == "native":
            stream = Stream(what["address"], GREETING_S, Dialler([what["address"]]))
            stream.send(cm.Hello(cm.PROTOCOL_VERSION, name))
            expect(stream, cm.Welcome)
        else:
            sock = socket.create_connection((host, int(port)))
            sock.sendall(f"GET /v1/jobs/{JOB}/clients/{name}/selection HTTP/1.1\r\nHost: node\r\n\r\n".encode())
            sock.recv(65536)  # now the door knows the model's tensors
        answer(connected=True)
        updates = next(told)["updates"]
        begin_cpu_s, begin_ns = time.process_time(), time.monotonic_ns()
        for _ in range(updates):
            number += 1
            if stream is not None:
                submit(stream, number, update, update.views)
                continue
            path = f"/v1/jobs/{JOB}/clients/{name}/rounds/{number}/update?weight=1"
            sock.sendall(f"PUT {path} HTTP/1.1\r\nHost: node\r\nContent-Length: {length}\r\n\r\n".encode() + head)
            views = [view for view in update.views if view.nbytes]
            for view in views:
                sock.sendall(view)
            said = sock.recv(65536)
            if not said.startswith(b"HTTP/1.1 200 ") or b"accepted" not in said:
                raise RuntimeError(said.decode())
        end_ns, end_cpu_s = time.monotonic_ns(), time.process_time()
        (stream or sock).close()
        answer(begin_ns=begin_ns, end_ns=end_ns, cpu_s=end_cpu_s - begin_cpu_s)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        send(sys.argv[2], int(sys.argv[3]))
    else:
        run(int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS)

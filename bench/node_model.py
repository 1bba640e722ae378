"""The model's way down: what clients receive of a round's model, beside a bare loop.

A real node has a job whose round waits for clients that never submit; each of them fetches the round's model as often
as it is told.  Three ways take turns in each repetition, over TCP and over AF_UNIX:

- *bare*: a process with a blocking thread for each connection that calls `sendall` with a warm buffer of as many
  bytes; its readers call `recv_into` into one buffer that they have;
- *reader*: a connection to the gateway that asks for the model by the protocol, and receives into one buffer
  that it has;
- *client*: `lifl.Client`, as a trainer has it: each model is dropped before the next one comes.

    python bench/node_model.py fetch NAME BYTES | bare BYTES TCP_FD UNIX_FD      (the helpers' own entry)
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from measure import Cell, Group, Helper, Target, answer, orders
from node_ingest import CLIENTS, QUICK_BYTES, UPDATE_BYTES, clients, expect, layout_of
from node_rest import COMMAND_S, LIFL, started
from safetensors.numpy import save_file

from lifl import Client
from lifl.client.dialling import Dialler
from lifl.client.stream import GREETING_S, Stream
from lifl.core.protocol import client as cm

FETCHES = {1: 24, 4: 8, 16: 3}
QUICK_FETCHES = dict.fromkeys(CLIENTS, 1)
"""How many models each client receives in one repetition."""
REPETITIONS, QUICK_REPETITIONS = 11, 2
WAYS = ("bare", "reader", "client")
DOORS = ("TCP", "AF_UNIX")
"""Each has a job of its name, whose clients come by it."""
SENT_FRACTION = {"TCP": 0.95, "AF_UNIX": 0.9}
"""Of a bare `sendall`: what a reader of the gateway's is to reach."""
RECEIVED_FRACTION = 0.9
"""Of such a reader: what `lifl.Client` is to reach."""


def run(quick: bool) -> Group:
    """Measure every way with every number of clients, interleaved."""
    nbytes = layout_of(QUICK_BYTES if quick else UPDATE_BYTES).data_bytes
    fetches = QUICK_FETCHES if quick else FETCHES
    keys = [(door, n) for door in DOORS for n in CLIENTS]
    rates = {(*key, way): Cell(f"{way} by {key[0]}, {clients(key[1])}", "GB/s") for key in keys for way in WAYS}
    sent = {key: Cell(f"reader / bare by {key[0]}, {clients(key[1])}", "") for key in keys}
    received = {key: Cell(f"client / reader by {key[0]}, {clients(key[1])}", "") for key in keys}
    with ExitStack() as opened:
        addresses = opened.enter_context(_bare(nbytes))
        node = opened.enter_context(_node(nbytes))
        fetchers = []
        for number in range(max(CLIENTS)):
            fetchers.append(Helper("node_model.py", ["fetch", f"c{number}", str(nbytes)]))
            opened.callback(fetchers[-1].close)
        for fetcher in fetchers:
            fetcher.reply()
            fetcher.order(doors={door: {"node": node[door], "bare": addresses[door]} for door in DOORS})
        for fetcher in fetchers:
            fetcher.reply()
        for repetition in range(-1, QUICK_REPETITIONS if quick else REPETITIONS):  # the first warms up
            for door, n in keys:
                rate = {way: _burst(fetchers[:n], door, way, fetches[n], nbytes) for way in WAYS}
                if repetition >= 0:
                    for way in WAYS:
                        rates[door, n, way].add(rate[way])
                    sent[door, n].add(rate["reader"] / rate["bare"])
                    received[door, n].add(rate["client"] / rate["reader"])
    return Group(
        "model",
        f"The way down of a model of {nbytes / 1e6:.1f} MB",
        "From the first request of a burst to the last byte; the bare loop's bytes are of one warm buffer.",
        "",
        [*rates.values(), *sent.values(), *received.values()],
        [
            *(
                Target(cell.name, "", SENT_FRACTION[door], cell.median, at_least=True)
                for (door, _), cell in sent.items()
            ),
            *(Target(cell.name, "", RECEIVED_FRACTION, cell.median, at_least=True) for cell in received.values()),
        ],
    )


def _burst(fetchers: list[Helper], door: str, way: str, fetches: int, nbytes: int) -> float:
    """Return GB/s of all of them together."""
    for fetcher in fetchers:
        fetcher.order(door=door, way=way)
    for fetcher in fetchers:
        fetcher.reply()  # it has received one
    for fetcher in fetchers:
        fetcher.order(fetches=fetches)
    told = [fetcher.reply() for fetcher in fetchers]
    wall_s = (max(t["end_ns"] for t in told) - min(t["begin_ns"] for t in told)) / 1e9
    return len(fetchers) * fetches * nbytes / 1e9 / wall_s


@contextmanager
def _node(nbytes: int) -> Iterator[dict[str, str]]:
    """Provide a node with the job: its address by each door."""
    layout = layout_of(nbytes)
    with tempfile.TemporaryDirectory(prefix="lb-") as folder, started("--insecure", "--arena-bytes", "4GiB") as info:
        model = {tensor.name: np.ones(tensor.shape, np.float32) for tensor in layout.tensors}
        save_file(model, f"{folder}/model.safetensors")
        for door in DOORS:
            job = f'[job]\nname = "{door}"\nrounds = 1\n[model]\npath = "model.safetensors"\n[selection]\n'
            Path(folder, "job.toml").write_text(f"{job}clients_per_round = {max(CLIENTS)}\ndeadline_s = 86400\n")
            submit = [*LIFL, "submit", f"{folder}/job.toml", "--state", info["state_dir"]]
            subprocess.run(submit, stdout=subprocess.DEVNULL, timeout=COMMAND_S, check=True)
        yield {"TCP": info["listen"][0], "AF_UNIX": info["state_dir"]}


@contextmanager
def _bare(nbytes: int) -> Iterator[dict[str, str]]:
    """Provide the bare loop's process: its address by each door."""
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-"))
        tcp = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = opened.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"{folder}/bare.sock")
        unix.listen()
        descriptors = [tcp.fileno(), unix.fileno()]
        helper = Helper("node_model.py", ["bare", str(nbytes), *map(str, descriptors)], descriptors)
        opened.callback(helper.close)
        helper.reply()
        yield {"TCP": "{}:{}".format(*tcp.getsockname()), "AF_UNIX": f"unix:{folder}/bare.sock"}


# ---- the helpers ---------------------------------------------------------------------------------------------------


def bare(nbytes: int, *listeners: int) -> None:
    """Run the bare loop: a thread per connection, a buffer for each byte that comes; end with stdin."""
    data = memoryview(np.ones(nbytes, np.uint8)).cast("B")

    def send(sock: socket.socket) -> None:
        with sock:
            while sock.recv(1):
                sock.sendall(data)

    def accept(listener: socket.socket) -> None:
        while True:
            threading.Thread(target=send, args=(listener.accept()[0],), daemon=True).start()

    for fd in listeners:
        threading.Thread(target=accept, args=(socket.socket(fileno=fd),), daemon=True).start()
    answer(ready=True)
    for _ in orders():
        pass


def fetch(name: str, nbytes: int) -> None:
    """Be a client: join the jobs, then receive models by the way that it is told, one after the other."""
    into = memoryview(np.zeros(nbytes, np.uint8)).cast("B")
    answer(ready=True)
    told = iter(orders())
    with ExitStack() as opened:
        ways = {}
        for door, addresses in next(told)["doors"].items():
            ways |= {(door, way): one for way, one in _ways(opened, name, door, addresses, into).items()}
        answer(joined=True)
        for what in told:
            one = ways[what["door"], what["way"]]
            one()  # so that its buffers are there
            answer(received=1)
            fetches = next(told)["fetches"]
            begin_ns = time.monotonic_ns()
            for _ in range(fetches):
                one()
            answer(begin_ns=begin_ns, end_ns=time.monotonic_ns())


def _ways(
    opened: ExitStack, name: str, door: str, addresses: dict[str, str], into: memoryview
) -> dict[str, Callable[[], None]]:
    """Join the door's job, and return what receives one model by each way."""
    trainer = opened.enter_context(Client(addresses["node"], job=door, client=name, insecure=True, direct=False))
    round_ = next(trainer.rounds(models=False))  # selected once all of them are there
    plain = Stream(addresses["bare"], GREETING_S, Dialler([addresses["bare"]]))
    opened.callback(plain.close)

    def client() -> None:
        round_._model = None  # as the model of a round that is over
        assert round_.model

    def reader() -> None:
        stream = trainer._home.stream
        assert stream is not None
        stream.send(cm.GetModel(door, round_.number, digest=round_.layout.digest))
        expect(stream, cm.Model)
        stream.receive_into(into)

    def bare_reader() -> None:
        plain.send_views([memoryview(b"\1")], None)
        plain.receive_into(into)

    return {"bare": bare_reader, "reader": reader, "client": client}


def main() -> None:
    """Run a helper."""
    if sys.argv[1] == "fetch":
        fetch(sys.argv[2], int(sys.argv[3]))
    else:
        bare(*map(int, sys.argv[2:]))


if __name__ == "__main__":
    main()

"""What a flood costs an honest job (`make bench-floods`): its median round, beside that with an equally busy loop.

    bench/floods.py [--rounds 40] [--only senders,readers,joins] [--write docs/failures.md]

Four honest clients train a model of 10,000 tensors (1 MB), or of one tensor of 16 MB where the readers are tried, at a
node of their own, against: 16 senders of large frames that stall in the middle; 40 clients that ask for the model and
read nothing, and come again when they are cut; 12 connections that send Join in a loop.  The attackers run in one
process.  What they take of the machine's processors a busy loop takes in the run that each attack is compared with.
Prints a table; with `--write` each line takes the place of that attack's in the file's table.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import save_file

from lifl.client import Client
from lifl.client.stream import OlderNode, Stream
from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import FrameDecoder, encode

LIFL = [str(Path(sys.executable).parent / "lifl")]
CLIENTS = 4
ARENA = "256MiB"
FLAGS = ("--insecure", "--listen", "127.0.0.1:0", "--arena-bytes", ARENA, "--capacity", "8")
MODELS = {
    "many": {f"layer.{index}.weight": np.zeros(25, np.float32) for index in range(10_000)},
    "tiny": {"w": np.zeros(25, np.float32)},
    "large": {"w": np.zeros(4 << 20, np.float32)},
}
ATTACKS = {"senders": "many", "readers": "large", "joins": "many"}
SAID = {
    "senders": "16 senders of large frames that stall",
    "readers": "40 readers of models that read nothing",
    "joins": "12 connections that send Join in a loop",
}
HEAD = "| attack | rounds | median round, ms | beside a loop that takes, of a core | median round, ms | ratio |"
JOB = "honest"
IDLE = "idle"
"""A job that waits for more clients than there are."""


# ---- the node and the honest job -------------------------------------------------------------------------------------


@contextmanager
def node(folder: Path) -> Iterator[str]:
    """Provide a node's address."""
    state = ["--state", str(folder / "state")]
    done = subprocess.run(
        [
            *LIFL,
            "up",
            "-d",
            "--json",
            "--insecure",
            "--listen",
            "127.0.0.1:0",
            "--arena-bytes",
            ARENA,
            "--capacity",
            "8",
            *state,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    try:
        yield json.loads(done.stdout)["listen"][0]
    finally:
        subprocess.run([*LIFL, "down", *state], capture_output=True, check=False)


def submit(folder: Path, name: str, model: str, rounds: int, clients: int) -> None:
    """Submit a job."""
    save_file(MODELS[model], folder / f"{name}.safetensors")
    (folder / "job.toml").write_text(
        f'[job]\nname = "{name}"\nrounds = {rounds}\n[model]\npath = "{name}.safetensors"\n'
        f"[selection]\nclients_per_round = {clients}\ndeadline_s = 120.0\n"
    )
    command = [*LIFL, "submit", str(folder / "job.toml"), "--state", str(folder / "state")]
    subprocess.run(command, capture_output=True, check=True)


def train(address: str, name: str, began_s: list[float]) -> None:
    """Take part to the end; note when each round began."""
    with Client(address, job=JOB, client=name) as client:
        for round_ in client.rounds():
            began_s.append(time.perf_counter())
            round_.submit(dict(round_.model), 1.0)


def measured(model: str, rounds: int, attack: list[str] | None) -> tuple[list[float], float]:
    """Return how long each round took while the command `attack` ran, and what share of a processor that took."""
    with tempfile.TemporaryDirectory(prefix="lifl-floods-") as name, node(Path(name)) as address:
        submit(Path(name), JOB, model, rounds, CLIENTS)
        submit(Path(name), IDLE, "tiny", 1, 1000)
        process = subprocess.Popen([*attack, address]) if attack else None
        began_s: list[list[float]] = [[] for _ in range(CLIENTS)]
        threads = [
            threading.Thread(target=train, args=(address, f"c{index}", began_s[index])) for index in range(CLIENTS)
        ]
        time.sleep(1.0)
        for thread in threads:
            thread.start()
        begun, share = time.perf_counter(), 0.0
        for thread in threads:
            thread.join()
        if process is not None:
            times = psutil.Process(process.pid).cpu_times()
            share = (times.user + times.system) / (time.perf_counter() - begun + 1.0)
            process.kill()
            process.wait()
    first = began_s[0]
    return [end - start for start, end in pairwise(first)], share


# ---- the attacks, each a process of its own --------------------------------------------------------------------------


def dial(address: str, name: str) -> socket.socket:
    """Return a connection that has said Hello, as an older client."""
    host, port = address.rsplit(":", 1)
    sock = socket.create_connection((host, int(port)))
    sock.sendall(encode(cm.Hello(cm.PROTOCOL_VERSION, name)))
    return sock


def again_and_again(name: str, act: Callable[[int], None], count: int) -> None:
    """Do it on so many threads, again whenever it ends."""

    def live(index: int) -> None:
        while True:
            try:
                act(index)
            except OSError:
                time.sleep(0.05)

    for index in range(count):
        threading.Thread(target=live, args=(index,), daemon=True, name=f"{name}{index}").start()
    while True:
        time.sleep(1.0)


def senders(address: str) -> None:
    """Announce a frame as long as any may be, and send a byte of it now and then."""

    def act(index: int) -> None:
        with dial(address, f"slow{index}") as sock:
            sock.sendall((350_000).to_bytes(4, "little") + bytes(200_000))
            while True:
                time.sleep(0.5)
                sock.sendall(b"\0")

    again_and_again("sender", act, 16)


def readers(address: str) -> None:
    """Ask for the newest model, and read nothing of it; each of another round."""

    def act(index: int) -> None:
        time.sleep(0.1 * (index + 1))
        with dial(address, f"deaf{index}") as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            decoder: FrameDecoder[cm.ToClient] = FrameDecoder(cm.ToClient)
            number, said = 1, None
            while not isinstance(said, cm.Model):
                if isinstance(said, cm.Refusal):
                    number = number % 100 + 1
                if not isinstance(said, cm.Model):
                    sock.sendall(encode(cm.GetModel(JOB, number)))
                said = hear(sock, decoder)
            while True:
                time.sleep(0.2)
                sock.sendall(encode(cm.Leave(JOB)))

    again_and_again("reader", act, 40)


def hear(sock: socket.socket, decoder: FrameDecoder[cm.ToClient]) -> cm.ToClient:
    """Return the next message, and read no byte behind it."""
    while (message := decoder.next_message()) is None or isinstance(message, cm.Welcome):
        data = sock.recv(decoder.missing_bytes)
        if not data:
            raise ConnectionResetError
        decoder.feed(data)
    return message


def joins(address: str) -> None:
    """Send Join without end, and read what comes."""

    def act(index: int) -> None:
        with dial(address, f"joins{index}") as sock:
            joins_ = encode(cm.Join("unknown" if index % 2 else IDLE)) * 64
            sock.setblocking(True)
            threading.Thread(target=drain, args=(sock,), daemon=True).start()
            while True:
                sock.sendall(joins_)

    again_and_again("join", act, 12)


def drain(sock: socket.socket) -> None:
    """Read to the end."""
    try:
        while sock.recv(1 << 16):
            pass
    except OSError:
        pass


def busy(share: float) -> None:
    """Take that share of a processor."""
    while True:
        begun, spent = time.perf_counter(), time.process_time()
        while time.process_time() - spent < share * 0.01:
            pass
        time.sleep(max(0.0, 0.01 - (time.perf_counter() - begun)))


# ---- all together ----------------------------------------------------------------------------------------------------


def as_older_client() -> None:
    """Let the honest clients send whole schemas, as those of earlier versions."""
    greet = Stream.greet

    def older(stream: Stream, client: str, direct: bool, digests: bool = True) -> None:
        if digests:
            raise OlderNode("protocol", "", "")
        greet(stream, client, direct, digests)

    Stream.greet = older  # type: ignore[method-assign]


def main() -> int:
    """Run the attacks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default=",".join(ATTACKS))
    parser.add_argument("--write", type=Path)
    parser.add_argument("--be", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be:
        kind, *more = options.be
        busy(float(more[0])) if kind == "busy" else globals()[kind](more[-1])
        return 0
    me = [sys.executable, os.path.abspath(__file__), "--be"]
    as_older_client()
    print(f"{HEAD}\n|---|---|---|---|---|---|")
    for name in options.only.split(","):
        model = ATTACKS[name]
        attacked, share = measured(model, options.rounds, [*me, name])
        loop = [*me, "busy", str(share)]
        compared, _share = measured(model, options.rounds, loop)
        ours, others = statistics.median(attacked) * 1e3, statistics.median(compared) * 1e3
        line = f"| {SAID[name]} | {len(attacked)} | {ours:.1f} | {share:.2f} | {others:.1f} | {ours / others:.2f} |"
        print(line, flush=True)
        if options.write:
            write(options.write, line)
    return 0


def write(page: Path, line: str) -> None:
    """Put the line in the place of the one of its attack, or below the table's others."""
    lines = page.read_text().splitlines()
    begin = lines.index(HEAD) + 2
    end = next((at for at in range(begin, len(lines)) if not lines[at].startswith("|")), len(lines))
    attack = line.split("|")[1]
    kept = [each for each in lines[begin:end] if each.split("|")[1] != attack]
    page.write_text("\n".join([*lines[:begin], *kept, line, *lines[end:]]) + "\n")


if __name__ == "__main__":
    sys.exit(main())

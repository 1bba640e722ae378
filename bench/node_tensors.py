"""A model of many small tensors: what a round of one client costs, by the client's calls and the node's processes.

A node by `lifl up -d` (port on loopback, insecure) has a job of one client a round.  The client is a process of its own
and asks, trains nothing, submits and waits until the round is committed.  What is measured is processor time: of the
client's thread within each call, of the node's processes for a whole round.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import Cell, Group, Helper, Target, answer, cpu_by_part, orders
from node_rest import COMMAND_S, LIFL, settle, started
from safetensors.numpy import save_file

from lifl import Client

TENSORS, QUICK_TENSORS = 10_000, 100
FLOATS = 100
ROUNDS, QUICK_ROUNDS = 11, 3
FIRST_ROUNDS = 2
"""What is made once for a job is made in these."""
JOB = "tensors"
WORKERS_S = 600
"""Workers do not end while they are watched."""
SUBMIT_MS, MODEL_MS, WORKER_MS = 15, 8, 10
CALLS = ("submit", "model", "between")


def run(quick: bool) -> Group:
    """Measure rounds of one client."""
    tensors, rounds = (QUICK_TENSORS, QUICK_ROUNDS) if quick else (TENSORS, FIRST_ROUNDS + ROUNDS)
    calls = {
        "submit": Cell("client: submit", "ms"),
        "model": Cell("client: round.model", "ms"),
        "between": Cell("client: until the next round", "ms"),
    }
    parts = {name: Cell(f"node: {name}", "ms") for name in ("workers", "gateway", "lifld")}
    flags = ["--insecure", "--arena-bytes", "256MiB", "--idle-timeout-s", str(WORKERS_S)]
    with tempfile.TemporaryDirectory(prefix="lb-") as folder, started(*flags) as info:
        save_file({f"layer.{n}": np.zeros(FLOATS, np.float32) for n in range(tensors)}, f"{folder}/model.safetensors")
        job = f'[job]\nname = "{JOB}"\nrounds = {rounds}\n[model]\npath = "model.safetensors"\n[selection]\n'
        Path(folder, "job.toml").write_text(f"{job}clients_per_round = 1\n")
        submit = [*LIFL, "submit", f"{folder}/job.toml", "--state", info["state_dir"]]
        subprocess.run(submit, stdout=subprocess.DEVNULL, timeout=COMMAND_S, check=True)
        node = psutil.Process(info["pid"])
        settle(node)
        helper = Helper("node_tensors.py", [info["listen"][0]])
        try:
            helper.reply()
            for number in range(rounds):
                before = cpu_by_part(node)
                told = helper.ask(go=True)
                after = cpu_by_part(node)
                if number >= FIRST_ROUNDS or quick:
                    for name in CALLS:
                        calls[name].add(told[name] * 1e3)
                    for name, cell in parts.items():
                        cell.add((after[name] - before[name]) * 1e3)
        finally:
            helper.close()
    return Group(
        "tensors",
        f"A model of {tensors} tensors of {FLOATS} float32 each, one client by TCP",
        f"CPU time; the first {FIRST_ROUNDS} rounds, in which a job's layout is made, are left out.",
        "",
        [*calls.values(), *parts.values()],
        [
            Target(f"{tensors} tensors: submit", "ms", SUBMIT_MS, calls["submit"].median),
            Target(f"{tensors} tensors: round.model", "ms", MODEL_MS, calls["model"].median),
            Target(f"{tensors} tensors: workers", "ms", WORKER_MS, parts["workers"].median),
        ],
    )


# ---- the client ------------------------------------------------------------------------------------------------------


def _take_part(address: str) -> None:
    """Do one round for each order; answer with the seconds of CPU of each call."""
    answer(ready=True)
    given = iter(orders())
    with Client(address, job=JOB, client="c", insecure=True, direct=False) as client:
        next(given)
        spent: dict[str, Any] = dict.fromkeys(CALLS, 0.0)
        begun_s = time.thread_time()
        for round_ in client.rounds(models=False):
            spent["between"] = time.thread_time() - begun_s
            begun_s = time.thread_time()
            model = round_.model
            spent["model"] = time.thread_time() - begun_s
            begun_s = time.thread_time()
            round_.submit(model, weight=1)
            spent["submit"] = time.thread_time() - begun_s
            client.wait_committed(round_)
            answer(**spent)
            if next(given, None) is None:
                return
            begun_s = time.thread_time()


if __name__ == "__main__":
    _take_part(sys.argv[1])

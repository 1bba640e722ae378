"""A model on the node's own machine: mapped where the node has it, beside received by the same socket.

A real node has a job whose round waits for two clients that never submit.  They are of one process, come by the node's
socket, and take turns: the one is lent the round's model, the other receives it into memory that it has already
(`direct=False`).  Each reads its model in full twice, and drops it before the next one comes.

    python bench/node_lent.py FOLDER      (the helper's own entry)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from measure import Cell, Group, Helper, Target, answer, orders
from node_ingest import JOB, QUICK_BYTES, layout_of
from node_rest import COMMAND_S, LIFL, started
from safetensors.numpy import save_file

from lifl import Client
from lifl.client import Round

SIZES, QUICK_SIZES = (16_000_000, 240_800_000), (QUICK_BYTES,)
REPETITIONS, QUICK_REPETITIONS = 15, 2
WAYS = ("lent", "received")
LENT_MS, FIRST_READ = 1, 1.3


def run(quick: bool) -> Group:
    """Measure both ways for each size, interleaved."""
    cells: list[Cell] = []
    targets: list[Target] = []
    for size in QUICK_SIZES if quick else SIZES:
        nbytes = layout_of(size).data_bytes
        model = f"{nbytes / 1e6:.1f} MB"
        until = {way: Cell(f"{model}, until the client has it: {way}", "ms") for way in WAYS}
        ratio = Cell(f"{model}: lent / received", "")
        read = Cell(f"{model}, lent: first full read / second", "")
        for had_s, first_s, second_s in _turns(size, QUICK_REPETITIONS if quick else REPETITIONS):
            for way in WAYS:
                until[way].add(had_s[way] * 1e3)
            ratio.add(had_s["lent"] / had_s["received"])
            read.add(first_s["lent"] / second_s["lent"])
        cells += [*until.values(), ratio, read]
        targets.append(Target(until["lent"].name, "ms", LENT_MS, until["lent"].median))
        targets.append(Target(read.name, "", FIRST_READ, read.median))
    return Group(
        "lent",
        "A model on the node's own machine",
        "The client is lent the model where the node has it, or receives it into memory that is there already.",
        "",
        cells,
        targets,
    )


def _turns(size: int, repetitions: int) -> list[tuple[dict[str, float], ...]]:
    """Return, of each turn, by way: the seconds until the model is there, and of the first and the second read."""
    with tempfile.TemporaryDirectory(prefix="lb-") as folder, started("--insecure", "--arena-bytes", "3GiB") as info:
        model = {tensor.name: np.ones(tensor.shape, np.float32) for tensor in layout_of(size).tensors}
        save_file(model, f"{folder}/model.safetensors")
        job = f'[job]\nname = "{JOB}"\nrounds = 1\n[model]\npath = "model.safetensors"\n[selection]\n'
        Path(folder, "job.toml").write_text(f"{job}clients_per_round = {len(WAYS)}\ndeadline_s = 86400\n")
        submit = [*LIFL, "submit", f"{folder}/job.toml", "--state", info["state_dir"]]
        subprocess.run(submit, stdout=subprocess.DEVNULL, timeout=COMMAND_S, check=True)
        helper = Helper("node_lent.py", [info["state_dir"]])
        try:
            helper.reply()
            told = [{way: helper.ask(way=way)["spent_s"] for way in WAYS} for _ in range(repetitions + 1)]
        finally:
            helper.close()
    return [tuple({way: spent[way][part] for way in WAYS} for part in range(3)) for spent in told[1:]]


# ---- the clients -----------------------------------------------------------------------------------------------------


def _fetched(round_: Round) -> tuple[float, float, float]:
    """Fetch the round's model and read it twice; return the seconds of each."""
    round_._model = None  # as the model of a round that is over
    times = [time.perf_counter()]
    model = round_.model
    times.append(time.perf_counter())
    for _ in range(2):
        assert all(array.min() == 1 for array in model.values())
        times.append(time.perf_counter())
    return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def _take_part(folder: str) -> None:
    """Join the job by both ways, then fetch the model by the way that it is told."""
    with ExitStack() as opened, ThreadPoolExecutor(len(WAYS)) as pool:
        clients = [opened.enter_context(Client(folder, job=JOB, client=way, direct=way == WAYS[0])) for way in WAYS]
        rounds = pool.map(lambda client: next(client.rounds(models=False)), clients)  # once both are there
        by_way = dict(zip(WAYS, rounds, strict=True))
        answer(ready=True)
        for told in orders():
            answer(spent_s=_fetched(by_way[told["way"]]))


if __name__ == "__main__":
    _take_part(sys.argv[1])

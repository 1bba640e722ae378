"""A fold by the aggregator as a library, beside the same round of a job on the same node.

    python bench/fold_rounds.py [--mb 46.8] [--updates 32] [--rounds 4] [--repeats 3]

Both are one process on the node's machine.  In a repetition a job of some rounds runs, whose clients are threads, then
as many folds, updates added one by one; CPU is that of the process and of all of the node's.  Then `add` beside a bare
copy of as many bytes into warm shared memory, in turns; folds of a small model that are opened and cancelled; and
memory: what is private to this process beside the model, in models, the node's arena, and what is private to its own.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import save_file

import lifl
from lifl.aggregator.local_node import LocalNode
from lifl.client import Client

TINY = {"w": np.zeros(10, np.float32)}


def cpu_s(lifld: psutil.Process) -> float:
    """CPU of this process and of the node."""
    found = sum(os.times()[:2])
    for each in [lifld, *lifld.children(recursive=True)]:
        times = each.cpu_times()
        found += times.user + times.system
    return found


def by_job(
    lifld: psutil.Process, folder: Path, name: str, model: dict[str, Any], updates: int, rounds: int
) -> tuple[float, float]:
    """Run a job to its end; return seconds and CPU seconds from one selection to the next, behind the first."""
    save_file(model, folder / "model.safetensors")
    config = folder / f"{name}.toml"
    config.write_text(
        f'[job]\nname = "{name}"\nrounds = {rounds + 2}\n[model]\npath = "{folder}/model.safetensors"\n'
        f"[selection]\nclients_per_round = {updates}\n"
    )
    command = [str(Path(sys.executable).with_name("lifl")), "submit", str(config), "--state", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    selections: list[tuple[float, float]] = []

    def take_part(number: int) -> None:
        with Client(folder, job=name, client=f"c{number}") as client:
            for selected in client.rounds():
                if number == 0:
                    selections.append((time.monotonic(), cpu_s(lifld)))
                selected.submit(model, weight=1.0)

    threads = [threading.Thread(target=take_part, args=(number,)) for number in range(updates)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (begun_s, before_s), (ended_s, after_s) = selections[1], selections[-1]
    return (ended_s - begun_s) / rounds, (after_s - before_s) / rounds


def by_folds(aggregator: lifl.Aggregator, model: dict[str, Any], updates: int, rounds: int) -> None:
    """As many folds."""
    for _ in range(rounds):
        with aggregator.open(model, expected=updates) as fold:
            for number in range(updates):
                fold.add(model, 1.0, client=f"c{number}")
            fold.result()


def timed(lifld: psutil.Process, act: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Seconds and CPU seconds of a round."""
    before, begun = cpu_s(lifld), time.monotonic()
    act()
    return (time.monotonic() - begun) / rounds, (cpu_s(lifld) - before) / rounds


def own_node(model: dict[str, Any], updates: int) -> dict[str, float]:
    """Return what a node of its own takes of memory for a fold, and the process itself."""
    with lifl.Aggregator(":local:") as aggregator:
        by_folds(aggregator, model, updates, 2)
        assert aggregator._local is not None
        lifld = psutil.Process(aggregator._local.pid)
        arena = sum(each.stat().st_blocks for each in Path("/dev/shm").glob(f"lifl-{aggregator._local.number}*")) * 512
        private = sum(each.memory_full_info().uss for each in [lifld, *lifld.children(recursive=True)])
    return {"arena_mb": arena / 1e6, "private_mb": private / 1e6}


def beside_copies(aggregator: lifl.Aggregator, model: dict[str, Any], times: int) -> tuple[float, float]:
    """Return how fast `add` is beside a bare copy, and what this process had privately meanwhile, in models."""
    source, ratios, private = model["w"].view(np.uint8), [], []
    me = psutil.Process()
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(source.nbytes)
        shared = np.frombuffer(mmap.mmap(file.fileno(), source.nbytes), np.uint8)
        shared[:] = source
        before = me.memory_full_info().uss
        for _ in range(times):
            with aggregator.open(model, expected=4) as fold:
                for number in range(4):
                    began = time.monotonic()
                    np.copyto(shared, source)
                    copied = time.monotonic()
                    fold.add(model, 1.0, client=f"c{number}")
                    ratios.append((copied - began) / (time.monotonic() - copied))
                    private.append(me.memory_full_info().uss - before)
                fold.result()
    return statistics.median(ratios), max(private) / source.nbytes


def small(aggregator: lifl.Aggregator, times: int) -> float:
    """Milliseconds of opening and cancelling a fold."""
    taken = []
    for _ in range(times):
        begun = time.monotonic()
        aggregator.open(TINY, expected=4).cancel()
        taken.append(time.monotonic() - begun)
    return statistics.median(taken) * 1000


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=46.8)
    parser.add_argument("--updates", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    model = {"w": np.random.default_rng(1).random(int(given.mb * 250_000), np.float32)}
    runs = []
    own = LocalNode(int(given.mb * 80e6))
    lifld, folder = psutil.Process(own.pid), Path(own.folder)
    try:
        with lifl.Aggregator(folder) as aggregator:
            by_folds(aggregator, model, given.updates, 1)
            for repeat in range(given.repeats):
                about = (model, given.updates, given.rounds)
                job = by_job(lifld, folder, f"j{repeat}", *about)
                fold = timed(lifld, partial(by_folds, aggregator, *about), given.rounds)
                runs.append({"job_s": job[0], "fold_s": fold[0], "job_cpu_s": job[1], "fold_cpu_s": fold[1]})
                print(runs[-1], file=sys.stderr, flush=True)
            speed, private_models = beside_copies(aggregator, model, given.repeats)
        with lifl.Aggregator(folder) as aggregator:
            open_ms = small(aggregator, 200)
    finally:
        own.close()
    ratios = {
        kind: statistics.median(run[f"fold_{kind}"] / run[f"job_{kind}"] for run in runs) for kind in ("s", "cpu_s")
    }
    ratios["add_speed_to_copy"] = speed
    memory = {"caller_private_models": private_models, **own_node(model, given.updates)}
    print(json.dumps({"runs": runs, "ratios": ratios, "open_cancel_ms": open_ms, **memory}, indent=1))


if __name__ == "__main__":
    main()

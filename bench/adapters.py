"""Rounds of a job about adapters alone (`job.trainable`), beside the same rounds about the whole model.

    python bench/adapters.py [--mb 46.8] [--share 0.01] [--clients 8] [--rounds 4] [--repeats 3]

All is on one machine; clients are threads of one process that come by TCP, fetch each round's model and submit the
whole of theirs, of which a job with `trainable` looks at the adapters alone.  The two take turns on one node.  Seconds
and CPU (of this process and the node's) are those from one selection to the next, behind the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from fold_rounds import cpu_s
from safetensors.numpy import save_file

from lifl.aggregator.local_node import LocalNode
from lifl.client import Client

LAYERS = 12
PATTERN = "*lora_*"


def model_of(mb: float, share: float) -> dict[str, Any]:
    """Return a model of so many MB, of which `share` is that of its adapters."""
    numbers, drawn = int(mb * 250_000 / LAYERS), np.random.default_rng(1)
    model = {}
    for layer in range(LAYERS):
        model[f"h.{layer}.attn.weight"] = drawn.random(int(numbers * (1 - share)), np.float32)
        model[f"h.{layer}.attn.lora_A"] = drawn.random(int(numbers * share / 2), np.float32)
        model[f"h.{layer}.attn.lora_B"] = drawn.random(int(numbers * share / 2), np.float32)
    return model


def run(
    node: LocalNode, address: str, name: str, model: dict[str, Any], trainable: list[str], clients: int, rounds: int
) -> dict[str, float]:
    """Run a job to its end; return what a round took, and how many MB of model each client had in it."""
    lifld, folder = psutil.Process(node.pid), Path(node.folder)
    config = folder / f"{name}.toml"
    about = f"trainable = {json.dumps(trainable)}" if trainable else ""
    config.write_text(
        f'[job]\nname = "{name}"\nrounds = {rounds + 2}\n{about}\n'
        f'[model]\npath = "{folder}/model.safetensors"\n[selection]\nclients_per_round = {clients}\n'
    )
    command = [str(Path(sys.executable).with_name("lifl")), "submit", str(config), "--state", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    selections: list[tuple[float, float]] = []
    fetched: list[int] = []

    def take_part(number: int) -> None:
        with Client(address, job=name, client=f"c{number}") as client:
            for selected in client.rounds():
                if number == 0:
                    selections.append((time.monotonic(), cpu_s(lifld)))
                    fetched.append(sum(array.nbytes for array in selected.model.values()))
                else:
                    _ = selected.model
                selected.submit(model, weight=1.0)

    threads = [threading.Thread(target=take_part, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (begun_s, before_s), (ended_s, after_s) = selections[1], selections[-1]
    kept = next((folder / "jobs").glob(f"*{name}*")).glob("*.safetensors")
    return {
        "s": (ended_s - begun_s) / rounds,
        "cpu_s": (after_s - before_s) / rounds,
        "model_mb": fetched[-1] / 1e6,
        "checkpoint_mb": max(file.stat().st_size for file in kept) / 1e6,
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=46.8)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    model = model_of(given.mb, given.share)
    node, runs = LocalNode(int(given.mb * 40e6)), []
    try:
        save_file(model, Path(node.folder) / "model.safetensors")
        command = [str(Path(sys.executable).with_name("lifl")), "top", "--json", "--state", node.folder]
        top = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        address = top["node"]["listen"][0]
        for repeat in range(given.repeats):
            about = (model, given.clients, given.rounds)
            ways = {"whole": [], "adapters": [PATTERN]}
            found = {
                way: run(node, address, f"{way}{repeat}", about[0], patterns, *about[1:])
                for way, patterns in ways.items()
            }
            runs.append(found)
            print(found, file=sys.stderr, flush=True)
    finally:
        node.close()
    ratios = {
        what: statistics.median(each["adapters"][what] / each["whole"][what] for each in runs)
        for what in ("s", "cpu_s")
    }
    print(json.dumps({"runs": runs, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()

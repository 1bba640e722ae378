"""Many lives of the simulator, more than a test has time for.

    make sim-long LIVES=100000 [FIRST=0] [CORES=1]

Each seed is lived on one host, on three, on three of which any may coordinate, on three such whose nodes stand still
for a while, on one and on three such whose jobs come back when they are over, and on one and on three such whose
clients map their models, in as many processes as there are cores.  The first seed is the one after all that were lived
before.  A line tells how far it is; the failing seeds come at the end, and `make sim SEED=... HOSTS=... [MOVES=1]
[STALLS=1] [RETURNS=1] [LENDS=1]` tells each of them again.  Exit code 1: there are some.

What was done is added to the ledger (`tests/proof.py`), and docs/proof.md says the sum; also of a run that is ended
before its time by ^C or SIGTERM.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import proof
from lives import live
from simulator import Cluster

MODES: tuple[dict[str, Any], ...] = (
    {"hosts": 1},
    {"hosts": 3},
    {"hosts": 3, "moves": True},
    {"hosts": 3, "moves": True, "stalls": True},
    {"hosts": 1, "returns": True},
    {"hosts": 3, "moves": True, "returns": True},
    {"hosts": 1, "lends": True},
    {"hosts": 3, "moves": True, "lends": True},
)
PROGRESS_S = 1.0
GARBAGE = 100_000, 20, 100
"""How seldom garbage is looked for: a life is small, and all of it is garbage at its end (`gc.set_threshold`)."""


def rounds(cluster: Cluster) -> Counter[str]:
    """How many rounds a life has committed, and how many attempts at one have failed."""
    rows = [row for job in cluster.jobs.values() for row in job.rounds.items()]
    found = Counter(status for (number, _attempt), (status, _fields) in rows if number > 0)
    return Counter(rounds=found["committed"] + found["damaged"], attempts_failed=found["failed"])


def lived(seed: int) -> tuple[int, Counter[str], list[str]]:
    """Live a seed in each mode; return it, how many lives and rounds that were, and what failed."""
    failed, done = [], Counter(lives=len(MODES))
    for mode in MODES:
        try:
            done += rounds(live(seed, **mode))
        except AssertionError as error:
            failed.append(str(error))
    return seed, done, failed


def next_seed() -> int:
    """The seed after all that earlier runs have lived."""
    return max((line["first"] + line["seeds"] for line in proof.lines("sim")), default=0)


def _begin() -> None:
    """Begin a process that lives lives: what it has imported stays, and is no garbage."""
    gc.freeze()
    gc.set_threshold(*GARBAGE)


def _ended(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Live the seeds; the exit code says whether all went well."""
    parser = argparse.ArgumentParser(description="Lives many lives of the simulator.")
    parser.add_argument("--lives", type=int, required=True, help="seeds, each of which is lived in each mode")
    parser.add_argument("--first", type=int, default=None)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    given = parser.parse_args()
    first, at = next_seed() if given.first is None else given.first, proof.commit()
    failed: list[str] = []
    sums: Counter[str] = Counter()
    done = 0
    begun = told = time.monotonic()
    with multiprocessing.Pool(given.cores, _begin) as pool:
        signal.signal(signal.SIGTERM, _ended)
        try:
            for _seed, counts, found in pool.imap(lived, range(first, first + given.lives), chunksize=4):
                failed += found
                sums += counts
                done += 1
                if time.monotonic() - told > PROGRESS_S or done == given.lives:
                    told = time.monotonic()
                    left_s = (told - begun) / done * (given.lives - done)
                    line = f"{done} of {given.lives} seeds, {sums['rounds']} rounds, {len(failed)} failures"
                    print(f"\r{line}, {left_s:.0f} s left ", end="", flush=True)
        except KeyboardInterrupt:
            print("\nended before its time")
    print()
    for text in failed:
        print(text)
    if done:
        counts = {each: sums[each] for each in ("lives", "rounds", "attempts_failed")}
        seconds = round(time.monotonic() - begun)
        proof.add("sim", at, {"first": first, "seeds": done, **counts, "failures": len(failed), "seconds": seconds})
        proof.write_page()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Many lives of the simulator, more than a test has time for.

    make sim-long LIVES=100000 [FIRST=0]

Each seed is lived on one host, on three, and on three of which any may coordinate, in as many processes as there are
cores.  A line tells how far it is; the failing seeds come at the end, and `make sim SEED=... HOSTS=... [MOVES=1]` tells
each of them again.  Exit code 1: there are some.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time

from lives import live

SIZES = ((1, False), (3, False), (3, True))
PROGRESS_S = 1.0


def lived(seed: int) -> list[str]:
    """Live a seed on each number of hosts; return what failed."""
    failed = []
    for hosts, moves in SIZES:
        try:
            live(seed, hosts, moves)
        except AssertionError as error:
            failed.append(str(error))
    return failed


def main() -> int:
    """Live the seeds; the exit code says whether all went well."""
    parser = argparse.ArgumentParser(description="Lives many lives of the simulator.")
    parser.add_argument("--lives", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    failed: list[str] = []
    begun = told = time.monotonic()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        seeds = range(given.first, given.first + given.lives)
        for done, found in enumerate(pool.imap_unordered(lived, seeds, chunksize=8), 1):
            failed += found
            if time.monotonic() - told > PROGRESS_S or done == given.lives:
                told = time.monotonic()
                left_s = (told - begun) / done * (given.lives - done)
                print(
                    f"\r{done} of {given.lives} seeds, {len(failed)} failures, {left_s:.0f} s left ", end="", flush=True
                )
    print()
    for text in failed:
        print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""A node's MC: how many folds its machine runs at a time before they slow each other down.

One thread folds pairs of vectors for a moment, then two do, then more, each on memory of its own and more of it than
the caches hold, as real updates are.  A fold is one call of a kernel that leaves the interpreter's lock alone, so
threads contend as workers do, for cores and for memory.  At each step the folds per second, times E, the mean time
of one, is how many were in service.  The steps end when E has grown beyond `SATURATED_GROWTH`, or at the
most that is asked for or that free memory allows.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import numpy as np

from lifl.core.planning.capacity import SATURATED_GROWTH, saturation
from lifl.rules.kernels import Vector, fold

VECTOR_BYTES = 32 << 20
INPUTS = 2
WARM_S = 0.015
"""Not counted at the beginning of each step: threads are spread over the cores, the first one's clock rises."""
STEP_S = 0.045
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Folds at a time; the capacity of a machine that does more must be given to it."""
FREE_SHARE = 4
"""At most this fraction of the free memory is taken."""


def capacity(most: int) -> float:
    """Return MC in updates at a time, at most `most`; on two cores it takes about a third of a second."""
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fitting = free_bytes // FREE_SHARE // ((INPUTS + 2) * VECTOR_BYTES)
    return round(saturation(_samples(max(1, min(most, fitting)))), 2)


def _samples(most: int) -> Iterator[tuple[float, float]]:
    """Yield (rate per second, execution time in seconds) at rising concurrency, to the first that is too much."""
    memory: list[tuple[Vector, list[Vector]]] = []
    unloaded_s = 0.0
    for folders in STEPS:
        if folders > most:
            return
        while len(memory) < folders:
            vectors = [np.ones(VECTOR_BYTES // 4, np.float32) for _ in range(INPUTS)]
            memory.append((np.ones(VECTOR_BYTES // 4), vectors))
        rate_per_s, execution_s = _step(memory)
        yield rate_per_s, execution_s
        unloaded_s = unloaded_s or execution_s
        if execution_s > SATURATED_GROWTH * unloaded_s:
            return


def _step(memory: list[tuple[Vector, list[Vector]]]) -> tuple[float, float]:
    """Have all fold at once; return (folds per second, mean time of one)."""
    done: list[tuple[int, float]] = []
    together = threading.Barrier(len(memory))

    def run(acc: Vector, vectors: list[Vector]) -> None:
        together.wait()
        folds, busy_s, began_s = 0, 0.0, time.perf_counter()
        while busy_s < STEP_S:
            at_s = time.perf_counter()
            fold(acc, vectors, [0.5] * INPUTS)
            if at_s - began_s >= WARM_S:
                folds, busy_s = folds + 1, busy_s + time.perf_counter() - at_s
        done.append((folds, busy_s))

    threads = [threading.Thread(target=run, args=arguments) for arguments in memory]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folds, busy_s = sum(count for count, _ in done), sum(took_s for _, took_s in done)
    return folds / busy_s * len(memory), busy_s / folds

"""Folding float32 updates that lie in the arena, as a fraction of what one core can read.

One process pinned to one core folds N updates of a job (slots at equal distances) into a partial by the kernel that
leaf tasks use.  Beside it, in the same repetition and over the same bytes, a plain read: BLAS's dot product of each
update with itself, which reads every byte once, in order, and writes nothing.

Reproducible sums of the same updates (`aggregation.reproducible`) are made beside it, into the helper's own memory.
Numbers of two bytes and of one are folded beside it, eight updates at a time, from the helper's own memory: their rate
is of bytes of input.

    python bench/node_fold.py ARENA KEYS      (the helper's own entry)
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial as partial_of

import numpy as np
from measure import Cell, Group, Helper, Target, answer, grown_bytes, orders

from lifl.client.packing import numpy_dtype
from lifl.core.ids import Key, Kind
from lifl.core.schema import ACCUMULATOR, DTYPE_BYTES, Segment
from lifl.rules import binned, kernels
from lifl.rules.integers import BITS
from lifl.rules.integers import fold as fold_integers
from lifl.shm.arena import Arena
from lifl.shm.layout import data_offset
from lifl.shm.mapping import populate
from lifl.shm.owned_arena import OwnedArena
from lifl.worker.task import vector

UPDATE_BYTES, QUICK_BYTES = 46_800_000, 400_000
COUNTS = (2, 8, 32)
REPETITIONS, QUICK_REPETITIONS = 15, 3
PASS_BYTES = 2_000_000_000
"""About so much is read in one timing, in as many folds as that takes."""
QUICK_PASS_BYTES = 10_000_000
TARGET_FRACTIONS = {2: 0.8, 8: 0.85, 32: 0.85}
PARTIAL_BYTES = DTYPE_BYTES[ACCUMULATOR["float32"]]
"""Of one number."""
SMALL = ("float16", "bfloat16", "int8")
SMALL_COUNT = 8
SMALL_TARGET = 4.0
REPRODUCIBLE_COUNT, REPRODUCIBLE_TARGET = 8, 6.0


def run(quick: bool) -> Group:
    """Measure all counts, each beside the plain read."""
    nbytes = QUICK_BYTES if quick else UPDATE_BYTES
    pass_bytes = QUICK_PASS_BYTES if quick else PASS_BYTES
    with ExitStack() as opened:
        room = (max(COUNTS) + 4) * (nbytes + 4096) + (2 << 20)
        arena = OwnedArena.create(f"/lifl-bench-{os.getpid()}", 2 * room, 1)
        opened.callback(arena.close, unlink=True)
        keys = [arena.alloc(Kind.UPDATE, 1, 1, nbytes, slab="updates") for _ in range(max(COUNTS))]
        output = arena.alloc(Kind.PARTIAL, 1, 1, PARTIAL_BYTES * (nbytes // 4))
        helper = Helper("node_fold.py", [arena.name, json.dumps([key.pack().hex() for key in [*keys, output]])])
        opened.callback(helper.close)
        helper.reply()
        folds = {count: Cell(f"fold of {count} updates", "GB/s of input") for count in COUNTS}
        reads = {count: Cell(f"plain read of {count} updates", "GB/s") for count in COUNTS}
        blocks = {count: Cell(f"read by blocks of {count} updates", "GB/s") for count in COUNTS}
        fractions = {count: Cell(f"fold / read, {count} updates", "") for count in COUNTS}
        bins = {count: Cell(f"reproducible fold of {count} updates", "GB/s of input") for count in COUNTS}
        traffic = {count: Cell(f"memory traffic / read, {count} updates", "") for count in COUNTS}
        small = {dtype: Cell(f"fold of {SMALL_COUNT} updates of {dtype}", "GB/s of input") for dtype in SMALL}
        for _ in range(QUICK_REPETITIONS if quick else REPETITIONS):
            for dtype, cell in small.items():
                size = DTYPE_BYTES[dtype] * (nbytes // 4)
                _rate(helper, dtype, SMALL_COUNT, size, pass_bytes // 4, cell)
            for count in COUNTS:
                read = _rate(helper, "read", count, nbytes, pass_bytes, reads[count])
                _rate(helper, "read by blocks", count, nbytes, pass_bytes, blocks[count])
                fold = _rate(helper, "fold", count, nbytes, pass_bytes, folds[count])
                fractions[count].add(fold / read)
                _rate(helper, "reproducible", count, nbytes, pass_bytes // 4, bins[count])
                traffic[count].add(fold / read * (count + PARTIAL_BYTES / 4) / count)
    kinds = (reads, blocks, folds, fractions, bins, traffic)
    cells = [kind[count] for count in COUNTS for kind in kinds] + list(small.values())
    return Group(
        "fold",
        f"Fold of float32 updates of {nbytes / 1e6:.1f} MB in the arena, one core",
        "GB/s count the updates' bytes; no batch is in a cache when its turn comes. “Read by blocks” is the plain read"
        " by blocks of each update in turn. “Memory traffic” also counts the partial, which is written once."
        f" Kernel: {'compiled' if kernels.COMPILED else 'NumPy'}.",
        "s per GB of input",
        cells,
        [
            Target(f"fold of {count} updates / read bandwidth", "", TARGET_FRACTIONS[count], cell.median, at_least=True)
            for count, cell in fractions.items()
        ]
        + [
            Target(f"{cell.name}, one core", "GB/s", SMALL_TARGET, cell.median, at_least=True)
            for cell in small.values()
        ]
        + [
            Target(f"{cell.name}, one core", "GB/s", REPRODUCIBLE_TARGET, cell.median, at_least=True)
            for cell in [bins[REPRODUCIBLE_COUNT]]
        ],
    )


def _rate(helper: Helper, what: str, count: int, nbytes: int, pass_bytes: int, cell: Cell) -> float:
    times = max(1, pass_bytes // (count * nbytes))
    with grown_bytes([helper.pid]) as grown:
        got = helper.ask(what=what, count=count, times=times)
    gigabytes = times * count * nbytes / 1e9
    cell.add(gigabytes / got["wall_s"], got["cpu_s"] / gigabytes, grown[0] / 1e6)
    return float(gigabytes / got["wall_s"])


# ---- the helper ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the helper: fill the updates, then time what it is told."""
    arena = Arena.attach(sys.argv[1])
    keys = [Key.unpack(bytes.fromhex(text)) for text in json.loads(sys.argv[2])]
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    arena.segments.open_all()
    populate(arena.segments.views()[1][data_offset(arena.entries) :])  # the one that there is holds all
    random = np.random.default_rng(1)
    *updates, partial = [
        vector(view, Segment(dtype, 0, len(view) // DTYPE_BYTES[dtype]))
        for view, dtype in zip(
            map(arena.data, keys), [*["float32"] * (len(keys) - 1), ACCUMULATOR["float32"]], strict=True
        )
    ]
    for update in updates:
        random.random(out=update, dtype=np.float32)

    def read(batch: list[kernels.Vector]) -> None:
        for update in batch:
            np.dot(update, update)

    def read_by_blocks(batch: list[kernels.Vector]) -> None:
        step = kernels.BLOCK_BYTES // 4
        for begin in range(0, len(partial), step):
            for update in batch:
                np.dot(update[begin : begin + step], update[begin : begin + step])

    def fold(batch: list[kernels.Vector]) -> None:
        kernels.fold(partial, batch, [1.0 / len(batch)] * len(batch))

    def reproducible(batch: list[kernels.Vector]) -> None:
        binned.add(accumulator, [], batch, [3.0] * len(batch), keep=False)

    accumulator = np.zeros(len(partial), kernels.numpy_dtype(binned.ACCUMULATOR))
    does: dict[str, Callable[[list[kernels.Vector]], None]] = {
        "read": read,
        "read by blocks": read_by_blocks,
        "fold": fold,
        "reproducible": reproducible,
    }
    small: dict[str, list[kernels.Vector]] = {}
    for dtype in SMALL:
        small[dtype] = [random.integers(-9, 9, len(partial)).astype(numpy_dtype(dtype)) for _ in range(SMALL_COUNT)]
        sums, count = np.zeros(len(partial), ACCUMULATOR[dtype]), float(SMALL_COUNT)
        if ACCUMULATOR[dtype] in BITS:
            does[dtype] = partial_of(fold_integers, sums, weights=[1.0] * SMALL_COUNT, before=0.0, whole=count)
        else:
            does[dtype] = partial_of(kernels.fold, sums, weights=[1.0 / count] * SMALL_COUNT)
    answer(ready=True)
    for what in orders():
        count = what["count"]
        source = small.get(what["what"], updates)
        # The batches take turns: none of them is still in the cache when its turn comes again.
        batches = itertools.cycle([source[begin : begin + count] for begin in range(0, len(source), count)])
        begun_cpu_s, begun_s = time.process_time(), time.monotonic()
        for batch in itertools.islice(batches, what["times"]):
            does[what["what"]](batch)
        answer(wall_s=time.monotonic() - begun_s, cpu_s=time.process_time() - begun_cpu_s)


if __name__ == "__main__":
    main()

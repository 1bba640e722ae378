"""Rounds: how long an aggregation takes, and what it costs, by system, number of clients, size and arrival.

All systems of a cell stand ready at the same time and take turns, so that a machine whose speed drifts slows all of
them.  The first round of each warms it up (pages, workers) and is shown by itself; the others give median and spread.
Cells come in the order of what they tell; those for which time or memory is not enough are listed as not run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
from measure import Target, number
from systems.interface import TUNED, Context, Outcome, Plot, RoundResult, System, Table
from systems.workload import Workload, resnet
from traces import arrivals

NAME = "rounds"
TITLE = "Rounds: from the updates to the model"
BUDGET_S = 540.0
QUICK_BUDGET_S = 60.0
CLIENTS = (8, 20, 32, 60, 100)
DEPTHS = (18, 34, 152)
PATTERNS = ("at once", "steady", "bursts")
PATTERN_CLIENTS = 20
VARIANT_CLIENTS = 8
ROUNDS = 3
"""With the one that warms up."""
SLOW_S = 5.0
"""A system whose first round in a cell took longer than this has no other one there: that one counts."""
MEMORY_FACTOR = 2.3
"""A system may hold so many times all updates of a round (SL: in the broker and in its functions)."""
KEPT_FACTOR = 2.5
"""After a round a system may keep so many times its updates' bytes (an arena, recycled buffers, clients' replies)."""
MEMORY_SHARE = 0.8
"""Of the memory that is free, for a cell."""
QUICK_CLIENTS, QUICK_WIDTH = 6, 8
COMPARED_CLIENTS = 32
FLOWER_TIMES, NVFLARE_TIMES = 10.0, 4.0
OVERHEAD_S = 0.005
CPU_FRACTION = 0.5


@dataclass
class Entry:
    """One system's rounds in one cell."""

    system: str
    variant: str
    results: list[RoundResult] = field(default_factory=list)

    @property
    def counted(self) -> list[RoundResult]:
        """Without the first one, where there are others."""
        return self.results[1:] or self.results

    def median(self, what: str) -> float:
        """Of a field, or of what `value` makes of two."""
        return statistics.median(value(result, what) for result in self.counted)


def value(result: RoundResult, what: str) -> float:
    """A field of a result, or a difference of two: `in_s` is from the first update in to the last, `tail_s` from then
    until the model is out, `whole_s` both, `grown_bytes` the private memory that the round added.
    """
    if what == "tail_s":
        return result.out_s - result.last_in_s
    if what == "in_s":
        return result.last_in_s - result.first_in_s
    if what == "whole_s":
        return result.out_s - result.first_in_s
    if what == "grown_bytes":
        return float(result.peak_bytes - result.rest_bytes)
    return float(getattr(result, what))


@dataclass
class Grid:
    """One cell of the comparison: what is sent, how, by how many; and which systems' variants are to run."""

    workload: Workload
    clients: int
    pattern: str
    kinds: list[tuple[System, str]]
    rounds: int
    entries: list[Entry] = field(default_factory=list)
    together: bool = True
    took_s: float = 0.0

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.clients} × {self.workload.name} ({self.workload.nbytes / 1e6:.1f} MB), {self.pattern}"

    @property
    def needs_bytes(self) -> float:
        """Memory of one system after the other."""
        return self.clients * self.workload.nbytes * MEMORY_FACTOR


def run(context: Context) -> Outcome:
    """Runs the cells in order."""
    outcome = Outcome()
    done: list[Grid] = []
    for grid in plan(context):
        available = psutil.virtual_memory().available
        if grid.needs_bytes > available * MEMORY_SHARE:
            outcome.absent.append(
                f"{grid.title}: needs about {grid.needs_bytes / 1e9:.0f} GB, {available / 1e9:.0f} GB are free"
            )
            continue
        expected_s = _expected_s(done, grid)
        if expected_s > context.left_s():
            left_s = max(0, context.left_s())
            outcome.absent.append(f"{grid.title}: takes about {expected_s:.0f} s, {left_s:.0f} s of the time are left")
            continue
        measure(grid, context, outcome)
        done.append(grid)
        print(_table(grid).title, f"{grid.took_s:.0f} s", flush=True)
    outcome.tables = [_table(grid) for grid in done]
    outcome.plots = _plots(done)
    outcome.targets = [] if context.quick else targets(done, context.costs.get("read_bytes_per_s"))
    outcome.data = [
        {"cell": g.title, "clients": g.clients, "bytes": g.workload.nbytes, "pattern": g.pattern}
        | {"entries": [vars(e) | {"results": msgspec.to_builtins(e.results)} for e in g.entries]}
        for g in done
    ]
    return outcome


def plan(context: Context) -> list[Grid]:
    """All cells, the most telling ones first."""
    first = [(system, system.variants()[0]) for system in context.systems]
    tuned = [(system, first_ + TUNED) for system, first_ in first if first_ + TUNED in system.variants()]
    every = [(system, variant) for system in context.systems for variant in system.variants()]
    if context.quick:
        small = resnet(18, context.seed, QUICK_WIDTH).saved(context.folder)
        untuned = [(system, variant) for system, variant in every if not variant.endswith(TUNED)]
        return [Grid(small, QUICK_CLIENTS, "at once", untuned, 1), Grid(small, QUICK_CLIENTS, "bursts", first[:1], 1)]
    models = [resnet(depth, context.seed).saved(context.folder) for depth in DEPTHS]
    compared = Grid(models[0], COMPARED_CLIENTS, "at once", first + tuned, ROUNDS)
    grids = [Grid(models[0], VARIANT_CLIENTS, "at once", every, ROUNDS), compared]
    grids += [Grid(models[0], PATTERN_CLIENTS, pattern, first, 2) for pattern in PATTERNS]
    grids += [Grid(models[2], VARIANT_CLIENTS, "at once", first + tuned, 2)]
    there = {(grid.workload.name, grid.clients) for grid in grids}
    # Many clients first, then large models.
    rest = [(n, model) for model in models for n in reversed(CLIENTS) if (model.name, n) not in there]
    return grids + [Grid(model, n, "at once", first, 2) for n, model in rest]


def _expected_s(done: Sequence[Grid], grid: Grid) -> float:
    """From the cells that were measured: the bytes that they moved in a second, and the starts."""
    moved = sum(g.clients * g.workload.nbytes * len(g.kinds) * (g.rounds + 1) for g in done if g.pattern == "at once")
    took_s = sum(g.took_s for g in done if g.pattern == "at once")
    mine = grid.clients * grid.workload.nbytes * len(grid.kinds) * (grid.rounds + 1)
    return mine * took_s / moved if moved else 0.0


def measure(grid: Grid, context: Context, outcome: Outcome) -> None:
    """Runs a cell: all systems side by side, or some after the others where memory does not suffice for that."""
    begun_s = time.monotonic()
    side_by_side = fitting(grid, psutil.virtual_memory().available)
    grid.together = side_by_side >= len(grid.kinds)
    for begin in range(0, len(grid.kinds), side_by_side):
        kinds = grid.kinds[begin : begin + side_by_side]
        with ExitStack() as opened:
            running = _started(opened, grid, kinds, context, outcome)
            for turn in range(grid.rounds):
                if turn and context.left_s() < 0:
                    break
                _take_turns(grid, running, context.seed, outcome)
    grid.entries = [entry for entry in grid.entries if entry.results]
    grid.took_s = time.monotonic() - begun_s


def fitting(grid: Grid, available_bytes: float) -> int:
    """How many of the cell's systems can stand ready at the same time: each keeps some of what its last round took."""
    round_bytes = grid.clients * grid.workload.nbytes
    room = available_bytes * MEMORY_SHARE - round_bytes * MEMORY_FACTOR
    return min(max(1, int(room / (round_bytes * KEPT_FACTOR))), len(grid.kinds))


def _started(
    opened: ExitStack, grid: Grid, kinds: Sequence[tuple[System, str]], context: Context, outcome: Outcome
) -> list[tuple[System, Entry]]:
    """Systems of their own, which end with `opened`; one that does not start is noted and the others go on."""
    running: list[tuple[System, Entry]] = []
    for system, variant in kinds:
        one = type(system)()
        entry = Entry(system.name, variant)
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-", dir=context.folder)))
        opened.callback(one.stop)
        try:
            one.start(grid.workload, grid.clients, variant, folder)
        except MemoryError as error:
            outcome.absent.append(f"{grid.title}: {system.name}, {variant}: {error}")
        except Exception as error:  # noqa: BLE001 - the others can still be measured
            outcome.failures.append(f"{grid.title}: {system.name}, {variant} did not start: {error!r}")
        else:
            running.append((one, entry))
            grid.entries.append(entry)
    return running


def _take_turns(grid: Grid, running: list[tuple[System, Entry]], seed: int, outcome: Outcome) -> None:
    """A round of each; a system that fails takes part no longer."""
    times = arrivals(grid.pattern, grid.clients, grid.workload.nbytes, seed)
    for one, entry in list(running):
        if entry.results and value(entry.results[0], "whole_s") > SLOW_S + times[-1].at_s:
            continue
        cell = f"{grid.title}: {one.name}, {entry.variant}"
        try:
            result = one.round(times)
        except Exception as error:  # noqa: BLE001 - the others can still be measured
            outcome.failures.append(f"{cell} failed: {error!r}")
            running.remove((one, entry))
            continue
        entry.results.append(result)
        if not result.error <= one.tolerance:
            wrong = f"differs from the float64 reference by {result.error:.2e}, more than {one.tolerance:.0e}"
            outcome.failures.append(f"{cell}: the aggregate {wrong}")


# ---- what is shown -------------------------------------------------------------------------------------------------

HEAD = [
    *(
        "system",
        "ingest, GB/s",
        "first in → out, s",
        "last in → out, ms",
        "min – max, ms",
        "first round, ms",
        "server CPU, s",
    ),
    *("clients' CPU, s", "private, MB (of it grown)", "shared, MB", "error", "durable, s", "n"),
]


def _table(grid: Grid) -> Table:
    rows = []
    for entry in grid.entries:
        tails = [value(result, "tail_s") * 1e3 for result in entry.counted]
        durable = [result.durable_s - result.first_in_s for result in entry.counted if result.durable_s is not None]
        rows.append(
            [
                f"{entry.system}: {entry.variant}",
                number(grid.clients * grid.workload.nbytes / 1e9 / entry.median("in_s")),
                number(entry.median("whole_s")),
                number(entry.median("tail_s") * 1e3),
                f"{number(min(tails))} – {number(max(tails))}",
                number(value(entry.results[0], "tail_s") * 1e3),
                number(entry.median("cpu_s")),
                number(entry.median("clients_cpu_s")),
                f"{entry.median('peak_bytes') / 1e6:.0f} ({entry.median('grown_bytes') / 1e6:.0f})",
                f"{entry.median('arena_bytes') / 1e6:.0f}",
                f"{max(result.error for result in entry.results):.1e}",
                number(statistics.median(durable)) if durable else "",
                str(len(entry.counted)),
            ]
        )
    return Table(
        grid.title, HEAD, rows, "" if grid.together else "For lack of memory not all of these ran side by side."
    )


def targets(done: Sequence[Grid], read_bytes_per_s: float | None) -> list[Target]:
    """What is to be reached, from the cells that were measured."""
    found: list[Target] = []
    for grid in done:
        if grid.pattern != "at once":
            continue
        mine = next((entry for entry in grid.entries if entry.system == "LIFL"), None)
        others = [entry for entry in grid.entries if entry.system != "LIFL"]
        if mine is None:
            continue
        tail_s = mine.median("tail_s")
        if grid.clients == COMPARED_CLIENTS:
            for name, times in (("Flower", FLOWER_TIMES), ("NVFlare", NVFLARE_TIMES)):
                for entry in others:
                    if entry.system == name:
                        found.append(
                            Target(
                                f"{grid.title}: last in → out, {entry.system} ({entry.variant}) / LIFL",
                                "×",
                                times,
                                entry.median("tail_s") / tail_s,
                                at_least=True,
                            )
                        )
        if read_bytes_per_s:
            limit_ms = round((2 * grid.workload.nbytes / read_bytes_per_s + OVERHEAD_S) * 1e3, 1)
            found.append(Target(f"{grid.title}: LIFL, last in → out", "ms", limit_ms, tail_s * 1e3))
        model = grid.workload.nbytes
        grown = mine.median("grown_bytes") / model
        found.append(Target(f"{grid.title}: LIFL, memory beside the arena / model", "", 1.0, grown))
        if others:
            best = min(others, key=lambda entry: entry.median("cpu_s"))
            spent = mine.median("cpu_s") / best.median("cpu_s")
            name = f"{best.system}, {best.variant}"
            found.append(Target(f"{grid.title}: CPU of LIFL / best other ({name})", "", CPU_FRACTION, spent))
    return found


def _plots(done: Sequence[Grid]) -> list[Plot]:
    """Completion after the last update by clients, of the smallest model; CPU seconds beside it."""
    grids = sorted((g for g in done if g.pattern == "at once"), key=lambda g: g.clients)
    plots = []
    for depth in dict.fromkeys(g.workload.name for g in grids):
        for what, label in (("tail_s", "last update in to model out, s"), ("cpu_s", "server CPU, s")):
            lines: dict[str, list[tuple[int, float]]] = {}
            for grid in grids:
                if grid.workload.name == depth:
                    recommended = {entry.system: entry for entry in reversed(grid.entries)}  # each system's first
                    for entry in recommended.values():
                        lines.setdefault(entry.system, []).append((grid.clients, entry.median(what)))
            name = f"rounds-{depth}-{what.removesuffix('_s')}".lower().replace("/", "-")
            plots.append(Plot(name, f"{depth}, all updates at once: {label}", partial(_lines, lines, label)))
    return plots


def _lines(lines: dict[str, list[tuple[int, float]]], label: str, axes: Any) -> None:
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="clients", ylabel=label, yscale="log")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()

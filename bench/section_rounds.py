"""Rounds: how long an aggregation takes, and what it costs, by system, number of clients, size and arrival.

The systems of a cell stand ready at the same time and take turns, so that a machine whose speed drifts slows all of
them; where memory does not suffice for that, some run after the others.  The first round of each warms it up (pages,
workers) and is shown by itself; the others give median and spread.  Systems whose rounds are short have more of them
(n).  A system that is so slow that a second round would take too long has only the first, which then counts (n is 1,
and both figures are the same).

Cells come in the order of what they tell.  Before a cell it is reckoned for each system by itself, from what it took
before, whether it fits in the memory and in the time: one that does not is left out of that cell, with the reason, and
the others run.  Each LIFL cell has two of its rows: the default (a tree), and flat, which is right for one node.
LIFL's variants that are a job's own setting take turns on one node, and the three kinds of arrival with 8 clients have
the same servers: where a row has no first round, the servers had been warmed up by another row's.  Flower and NVFlare
have one kind less there.
All run with a malloc that recycles in the second cell: there is no time for more.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
from measure import Target, number
from systems.interface import (
    ALSO,
    MEMORY_SHARE,
    TUNED,
    Arrival,
    Context,
    Outcome,
    Plot,
    RoundResult,
    Settles,
    Shares,
    System,
    Table,
)
from systems.workload import Workload, resnet
from traces import arrivals

NAME = "rounds"
TITLE = "Rounds: from the updates to the model"
BUDGET_S = 525.0
QUICK_BUDGET_S = 45.0
CLIENTS = (8, 20, 32, 60, 100)
DEPTHS = (18, 34, 152)
PATTERNS = ("at once", "steady", "bursts")
BURSTS_ONLY = ("Flower", "NVFlare")
"""Systems whose rounds are so long that of the kinds of arrival they have only the harder one."""
VARIANT_CLIENTS = 8
ROUNDS, ROUNDS_LATER, ROUNDS_MAX = 3, 2, 7
"""With the one that warms up: at the least in the first two cells, and in the others; at most where they are short."""
TURNS_S, TURNS_LATER_S = 2.5, 6.0
"""So long a system goes on with more rounds than the least: in the first two cells there are many systems."""
SLOW_S, SLOW_S_PER_GB = 7.0, 6.5
"""A system whose first round in a cell took longer than both of these has no other one there: that one counts."""
SYSTEM_S, MANY_S = 30.0, 45.0
"""A system may take so long in a cell (of `MANY_CLIENTS` or more), or is left out there; not in the first ones."""
MANY_CLIENTS = 60
COMPARED_CLIENTS = 32
QUICK_CLIENTS, QUICK_WIDTH = 6, 8
FLOWER_TIMES, NVFLARE_TIMES = 10.0, 4.0
OVERHEAD_S = 0.005
CPU_FRACTION = 0.5

Kind = tuple[System, str]


@dataclass
class Entry:
    """One system's rounds in one cell.

    `around_s`: starting and ending it; `turns_s`: each round with all about it; `warm`: its servers had been in use.
    """

    system: str
    variant: str
    results: list[RoundResult] = field(default_factory=list)
    warm: bool = False
    around_s: float = 0.0
    turns_s: list[float] = field(default_factory=list)

    @property
    def counted(self) -> list[RoundResult]:
        """Without the first one, where there are others."""
        return self.results if self.warm else self.results[1:] or self.results

    def median(self, what: str) -> float:
        """Return the median of a field, or of what `value` makes of two."""
        return statistics.median(value(result, what) for result in self.counted)


def value(result: RoundResult, what: str) -> float:
    """Return a field of a result, or a difference of two.

    `in_s` is from the first update in to the last, `tail_s` from then until the model is out, `whole_s` both,
    `grown_bytes` the private memory that the round added.
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
    kinds: list[Kind]
    rounds: int
    system_s: float = SYSTEM_S
    entries: list[Entry] = field(default_factory=list)
    together: bool = True

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.clients} × {self.workload.name} ({self.workload.nbytes / 1e6:.1f} MB), {self.pattern}"

    @property
    def round_bytes(self) -> int:
        """What arrives in a round."""
        return self.clients * self.workload.nbytes

    @property
    def slow_s(self) -> float:
        """A round that takes longer is the only one of its system."""
        return max(SLOW_S, SLOW_S_PER_GB * self.round_bytes / 1e9)

    def turns(self, turn_s: float) -> int:
        """Return how many rounds a system has that takes so long for one, with all about it."""
        if self.rounds == 1 or turn_s > self.slow_s:
            return 1
        turns_s = TURNS_LATER_S if self.rounds == ROUNDS_LATER else TURNS_S
        return max(self.rounds, min(ROUNDS_MAX, math.ceil(turns_s / turn_s)))


def run(context: Context) -> Outcome:
    """Run the cells in order."""
    outcome = Outcome()
    done: list[Grid] = []
    for stand in plan(context):
        kinds = chosen(stand, done, context, outcome)
        if not kinds:
            continue
        begun_s = time.monotonic()
        measure(stand, kinds, context, outcome)
        for grid in stand if not context.quick else []:
            lacking = {system.name for system, _ in kinds} - {system.name for system, _ in grid.kinds}
            outcome.absent += [f"{grid.title}: {', '.join(sorted(lacking))}, for lack of time"] if lacking else []
        done += [grid for grid in stand if grid.entries]
        spent = ", ".join(f"{e.system} {e.around_s:.0f} + {sum(e.turns_s):.0f}" for g in stand for e in g.entries)
        took_s = time.monotonic() - begun_s
        print(f"{stand[0].title}: {took_s:.0f} s ({spent}); {context.left_s():.0f} s left", flush=True)
    outcome.tables = [_table(grid) for grid in done]
    outcome.plots = _plots(done)
    outcome.targets = [] if context.quick else targets(done, context.costs.get("read_bytes_per_s"))
    outcome.data = [
        {"cell": g.title, "clients": g.clients, "bytes": g.workload.nbytes, "pattern": g.pattern}
        | {"entries": [vars(e) | {"results": msgspec.to_builtins(e.results)} for e in g.entries]}
        for g in done
    ]
    return outcome


def plan(context: Context) -> list[list[Grid]]:
    """Return all cells, the most telling ones first; within a cell each system as recommended, then the other kinds.

    Cells of one list are measured one after the other with the systems of the first, without starting them again.
    """
    first = [(system, system.variants()[0]) for system in context.systems]
    every = [(system, variant) for system in context.systems for variant in system.variants()]
    if context.quick:
        small = resnet(18, context.seed, QUICK_WIDTH).saved(context.folder)
        untuned = [(system, variant) for system, variant in every if not variant.endswith(TUNED)]
        return [
            [Grid(small, QUICK_CLIENTS, "at once", untuned, 1)],
            [Grid(small, QUICK_CLIENTS, pattern, first[:1], 1) for pattern in PATTERNS[1:]],
        ]
    also = [(system, variant) for system, variant in every if variant in ALSO.get(system.name, ())]
    usual = [kind for one in first for kind in (one, *(other for other in also if other[0] is one[0]))]
    models = [resnet(depth, context.seed).saved(context.folder) for depth in DEPTHS]
    own = [(system, variant) for system, variant in every if system.name == "LIFL"]
    arriving = own + [kind for kind in first if kind[0].name != "LIFL"]
    steady = [kind for kind in arriving if kind[0].name not in BURSTS_ONLY]
    stands = [
        [Grid(models[0], COMPARED_CLIENTS, "at once", usual, ROUNDS, system_s=float("inf"))],
        [Grid(models[0], VARIANT_CLIENTS, "at once", every, ROUNDS, system_s=float("inf"))]
        + [Grid(models[0], VARIANT_CLIENTS, "steady", steady, 1)]
        + [Grid(models[0], VARIANT_CLIENTS, "bursts", arriving, 1)],
    ]
    # Many clients, then something of each model, then what lies between, then both.
    rest = [(18, 100), (152, 8), (34, 8), (18, 20), (34, 20), (18, 60), (152, 20), (34, 60), (34, 100), (152, 32)]
    rest += [(depth, n) for depth in DEPTHS[1:] for n in CLIENTS if (depth, n) not in rest]
    of = dict(zip(DEPTHS, models, strict=True))
    return stands + [
        [Grid(of[depth], n, "at once", usual, ROUNDS_LATER, MANY_S if n >= MANY_CLIENTS else SYSTEM_S)]
        for depth, n in rest
    ]


def chosen(stand: Sequence[Grid], done: Sequence[Grid], context: Context, outcome: Outcome) -> list[Kind]:
    """Return the kinds that fit, each by itself; the others are noted with the reason."""
    grid = stand[0]
    free_bytes, left_s = psutil.virtual_memory().available * MEMORY_SHARE, context.left_s()
    fit: list[Kind] = []
    why: list[str] = []
    for system, variant in grid.kinds:
        name = f"{system.name} ({variant})"
        needs_bytes = system.needs_bytes(grid.workload, grid.clients)
        shared = any(_shared(system, variant, *other) for other in fit)
        took_s = expected_s(stand, done, system.name, variant, shared)
        if needs_bytes > free_bytes:
            why.append(f"{name} needs about {needs_bytes / 1e9:.0f} GB, {free_bytes / 1e9:.0f} GB may be taken")
        elif took_s > grid.system_s:
            why.append(f"{name} would take about {took_s:.0f} s, {grid.system_s:.0f} s is the limit for a system")
        elif took_s > left_s:
            why.append(f"{name} would take about {took_s:.0f} s, {max(0, left_s):.0f} s of the time are left")
        else:
            fit.append((system, variant))
            left_s -= took_s
    if fit and len({system.name for system, _ in fit}) < min(2, len({system.name for system, _ in grid.kinds})):
        why.append(f"there is nothing to compare {fit[0][0].name} with")
        fit.clear()
    if why:
        title = grid.title + "".join(f", {other.pattern}" for other in stand[1:])
        outcome.absent.append(f"{title}: {'; '.join(why)}")
    return fit


def expected_s(stand: Sequence[Grid], done: Sequence[Grid], system: str, variant: str, shared: bool) -> float:
    """Return what a system will take in some cells, from the nearest that it has done; 0 when it has done none.

    `shared`: another variant's servers are there for it.
    """
    grid = stand[0]
    known = [
        (g, e)
        for g in done
        for e in g.entries
        if e.system == system and e.turns_s and g.pattern == "at once" and g.round_bytes <= grid.round_bytes
    ]
    if not known:
        return 0.0
    near, entry = max(known, key=lambda each: (each[1].variant == variant, each[0].round_bytes))
    turn_s = max(entry.turns_s) * grid.round_bytes / near.round_bytes
    larger = max(1.0, min(grid.clients / near.clients, grid.round_bytes / near.round_bytes))
    expected = 0.0 if shared else larger * max(e.around_s for e in near.entries if e.system == system)
    for each in stand:
        span_s = arrivals(each.pattern, each.clients, each.workload.nbytes, 0)[-1].at_s
        expected += each.turns(turn_s) * (turn_s + span_s)
    return expected


def measure(stand: Sequence[Grid], kinds: Sequence[Kind], context: Context, outcome: Outcome) -> None:
    """Run cells: their systems side by side, or some after the others where memory does not suffice for that."""
    groups = grouped(stand[0], kinds, psutil.virtual_memory().available * MEMORY_SHARE)
    for group in groups:
        with ExitStack() as opened:
            standing = _started(opened, stand[0], group, context, outcome)
            for grid in stand:
                grid.together = len(groups) == 1
                wanted = {(system.name, variant) for system, variant in grid.kinds}
                running = [each for each in standing if (each[1].system, each[1].variant) in wanted]
                if grid is not stand[0]:
                    running = [(one, Entry(entry.system, entry.variant, warm=True)) for one, entry in running]
                grid.entries += [entry for _, entry in running]
                times = arrivals(grid.pattern, grid.clients, grid.workload.nbytes, context.seed)
                while turn := [each for each in running if _goes_on(grid, each[1], times)]:
                    if context.left_s() < 0 and (turn[0][1].results or grid is not stand[0]):
                        break
                    failed = [each for each in turn if not _round(grid, *each, times, outcome)]
                    running = [each for each in running if each not in failed]
                    gone = [one for one, _ in failed]
                    standing = [each for each in standing if each[0] not in gone]
    for grid in stand:
        grid.entries = [entry for entry in grid.entries if entry.results]


def grouped(grid: Grid, kinds: Sequence[Kind], room_bytes: float) -> list[list[Kind]]:
    """Return the kinds in their order, as many at a time as memory allows: each keeps what its last round took."""
    groups: list[list[Kind]] = []
    left_bytes = 0.0
    for system, variant in kinds:
        needs_bytes = system.needs_bytes(grid.workload, grid.clients)
        if groups and any(_shared(system, variant, *other) for other in groups[-1]):
            needs_bytes = 0.0
        if not groups or needs_bytes > left_bytes:
            groups.append([])
            left_bytes = room_bytes
        groups[-1].append((system, variant))
        left_bytes -= needs_bytes
    return groups


def _shared(system: System, variant: str, other: System, its_variant: str) -> bool:
    return system.name == other.name and isinstance(other, Shares) and other.shares(its_variant, variant)


def _started(
    opened: ExitStack, grid: Grid, kinds: Sequence[Kind], context: Context, outcome: Outcome
) -> list[tuple[System, Entry]]:
    """Start systems of their own, which end with `opened`; one that does not start is noted and the others go on."""
    running: list[tuple[System, Entry]] = []
    for system, variant in kinds:
        entry = Entry(system.name, variant)
        there = [one for one, its in running if isinstance(one, Shares) and _shared(system, variant, one, its.variant)]
        if there:
            entry.warm = True
            running.append((there[0].also(variant), entry))
            continue
        one = type(system)()
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-", dir=context.folder)))
        begun_s = time.monotonic()
        opened.callback(_stop, one, entry)
        try:
            one.start(grid.workload, grid.clients, variant, folder)
        except Exception as error:  # noqa: BLE001 - the others can still be measured
            outcome.failures.append(f"{grid.title}: {system.name}, {variant} did not start: {error!r}")
        else:
            running.append((one, entry))
        entry.around_s = time.monotonic() - begun_s
    for one, entry in running:
        if isinstance(one, Settles) and not entry.warm:
            begun_s = time.monotonic()
            one.settle()
            entry.around_s += time.monotonic() - begun_s
    return running


def _stop(one: System, entry: Entry) -> None:
    begun_s = time.monotonic()
    one.stop()
    entry.around_s += time.monotonic() - begun_s


def _goes_on(grid: Grid, entry: Entry, times: Sequence[Arrival]) -> bool:
    """Return whether a system has another round: the first one may have been too long, the others are counted."""
    if not entry.results:
        return True
    if value(entry.results[0], "whole_s") > grid.slow_s + times[-1].at_s:
        return False
    return len(entry.results) < grid.turns(min(entry.turns_s) - times[-1].at_s)


def _round(grid: Grid, one: System, entry: Entry, times: Sequence[Arrival], outcome: Outcome) -> bool:
    """Run a round of one system; return False when it fails."""
    begun_s = time.monotonic()
    cell = f"{grid.title}: {one.name}, {entry.variant}"
    try:
        result = one.round(times)
    except Exception as error:  # noqa: BLE001 - the others can still be measured
        outcome.failures.append(f"{cell} failed: {error!r}")
        return False
    entry.results.append(result)
    entry.turns_s.append(time.monotonic() - begun_s)
    if not result.error <= one.tolerance:
        wrong = f"differs from the float64 reference by {result.error:.2e}, more than {one.tolerance:.0e}"
        outcome.failures.append(f"{cell}: the aggregate {wrong}")
    return True


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
                "" if entry.warm else number(value(entry.results[0], "tail_s") * 1e3),
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
    """Return what is to be reached, from the cells that were measured; for each of LIFL's two rows."""
    found: list[Target] = []
    for grid in done:
        if grid.pattern == "at once":
            others = [entry for entry in grid.entries if entry.system != "LIFL"]
            for mine in _own(grid.entries):
                found += _targets(grid, mine, others, read_bytes_per_s)
    return found


def _own(entries: Iterable[Entry]) -> list[Entry]:
    """Return LIFL's row as recommended, and those of `ALSO`."""
    rows = [entry for entry in entries if entry.system == "LIFL"]
    return rows[:1] + [entry for entry in rows[1:] if entry.variant in ALSO["LIFL"]]


def _targets(grid: Grid, mine: Entry, others: Sequence[Entry], read_bytes_per_s: float | None) -> list[Target]:
    found: list[Target] = []
    model = grid.workload.nbytes
    name = f"{grid.title}: LIFL ({mine.variant})"
    tail_s = mine.median("tail_s")
    if grid.clients == COMPARED_CLIENTS and grid.workload.name == "ResNet-18":
        for rival, times in (("Flower", FLOWER_TIMES), ("NVFlare", NVFLARE_TIMES)):
            for entry in (entry for entry in others if entry.system == rival):
                slower = entry.median("tail_s") / tail_s
                about = f"{name}, last in → out, {rival} ({entry.variant}) / LIFL"
                found.append(Target(about, "×", times, slower, at_least=True))
    if read_bytes_per_s:
        limit_ms = round((2 * model / read_bytes_per_s + OVERHEAD_S) * 1e3, 1)
        found.append(Target(f"{name}, last in → out", "ms", limit_ms, tail_s * 1e3))
    found.append(Target(f"{name}, memory beside the arena / model", "", 1.0, mine.median("grown_bytes") / model))
    if others:
        best = min(others, key=lambda entry: entry.median("cpu_s"))
        spent = mine.median("cpu_s") / best.median("cpu_s")
        about = f"{name}, CPU / best other ({best.system}, {best.variant})"
        found.append(Target(about, "", CPU_FRACTION, spent))
    return found


def _plots(done: Sequence[Grid]) -> list[Plot]:
    """Draw the completion after the last update by clients, of the smallest model; CPU seconds beside it."""
    grids = sorted((g for g in done if g.pattern == "at once"), key=lambda g: g.clients)
    plots = []
    for depth in dict.fromkeys(g.workload.name for g in grids):
        for what, label in (("tail_s", "last update in to model out, s"), ("cpu_s", "server CPU, s")):
            lines: dict[str, list[tuple[int, float]]] = {}
            for grid in grids:
                if grid.workload.name == depth:
                    recommended = {entry.system: entry for entry in reversed(grid.entries)}  # each system's first
                    rows = {e.system: e for e in recommended.values() if e.system != "LIFL"}
                    rows |= {f"LIFL: {entry.variant}": entry for entry in _own(grid.entries)}
                    for row, entry in rows.items():
                        lines.setdefault(row, []).append((grid.clients, entry.median(what)))
            name = f"rounds-{depth}-{what.removesuffix('_s')}".lower().replace("/", "-")
            plots.append(Plot(name, f"{depth}, all updates at once: {label}", partial(_lines, lines, label)))
    return plots


def _lines(lines: dict[str, list[tuple[int, float]]], label: str, axes: Any) -> None:
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="clients", ylabel=label, yscale="log")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()

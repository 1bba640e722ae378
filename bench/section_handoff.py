"""Hand-off of one update from one aggregator to the next, by all the ways that are compared, side by side.

LIFL by key (the update lies in the arena already) and with one copy into the arena before; SF by gRPC, in a stream of
chunks and as one message; SL through the broker, with a proxy at each side.  The time runs from before the sender
sends until the receiver has read numbers at the beginning, the middle and the end.  The ways of one size take turns.
Memory is what all processes on the way took of their own at the most, beyond what they stood at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import node_handoff
from measure import Cell, Helper, Target, cells_head, cpu_s, grown_bytes
from redirectors import kinds
from systems import serverful, serverless
from systems.broker import Broker, ended, proxied
from systems.interface import RECYCLING, TUNED, Context, Outcome, Plot, Table

NAME = "handoff"
TITLE = "Hand-off of one update between two aggregators"
BUDGET_S = 60.0
QUICK_BUDGET_S = 20.0
REPETITIONS, REPETITIONS_MIN, QUICK_REPETITIONS = 5, 3, 1
KEYS_PER_REPETITION = 5
"""Hand-offs by key are so short that each repetition has several of them."""
STARTING_BYTES = 60_000_000
"""To start all the ways takes about as long as so much on all of them."""
BY_KEY, WITH_COPY = "LIFL by key", "LIFL with a copy"
TIMES = {BY_KEY: (100.0, 1000.0), WITH_COPY: (4.0, 20.0)}
"""So many times faster than SF's stream and than SL."""


class Way(NamedTuple):
    """`measure` is one hand-off: its ms, and the CPU ms of all processes on the way, which are `pids`."""

    measure: Callable[[], tuple[float, float]]
    pids: list[int]


def run(context: Context) -> Outcome:
    """Measure each size; with little time left they get fewer repetitions."""
    outcome = Outcome()
    sizes = node_handoff.QUICK_BYTES if context.quick else node_handoff.SIZES_BYTES
    ready = {system.name for system in context.systems}
    outcome.absent = [f"{name}: is not there" for name in ("SF", "SL") if name not in ready]
    tables: dict[str, list[Cell]] = {}
    left_bytes = sum(sizes.values()) + STARTING_BYTES * len(sizes)
    for size, nbytes in reversed(sizes.items()):
        # The time goes by the size, as the hand-offs do.
        end_s = context.left_s() * (1 - (nbytes + STARTING_BYTES) / left_bytes)
        left_bytes -= nbytes + STARTING_BYTES
        with ExitStack() as opened:
            ways = _ways(opened, size, nbytes, ready)
            cells = {name: Cell(name, "ms") for name in ways}
            repetitions = QUICK_REPETITIONS if context.quick else REPETITIONS
            for repetition in range(-1, repetitions):
                if repetition >= REPETITIONS_MIN and context.left_s() < end_s:
                    outcome.absent.append(f"{size}: {repetition} of {repetitions} repetitions, for lack of time")
                    break
                for name, way in ways.items():
                    for _ in range(KEYS_PER_REPETITION if name.startswith(BY_KEY) else 1):
                        with grown_bytes(way.pids) as grown:
                            measured = way.measure()
                        if repetition >= 0:
                            cells[name].add(*measured, grown[0] / 1e6)
        tables[size] = list(cells.values())
    head = cells_head("ms of all on the way")
    outcome.tables = [
        Table(f"An update of {size}", head, [cell.row() for cell in cells]) for size, cells in reversed(tables.items())
    ]
    outcome.data = {size: [cell.builtins() for cell in cells] for size, cells in tables.items()}
    outcome.plots = [Plot("handoff", "Hand-off of one update, ms (median)", partial(_bars, tables))]
    largest = next(iter(tables))
    outcome.targets = targets(largest, {cell.name: cell.median for cell in tables[largest]})
    context.costs["handoff_s"] = tables[largest][0].median / 1e3
    return outcome


def targets(size: str, medians: dict[str, float]) -> list[Target]:
    """Return LIFL against the others, each as installed and with the malloc that keeps its memory."""
    found = []
    for mine, (serverful_times, serverless_times) in TIMES.items():
        name = f"{mine}, {kinds()[0]}" if mine == BY_KEY else mine
        for other, median in medians.items():
            times = serverful_times if other.startswith("SF stream") else serverless_times
            if other.startswith(("SF stream", "SL")):
                ratio = median / medians[name]
                found.append(Target(f"hand-off of {size}: {other} / {name}", "×", times, ratio, at_least=True))
    return found


def _ways(opened: ExitStack, size: str, nbytes: int, ready: set[str]) -> dict[str, Way]:
    handoffs = node_handoff.Handoffs(opened, {size: nbytes})
    ways: dict[str, Way] = {}
    for name, kind in [*((f"{BY_KEY}, {kind}", kind) for kind in kinds()), (WITH_COPY, node_handoff.COPY)]:
        ways[name] = Way(partial(handoffs.measure, size, kind), handoffs.pids(kind))
    for ending, settings in (("", {}), (TUNED, RECYCLING)):
        if "SF" in ready:
            for method in ("stream", "unary"):
                ways[f"SF {method}{ending}"] = _serverful(opened, nbytes, method, settings)
        if "SL" in ready:
            ways[f"SL{ending}"] = _serverless(opened, nbytes, settings)
    return ways


def _serverful(opened: ExitStack, nbytes: int, method: str, settings: dict[str, str]) -> Way:
    receiver = serverful.aggregator(nbytes, "", method, settings, opened)
    receiver.helper.ask(what="touch")
    sender = serverful.aggregator(nbytes, receiver.address, method, settings, opened)
    pids = [sender.helper.pid, receiver.helper.pid]

    def measure() -> tuple[float, float]:
        before_s = cpu_s(pids)
        begun_ns = sender.helper.ask(what="send")["begun_ns"]
        received_ns = receiver.helper.ask(what="received")["received_ns"]
        return (received_ns - begun_ns) / 1e6, (cpu_s(pids) - before_s) * 1e3

    return Way(measure, pids)


def _serverless(opened: ExitStack, nbytes: int, settings: dict[str, str]) -> Way:
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-")))
    broker = opened.enter_context(Broker(folder, settings))
    helpers, pids = [], [broker.pids[0]]
    for role in ("send", "receive"):
        proxy, port = proxied(folder / role, broker.port, 1, settings)
        opened.callback(ended, proxy)
        helper = Helper(serverless.HANDOFF, [role, str(port), str(nbytes)], environment=settings)
        opened.callback(helper.close)
        helper.reply()
        helpers.append(helper)
        pids += [proxy.pid, helper.pid]
    sender, receiver = helpers

    def measure() -> tuple[float, float]:
        before_s = cpu_s(pids)
        receiver.order()
        begun_ns = sender.ask()["begun_ns"]
        received_ns = receiver.reply()["received_ns"]
        return (received_ns - begun_ns) / 1e6, (cpu_s(pids) - before_s) * 1e3

    return Way(measure, pids)


def _bars(tables: dict[str, list[Cell]], axes: Any) -> None:
    sizes = list(reversed(tables))
    names = [cell.name for cell in tables[sizes[0]]]
    width = 0.8 / len(names)
    for at, name in enumerate(names):
        heights = [next(cell.median for cell in tables[size] if cell.name == name) for size in sizes]
        axes.bar([place + at * width for place in range(len(sizes))], heights, width, label=name)
    axes.set(yscale="log", ylabel="ms")
    axes.set_xticks([place + 0.4 for place in range(len(sizes))], sizes)
    axes.legend(fontsize="x-small", ncols=2)

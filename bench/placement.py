"""How long placement takes: every policy, equal and mixed demands, at two sizes, beside client-by-client code.

    python bench/placement.py [--repeats 31]

The cases take turns within each repeat, so that a busy moment of the machine meets all of them; printed are
medians and the best, in milliseconds.  `bisect` is best-fit client by client over a sorted list, in plain Python.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from measure import Cell, Group, Target, grown_bytes

from lifl.core.config.aggregation import Policy
from lifl.core.planning.placement import assign
from lifl.core.planning.plan import NodeFacts, PlanRequest
from lifl.core.planning.planner import make_plan

SIZES = ((10_000, 100, 1.5), (1_000_000, 1_000, 60.0))
CLASSES = 8
REPEATS = 11
MODEL_BYTES = 46_800_000


def instance(clients: int, nodes: int, classes: int) -> tuple[list[int], np.ndarray, list[int]]:
    """Return demands of 1 to `classes` units, and nodes of unequal capacity that hold nearly all of the clients."""
    rng = np.random.default_rng(1)
    class_of = rng.integers(0, classes, clients)
    wanted = int((class_of + 1).sum()) // nodes
    residual: list[int] = rng.integers(wanted // 2, wanted * 3 // 2, nodes).tolist()
    return list(range(1, classes + 1)), class_of, residual


def bisect_list(demands: list[int], class_of: np.ndarray, residual: list[int]) -> list[int]:
    """Do best-fit client by client; a client that fits nowhere stays unplaced (-1)."""
    free = sorted((units, node) for node, units in enumerate(residual))
    node_of = [-1] * len(class_of)
    for client in np.argsort(-class_of, kind="stable").tolist():
        demand = demands[class_of[client]]
        at = bisect_left(free, (demand, -1))
        if at < len(free):
            units, node_of[client] = free.pop(at)
            insort(free, (units - demand, node_of[client]))
    return node_of


def median_ms(cases: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Return (median, best) of each case in ms, the cases taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: (statistics.median(values), min(values)) for name, values in taken.items()}


def planning(clients: int, nodes: int) -> PlanRequest:
    """Return a round of `clients` updates of ResNet-18 on nodes of unequal capacity that hold nearly all of them."""
    _, _, residual = instance(clients, nodes, 1)
    facts = tuple(NodeFacts(f"n{node}", float(units), 1 << 44) for node, units in enumerate(residual))
    return PlanRequest(updates=clients, model_bytes=MODEL_BYTES, partial_bytes=2 * MODEL_BYTES, nodes=facts)


def run(quick: bool) -> Group:
    """Measure the best-fit cells and the whole plan, for the comparison; `main` has all policies."""
    cells, targets = [], []
    for clients, nodes, goal_ms in SIZES[:1] if quick else SIZES:
        given, request = instance(clients, nodes, CLASSES), planning(clients, nodes)
        cases: dict[str, Callable[[], Any]] = {
            "best-fit, mixed demands": lambda given=given: assign("best-fit", *given),
            "whole plan": lambda request=request: make_plan(request),
        }
        here = {name: Cell(f"{name}, {clients:,} clients × {nodes:,} nodes", "ms") for name in cases}
        for _ in range(1 if quick else REPEATS):
            for name, case in cases.items():
                with grown_bytes([os.getpid()]) as grown:
                    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
                    case()
                    took_ms, spent_ms = (time.perf_counter() - begun_s) * 1e3, (time.process_time() - begun_cpu_s) * 1e3
                here[name].add(took_ms, spent_ms, grown[0] / 1e6)
        cells += here.values()
        best = here["best-fit, mixed demands"]
        targets.append(Target(best.name, "ms", goal_ms, best.median))
    about = "Placement alone, and the plan of a round with tree, top and explanations (`lifl plan`)."
    return Group("placement", "Placement and planning", about, "ms", cells, targets)


def main() -> None:
    parser = argparse.ArgumentParser(description="the speed of placement")
    parser.add_argument("--repeats", type=int, default=31)
    repeats = parser.parse_args().repeats
    for clients, nodes, goal_ms in SIZES:
        cases: dict[str, Callable[[], Any]] = {}
        for label, classes in (("equal", 1), ("mixed", CLASSES)):
            given = instance(clients, nodes, classes)
            for policy in get_args(Policy):
                cases[f"{policy}, {label}"] = lambda policy=policy, given=given: assign(policy, *given)
        mixed = instance(clients, nodes, CLASSES)
        rivals = {"bisect, mixed": lambda mixed=mixed: bisect_list(*mixed)}
        print(f"{clients:,} clients x {nodes:,} nodes, goal {goal_ms} ms: median (best) ms")
        for name, (median, best) in {**median_ms(cases, repeats), **median_ms(rivals, min(repeats, 3))}.items():
            print(f"  {name:20} {median:9.2f} ({best:.2f})")


if __name__ == "__main__":
    main()

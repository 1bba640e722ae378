"""Scale by simulation: LIFL's planner and round machine on a virtual clock, with costs from this run's measurements.

Two tables.  *Planned*: the planner alone (`planning/`), up to 1,000 nodes and 1,000,000 clients: what it decides,
what it predicts, and how long it takes to decide.  *Simulated*: the round machine itself (`virtual.py`): each node's
engine with its allocator and the coordinator take every message of every client, and only what costs time on a machine
is reckoned: ingest, fold, start of workers, links.  A job selects at most 10,000 clients for a round, a limit of LIFL's
own, so it goes so far.  What cannot be measured on one machine is the network between nodes: 10 Gbit/s are taken.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import virtual
from measure import number
from systems.interface import Context, Outcome, Plot, Table
from systems.workload import resnet

from lifl.core.errors import Refused
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.plan import Costs, NodeFacts, Plan, PlanRequest
from lifl.core.planning.planner import make_plan

NAME = "scale"
TITLE = "Scale by simulation"
BUDGET_S = 20.0
QUICK_BUDGET_S = 15.0
NODES, CLIENTS = (1, 10, 100, 1_000), (100, 1_000, 10_000, 100_000, 1_000_000)
SIMULATED = ((1, 100), (1, 1_000), (10, 1_000), (100, 1_000), (10, 10_000), (100, 10_000), (1_000, 10_000))
QUICK_NODES, QUICK_CLIENTS, QUICK_SIMULATED = (1, 100), (100, 10_000), ((1, 20), (4, 100))
WINDOW_S = 60.0
ARENA_BYTES = 128 << 30
PLANS = 3
"""Times that a plan is made, for the median."""
LINK_BYTES_PER_S = 1.25e9
PARTIAL_TIMES = 2
"""A partial of float32 numbers has so many times the bytes of the model."""


@dataclass
class Cell:
    """One plan; None when the planner refused, with its words."""

    nodes: int
    clients: int
    arrival_s: float
    plan: Plan | None
    took_s: float
    limits_s: dict[str, float]
    refused: str = ""

    @property
    def limit(self) -> str:
        """What takes most of the time."""
        return max(self.limits_s, key=self.limits_s.__getitem__)


def run(context: Context) -> Outcome:
    """Plan, then simulate."""
    outcome = Outcome()
    costs, told = costs_of(context.costs)
    model_bytes = resnet(18, context.seed).nbytes
    cells = [
        planned(nodes, clients, arrival_s, costs, model_bytes)
        for arrival_s in (0.0, WINDOW_S)
        for clients in (QUICK_CLIENTS if context.quick else CLIENTS)
        for nodes in (QUICK_NODES if context.quick else NODES)
    ]
    simulated: list[dict[str, float]] = []
    for nodes, clients in QUICK_SIMULATED if context.quick else SIMULATED:
        if context.left_s() <= 0:
            outcome.absent.append(f"{nodes} nodes, {clients} clients simulated: no time is left")
            continue
        found = simulate(nodes, clients, costs, model_bytes, max(1.0, context.left_s()))
        if found is None:
            outcome.absent.append(f"{nodes} nodes, {clients} clients simulated: not at its end when the time was over")
        else:
            simulated.append(found)
    if not simulated:
        outcome.failures.append("no round could be simulated")
    outcome.tables = [_planned_table(cells, told), _simulated_table(simulated)]
    if simulated:
        outcome.tables.append(_limits_table(costs, model_bytes, simulated))
    outcome.plots = [Plot("scale", "all updates at once: until the model (planned)", partial(_lines, cells))]
    outcome.data = {
        "costs": told,
        "planned": [
            {"nodes": c.nodes, "clients": c.clients, "arrival_s": c.arrival_s, "took_s": c.took_s}
            | {"limits_s": c.limits_s, "refused": c.refused, "used": len(c.plan.used) if c.plan else 0}
            | {"completion_s": c.plan.completion_s if c.plan else None}
            | {"transfer_bytes": c.plan.transfer_bytes if c.plan else 0}
            for c in cells
        ],
        "simulated": simulated,
    }
    return outcome


def costs_of(measured: dict[str, float]) -> tuple[Costs, dict[str, str]]:
    """Return the planner's costs, those measured in this run where there are any; and where each comes from."""
    default = Costs()
    values = {"link_bytes_per_s": LINK_BYTES_PER_S}
    told = {"link_bytes_per_s": f"{LINK_BYTES_PER_S:.3g} (taken)"}
    for name in ("ingest_bytes_per_s", "fold_bytes_per_s", "cold_s", "warm_s"):
        values[name] = measured.get(name, getattr(default, name))
        told[name] = f"{values[name]:.3g} ({'measured in this run' if name in measured else 'the default of LIFL'})"
    return Costs(**values), told


def planned(nodes: int, clients: int, arrival_s: float, costs: Costs, model_bytes: int) -> Cell:
    """Return one plan, and what bounds its round."""
    facts = tuple(
        NodeFacts(f"{n:016x}", float(virtual.CORES), ARENA_BYTES, workers_max=virtual.CORES)
        for n in range(1, nodes + 1)
    )
    partial_bytes = PARTIAL_TIMES * model_bytes + clients * CONTRIBUTION_BYTES_MAX
    request = PlanRequest(
        clients, model_bytes, partial_bytes, facts, arrival_s=arrival_s, model_node=facts[0].node, costs=costs
    )
    took = []
    plan: Plan
    for _ in range(PLANS):
        begun = time.perf_counter()
        try:
            plan = make_plan(request)
        except Refused as error:
            return Cell(nodes, clients, arrival_s, None, time.perf_counter() - begun, {}, str(error))
        took.append(time.perf_counter() - begun)
    busiest = max(part.updates for part in plan.nodes)
    remote = sum(transfer.what == "partial" for transfer in plan.transfers)
    limits = {
        "arrival": arrival_s,
        "ingest": busiest * model_bytes / costs.ingest_bytes_per_s,
        "fold": busiest * model_bytes / costs.fold_bytes_per_s / virtual.CORES,
        "the top's link": remote * partial_bytes / costs.link_bytes_per_s,
    }
    return Cell(nodes, clients, arrival_s, plan, statistics.median(took), limits)


def simulate(nodes: int, clients: int, costs: Costs, model_bytes: int, limit_s: float) -> dict[str, float] | None:
    """Run one round by the engines, all updates at once; None when it takes too long."""
    cluster = virtual.Timed(model_bytes, clients, nodes, costs, 0.0)
    if not cluster.run_round(limit_s):
        return None
    if cluster.job.status != "finished":
        raise RuntimeError(f"the simulated job is {cluster.job.status}: {cluster.job.reason}")
    cell = planned(nodes, clients, 0.0, costs, model_bytes)
    return {
        "nodes": nodes,
        "clients": clients,
        "used": len(cluster.received),
        "completion_s": cluster.completed_s,
        "planned_s": cell.plan.completion_s if cell.plan else math.nan,
        "moved_bytes": cluster.moved_bytes,
        "messages": cluster.events,
        "home_s": cluster.home_s,
    }


# ---- what is shown -------------------------------------------------------------------------------------------------


def _planned_table(cells: list[Cell], told: dict[str, str]) -> Table:
    head = ["updates come", "clients", "nodes", "used", "until the model, s", "between nodes, GB", "bounded by"]
    head.append("fullest arena, GB")
    rows = []
    for c in cells:
        row = ["at once" if not c.arrival_s else f"in {c.arrival_s:g} s", f"{c.clients:,}", f"{c.nodes:,}"]
        if c.plan is None:
            row += ["", "", "", "refused (below)", ""]
        else:
            row += [f"{len(c.plan.used):,}", number(c.plan.completion_s), number(c.plan.transfer_bytes / 1e9)]
            row.append(f"{c.limit} ({number(c.limits_s[c.limit])} s)")
            row.append(number(max(part.peak_bytes for part in c.plan.nodes) / 1e9))
        rows.append([*row, number(c.took_s * 1e3)])
    about = "Nodes of 2 cores and 128 GiB of arena; ResNet-18.  Costs: " + ", ".join(
        f"{n} {t}" for n, t in told.items()
    )
    about += "."
    for refused in dict.fromkeys(cell.refused for cell in cells if cell.refused):
        about += f"\n\nRefused: {refused}."
    return Table("Planned", [*head, "planning, ms"], rows, about)


def _simulated_table(simulated: list[dict[str, float]]) -> Table:
    head = ["clients", "nodes", "used", "until the model, s", "the plan says, s", "between nodes, GB", "messages"]
    rows = [
        [
            *(f"{int(each[name]):,}" for name in ("clients", "nodes", "used")),
            *(number(each["completion_s"]), number(each["planned_s"]), number(each["moved_bytes"] / 1e9)),
            *(f"{int(each['messages']):,}", number(each["home_s"] / each["clients"] * 1e6)),
        ]
        for each in simulated
    ]
    about = (
        "All updates at once.  The last column is really measured: the processor time that the coordinating node's "
        "engine took, for each client of the round (its own clients are a part of them)."
    )
    return Table("Simulated: the round machine on a virtual clock", [*head, "coordinator, µs a client"], rows, about)


def _limits_table(costs: Costs, model_bytes: int, simulated: list[dict[str, float]]) -> Table:
    """Return where it stops scaling, reckoned from the figures above."""
    # Of several nodes: on one the coordinator's engine is the agent of all clients as well.
    several = [each for each in simulated if each["nodes"] > 1] or simulated
    client_s, node_s = _coordinator_s(several)
    rows = []
    for clients in CLIENTS:
        partial_bytes = PARTIAL_TIMES * model_bytes + clients * CONTRIBUTION_BYTES_MAX
        ingest_bytes = clients * model_bytes
        wanted = math.sqrt(ingest_bytes * costs.link_bytes_per_s / costs.ingest_bytes_per_s / partial_bytes)
        best = min(max(1, round(wanted)), clients)
        ingest_s = ingest_bytes / best / costs.ingest_bytes_per_s
        link_s = (best - 1) * partial_bytes / costs.link_bytes_per_s
        coordinator_s = clients * client_s + best * node_s
        rows.append(
            [f"{clients:,}", f"{best:,}", number(ingest_s), number(link_s), number(coordinator_s)]
            + ["the coordinator" if coordinator_s > ingest_s + link_s else "ingest and the top's link"]
        )
    head = ["clients", "nodes beyond which more are slower", "ingest then, s", "the top's link then, s"]
    ingest, link = costs.ingest_bytes_per_s / 1e9, costs.link_bytes_per_s / 1e9
    about = (
        "More nodes share the ingest, but each sends one partial over the link of the top's node, one after the other: "
        f"n nodes take clients × model / (n × {ingest:.2f} GB/s) + n × partial / {link:.2f} GB/s, which is least at "
        "n = √(clients × model × link / ingest / partial); beyond that a level of middles between nodes is missing.  "
        f"A partial is the model and room for {CONTRIBUTION_BYTES_MAX} bytes about each client of the round, with a "
        "million clients more than the model.  One coordinator decides for all clients; fitted to the simulated "
        f"rounds, that takes {client_s * 1e6:.0f} µs of one core for each client and {node_s * 1e6:.0f} µs for each "
        "node of a round."
    )
    return Table("Where it stops scaling", [*head, "the coordinator, s", "the longest"], rows, about)


def _coordinator_s(simulated: list[dict[str, float]]) -> tuple[float, float]:
    """Return the coordinator's processor time for each client and each node of a round.

    Every round's fault counts in its own proportion.

    One round alone does not tell them apart: then all is the clients'.
    """
    if len(simulated) == 1:
        return simulated[0]["home_s"] / simulated[0]["clients"], 0.0
    rows = np.array([[each["clients"], each["nodes"]] for each in simulated], float)
    home_s = np.array([each["home_s"] for each in simulated])
    client_s, node_s = np.linalg.lstsq(rows / home_s[:, None], np.ones(len(home_s)), rcond=None)[0]
    return float(client_s), max(0.0, float(node_s))


def _lines(cells: list[Cell], axes: Any) -> None:
    for nodes in dict.fromkeys(cell.nodes for cell in cells):
        points = [(c.clients, c.plan.completion_s) for c in cells if c.plan and c.nodes == nodes and not c.arrival_s]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{nodes:,} nodes")
    axes.set(xlabel="clients", ylabel="until the model, s", xscale="log", yscale="log")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()

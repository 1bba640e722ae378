"""The parts of one node by themselves: fold, ingest, start of aggregators, placement (groups of `bench/node.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import node_fold
import node_ingest
import node_start
import placement
from measure import Cell, Group, cells_head
from redirectors import kinds
from systems.interface import Context, Outcome, Plot, Table

NAME = "node"
TITLE = "The parts of one node"
BUDGET_S = 80.0
QUICK_BUDGET_S = 40.0
GROUPS = {
    "fold": node_fold.run,
    "start": node_start.run,
    "placement": placement.run,
    "ingest": node_ingest.run,
}


def run(context: Context) -> Outcome:
    """Run the groups one after the other."""
    outcome = Outcome(data={})
    for name, group_of in GROUPS.items():
        try:
            group = group_of(context.quick)
        except Exception as error:  # noqa: BLE001 - the other groups are worth having
            outcome.failures.append(f"{name}: {error!r}")
            continue
        rows = [cell.row() for cell in group.cells]
        outcome.tables.append(Table(group.title, cells_head(group.cpu_unit), rows, group.about))
        outcome.plots.append(Plot(f"node-{name}", group.title, partial(_bars, group.cells)))
        outcome.targets += group.targets
        outcome.data[name] = group.builtins()
        _note_costs(context.costs, group)
    if context.quick:
        outcome.targets = []
    return outcome


def _bars(cells: Sequence[Cell], axes: Any) -> None:
    """Draw rates, or times on a scale by powers of ten: medians, with a line from the least to the most."""
    unit = cells[0].unit.split()[0]
    shown = [cell for cell in reversed(cells) if cell.unit.split()[:1] == [unit]]
    medians = [cell.median for cell in shown]
    least = [cell.median - min(cell.values) for cell in shown]
    most = [max(cell.values) - cell.median for cell in shown]
    axes.barh([cell.name for cell in shown], medians, xerr=(least, most), capsize=2)
    axes.set(xlabel=unit, xscale="log" if unit == "ms" else "linear")
    axes.tick_params(axis="y", labelsize="x-small")


def _note_costs(costs: dict[str, Any], group: Group) -> None:
    """Note what later sections reckon with."""
    medians = {cell.name: cell.median for cell in group.cells}
    names = {
        "read_bytes_per_s": ("plain read of 8 updates", 1e9),
        "fold_bytes_per_s": ("fold of 8 updates", 1e9),
        "ingest_bytes_per_s": ("gateway, 4 clients", 1e9),
        "cold_s": (f"cold start, {kinds()[0]}", 1e-3),
        "warm_s": (f"warm start, {kinds()[0]}", 1e-3),
    }
    costs.update({cost: medians[name] * unit for cost, (name, unit) in names.items() if name in medians})

"""What a round cost, and what its clients measured, out of its books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from lifl.core.coordinator.round import Phase, Round
from lifl.core.fields import Integer, Real
from lifl.core.limits import COST_LINES_MAX, ROUND_METRICS_MAX
from lifl.core.protocol.contribution import Contribution
from lifl.core.protocol.peer_check import TreeLine


class ReceiptLine(TreeLine):
    """One task of a round; `node` in hexadecimal digits."""

    node: NotRequired[str]


class Receipt(TypedDict):
    """What a round cost, as its row has it (`node/rows.py`)."""

    selected: Integer
    accepted: Integer
    counted: Integer
    expired: Integer
    weight: Real
    bytes_in: Integer
    bytes_out: Integer
    bytes_between: Integer
    cpu_s: dict[str, Real]
    arena_peak_bytes: Integer
    duration_s: Real
    last_accepted_to_sealed_s: Real | None
    last_accepted_to_commit_s: Real | None
    workers_cold: Integer
    workers_warm: Integer
    workers_promoted: Integer
    workers_shared: Integer
    nodes: Integer
    tree: list[ReceiptLine]
    redirector: NotRequired[str]


def metrics_of(accepted: Mapping[str, Contribution]) -> dict[str, float]:
    """Return the weighted means of the metrics over the accepted clients that sent each: those that most sent."""
    sent = Counter(name for member in accepted.values() for name in member.metrics)
    shown = sorted(sent, key=lambda name: (-sent[name], name))[:ROUND_METRICS_MAX]
    sums: dict[str, tuple[float, float]] = {}
    for member in accepted.values():
        for name, value in member.metrics.items():
            total, weight = sums.get(name, (0.0, 0.0))
            sums[name] = (total + value * member.weight, weight + member.weight)
    return {name: sums[name][0] / sums[name][1] for name in sorted(shown)}


def costs_of(round_: Round) -> list[dict[str, Any]]:
    """Return what each branch cost; its tree's lines name the node."""
    found, left = [], COST_LINES_MAX
    for record in round_.branches.values():
        tree = [line | {"node": f"{record.node:016x}"} for line in record.cost.get("tree", ())[:left]]
        left -= len(tree)
        found.append(record.cost | {"tree": tree})
    return found


def receipt_of(round_: Round, now: float) -> Receipt:
    """Return what the round cost; the node adds its own processes' CPU, and the redirector."""
    last, costs = round_.last_accepted_s, costs_of(round_)

    def total(name: str) -> float:
        return sum(float(cost.get(name, 0)) for cost in costs)

    def started(how: str) -> int:
        return sum(int(cost.get("starts", {}).get(how, 0)) for cost in costs)

    return {
        "selected": len(round_.selected),
        "accepted": len(round_.accepted),
        "counted": len(round_.accepted) if round_.phase is Phase.COMMITTED else 0,
        "expired": len(round_.selected) - len(round_.accepted),
        "weight": sum(member.weight for member in round_.accepted.values()),
        "bytes_in": round_.received_bytes,
        "bytes_out": int(total("sent_bytes")),
        "bytes_between": round_.between_bytes + int(total("fetched_bytes")),
        "cpu_s": {"workers": total("worker_cpu_s")},
        "arena_peak_bytes": max((cost.get("peak_bytes", 0) for cost in costs), default=0),
        "duration_s": now - round_.opened_at_s if round_.opened_at_s is not None else 0.0,
        "last_accepted_to_sealed_s": round_.sealed_s - last if last is not None and round_.sealed_s else None,
        "last_accepted_to_commit_s": now - last if last is not None else None,
        "workers_cold": started("cold"),
        "workers_warm": started("warm"),
        "workers_promoted": started("promoted"),
        "workers_shared": started("shared"),
        "nodes": len(round_.nodes),
        "tree": [line for cost in costs for line in cost["tree"]],
    }

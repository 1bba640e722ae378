"""What a round cost, and what its clients measured, out of its books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import msgspec

from lifl.core.coordinator.round import Phase, Round
from lifl.core.fields import Integer, Real
from lifl.core.limits import CLIENT_METRICS_MAX, COST_LINES_MAX, ROUND_METRICS_MAX
from lifl.core.protocol.contribution import Contribution, root_of
from lifl.core.protocol.peer_check import ReceiptLine


class Timeline(TypedDict):
    """When what happened in a round, in seconds since it was open for updates; None: that has not happened.

    `updates` has by client when its update was granted and when it was accepted, of `COST_LINES_MAX` at the most.
    """

    began_s: Real
    sealed_s: Real | None
    saved_s: Real | None
    ended_s: Real
    updates: dict[str, tuple[Real, Real]]


class Receipt(TypedDict):
    """What a round cost, as its row has it (`node/rows.py`); `edited`: what of its job's config had changed.

    `updates_digest` stands for its updates (`contribution.root_of`), where that of each is known.
    """

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
    clients: NotRequired[dict[str, dict[str, Real]]]
    timeline: NotRequired[Timeline]
    edited: NotRequired[dict[str, Any]]
    updates_digest: NotRequired[str]


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


def metrics_by_client(accepted: Mapping[str, Contribution]) -> dict[str, dict[str, float]]:
    """Return what each client measured, of those that measured something: the first `CLIENT_METRICS_MAX` by name."""
    shown = sorted(name for name, member in accepted.items() if member.metrics)[:CLIENT_METRICS_MAX]
    return {name: dict(accepted[name].metrics) for name in shown}


def costs_of(round_: Round) -> list[dict[str, Any]]:
    """Return what each branch cost; its tree's lines name the node."""
    found, left = [], COST_LINES_MAX
    for record in round_.branches.values():
        since_s = _since(round_, record.opened_at_s) or 0.0
        tree = [_timed(line, since_s) | {"node": f"{record.node:016x}"} for line in record.cost.get("tree", ())[:left]]
        left -= len(tree)
        found.append(record.cost | {"tree": tree})
    return found


def _since(round_: Round, at_s: float | None) -> float | None:
    """Return the seconds from the opening of the round to a moment."""
    return None if at_s is None or round_.opened_at_s is None else at_s - round_.opened_at_s


def _timed(line: Mapping[str, Any], since_s: float) -> dict[str, Any]:
    """Return the line of a task, with times since the opening of its branch, with such of its round."""
    return {name: value + since_s if name in ("began_s", "ended_s") else value for name, value in line.items()}


def timeline_of(round_: Round, now: float) -> Timeline:
    """Return when what happened in a round that is over."""
    updates = {}
    for client in list(round_.accepted)[:COST_LINES_MAX]:
        accepted_s = round_.accepted_at_s.get(client)
        granted_s = round_.granted_at_s.get(client, accepted_s)
        updates[client] = (_since(round_, granted_s) or 0.0, _since(round_, accepted_s) or 0.0)
    return {
        "began_s": _since(round_, round_.began_at_s) or 0.0,
        "sealed_s": _since(round_, round_.sealed_s),
        "saved_s": _since(round_, round_.saved_s),
        "ended_s": _since(round_, now) or 0.0,
        "updates": updates,
    }


def receipt_of(round_: Round, now: float) -> Receipt:
    """Return what the round cost; the node adds its own processes' CPU, and the redirector."""
    last, costs = round_.last_accepted_s, costs_of(round_)

    def total(name: str) -> float:
        return sum(float(cost.get(name, 0)) for cost in costs)

    def started(how: str) -> int:
        return sum(int(cost.get("starts", {}).get(how, 0)) for cost in costs)

    receipt: Receipt = {
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
        "timeline": timeline_of(round_, now),
    }
    if round_.changes:
        receipt["edited"] = round_.changes
    updates = [(client, *each) for client, each in updates_of(round_).items()]
    if updates and all(digest for _, _, digest in updates):
        receipt["updates_digest"] = root_of(updates)
    return receipt


def updates_of(round_: Round) -> dict[str, tuple[float, int]]:
    """Return weight and digest of each update that counts, in the order of the clients' names; 0: it is not known."""
    return {
        client: (member.weight, 0 if isinstance(member.digest, msgspec.UnsetType) else member.digest)
        for client, member in sorted(round_.accepted.items())
    }

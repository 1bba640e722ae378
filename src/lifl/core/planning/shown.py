"""What is shown of a plan: by `lifl plan`, and by the page in a browser."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from lifl.core.config.job import JobConfig
from lifl.core.planning.draw import drawn, seed_of
from lifl.core.planning.plan import Plan, PlanRequest


def plan_shown(request: PlanRequest, made: Plan) -> dict[str, Any]:
    """Return what ``--json`` prints: the request, from which the plan can be made again, the plan, what follows."""
    return {
        "request": msgspec.to_builtins(request),
        "plan": msgspec.to_builtins(made),
        "used": list(made.used),
        "transfer_bytes": made.transfer_bytes,
        "explain": list(made.explain()),
    }


def options_of_rounds(config: JobConfig) -> list[dict[str, Any]]:
    """Return the numbers among the trainers' options that change, in the first round, the middle one and the last."""
    rounds = config.job.rounds
    numbers = sorted({1, (1 + rounds) // 2, rounds})
    told = [config.client.options_of(number, rounds) for number in numbers]
    changed = [name for name, value in told[0].items() if any(each[name] != value for each in told)]
    names = [name for name in changed if isinstance(told[0][name], float)]
    each = zip(numbers, told, strict=True)
    return [{"round": number, "options": {name: of[name] for name in names}} for number, of in each] if names else []


def drawn_first(config: JobConfig) -> dict[str, Any]:
    """Return whom round 1 selects if all are there that the job lists: {"clients", "of"}; else {"why"} not.

    Those that a file lists have been read; one that has not lies on the node.
    """
    selection = config.selection
    if selection.clients_file:
        return {"why": "the clients are listed in a file of the node (selection.clients_file)"}
    listed = () if isinstance(selection.clients, msgspec.UnsetType) else selection.clients
    if not listed or any("*" in name for name in listed):
        return {"why": "the job does not list its clients by name (selection.clients, selection.clients_file)"}
    for key in ("where", "stratify"):
        if isinstance(getattr(selection, key), str):
            return {"why": f"that depends on what clients say of themselves (selection.{key})"}
    if selection.function:
        return {"why": f"{selection.function} chooses among those that are there (selection.strategy)"}
    if selection.by_loss:
        return {"why": "that depends on the clients' examples and losses (selection.strategy)"}
    wanted = math.ceil(selection.clients_per_round * selection.over_provision)
    clients = drawn(listed, wanted, seed_of(selection, 1, 1, 0), selection, {}, {})
    return {"clients": clients, "of": len(listed)}

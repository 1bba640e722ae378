"""Who takes part in a round: the planner's answers for one job, from the nodes as they are now."""

from __future__ import annotations

import math
from typing import NamedTuple

from lifl.core import effects as fx
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.round import Round
from lifl.core.errors import Refused
from lifl.core.planning.plan import PlanRequest
from lifl.core.planning.planner import make_plan
from lifl.core.planning.request import plan_request
from lifl.core.protocol.cluster import JOURNAL, TRAINABLE
from lifl.core.turn import Turn

SPARE_PARTIALS = 4
"""Branches that a round on several nodes can have beyond those it began with, a lost one's place not counted."""


class Planned(NamedTuple):
    """Who takes part in a round: the updates of each node, and the node of the top."""

    updates: dict[int, int]
    top: int


class RoundPlanner:
    """Plans the rounds of one job."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable) -> None:
        self._spec = spec
        self._turn = turn
        self._nodes = nodes

    def plan(self, round_: Round, updates: int) -> Planned:
        """Return who takes so many updates of the round.  Raise `Refused` when the nodes cannot hold it."""
        if self._spec.is_fold:
            return Planned({self._nodes.home: updates}, self._nodes.home)
        request = self._request(updates)
        try:
            plan = make_plan(request)
        except Refused:
            if len(self._nodes) > 1 or not self._has_room(self._spec.bytes_min()):
                raise
            # Alone, a tree that fits is enough; what else the plan would like is not needed.
            return Planned({self._nodes.home: updates}, self._nodes.home)
        self._turn.emit(fx.SavePlan(self._spec.name, round_.number, round_.attempt, request, plan))
        return Planned({int(node.node, 16): node.updates for node in plan.nodes if node.updates}, int(plan.top, 16))

    def check(self, total_bytes: int) -> None:
        """Raise `Refused` unless the nodes, or the arena of `total_bytes` at home alone, can hold a round."""
        spec, share = self._spec, self._spec.config.quota.arena_share
        need = spec.bytes_min()
        if len(self._nodes) > 1 and not spec.is_fold:
            self._check_plan(share)
        elif total_bytes >= need > share * total_bytes:
            raise Refused(
                "quota",
                "quota.arena_share",
                f"a round of job {spec.name!r} needs at least {need} bytes of the arena, quota.arena_share = {share:g} "
                f"leaves it {int(share * total_bytes)} of {total_bytes}: raise it to {need / total_bytes + 0.005:.2f}",
            )
        elif need > total_bytes:
            raise Refused(
                "too-large",
                "model",
                f"a round of job {spec.name!r} needs at least {need} bytes of the arena (model "
                f"{spec.layout.data_bytes} bytes, fan-in {spec.config.aggregation.fan_in}), the node has {total_bytes};"
                " start it with a larger arena (lifl up --arena-bytes) or lower selection.clients_per_round or "
                "aggregation.middle_fan_in",
            )

    def check_fold(self, most: int) -> None:
        """Raise `Refused` unless the arena at home can hold a fold of so many updates."""
        need = self._spec.bytes_min(goal=most)
        if not self._has_room(need):
            text = f"a fold of up to {most} updates needs at least {need} bytes of the arena (model"
            text = f"{text} {self._spec.layout.data_bytes} bytes), which the node has not: give it a larger arena"
            raise Refused("too-large", "expected", f"{text} (arena_bytes), or expect fewer updates")

    def _check_plan(self, share: float) -> None:
        try:
            make_plan(self._request(0))
        except Refused as refused:
            if share == 1.0:
                raise
            text = f"{refused.text}; quota.arena_share = {share:g} leaves the job so much of each node's arena"
            raise Refused(refused.code, "quota.arena_share", text) from refused

    def _has_room(self, nbytes: int) -> bool:
        return self._nodes.has_room(math.ceil(nbytes / self._spec.config.quota.arena_share))

    def spare(self, others: int) -> int:
        """Return how many partials beyond those of `others` the top can take.

        Places for more partials make its tree deeper: not at the price of a round that cannot end.
        """
        return SPARE_PARTIALS if self._has_room(self._spec.bytes_min(others + SPARE_PARTIALS)) else 0

    def _request(self, updates: int) -> PlanRequest:
        """Return what `updates` (0: all) of a round are planned from; the model and its checkpoints are at home."""
        spec = self._spec
        wanted = {JOURNAL: spec.config.job.durability == "disk", TRAINABLE: bool(spec.config.trainable)}
        facts = self._nodes.facts(self._turn.now, [word for word, is_wanted in wanted.items() if is_wanted])
        return plan_request(
            spec.config, spec.layout, len(spec.states), facts, updates, model_node=self._nodes.home_name
        )

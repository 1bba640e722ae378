"""Who takes part in a round: the planner's answers for one job, from the nodes as they are now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import msgspec

from lifl.core import effects as fx
from lifl.core.config.placement import label_text
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.round import Round
from lifl.core.errors import Refused
from lifl.core.planning.arena_need import ARENA_MORE_BYTES, beside_bytes_min, model_bytes, rooms_of, round_bytes_min
from lifl.core.planning.plan import NodeFacts, Plan, PlanRequest
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
        return self._planned(round_, request)

    def plan_more(self, round_: Round, updates: int, may_wait: bool) -> Planned:
        """Return who takes so many updates that no branch takes.  Raise `Refused` when the nodes cannot hold it.

        A branch comes to a node only beside what the round needs there already.  Where no node has that room, and
        these updates have no other place, they `may_wait` in one that ends when others have made room.
        """
        if self._spec.is_fold:
            return self.plan(round_, updates)
        request = self._request(updates)
        share = self._spec.config.quota.arena_share
        have = {node: self._room_beside(round_, node, updates) for node in round_.nodes}
        needs = {f"{node:016x}": need / share for node, need in have.items()}
        nodes = tuple(
            msgspec.structs.replace(each, is_full=each.arena_bytes < needs.get(each.node, 0)) for each in request.nodes
        )
        try:
            return self._planned(round_, msgspec.structs.replace(request, nodes=nodes), anywhere=False)
        except Refused:
            if not may_wait:
                raise
        return self._planned(round_, request)

    def _planned(self, round_: Round, request: PlanRequest, anywhere: bool = True) -> Planned:
        updates, wanted = request.updates, self._spec.config.node_labels
        try:
            plan = make_plan(request)
        except Refused:
            if not anywhere:
                raise
            alone = len(self._nodes) == 1 or self._nodes.promised.keys() - {self._spec.number}
            here = alone and self._nodes.fits(self._nodes.home, wanted)
            if not here and not any(facts.takes_updates for facts in request.nodes):
                raise Refused("no-node", "placement.nodes", self._no_node("that takes updates now ")) from None
            need, beside = self._spec.bytes_min(), None if self._has_whole else self._spec.number
            if not here or not self._has_room(need, beside):
                raise
            # Alone, or beside other jobs, a tree that fits is enough: so much is promised to each at home.
            self._promise(round_, updates, {self._nodes.home: need})
            return Planned({self._nodes.home: updates}, self._nodes.home)
        with suppress(Refused):  # it is short of a page's rest: what it was promised before holds
            self._promise(round_, updates, self._rooms(request, plan))
        self._turn.emit(fx.SavePlan(self._spec.name, round_.number, round_.attempt, request, plan))
        return Planned({int(node.node, 16): node.updates for node in plan.nodes if node.updates}, int(plan.top, 16))

    def _room_beside(self, round_: Round, node: int, updates: int) -> int:
        """Return the bytes of a node's arena that the round needs with a branch of so many updates more, at the least.

        At home these are the top's for the partials that come; each branch there makes one, and is then gone.
        """
        spec, section = self._spec, self._spec.config.aggregation
        layout, members = spec.layout, spec.config.selection.clients_per_round
        others = [record for number, record in round_.branches.items() if number and record.sends]
        home = node == self._nodes.home  # elsewhere a partial stays until the commit
        here = [each.updates_max for each in others if each.node == node and not (home and each.arrived)]
        needs = sorted(beside_bytes_min(layout, section, each, members) for each in (*here, updates))
        if not home:
            return model_bytes(layout) + sum(needs)
        own, places, away = round_.branches[0].updates_max, round_.others_max, len(others) - len(here)

        def top(coming: int) -> int:
            if not own and not coming:
                return model_bytes(layout)
            return round_bytes_min(layout, section, own, len(spec.states), places, members, coming)

        return max(top(away + done) + sum(needs[done:]) for done in range(len(needs) + 1))

    @property
    def _has_whole(self) -> bool:
        """Whether the job is promised the room for whole rounds at home, or none is noted."""
        promised, home = self._nodes.promised.get(self._spec.number), self._nodes.home
        return promised is None or promised.get(home, 0) >= self._spec.bytes_min()

    def _promise(self, round_: Round, updates: int, rooms: Mapping[int, int]) -> None:
        """Promise a job that has begun on several nodes what its last whole round takes of them."""
        if not self._has_whole and updates >= round_.goal:
            self._nodes.promised[self._spec.number] = rooms

    def _rooms(self, request: PlanRequest, plan: Plan) -> dict[int, int]:
        """Return what a plan needs of each node's arena, pages rounded up.  Raise `Refused` when that is not there."""
        spec = self._spec
        goal = spec.config.selection.clients_per_round
        rooms = rooms_of(plan, spec.layout, spec.config.aggregation, goal, len(spec.states))
        for node in request.nodes:
            if rooms.get(node.node, 0) > node.arena_bytes:
                text = f"its part on node {node.node} needs {rooms[node.node]} bytes, {node.arena_bytes} are free"
                raise Refused("no-room", "node", text)
        return {int(name, 16): nbytes for name, nbytes in rooms.items()}

    def rooms(self, free_bytes: int, total_bytes: int) -> Mapping[int, int]:
        """Return what the job is promised of each arena from its beginning to its end.

        That is a whole round's room at home, where `free_bytes` of `total_bytes` are promised to nobody; else, in a
        cluster, what a round needs of its nodes beside the other jobs.  One that not all rooms together could hold now
        (nodes are away) does not stand in the way of others: its rounds wait.  Raise `Refused`, with what is missing.
        """
        spec, home = self._spec, self._nodes.home
        whole = spec.bytes_min()
        if whole <= free_bytes and self._nodes.fits(home, spec.config.node_labels):
            return {home: whole}
        if len(self._nodes) == 1 or spec.is_fold:
            if min(whole, total_bytes) <= free_bytes:
                return {home: min(whole, total_bytes)}
            raise Refused("no-room", "node", f"{whole} bytes of the arena are needed, {free_bytes} of it are free")
        request = self._request(0, home_bytes=free_bytes)
        try:
            return self._rooms(request, make_plan(request))
        except Refused:
            if self.least_at_home <= free_bytes and not self._fits_ever():
                return {home: self.least_at_home}
            raise

    @property
    def least_at_home(self) -> int:
        """What a job needs at home whose updates are all folded on another node."""
        spec = self._spec
        goal = spec.config.selection.clients_per_round
        return round_bytes_min(spec.layout, spec.config.aggregation, 0, len(spec.states), 1, goal)

    def _fits_ever(self) -> bool:
        """Return whether the nodes that are here now could hold a round if no other job ran."""
        try:
            make_plan(self._request(0, beside=False))
        except Refused:
            return False
        return True

    def check(self, total_bytes: int) -> None:
        """Raise `Refused` unless the nodes, or the arena of `total_bytes` at home alone, can hold a round."""
        spec, share = self._spec, self._spec.config.quota.arena_share
        need = spec.bytes_min()
        if not self._nodes.has_labels(spec.config.node_labels):
            raise Refused("no-node", "placement.nodes", self._no_node(""))
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
            raise self._too_large(need, total_bytes)

    def _too_large(self, need: int, total_bytes: int) -> Refused:
        """Return the refusal of what can never fit; a fold has no job's keys that its host could change."""
        spec, node = self._spec, f"the node has {total_bytes}; start it with a larger arena (lifl up --arena-bytes"
        if spec.is_fold:
            text = f"a fold of such a model ({spec.layout.data_bytes} bytes) needs at least {need} bytes of the arena"
            more = f"give arena_bytes={need + ARENA_MORE_BYTES} where the node is the aggregator's own"
            more = f"{node} {need + ARENA_MORE_BYTES}), {more}, or open a fold of fewer tensors (trainable=)"
            return Refused("too-large", "model", f"{text}, {more}")
        text = f"a round of job {spec.name!r} needs at least {need} bytes of the arena (model {spec.layout.data_bytes}"
        text = f"{text} bytes, fan-in {spec.config.aggregation.leaf_fan_in}), {node})"
        more = "or lower selection.clients_per_round or aggregation.middle_fan_in"
        return Refused("too-large", "model", f"{text} {more}")

    def check_fold(self, most: int) -> None:
        """Raise `Refused` unless the arena at home can hold a fold of so many updates."""
        need = self._spec.bytes_min(goal=most)
        if not self._has_room(need):
            text = f"a fold of up to {most} updates needs at least {need} bytes of the arena (model"
            text = f"{text} {self._spec.layout.data_bytes} bytes), which the node has not: give it a larger arena"
            raise Refused("too-large", "expected", f"{text} (arena_bytes), or expect fewer updates")

    def _check_plan(self, share: float) -> None:
        request = self._request(0, beside=False)
        if not any(facts.takes_updates for facts in request.nodes):
            return  # those that have the labels of placement.nodes are suspect, or go: it waits for one
        try:
            make_plan(request)
        except Refused as refused:
            if share == 1.0:
                raise
            text = f"{refused.text}; quota.arena_share = {share:g} leaves the job so much of each node's arena"
            raise Refused(refused.code, "quota.arena_share", text) from refused

    def _no_node(self, which: str) -> str:
        labels = label_text(self._spec.config.node_labels)
        hint = "start one with them (lifl up --label NAME=VALUE), or ask for others; `lifl nodes` shows what nodes have"
        return f"no node {which}has the labels that placement.nodes asks for ({labels}): {hint}"

    def _has_room(self, nbytes: int, job: int | None = None) -> bool:
        return self._nodes.has_room(math.ceil(nbytes / self._spec.config.quota.arena_share), job)

    def spare(self, own: int, others: int) -> int:
        """Return how many partials beyond those of `others` the top can take, which has `own` updates.

        Places for more partials make its tree deeper: not at the price of a round that cannot end.  Where a whole round
        has room at home that is reckoned for all its updates: what other nodes do not take may come there, too.
        """
        spec, goal = self._spec, self._spec.config.selection.clients_per_round
        own, places = goal if self._has_whole else own, others + SPARE_PARTIALS
        need = round_bytes_min(spec.layout, spec.config.aggregation, own, len(spec.states), places, goal)
        return SPARE_PARTIALS if self._has_room(need, self._spec.number) else 0

    def _request(self, updates: int, beside: bool = True, home_bytes: int | None = None) -> PlanRequest:
        """Return what `updates` (0: all) of a round are planned from; the model and its checkpoints are at home.

        `beside`: other jobs have what they are promised, else it is as if they were over.  Of the arena at home no more
        than `home_bytes` are the job's.
        """
        spec = self._spec
        wanted = {JOURNAL: spec.config.job.durability == "disk", TRAINABLE: bool(spec.config.trainable)}
        job = spec.number if beside else None
        words = [word for word, is_wanted in wanted.items() if is_wanted]
        facts = self._nodes.facts(self._turn.now, words, job, spec.config.node_labels)
        if home_bytes is not None:
            facts = tuple(_at_most(each, home_bytes) if each.node == self._nodes.home_name else each for each in facts)
        return plan_request(
            spec.config, spec.layout, len(spec.states), facts, updates, model_node=self._nodes.home_name
        )


def _at_most(facts: NodeFacts, arena_bytes: int) -> NodeFacts:
    return msgspec.structs.replace(facts, arena_bytes=min(facts.arena_bytes, arena_bytes))

"""Decisions of the planner are kept with what they were made from; what cannot fit is refused, or waits."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from lifl.core import effects as fx
from lifl.core.config.job import parse_job
from lifl.core.coordinator.coordinator import Coordinator
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import Node
from lifl.core.errors import Refused
from lifl.core.planning.plan import NodeFacts, Plan, PlanRequest
from lifl.core.planning.planner import make_plan
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.schema import Layout, TensorSpec
from lifl.core.turn import Turn
from lifl.node.store import PLANS_MAX, NodeStore

LAYOUT = Layout((TensorSpec("w", "float32", (250_000,)),))
GOAL = 4
HOME, OTHER = 1, 2
HOME_BYTES = 9_000_000
"""Holds a top over one partial, but no leaf beside it."""


class Scene:
    """A coordinator on a node with a small arena, and what it has said."""

    def __init__(self) -> None:
        self.turn = Turn(HOME, coordinates=True)
        self.coordinator = Coordinator(Node(HOME, "a:1", 8.0, HOME_BYTES, 4), self.turn)
        sections = {"job": {"name": "j", "rounds": 2}, "selection": {"clients_per_round": GOAL}}
        self.config = parse_job({**sections, "model": {"path": "/m"}})

    def other_up(self) -> None:
        self.coordinator.node_up(Node(OTHER, "b:1", 8.0, 64 << 20, 4))
        self.coordinator.handle(OTHER, p.Inventory((), ()))

    def submit(self) -> None:
        self.coordinator.submit(JobSpec(1, self.config, LAYOUT, (), "/f"), HOME_BYTES)
        self.coordinator.handle(HOME, o.JobOpened(1))

    def clients_come(self) -> None:
        for number in range(GOAL):
            self.coordinator.handle(HOME, gm.ClientJoined(number + 1, f"c{number}", "j", None, 0))

    def opened(self) -> list[int]:
        sent = [(each.node, each.order) for each in self.turn.effects if isinstance(each, fx.SendNode)]
        orders = [(HOME, order) for order in self.turn.queue] + sent
        return [node for node, order in orders if isinstance(order, o.OpenBranch)]

    def published(self, name: str) -> list[dict[str, Any]]:
        return [each.fields for each in self.turn.effects if isinstance(each, fx.Publish) and each.name == name]


def test_a_job_that_fits_no_node_is_refused_at_once_and_one_that_fits_with_others_is_not() -> None:
    scene = Scene()
    with pytest.raises(Refused) as refused:
        scene.submit()
    assert refused.value.code == "too-large"
    scene.other_up()
    scene.submit()


def test_a_round_that_the_nodes_that_are_left_cannot_hold_waits_and_says_so_once() -> None:
    scene = Scene()
    scene.other_up()
    scene.submit()
    scene.coordinator.node_gone(OTHER)
    scene.clients_come()
    (said,) = scene.published("round.waiting")
    assert f"has {HOME_BYTES}" in said["reason"]
    assert not scene.opened()
    scene.other_up()
    assert scene.opened() == [HOME, OTHER]
    assert scene.coordinator.jobs["j"].round.reason == ""


def test_a_decision_is_made_again_from_what_is_kept() -> None:
    scene = Scene()
    scene.other_up()
    scene.submit()
    scene.clients_come()
    (kept,) = [each for each in scene.turn.effects if isinstance(each, fx.SavePlan)]
    assert (kept.job, kept.round, kept.attempt) == ("j", 1, 1)
    assert make_plan(kept.request) == kept.plan
    assert int(kept.plan.top, 16) == HOME


def test_the_store_keeps_decisions_over_restarts_and_only_the_newest(tmp_path: Path) -> None:
    request = PlanRequest(4, 10, 10, (NodeFacts("a", 1 / 3, 1000, execution_s=0.1),))
    made = make_plan(request)
    store = NodeStore(tmp_path / "lifl.db")
    store.save_plan("j", 1, 1, request, made)
    store.save_plan("j", 1, 2, request, made)
    store.close()
    store = NodeStore(tmp_path / "lifl.db")
    rows = [row for _, row in store.plans("j", 1)]
    assert [(row.attempt, row.request, row.plan) for row in rows] == [(1, request, made), (2, request, made)]
    assert list(store.plans("j", 2)) == [] == list(store.plans("other", 1))
    for number in range(PLANS_MAX):
        store.save_plan("k", number, 1, request, made)
    assert list(store.plans("j", 1)) == []
    assert list(store.plans("k", 0))
    store.close()


def as_before(request: PlanRequest, plan: Plan) -> bytes:
    """The decision as earlier versions kept it: with fields that no plan of a round's beginning ever used."""
    asked, made = msgspec.to_builtins(request), msgspec.to_builtins(plan)
    for node in asked["nodes"]:
        node["state"] = "alive"
    for node in made["nodes"]:
        node |= {"asked": node["updates"], "inherited": 0, "partials": 0}
    made["lost"] = 0
    return zlib.compress(msgpack.packb((asked, made)))


def test_a_decision_that_an_earlier_version_kept_is_read_and_made_again_the_same(tmp_path: Path) -> None:
    nodes = (NodeFacts("a", 3.0, 64 << 20), NodeFacts("b", 1 / 3, 64 << 20, execution_s=0.1))
    request = PlanRequest(4, 1000, 1200, nodes, model_node="a", policy="worst-fit")
    made = make_plan(request)
    NodeStore(tmp_path / "lifl.db").close()
    with closing(sqlite3.connect(tmp_path / "lifl.db")) as db:
        row = ("j", 7, 1, as_before(request, made), 12.5)
        db.execute("INSERT INTO plans (job, round, attempt, decision, decided_unix_s) VALUES (?, ?, ?, ?, ?)", row)
        db.commit()
    store = NodeStore(tmp_path / "lifl.db")
    ((_, kept),) = store.plans("j", 7)
    assert (kept.attempt, kept.request, kept.plan, kept.decided_unix_s) == (1, request, made, 12.5)
    assert make_plan(kept.request) == kept.plan
    store.close()

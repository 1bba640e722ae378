"""The plan of a round: its guarantees for any cluster, and its figures on small ones."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.config.aggregation import Policy
from lifl.core.errors import LocalFault, Refused
from lifl.core.planning.placement import CLIENTS_MAX, NODES_MAX
from lifl.core.planning.plan import Costs, NodeFacts, Plan, PlanRequest
from lifl.core.planning.planner import make_plan, partials_held_max
from lifl.core.planning.tree import Tree, tail_of, top_partials_max

POLICIES = get_args(Policy)
MODEL = 1000
ROOMY = 1_000_000


def ask(residuals, updates, **options) -> PlanRequest:
    """A request on roomy nodes a, b, c, ... with these residual capacities."""
    nodes = tuple(NodeFacts(chr(ord("a") + n), float(r), ROOMY) for n, r in enumerate(residuals))
    return PlanRequest(**{"updates": updates, "model_bytes": MODEL, "partial_bytes": MODEL, "nodes": nodes, **options})


def part(plan: Plan, node: str):
    return next(p for p in plan.nodes if p.node == node)


requests = st.builds(
    PlanRequest,
    updates=st.integers(1, 120),
    model_bytes=st.just(MODEL),
    partial_bytes=st.integers(MODEL, 2 * MODEL),
    nodes=st.lists(
        st.builds(
            NodeFacts,
            node=st.sampled_from("abcdefgh"),
            residual=st.floats(-5, 40),
            arena_bytes=st.integers(0, 80) | st.just(1000),
            workers_max=st.integers(1, 20),
            warm=st.integers(0, 4),
            execution_s=st.just(0.0) | st.floats(1e-3, 10),
        ).map(lambda facts: msgspec.structs.replace(facts, arena_bytes=facts.arena_bytes * MODEL)),
        min_size=1,
        max_size=8,
        unique_by=lambda facts: facts.node,
    ).map(tuple),
    policy=st.sampled_from(POLICIES),
    timing=st.sampled_from(("eager", "lazy")),
    fan_in=st.integers(1, 5),
    middle_fan_in=st.integers(2, 8),
    state_bytes=st.sampled_from((0, MODEL)),
    arrival_s=st.just(0.0) | st.floats(0.1, 100),
    model_node=st.sampled_from(("", "a", "c")),
    costs=st.just(Costs()),
)


def check(request: PlanRequest, plan: Plan) -> None:
    """What holds for every plan, whatever was asked."""
    facts = {n.node: n for n in request.nodes}
    assert sum(p.updates for p in plan.nodes) == request.updates
    assert [p.node for p in plan.nodes] == sorted(facts)
    assert [p.node for p in plan.nodes if p.top] == [plan.top]
    holder = facts.get(request.model_node)
    if holder is not None:
        assert plan.top == holder.node, "the checkpoint is written there"
    for p in plan.nodes:
        assert p.spilled <= p.updates
        assert p.reasons
        assert p.leaves <= min(p.leaf_tasks, facts[p.node].workers_max)
        assert (p.leaves > 0) == (p.leaf_tasks > 0)
        if p.leaf_tasks > (top_partials_max(request.middle_fan_in) if p.top else 1):
            assert p.middle
    senders = [p.node for p in plan.nodes if p.leaf_tasks and not p.top]
    assert [t.source for t in plan.transfers if t.what == "partial"] == senders
    assert all(t.target == plan.top for t in plan.transfers if t.what != "model")
    models = [t.target for t in plan.transfers if t.what == "model"]
    assert len(models) == len(set(models)), "a model goes to a node once"
    assert all(t.source != t.target for t in plan.transfers)
    assert plan.completion_s > max(p.ready_s for p in plan.nodes)


@settings(max_examples=400, deadline=None)
@given(request_=requests, data=st.data())
def test_any_cluster(request_: PlanRequest, data) -> None:
    try:
        plan = make_plan(request_)
    except Refused:
        top = [n for n in request_.nodes if n.node == request_.model_node]
        small = [n for n in request_.nodes if n.arena_bytes < 80 * MODEL]
        assert all(n in small for n in request_.nodes) or (top and top[0] in small), (
            "80 models hold the path of any tree here"
        )
        return
    check(request_, plan)
    arenas = {n.node: n.arena_bytes for n in request_.nodes}
    assert all(p.peak_bytes <= arenas[p.node] for p in plan.nodes)
    shuffled = msgspec.structs.replace(request_, nodes=tuple(data.draw(st.permutations(request_.nodes))))
    assert make_plan(shuffled) == plan, "the same whatever the order of the nodes"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan) == plan
    logged = msgspec.msgpack.decode(msgspec.msgpack.encode(request_), type=PlanRequest)
    assert make_plan(logged) == plan, "a decision is replayed from its log"


@settings(max_examples=150, deadline=None)
@given(residuals=st.lists(st.integers(0, 20), min_size=1, max_size=7), updates=st.integers(1, 100))
def test_best_fit_uses_the_fewest_nodes_that_hold_all(residuals, updates) -> None:
    plan = make_plan(ask(residuals, updates))
    room = sorted(residuals, reverse=True)
    if sum(room) < updates:
        assert sum(p.spilled for p in plan.nodes) == updates - sum(room)
        return
    assert len(plan.used) == next(k for k in range(1, len(room) + 1) if sum(room[:k]) >= updates)
    assert not any(p.spilled for p in plan.nodes)


@settings(max_examples=100, deadline=None)
@given(nodes=st.integers(1, 8), capacity=st.integers(1, 30), updates=st.integers(1, 200))
def test_worst_fit_uses_all_nodes(nodes, capacity, updates) -> None:
    plan = make_plan(ask([capacity] * nodes, updates, policy="worst-fit"))
    assert len(plan.used) == min(nodes, updates)
    shares = [p.updates for p in plan.nodes]
    assert max(shares) - min(shares) <= 1


def test_best_fit_keeps_partials_on_one_node_where_worst_fit_sends_them() -> None:
    together, apart = (make_plan(ask([20] * 4, 16, policy=p)) for p in ("best-fit", "worst-fit"))
    assert together.transfers == () and len(together.used) == 1
    assert apart.transfer_bytes == 3 * MODEL


def test_within_a_window_a_node_takes_no_more_than_its_gateway_receives() -> None:
    window = {"arrival_s": 2.0, "costs": Costs(ingest_bytes_per_s=5.0 * MODEL)}  # 10 updates
    some = make_plan(ask([1e6] * 4, 25, **window))
    assert sorted(p.updates for p in some.nodes) == [0, 5, 10, 10] and not any(p.spilled for p in some.nodes)
    more = make_plan(ask([1e6] * 4, 100, **window))
    assert [p.updates for p in more.nodes] == [25] * 4, "what is beyond that is shared"
    assert sum(p.spilled for p in more.nodes) == 60
    at_once = make_plan(ask([1e6] * 4, 100, costs=window["costs"]))
    assert [p.updates for p in at_once.nodes] == [100, 0, 0, 0]


def test_leaves_follow_the_load() -> None:
    at_once = part(make_plan(ask([20], 12)), "a")
    assert (at_once.queue, at_once.leaves, at_once.leaf_tasks) == (12.0, 6, 6)
    nodes = (NodeFacts("a", 20.0, ROOMY, execution_s=0.5),)
    spread = part(make_plan(ask([], 12, nodes=nodes, arrival_s=1.0)), "a")
    assert (spread.queue, spread.leaves, spread.leaf_tasks) == (6.0, 3, 6)
    thin = part(make_plan(ask([], 12, nodes=nodes, arrival_s=600.0)), "a")
    assert (thin.leaves, thin.leaf_tasks) == (1, 6)
    few = msgspec.structs.replace(nodes[0], workers_max=2)
    assert part(make_plan(ask([], 12, nodes=(few,))), "a").leaves == 2


def test_updates_that_come_slowly_need_little_capacity() -> None:
    nodes = tuple(NodeFacts(n, 2.0, ROOMY, execution_s=0.1) for n in "abc")
    plan = make_plan(ask([], 100, nodes=nodes, arrival_s=10.0))
    assert len(plan.used) == 1 and not part(plan, plan.top).spilled


def test_the_node_with_the_model_is_the_first_of_equals() -> None:
    plan = make_plan(ask([20, 20, 20], 4, model_node="b"))
    assert plan.used == ("b",) and plan.transfers == ()


def test_best_fit_takes_the_node_with_the_top_first_for_it_is_used_anyway() -> None:
    plan = make_plan(ask([9, 6, 7], 6, model_node="a"))
    assert (plan.used, plan.transfers) == (("a",), ())
    plan = make_plan(ask([1, 6, 7], 7, model_node="a"))
    assert [p.updates for p in plan.nodes] == [1, 6, 0]


def test_the_top_stands_where_the_model_is() -> None:
    plan = make_plan(ask([4, 9, 6], 19, state_bytes=70, model_node="a"))
    assert plan.top == "a"
    assert [(t.source, t.target, t.what, t.nbytes) for t in plan.transfers] == [
        ("a", "b", "model", MODEL),
        ("a", "c", "model", MODEL),
        ("b", "a", "partial", MODEL),
        ("c", "a", "partial", MODEL),
    ]
    # At b: two partials come, and the state; state and model go back to the checkpoint.
    (why,) = [reason for reason in part(plan, "a").reasons if reason.startswith("has the top")]
    assert "2000 bytes come for it, a top on b, the best other node, would move 3140" in why


def test_a_node_with_the_model_that_takes_no_updates_has_the_top_all_the_same() -> None:
    plan = make_plan(ask([0, 9, 0], 4, model_node="a"))
    assert (plan.top, plan.used, part(plan, "a").updates) == ("a", ("a", "b"), 0)
    assert [(t.source, t.target, t.what) for t in plan.transfers] == [("a", "b", "model"), ("b", "a", "partial")]


def test_where_no_node_has_the_model_the_top_stands_where_most_partials_are() -> None:
    assert make_plan(ask([4, 9, 6], 19)).top == "b"
    assert make_plan(ask([4, 9, 6], 15, model_node="gone")).top == "b"


@pytest.mark.parametrize(("models", "shares"), [(11, [2, 2, 2]), (10, [3, 3, 0]), (9, [0, 3, 3]), (5, [0, 6, 0])])
def test_as_many_nodes_work_as_the_tops_arena_has_room_for(models: int, shares: list[int]) -> None:
    # All at a: two models, two updates, partials of three leaves and two more; one more for each other node's.
    nodes = (NodeFacts("a", 2.0, models * MODEL), NodeFacts("b", 2.0, ROOMY), NodeFacts("c", 2.0, ROOMY))
    plan = make_plan(ask([], 6, nodes=nodes, model_node="a", policy="worst-fit"))
    assert [p.updates for p in plan.nodes] == shares


def test_the_node_with_the_model_takes_what_no_other_node_can_hold() -> None:
    # At b or c, five leaves: 10 of the arena; at a the top takes four of the updates, which needs 9.
    nodes = tuple(NodeFacts(name, 9.0, 9 * MODEL) for name in "abc")
    plan = make_plan(ask([], 5, nodes=nodes, fan_in=1, middle_fan_in=2, model_node="a"))
    assert (plan.top, [p.updates for p in plan.nodes]) == ("a", [5, 0, 0])


def test_a_node_with_the_model_whose_arena_cannot_hold_the_top_is_refused_with_the_numbers() -> None:
    nodes = (NodeFacts("a", 9.0, 4 * MODEL), NodeFacts("b", 9.0, ROOMY))
    with pytest.raises(Refused, match=r"the top needs 5000 bytes .* the node with the model, on node a, has 4000"):
        make_plan(ask([], 4, nodes=nodes, model_node="a"))


def test_a_node_that_has_no_room_beside_what_it_has_of_the_round_takes_nothing_more() -> None:
    nodes = (NodeFacts("a", 9.0, ROOMY, is_full=True), NodeFacts("b", 1.0, ROOMY))
    plan = make_plan(ask([], 4, nodes=nodes, model_node="a"))
    assert (plan.top, part(plan, "a").updates, part(plan, "b").updates) == ("a", 0, 4)
    assert "its arena has no room for a branch beside what it has of the round" in part(plan, "a").reasons[0]
    with pytest.raises(Refused, match="no node has room for a branch beside") as refused:
        make_plan(ask([], 4, nodes=nodes[:1], model_node="a"))
    assert refused.value.code == "no-room"


def test_an_arena_without_room_for_the_top_sends_it_elsewhere() -> None:
    nodes = (NodeFacts("a", 9.0, 7 * MODEL), NodeFacts("b", 1.0, ROOMY))
    plan = make_plan(ask([], 4, nodes=nodes, policy="first-fit"))
    assert [p.updates for p in plan.nodes] == [4, 0] and plan.top == "b"
    assert any("cannot be the top" in reason for reason in part(plan, "a").reasons)


def test_a_small_arena_gets_fewer_leaves() -> None:
    plan = make_plan(ask([], 16, nodes=(NodeFacts("a", 20.0, 24 * MODEL),)))
    assert 1 <= part(plan, "a").leaves < 8
    assert part(plan, "a").peak_bytes <= 24 * MODEL
    assert any("the arena holds no more" in reason for reason in part(plan, "a").reasons)


def test_the_peak_of_a_small_round_by_hand() -> None:
    nodes = (NodeFacts("a", 40.0, ROOMY, workers_max=16),)
    # Two models; 16 leaves with two updates and a partial each; above them four partials (of middles and of the last
    # leaves) for the top, and two more, of what is on its way and of the round before that may still be on its way to
    # the disk.
    assert part(make_plan(ask([], 32, nodes=nodes)), "a").peak_bytes == (2 + 16 * 3 + 4 + 2) * MODEL


def test_a_job_that_fits_no_arena_is_refused_with_the_numbers() -> None:
    nodes = (NodeFacts("a", 20.0, 3 * MODEL), NodeFacts("b", 20.0, 2 * MODEL))
    with pytest.raises(Refused, match=r"needs 5000 bytes .* on node a, has 3000") as refused:
        make_plan(ask([], 2, nodes=nodes))
    assert refused.value.code == "too-large"
    nodes = (NodeFacts("a", 20.0, 5 * MODEL),)
    # Two models, two updates, and two partials beside those of the tree, which has none.
    with pytest.raises(Refused, match="the top needs 6000 bytes"):
        make_plan(ask([], 2, nodes=nodes))


@settings(max_examples=150, deadline=None)
@given(updates=st.integers(0, 200), partials=st.integers(0, 40), fan_in=st.integers(1, 8), middle=st.integers(2, 9))
def test_the_partials_of_a_path_are_those_of_the_tree(updates, partials, fan_in, middle) -> None:
    if not updates + partials:
        assert partials_held_max(0, middle, True) == 0
        return
    leaves = -(-(updates - tail_of(updates, fan_in)) // fan_in)
    held = Tree(updates, fan_in, middle, partials).partials_held_max()
    assert held == partials_held_max(leaves + partials, middle, True)


def test_the_time_of_a_small_round_by_hand() -> None:
    costs = Costs(ingest_bytes_per_s=1000.0, link_bytes_per_s=500.0, fold_bytes_per_s=2000.0, cold_s=0.25, warm_s=0.0)
    eager = make_plan(ask([2, 2], 4, costs=costs))
    # 2 updates come in 2 s; the last is folded in 0.5 s; the other node's partial takes 2 s and is merged in 0.5 s,
    # before the model is written from it (1 s).
    assert part(eager, "b").ready_s == 0.25 + 2.0 + 0.5
    assert eager.completion_s == 2.75 + 2.0 + 0.5 + 1.0
    lazy = make_plan(ask([2, 2], 4, costs=costs, timing="lazy"))
    assert part(lazy, "b").ready_s == 0.25 + 2.0 + 1.0
    assert lazy.completion_s == 3.25 + 2.0 + 1.0 + 1.0
    warm = tuple(msgspec.structs.replace(n, warm=1) for n in ask([2, 2], 4).nodes)
    assert make_plan(ask([], 4, nodes=warm, costs=costs)).completion_s == eager.completion_s - 0.25


COSTS = Costs(5000.0, 500.0, 250.0, fold_bytes_per_s=2000.0, cold_s=0.25, warm_s=0.0)
"""Bytes per second: of the gateway, of the link, of TLS."""


@pytest.mark.parametrize(
    ("reached", "ready_s", "received_s"),
    [
        ("local", 0.25 + 0.5 + max(0.4, 1.0), 2.15 + 2.0),
        ("plain", 0.25 + 0.5 + 4.0, 4.75 + 2.0),
        ("tls", 0.25 + 0.5 + 8.0, 8.75 + 4.0),
    ],
)
def test_updates_come_over_the_link_and_through_the_cipher(reached: str, ready_s: float, received_s: float) -> None:
    """Two updates of 1,000 bytes at each of two nodes, by hand as above."""
    nodes = tuple(msgspec.structs.replace(node, reached=reached) for node in ask([2, 2], 4).nodes)
    plan = make_plan(ask([], 4, nodes=nodes, costs=COSTS))
    assert part(plan, "b").ready_s == pytest.approx(ready_s)
    if reached != "local":
        assert plan.completion_s == pytest.approx(received_s + 0.5 + 1.0)
    lines = [line for line in plan.explain() if "come in within" in line]
    assert len(lines) == (0 if reached == "local" else 2)
    assert all(("deciphers 250" if reached == "tls" else "link carries 500") in line for line in lines)


def test_the_tops_link_carries_its_own_updates_and_the_others_partials() -> None:
    nodes = tuple(msgspec.structs.replace(node, reached="plain") for node in ask([6, 2], 8).nodes)
    plan = make_plan(ask([], 8, nodes=nodes, costs=COSTS))
    assert (plan.top, part(plan, "a").updates, part(plan, "b").updates) == ("a", 6, 2)
    assert part(plan, "b").ready_s + 2.0 < 14.0, "its partial could be there before"
    assert plan.completion_s == pytest.approx(14.0 + 0.5 + 1.0)
    assert any("1 partials to carry, too: 14.000 s in all" in line for line in plan.explain())


def test_within_a_window_a_node_takes_no_more_than_its_link_lets_in() -> None:
    nodes = tuple(msgspec.structs.replace(node, reached="plain") for node in ask([1e6] * 4, 25).nodes)
    plan = make_plan(ask([], 5, nodes=nodes, arrival_s=4.0, costs=COSTS))  # two updates each
    assert sorted(p.updates for p in plan.nodes) == [0, 1, 2, 2]


def test_the_plan_explains_itself() -> None:
    lines = make_plan(ask([6, 6, 5], 12)).explain()
    assert lines[0].startswith("12 updates on 2 of 3 nodes by best-fit; 1000 bytes between nodes; the model is there")
    assert {line.partition(":")[0] for line in lines[1:]} == {"a", "b", "c"}
    assert "c: is not needed" in lines
    spilled = make_plan(ask([1, 1], 5)).explain()
    assert "3 of them beyond any node's capacity" in spilled[0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"updates": 0}, "updates"),
        ({"updates": CLIENTS_MAX + 1}, "updates"),
        ({"nodes": ()}, "nodes"),
        ({"nodes": (NodeFacts("a", 1.0, 1),) * (NODES_MAX + 1)}, "nodes"),
        ({"nodes": (NodeFacts("a", 1.0, 1),) * 2}, "same name"),
        ({"nodes": (NodeFacts("a", float("nan"), 1),)}, "residual capacity of node a"),
        ({"fan_in": 0}, "fan-in"),
        ({"middle_fan_in": 1}, "fan-in"),
    ],
)
def test_senseless_requests_are_refused(change, text) -> None:
    with pytest.raises(LocalFault, match=text):
        make_plan(msgspec.structs.replace(ask([1], 1), **change))


def test_the_largest_round_on_the_most_nodes() -> None:
    nodes = tuple(NodeFacts(f"n{n}", 400.0, ROOMY) for n in range(NODES_MAX))
    plan = make_plan(ask([], CLIENTS_MAX, nodes=nodes))
    assert sum(p.updates for p in plan.nodes) == CLIENTS_MAX and len(plan.used) == NODES_MAX


def test_planning_loads_no_numpy() -> None:
    code = (
        "import sys\nfrom lifl.core.planning.plan import *\nfrom lifl.core.planning.planner import *\n"
        "make_plan(PlanRequest(4, 10, 10, (NodeFacts('a', 4.0, 1000),)))\n"
        "assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

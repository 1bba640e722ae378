"""Placement against a reference that places client after client, its guarantees, and its limits."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.config.aggregation import Policy
from lifl.core.errors import LocalFault
from lifl.core.planning import placement
from lifl.core.planning.placement import Placer, assign, fewest

POLICIES = get_args(Policy)


def one_after_the_other(policy, demands, class_of, residual):
    """The definition: each client looks at all nodes."""
    residual = list(residual)
    nodes = range(len(residual))
    node, spilled = [-1] * len(class_of), [False] * len(class_of)
    turn = 0
    by_demand = sorted(range(len(demands)), key=lambda number: (-demands[number], number))
    for client in sorted(range(len(class_of)), key=lambda c: (by_demand.index(class_of[c]), c)):
        demand = demands[class_of[client]]
        fitting = [n for n in nodes if residual[n] >= demand]
        if not fitting:
            chosen = max(nodes, key=lambda n: (residual[n], -n))
            spilled[client] = True
        elif policy == "best-fit":
            chosen = min(fitting, key=lambda n: (residual[n], n))
        elif policy == "first-fit":
            chosen = fitting[0]
        elif policy == "worst-fit":
            chosen = max(fitting, key=lambda n: (residual[n], -n))
        else:
            chosen = min(fitting, key=lambda n: (n - turn) % len(residual))
            turn = (chosen + 1) % len(residual)
        residual[chosen] -= demand
        node[client] = chosen
    return node, spilled, residual


@settings(max_examples=400, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    demands=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    residual=st.lists(st.integers(-5, 30), min_size=1, max_size=9),
    data=st.data(),
)
def test_the_same_as_one_client_after_the_other(policy, demands, residual, data) -> None:
    class_of = data.draw(st.lists(st.integers(0, len(demands) - 1), max_size=80))
    got = assign(policy, demands, np.array(class_of, np.int64), residual)
    node, spilled, left = one_after_the_other(policy, demands, class_of, residual)
    assert got.node.tolist() == node
    assert got.spilled.tolist() == spilled
    assert got.residual == left
    assert got.node.dtype == np.int32 and got.spilled.dtype == np.bool_


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scarce", [1, 3])
def test_the_same_at_sizes_where_runs_are_long(policy, scarce) -> None:
    rng = np.random.default_rng(5)
    demands = [3, 1, 8, 5]
    residual = rng.integers(0, 600 // scarce, 40).tolist()
    class_of = rng.integers(0, len(demands), 2500)
    got = assign(policy, demands, class_of, residual)
    node, spilled, left = one_after_the_other(policy, demands, class_of.tolist(), residual)
    assert got.node.tolist() == node and got.spilled.tolist() == spilled and got.residual == left


@settings(max_examples=150, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    demand=st.integers(1, 9),
    count=st.integers(0, 200),
    residual=st.lists(st.integers(-20, 100), min_size=1, max_size=12),
)
def test_counts_and_runs_tell_the_same(policy, demand, count, residual) -> None:
    placer = Placer(policy, residual)
    fitted, spilled = placer.place(demand, count)
    for fill in filter(None, (fitted, spilled)):
        sequence = [node for nodes, repeats in fill.stretches() for node in list(nodes) * repeats]
        assert [sequence.count(node) for node in range(len(residual))] == fill.counts()
    extra = spilled.counts() if spilled else [0] * len(residual)
    total = [sum(pair) for pair in zip(fitted.counts(), extra, strict=True)]
    assert sum(total) == count
    assert placer.residual == [units - demand * n for units, n in zip(residual, total, strict=True)]
    room = sum(max(0, units // demand) for units in residual)
    assert (spilled is not None) == (count > room)


@settings(max_examples=200, deadline=None)
@given(
    residual=st.lists(st.integers(0, 12), min_size=1, max_size=7),
    demand=st.integers(1, 3),
    count=st.integers(1, 40),
)
def test_fewest_is_the_least_number_of_nodes_that_hold_all(residual, demand, count) -> None:
    chosen = fewest(residual, demand, count)
    room = sorted((units // demand for units in residual), reverse=True)
    if sum(room) < count:
        assert chosen == list(range(len(residual)))
        return
    assert sum(residual[node] // demand for node in chosen) >= count
    assert len(chosen) == next(k for k in range(1, len(room) + 1) if sum(room[:k]) >= count)


def test_fewest_ends_with_the_tightest_node() -> None:
    assert fewest([10, 4, 10, 3], 1, 14) == [0, 1]
    assert fewest([10, 4, 10, 3], 1, 2) == [3]


def test_the_policies_on_one_drawing() -> None:
    residual, class_of = [4, 2, 3], np.zeros(7, np.uint8)
    assert assign("best-fit", [1], class_of, residual).node.tolist() == [1, 1, 2, 2, 2, 0, 0]
    assert assign("first-fit", [1], class_of, residual).node.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert assign("worst-fit", [1], class_of, residual).node.tolist() == [0, 0, 2, 0, 1, 2, 0]
    assert assign("round-robin", [1], class_of, residual).node.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_round_robin_goes_on_where_the_class_before_ended() -> None:
    placer = Placer("round-robin", [9, 9, 9])
    assert placer.place(2, 4).fitted.counts() == [2, 1, 1]
    assert placer.place(1, 1).fitted.counts() == [0, 1, 0]


def test_nobody_fits_and_nobody_is_refused() -> None:
    got = assign("best-fit", [5], np.zeros(5, np.uint8), [7, 4, -9])
    assert got.node.tolist() == [0, 1, 0, 1, 0]
    assert got.spilled.tolist() == [False, True, True, True, True]
    assert got.residual == [-8, -6, -9]


@pytest.mark.parametrize("policy", POLICIES)
def test_numbers_beyond_64_bits_are_exact(policy) -> None:
    huge = 3 << 70
    got = assign(policy, [huge], np.zeros(3, np.uint8), [3 * huge])
    assert got.node.tolist() == [0, 0, 0] and got.residual == [0]


def test_limits_are_named_and_hold() -> None:
    nobody = np.zeros(0, np.uint8)
    assign("best-fit", [1] * placement.CLASSES_MAX, nobody, [1] * placement.NODES_MAX)
    with pytest.raises(LocalFault, match="demand classes"):
        assign("best-fit", [1] * (placement.CLASSES_MAX + 1), nobody, [1])
    with pytest.raises(LocalFault, match="nodes"):
        Placer("best-fit", [1] * (placement.NODES_MAX + 1))
    with pytest.raises(LocalFault, match="nodes"):
        Placer("best-fit", [])
    at_limit = assign("worst-fit", [1], np.zeros(placement.CLIENTS_MAX, np.uint8), [1, 1])
    assert np.bincount(at_limit.node).tolist() == [placement.CLIENTS_MAX // 2] * 2
    with pytest.raises(LocalFault, match="clients"):
        assign("best-fit", [1], np.zeros(placement.CLIENTS_MAX + 1, np.uint8), [1])


@pytest.mark.parametrize("class_of", [[0, 2], [-1]])
def test_a_class_that_is_not_there_is_refused(class_of) -> None:
    with pytest.raises(LocalFault, match="classes must be 0 to 1"):
        assign("best-fit", [1, 1], np.array(class_of), [1])


def test_senseless_requests_are_refused() -> None:
    with pytest.raises(LocalFault, match="one row"):
        assign("best-fit", [1], np.zeros((2, 2), np.uint8), [1])
    with pytest.raises(LocalFault, match="best-fit, first-fit, worst-fit, round-robin"):
        Placer("tightest", [1])
    for demand, count in ((0, 1), (1, -1)):
        with pytest.raises(LocalFault, match="at least one unit"):
            Placer("best-fit", [1]).place(demand, count)


def test_counting_loads_no_numpy() -> None:
    code = (
        "import sys\nfrom lifl.core.planning.placement import Placer\nPlacer('worst-fit', [5, 9]).place(2, 30)\n"
        "assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

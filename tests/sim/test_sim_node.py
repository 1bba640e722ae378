"""Hundreds of random lives of a node, and of a cluster of three whose coordinator stays, or moves: see `simulator.py`.

A failing seed is named.

`make sim-long LIVES=100000` lives more of them.
"""

from __future__ import annotations

import pytest
from lives import STEPS, live, make

CHUNK = 50
LIVES = 400
DRAINED = 150


@pytest.mark.parametrize(("hosts", "moves"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("first", range(0, LIVES, CHUNK))
def test_random_lives(first: int, hosts: int, moves: bool) -> None:
    for seed in range(first, first + CHUNK):
        live(seed, hosts, moves)


@pytest.mark.parametrize("first", range(0, DRAINED, CHUNK))
def test_random_lives_of_nodes_that_are_drained_and_taken_back(first: int) -> None:
    """Nothing new goes to them, nothing that they have is lost, and all jobs end."""
    for seed in range(first, first + CHUNK):
        live(seed, 3, moves=bool(seed % 2), drains=True)


def test_in_some_lives_a_top_is_told_of_updates_on_their_way() -> None:
    """What the random lives are to prove of that holds only if it happens in them."""

    def told(seed: int) -> bool:
        cluster = make(seed, 1 + 2 * (seed % 2))
        cluster.run(STEPS)
        return cluster.workers.announced > 0

    assert any(told(seed) for seed in range(LIVES))

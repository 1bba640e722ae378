"""Thousands of random lives of a node, and of a cluster of three: see `simulator.py`.  A failing seed is named."""

from __future__ import annotations

import random

import pytest
from simulator import LAYOUT, Cluster

CHUNK = 50
STEPS = 3000


def make(seed: int, hosts: int = 1) -> Cluster:
    rng = random.Random(seed)
    goal = rng.choice([1, 2, 3, 5, 8, 17])
    over = rng.choice([1.0, 1.3, 2.0])
    clients = max(goal, int(goal * rng.choice([1, 1.5, 2.0])))
    config = {
        "job": {"name": "j", "rounds": rng.choice([1, 2, 3])},
        "model": {"path": "/m"},
        "selection": {
            "clients_per_round": goal,
            "over_provision": over,
            "quorum": rng.randint(1, goal),
            "deadline_s": rng.choice([1.0, 50.0]),
            "attempts": 5,
        },
        "aggregation": {
            "fan_in": rng.choice([1, 2, 3]),
            "middle_fan_in": rng.choice([2, 3, 8]),
            "timing": rng.choice(["eager", "lazy"]),
            "replan_interval_s": rng.choice([0.5, 1000.0]),
            "placement": rng.choice(["best-fit", "worst-fit", "worst-fit"]),
        },
    }
    roomy = rng.random() < 0.5
    arena = 400 * LAYOUT.data_bytes * 4
    if not roomy:
        probe = Cluster(seed, config, clients, arena, 0.0, hosts)
        arena = -(-probe.job.spec.bytes_min() // 4096) * 4096
    return Cluster(seed, config, clients, arena, rng.choice([0.0, 0.01, 0.05]), hosts)


@pytest.mark.parametrize("hosts", [1, 3])
@pytest.mark.parametrize("first", range(0, 1000, CHUNK))
def test_random_lives(first: int, hosts: int) -> None:
    for seed in range(first, first + CHUNK):
        try:
            make(seed, hosts).run(STEPS)
        except Exception as error:
            raise AssertionError(f"{error!r}; `make sim SEED={seed} HOSTS={hosts}` tells how it came") from error


def test_in_some_lives_a_top_is_told_of_updates_on_their_way() -> None:
    """What the random lives are to prove of that holds only if it happens in them."""

    def told(seed: int) -> bool:
        cluster = make(seed, 1 + 2 * (seed % 2))
        cluster.run(STEPS)
        return cluster.announced > 0

    assert any(told(seed) for seed in range(2000))

"""Lives in which one thing is done on purpose: nothing else fails, and a test steps until it is time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim_jobs import JobPlan
from sim_workers import SimWorker
from simulator import Cluster

from lifl.core.protocol import worker as wm

MIB = 1024 * 1024
STEPS_MAX = 20_000


def job(name: str, goal: int = 2, rounds: int = 2, model_bytes: int = MIB, **selection: Any) -> JobPlan:
    """Return a job whose trainers are as many as its goal."""
    config = {
        "job": {"name": name, "rounds": rounds},
        "model": {"path": f"/m/{name}"},
        "selection": {"clients_per_round": goal, "deadline_s": 50.0, "attempts": 5, **selection},
        "aggregation": {"placement": "worst-fit"},
    }
    return JobPlan(config, model_bytes, goal)


def scene(
    *plans: JobPlan,
    arena_bytes: int = 400 * MIB,
    hosts: int = 1,
    strict: bool = True,
    seed: int = 1,
    moves: bool = False,
) -> Cluster:
    """Return a calm life, all of whose jobs are submitted; `strict`: no known fault is tolerated."""
    cluster = Cluster(seed, plans, arena_bytes, 0.0, hosts, strict=strict, moves=moves)
    cluster.validates_always = True
    for each in list(cluster.jobs.values())[1:]:
        cluster.submit(each)
    return cluster


def until(cluster: Cluster, holds: Callable[[], Any]) -> Any:
    """Step until it holds, and return what it returned."""
    for _ in range(STEPS_MAX):
        found = holds()
        if found:
            return found
        assert cluster.step(), "it came to rest before"
    raise AssertionError("it did not come to that")


def writing(cluster: Cluster, number: int) -> Callable[[], tuple[SimWorker, wm.Checkpoint] | None]:
    """Return a question: which worker writes the checkpoint of this round now?"""

    def ask() -> tuple[SimWorker, wm.Checkpoint] | None:
        for worker in cluster.home.workers.values():
            if isinstance(worker.file, wm.Checkpoint) and worker.file.round == number:
                return worker, worker.file
        return None

    return ask

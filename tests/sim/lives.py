"""The lives that the tests live, each by its seed, and what is told of one that fails."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from sim_arena import PAGE_BYTES
from sim_checks import Broken
from sim_jobs import JobPlan, SimJob
from sim_returns import arena_for, with_more
from simulator import Cluster

STEPS = 3000
KIB, MIB = 1024, 1024 * 1024
MODEL_BYTES = (KIB, KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB)
"""Those of 16 MiB and more are large enough for a top to go along with their last updates."""
ROOMY = 20
DURABLE = 0.3
"""How many lives are those of jobs whose updates are stored before they are accepted; the power may go there."""
STYLES = ("any", "any", "any", "any", "crowded", "stormy")


def make(seed: int, hosts: int = 1, style: str = "", durable: bool | None = None, **named: Any) -> Cluster:
    """Return the life of this seed, at its beginning; `moves=True`: any host may come to coordinate.

    Lives of one `style` only: ``crowded`` (nothing fails, and several jobs want room at once), ``stormy`` (one job, and
    a fault every few steps).  `durable` says whether its jobs want the disk, if that is not to be drawn.
    """
    rng = random.Random(seed)
    style = style or rng.choice(STYLES)
    crowded, stormy = style == "crowded", style == "stormy"
    jobs = 1 if stormy else rng.choice([2, 3] if crowded else [1, 1, 2, 3])
    plans = [_plan(rng, f"j{number}", jobs, style) for number in range(1, jobs + 1)]
    if durable is None:
        durable = random.Random(f"durable {seed}").random() < DURABLE
    if durable:
        for plan in plans:
            plan.config["job"]["durability"] = "disk"
    needs = [SimJob(1, plan).spec.bytes_min() for plan in plans]
    arenas = [1.2 * max(needs), sum(needs)] if crowded else [ROOMY * sum(needs), max(needs), sum(needs)]
    if named.get("returns"):
        plans, arenas = with_more(seed, plans), [arena_for(seed, needs)]
    arena_bytes = -(-int(rng.choice(arenas)) // PAGE_BYTES) * PAGE_BYTES
    faults = {"crowded": 0.0, "stormy": 0.03}.get(style, rng.choice([0.0, 0.01, 0.05]))
    return Cluster(seed, plans, arena_bytes, faults, hosts, **named)


def _plan(rng: random.Random, name: str, jobs: int, style: str) -> JobPlan:
    goals = {"crowded": [5, 8], "stormy": [8, 17]}.get(style, [1, 2, 3, 5] if jobs > 1 else [1, 2, 3, 5, 8, 17])
    models = {"crowded": MODEL_BYTES[-1:]}.get(style, MODEL_BYTES)
    goal = rng.choice(goals)
    config = {
        "job": {"name": name, "rounds": rng.choice([1, 2, 3])},
        "model": {"path": f"/m/{name}"},
        "selection": {
            "clients_per_round": goal,
            "over_provision": rng.choice([1.0, 1.3, 2.0]),
            "quorum": rng.randint(1, goal),
            "deadline_s": rng.choice([1.0, 50.0, 50.0] if style == "any" else [50.0]),
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
    return JobPlan(config, rng.choice(models), max(goal, int(goal * rng.choice([1, 1.5, 2.0]))))


MODES = ("moves", "drains", "stalls", "changes", "returns", "lends")
"""What a life may have beside what all have (`Cluster`)."""


def live(seed: int, hosts: int, moves: bool = False, **more: bool) -> Cluster:
    """Live a whole life; of one that fails say how to see it again, and where its recordings are."""
    modes = {"moves": moves, **more}
    cluster = make(seed, hosts, **modes)
    try:
        cluster.run(STEPS)
    except (Exception, Broken) as error:
        files = ", ".join(map(str, write_recordings(cluster)))
        named = "".join(f" {name.upper()}=1" for name in MODES if modes.get(name))
        again = f"`make sim SEED={seed} HOSTS={hosts}{named}` tells how it came"
        raise AssertionError(f"seed {seed} on {hosts} hosts: {error!r}; {again}; recordings: {files}") from error
    return cluster


def write_recordings(cluster: Cluster) -> list[Path]:
    """Write what each engine has recorded to a file (`make sim RECORDING=FILE` tells it), and return the files."""
    folder = Path(tempfile.mkdtemp(prefix=f"lifl-sim-{cluster.seed}-"))
    files = []
    for host in cluster.hosts.values():
        if host.engine is not None:
            files.append(folder / f"host{host.number}.recording")
            files[-1].write_bytes(host.engine.recording().pack())
    return files

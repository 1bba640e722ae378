"""Which smoothing of a node's load tells best what comes: the paper's, of Q, against that of k and E each.

    python bench/smoothing.py

A node is simulated for `HOURS_S` under each pattern of load, with the books of lifld (`core/planning/capacity.py`).
At each re-plan, every 120 s, both say their Q.  Measured is how far that is from the mean Q of the next 120 s, and how
far Q has moved since the last re-plan, for each move is a plan that changes; both as shares of the pattern's mean Q.
Nothing of it depends on the machine.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple, get_args

from lifl.core.config.node import Smoothing
from lifl.core.planning.capacity import QUEUE_INTERVAL_S, NodeLoad

HOURS_S = 4 * 3600.0
SEEDS = 5
FOLD_S = 0.25


class Pattern(NamedTuple):
    """Updates (when each comes, how long it is folded, in seconds) by a seed."""

    name: str
    updates: Callable[[random.Random], Iterator[tuple[float, float]]]


def _poisson(
    rng: random.Random, rate: Callable[[float], float], fold_s: Callable[[float], float]
) -> Iterator[tuple[float, float]]:
    now = 0.0
    while (now := now + rng.expovariate(rate(now))) < HOURS_S:
        yield now, fold_s(now) * rng.uniform(0.8, 1.2)


def _rounds(rng: random.Random, every_s: float, size: int, window_s: float) -> Iterator[tuple[float, float]]:
    at = 0.0
    while at < HOURS_S:
        for came in sorted(rng.uniform(0, window_s) for _ in range(size)):
            yield at + came, FOLD_S * rng.uniform(0.8, 1.2)
        at += every_s * rng.uniform(0.9, 1.1)


PATTERNS = (
    Pattern("steady, 4 a second", lambda rng: _poisson(rng, lambda _: 4.0, lambda _: FOLD_S)),
    Pattern(
        "ten times as many every other half hour",
        lambda rng: _poisson(rng, lambda now: 8.0 if now // 1800 % 2 else 0.8, lambda _: FOLD_S),
    ),
    Pattern(
        "the model four times as large every other half hour",
        lambda rng: _poisson(rng, lambda _: 2.0, lambda now: FOLD_S * (4 if now // 1800 % 2 else 1)),
    ),
    Pattern("rounds of 100 within 20 s, every 40 s", lambda rng: _rounds(rng, 40.0, 100, 20.0)),
    Pattern("rounds of 200 within 60 s, every 130 s", lambda rng: _rounds(rng, 130.0, 200, 60.0)),
    Pattern("rounds of 400 within 30 s, every 600 s", lambda rng: _rounds(rng, 600.0, 400, 30.0)),
)


def run(pattern: Pattern, smoothing: Smoothing, seed: int) -> tuple[float, float]:
    """Return the mean error of Q and its mean move between re-plans, both as shares of the pattern's mean Q."""
    load = NodeLoad(capacity=8.0, at_s=0.0, smoothing=smoothing)
    plans = int(HOURS_S // QUEUE_INTERVAL_S)
    busy_s, said = [0.0] * (plans + 1), [0.0] * plans
    next_plan = 1
    for count, (now, fold_s) in enumerate(pattern.updates(random.Random(seed)), 1):
        while next_plan < plans and now >= next_plan * QUEUE_INTERVAL_S:
            said[next_plan] = load.queue(next_plan * QUEUE_INTERVAL_S)
            next_plan += 1
        load = load.counted(count, int(now * 1e9)).passed(now).done(fold_s, 1)
        busy_s[min(plans, int(now // QUEUE_INTERVAL_S))] += fold_s
    came = [each / QUEUE_INTERVAL_S for each in busy_s[:plans]]
    counted = range(10, next_plan)  # either has begun from nothing
    mean = statistics.fmean(came[plan] for plan in counted)
    error = statistics.fmean(abs(said[plan] - came[plan]) for plan in counted)
    moved = statistics.fmean(abs(said[plan] - said[plan - 1]) for plan in counted[1:])
    return error / mean, moved / mean


def main() -> None:
    """Print the table."""
    ways: tuple[Smoothing, ...] = get_args(Smoothing)
    print("| load | " + " | ".join(f"error, {way} | moved, {way}" for way in ways) + " |")
    print("|---|" + "---|" * 2 * len(ways))
    for pattern in PATTERNS:
        cells = []
        for way in ways:
            found = [run(pattern, way, seed) for seed in range(SEEDS)]
            cells += [f"{statistics.median(column):.3f}" for column in zip(*found, strict=True)]
        print(f"| {pattern.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

"""One segment's way through a tree of tasks, as workers go it, without workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lifl.core.schema import ACCUMULATOR
from lifl.rules import Rule, integers, kernels, load_rule
from lifl.rules.finish import finish_segment

Weighted = list[tuple[np.ndarray, float]]


def empty(size: int, dtype: str) -> np.ndarray:
    """An accumulator whose memory holds something else."""
    return np.frombuffer(bytearray(b"\xff" * size * kernels.numpy_dtype(dtype).itemsize), kernels.numpy_dtype(dtype))


def partial_of(rule: Rule, vectors: list, weights: Sequence[float], batches: int = 1) -> tuple[np.ndarray, float]:
    """What a leaf makes of its updates, in so many batches."""
    acc = empty(len(vectors[0]), ACCUMULATOR[vectors[0].dtype.name])
    done: list[float] = []
    for part in np.array_split(np.arange(len(vectors)), min(batches, len(vectors))):
        some, new = [vectors[i] for i in part], [weights[i] for i in part]
        before = kernels.total(done) if done else 0.0
        if vectors[0].dtype.kind in "iu":
            integers.fold(acc, some, new, before, kernels.total(done + new))
        else:
            rule.fold(acc, some, *kernels.shares(new, before))
        done += new
    return acc, kernels.total(done)


def merged(rule: Rule, partials: Weighted) -> tuple[np.ndarray, float]:
    """What a middle makes of partials."""
    weights = [w for _, w in partials]
    acc = np.frombuffer(bytearray(b"\xff" * partials[0][0].nbytes), partials[0][0].dtype)
    if acc.dtype in (np.float32, np.float64):
        rule.merge(acc, [p for p, _ in partials], kernels.shares(weights)[0], 0.0)
    else:
        integers.merge(acc, [p for p, _ in partials], weights, 0.0, kernels.total(weights))
    return acc, kernels.total(weights)


def level_of(rule: Rule, updates: Weighted, fan_in: int, middle_fan_in: int, batches: int) -> Weighted:
    """The partials that come to the top."""
    level = [
        partial_of(rule, [u for u, _ in leaf], [w for _, w in leaf], batches)
        for leaf in (updates[at : at + fan_in] for at in range(0, len(updates), fan_in))
    ]
    while len(level) > middle_fan_in:
        level = [merged(rule, level[at : at + middle_fan_in]) for at in range(0, len(level), middle_fan_in)]
    return level


def mean_of(updates: Weighted, fan_in: int = 2, middle_fan_in: int = 2, batches: int = 1, tail: int = 0) -> Any:
    """FedAvg's model of these updates, the last `tail` of which the top takes itself."""
    rule, tail = load_rule("fedavg", {}), min(tail, len(updates))
    last, first = updates[len(updates) - tail :], updates[: len(updates) - tail]
    level = level_of(rule, first, fan_in, middle_fan_in, batches) if first else []
    out = empty(len(updates[0][0]), updates[0][0].dtype.name)
    finish_segment(rule, updates[0][0], level, last, out, {}, {})
    return out

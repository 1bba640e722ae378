"""One segment's way through a tree of tasks, as workers go it, without workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lifl.core.schema import ACCUMULATOR
from lifl.rules import Rule, finish, integers, kernels, load_rule
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
        done = add(rule.fold, integers.fold, acc, [(vectors[i], weights[i]) for i in part], done)
    return acc, kernels.total(done)


def merged(rule: Rule, partials: Weighted, batches: int = 1) -> tuple[np.ndarray, float]:
    """What a middle makes of partials, in so many batches."""
    acc = np.frombuffer(bytearray(b"\xff" * partials[0][0].nbytes), partials[0][0].dtype)
    done: list[float] = []
    for part in np.array_split(np.arange(len(partials)), min(batches, len(partials))):
        done = add(rule.merge, integers.merge, acc, [partials[i] for i in part], done)
    return acc, kernels.total(done)


def summed_ahead(rule: Rule, partials: Weighted, updates: Weighted) -> tuple[np.ndarray, float]:
    """What a top sums up before its last inputs come."""
    acc = empty(len(updates[0][0]), ACCUMULATOR[updates[0][0].dtype.name])
    done: list[float] = []
    for some, last in ((partials[:1], updates[:1]), (partials[1:], updates[1:])):
        weights, lasts = [w for _, w in some], [w for _, w in last]
        inputs = ([p for p, _ in some], weights, [u for u, _ in last], lasts, done)
        if acc.dtype == np.float64:
            finish.add(rule, acc, *inputs)
        else:
            integers.add(acc, *inputs)
        done += [*weights, *lasts]
    return acc, kernels.total(done)


def add(add_floats: Any, add_integers: Any, acc: np.ndarray, some: Weighted, done: list[float]) -> list[float]:
    """Add vectors to an accumulator; return all weights that are in it."""
    if not some:
        return done
    vectors, new = [vector for vector, _ in some], [weight for _, weight in some]
    before = kernels.total(done) if done else 0.0
    if acc.dtype == np.float64:
        add_floats(acc, vectors, *kernels.shares(new, before))
    else:
        add_integers(acc, vectors, new, before, kernels.total(done + new))
    return done + new


def level_of(rule: Rule, updates: Weighted, fan_in: int, middle_fan_in: int, batches: int) -> Weighted:
    """The partials that come to the top."""
    level = [
        partial_of(rule, [u for u, _ in leaf], [w for _, w in leaf], batches)
        for leaf in (updates[at : at + fan_in] for at in range(0, len(updates), fan_in))
    ]
    while len(level) > middle_fan_in:
        level = [merged(rule, level[at : at + middle_fan_in], batches) for at in range(0, len(level), middle_fan_in)]
    return level


def mean_of(
    updates: Weighted, fan_in: int = 2, middle_fan_in: int = 2, batches: int = 1, tail: int = 0, ahead: int = 0
) -> Any:
    """FedAvg's model of these updates, the last `tail` of which the top takes itself.

    All but the last `ahead` of these, and all partials, are summed up before; with 0 nothing is.
    """
    rule, tail = load_rule("fedavg", {}), min(tail, len(updates))
    last, first = updates[len(updates) - tail :], updates[: len(updates) - tail]
    level = level_of(rule, first, fan_in, middle_fan_in, batches) if first else []
    if ahead and tail > ahead:
        level, last = [summed_ahead(rule, level, last[:-ahead])], last[-ahead:]
    out = empty(len(updates[0][0]), updates[0][0].dtype.name)
    finish_segment(rule, updates[0][0], level, last, out, {}, {})
    return out

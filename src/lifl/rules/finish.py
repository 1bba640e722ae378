"""The last step of a round: partials, the last updates, the current model and the rule's states in, the next model and
states out.

The mean is summed in float64 and rounded once, to what rules compute in.  Where the model is that itself, the kernel
makes it where it will be, in one pass.  Otherwise one pass goes by blocks: a block of the mean is made where the
model's block will be (in a temporary that stays in the L2 cache, when their dtypes differ), the rule turns it into a
block of the model, which is checked.  The temporaries are a few blocks, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from lifl.core.schema import ACCUMULATOR, STATE
from lifl.rules import binned, integers, kernels
from lifl.rules.base import NotFinite, Rule, RuleFailed
from lifl.rules.kernels import Vector, numpy_dtype

BLOCK_BYTES = 1024 * 1024
"""Of the accumulator per block.

Measured with FedAvg, one and two partials of 47 MB, which were float32 then: a quarter of it, which stays in the L2
cache, costs 10 and 40 % more, for each call of the kernel has its price; four times it gains 3 %.
"""
BINNED_ELEMENTS = 16 * 1024
"""Of reproducible sums at a time: they stay in the L2 cache."""


Weighted = Sequence[tuple[Vector, float]]
"""Partials with their whole weights, or updates with theirs."""


def finish_segment(
    rule: Rule,
    model: Vector,
    partials: Weighted,
    updates: Weighted,
    out: Vector,
    states: Mapping[str, Vector],
    new_states: Mapping[str, Vector],
    first: int = 0,
    spared: Sequence[slice] = (),
    reproducible: bool = False,
) -> None:
    """Write one segment of the new model to `out` and of the new states to `new_states`.

    `model`, `updates` and `out` are (P,) in the model's dtype; `partials` are (P,) in the accumulator's, states in the
    state's.  `reproducible`: partials of floats are in bins (`binned`).  A state that `states` lacks starts with
    `rule.initial`.  Integer segments are only averaged; so is what is `spared`; their states are zeros.  All may be
    pieces of a segment, from its element `first` on, if the rule has no `fold` of its own.  Raise `RuleFailed` when a
    result is not finite or has another shape.
    """
    if out.dtype.kind in "iu":
        _finish_integers(partials, updates, out)
        for vector in new_states.values():
            vector.fill(0)
        return
    dtype = numpy_dtype(STATE[out.dtype.name])
    mean_of = _Mean(rule, partials, updates, len(out), reproducible)
    if is_mean(rule) and out.dtype == dtype:
        if not mean_of.write(slice(0, len(out)), out):
            _raise_not_finite(out, first, _model_of(rule), out.dtype.name)
        return
    step = max(1, BLOCK_BYTES // dtype.itemsize)
    for begin in range(0, len(out), step):
        block = slice(begin, min(begin + step, len(out)))
        made = out[block]
        mean = made if out.dtype == dtype else np.empty(block.stop - begin, dtype)
        mean_of.write(block, mean)
        state = _begin_states(rule, block, states, new_states)
        aside = [(run, mean[run].copy()) for run in _within(spared, block)]
        _finish_floats(rule, model[block], mean, state, made, first + begin, aside)


def leave_segment(
    rule: Rule, model: Vector, out: Vector, states: Mapping[str, Vector], new_states: Mapping[str, Vector]
) -> None:
    """Write a piece of a segment that no update has to `out`, and its states to `new_states`: all stays as it was."""
    out[:] = model
    for name, vector in new_states.items():
        if name in states:
            vector[:] = states[name]
        else:
            vector.fill(0.0 if out.dtype.kind in "iu" else rule.initial(name))


def sums_plainly(rule: Rule) -> bool:
    """Return whether the rule's partials are the weighted means of what is in them."""
    return type(rule).fold is Rule.fold and type(rule).merge is Rule.merge


def is_mean(rule: Rule) -> bool:
    """Return whether the rule's models are the mean itself."""
    return sums_plainly(rule) and type(rule).finish is Rule.finish and not rule.states


def add(
    rule: Rule,
    acc: Vector,
    partials: Sequence[Vector],
    weights: Sequence[float],
    updates: Sequence[Vector],
    last: Sequence[float],
    done: Sequence[float] = (),
) -> None:
    """Add partials, with their `weights`, and updates, with their `last`, to the mean `acc` of what weighs `done`."""
    before = kernels.total(done) if done else 0.0
    if updates and sums_plainly(rule):
        shares, keep = kernels.shares([*weights, *last], before)
        kernels.fold(acc, updates, shares[len(weights) :], keep, partials, shares[: len(weights)])
        return
    if partials:
        rule.merge(acc, partials, *kernels.shares(weights, before))
        before = kernels.total([*done, *weights])
    if updates:
        rule.fold(acc, updates, *kernels.shares(last, before))


class _Mean:
    """The weighted mean of partials and updates, a block at a time."""

    def __init__(self, rule: Rule, partials: Weighted, updates: Weighted, size: int, reproducible: bool) -> None:
        self._rule = rule
        self._reproducible = reproducible
        self._partials = list(partials)
        self._updates = list(updates)
        if updates and type(rule).fold is not Rule.fold:
            # A rule's own `fold` may look at whole vectors.
            folded = np.empty(size)
            weights = [weight for _, weight in updates]
            rule.fold(folded, [vector for vector, _ in updates], kernels.shares(weights)[0], 0.0)
            self._partials, self._updates = [*self._partials, (folded, kernels.total(weights))], []

    def write(self, block: slice, out: Vector) -> bool:
        """Write a block of it to `out`, (B,) of what rules compute in; return whether all of it is finite."""
        if self._reproducible:
            return self._write_binned(block, out)
        partials, updates = ([vector[block] for vector, _ in each] for each in (self._partials, self._updates))
        if sums_plainly(self._rule):
            shares, _ = kernels.shares([weight for _, weight in (*self._partials, *self._updates)])
            return kernels.mean(out, partials, shares[: len(partials)], updates, shares[len(partials) :])
        wide = out if out.dtype == np.float64 else np.empty(len(out))
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            weights, last = ([weight for _, weight in each] for each in (self._partials, self._updates))
            add(self._rule, wide, partials, weights, updates, last)
        if wide is not out:
            kernels.store(wide, out)
        return kernels.all_finite(out)

    def _write_binned(self, block: slice, out: Vector) -> bool:
        whole = kernels.total([weight for _, weight in (*self._partials, *self._updates)])
        last, finite = [weight for _, weight in self._updates], True
        sums = np.empty(min(BINNED_ELEMENTS, len(out)), numpy_dtype(binned.ACCUMULATOR))
        for begin in range(0, len(out), len(sums)):
            made = out[begin : begin + len(sums)]
            part = slice(block.start + begin, block.start + begin + len(made))
            partials, updates = ([vector[part] for vector, _ in each] for each in (self._partials, self._updates))
            acc = sums[: len(made)]
            if len(partials) == 1 and not updates:
                acc = partials[0]
            else:
                binned.add(acc, partials, updates, last, keep=False)
            finite &= binned.mean(made, acc, whole)
        return finite


def _finish_integers(partials: Weighted, updates: Weighted, out: Vector) -> None:
    """Write the mean of integers to `out`, by blocks."""
    dtype = numpy_dtype(ACCUMULATOR[out.dtype.name])
    weights, last = [weight for _, weight in partials], [weight for _, weight in updates]
    whole = kernels.total([*weights, *last])
    step = max(1, BLOCK_BYTES // dtype.itemsize)
    sums = np.empty(min(step, len(out)), dtype)
    for begin in range(0, len(out), step):
        block = slice(begin, min(begin + step, len(out)))
        acc = sums[: block.stop - begin]
        merged, folded = ([vector[block] for vector, _ in each] for each in (partials, updates))
        integers.add(acc, merged, weights, folded, last)
        integers.finish(out[block], acc, whole)


def _within(runs: Sequence[slice], block: slice) -> list[slice]:
    """Return the runs as far as they lie in a block, counted from its begin."""
    return [
        slice(max(run.start, block.start) - block.start, min(run.stop, block.stop) - block.start)
        for run in runs
        if run.start < block.stop and block.start < run.stop
    ]


def _begin_states(
    rule: Rule, block: slice, states: Mapping[str, Vector], new_states: Mapping[str, Vector]
) -> dict[str, Vector]:
    """Return the blocks of the new states, holding the old ones."""
    begun: dict[str, Any] = {}
    for name in rule.states:
        begun[name] = new_states[name][block]
        begun[name][:] = states[name][block] if name in states else rule.initial(name)
    return begun


def _finish_floats(
    rule: Rule,
    model: Vector,
    mean: Vector,
    state: Mapping[str, Vector],
    out: Vector,
    begin: int,
    aside: Sequence[tuple[slice, Vector]],
) -> None:
    """Have the rule make a block of the model; the means that are put `aside` stand there in the end."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        result = rule.finish(kernels.widen(model, mean.dtype), mean, state)
    name = type(rule).__name__
    if not isinstance(result, np.ndarray) or result.shape != out.shape:
        shape = getattr(result, "shape", type(result).__name__)
        raise RuleFailed(f"{name}.finish must return an array of shape {out.shape}, it returned {shape}")
    if not np.can_cast(result.dtype, np.float64, "same_kind"):
        raise RuleFailed(f"{name}.finish must return an array of floats, it returned one of {result.dtype}")
    if result is not out:
        kernels.store(result, out)
    for run, averaged in aside:
        kernels.store(averaged, out[run])
        for vector in state.values():
            vector[run] = 0
    if not kernels.all_finite(out):
        _raise_not_finite(out, begin, _model_of(rule), out.dtype.name)
    for key, vector in state.items():
        if not kernels.all_finite(vector):
            _raise_not_finite(vector, begin, f"the state {key!r} of {name}", out.dtype.name)


def _model_of(rule: Rule) -> str:
    return f"the new model after {type(rule).__name__}"


def _raise_not_finite(vector: Vector, begin: int, what: str, dtype: str) -> NoReturn:
    at = begin + int(np.flatnonzero(~np.isfinite(vector))[0])
    raise NotFinite(
        f"{what} is not finite: element {at} of the {dtype} tensors; an update is beyond what the rule can compute, or"
        " the training diverges: lower the learning rates of clients or server",
        dtype,
        at,
    )

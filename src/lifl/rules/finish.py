"""The last step of a round: partials, the current model and the rule's states in, the next model and states
out.

One blocked pass does everything: a block of the mean is made where the model's block will be (in a temporary that
stays in the L2 cache, when their dtypes differ), the rule turns it into a block of the model, which is checked.  A
single partial is used where it lies in the arena.  The temporaries are a few blocks, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lifl.rules import kernels
from lifl.rules.base import Rule, RuleFailed
from lifl.rules.kernels import Vector

BLOCK_BYTES = 1024 * 1024
"""Of the accumulator per block.  Measured with FedAvg, one and two float32 partials of 47 MB: a quarter of it, which
stays in the L2 cache, costs 10 and 40 % more, for each call of the kernel has its price; four times it gains 3 %."""


def finish_segment(
    rule: Rule,
    model: Vector,
    partials: Sequence[Vector],
    weights: Sequence[float],
    out: Vector,
    states: Mapping[str, Vector],
    new_states: Mapping[str, Vector],
) -> None:
    """Writes one segment of the new model to `out` and of the new states to `new_states`.

    `model` and `out` are (P,) in the model's dtype; `partials` and states are (P,) in the accumulator's;
    `weights` are the partials' whole weights.  A state that `states` lacks starts with `rule.initial`.
    Integer segments are only averaged; their states are zeros.  Raises `RuleFailed` when a result is not
    finite or has another shape.
    """
    whole = kernels.total(weights)
    top = kernels.exponent(whole)
    scales = [2.0 ** (kernels.exponent(weight) - top) for weight in weights]
    divisor = whole * 2.0**-top
    integer = out.dtype.kind in "iu"
    if not integer and len(partials) > 1:
        # One pass less.  The mean of integers is divided last, so that one that lies in the middle is rounded to even.
        scales, divisor = [scale / divisor for scale in scales], 1.0
    step = max(1, BLOCK_BYTES // partials[0].itemsize)
    for begin in range(0, len(out), step):
        block = slice(begin, min(begin + step, len(out)))
        made = out[block]
        mean = made if out.dtype == partials[0].dtype else np.empty(block.stop - begin, partials[0].dtype)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            if len(partials) == 1:
                np.divide(partials[0][block], divisor, out=mean)
            else:
                rule.merge(mean, [partial[block] for partial in partials], scales, 0.0)
                if divisor != 1.0:
                    mean /= divisor
        if integer:
            _finish_integers(mean, made, {name: vector[block] for name, vector in new_states.items()})
        else:
            state = _begin_states(rule, block, states, new_states)
            _finish_floats(rule, model[block], mean, state, made, begin)


def _finish_integers(mean: Vector, out: Vector, new_state: Mapping[str, Vector]) -> None:
    if not kernels.all_finite(mean):
        raise RuleFailed(f"the mean of the {out.dtype} tensors is not finite: an accumulator overflowed")
    kernels.store(mean, out)
    for vector in new_state.values():
        vector.fill(0)


def _begin_states(
    rule: Rule, block: slice, states: Mapping[str, Vector], new_states: Mapping[str, Vector]
) -> dict[str, Vector]:
    """The blocks of the new states, holding the old ones."""
    begun: dict[str, Any] = {}
    for name in rule.states:
        begun[name] = new_states[name][block]
        begun[name][:] = states[name][block] if name in states else rule.initial(name)
    return begun


def _finish_floats(
    rule: Rule, model: Vector, mean: Vector, state: Mapping[str, Vector], out: Vector, begin: int
) -> None:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        result = rule.finish(kernels.widen(model, mean.dtype), mean, state)
    name = type(rule).__name__
    if not isinstance(result, np.ndarray) or result.shape != out.shape:
        shape = getattr(result, "shape", type(result).__name__)
        raise RuleFailed(f"{name}.finish must return an array of shape {out.shape}, it returned {shape}")
    if result is not out:
        kernels.store(result, out)
    if not kernels.all_finite(out):
        at = begin + int(np.flatnonzero(~np.isfinite(out))[0])
        raise RuleFailed(
            f"the new model is not finite: element {at} of its {out.dtype} tensors after {name}; the training"
            " diverges: lower the learning rates of clients or server"
        )
    for key, vector in state.items():
        if not kernels.all_finite(vector):
            raise RuleFailed(f"the state {key!r} of {name} is not finite: the training diverges")

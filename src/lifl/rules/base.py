"""The algebra of an aggregation rule, and what a user subclasses.

A rule has three parts.  `fold` adds weighted updates to an accumulator; `merge` adds accumulators, and is
associative and commutative, so any tree gives the same result; `finish` turns the weighted mean into the
next model.  Most rules change only `finish`:

    from lifl.rules import Rule, RuleOptions

    class HalfStep(Rule):
        class Options(RuleOptions, frozen=True):
            fraction: float = 0.5

        def finish(self, model, mean, state):
            return model + self.options.fraction * (mean - model)

and in the round config: rule = "my_rules:HalfStep", options = { fraction = 0.25 }.

Every part sees flat vectors, one for each dtype of the model, and `finish` sees them block by block, so it
needs no memory of the model's size: it must be elementwise.  What is folded and merged is summed in float64, and the
mean is rounded once to what `finish` computes in: float64 for float64, float32 for all other floats.
Integer tensors never arrive, in none of the parts: their mean is rounded half to even and that is all.

A rule that remembers something from round to round names it in `states`; `finish` changes those blocks in
place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from lifl.core.errors import LocalFault
from lifl.rules import kernels
from lifl.rules.kernels import Vector


def error_text(error: BaseException) -> str:
    """Return what a user's code has raised as a text that can travel, whatever its own text is like."""
    try:
        said = str(error)
    except BaseException as again:  # noqa: BLE001 - that is the user's code, too
        said = f"its text cannot be had: {type(again).__name__}"
    return f"{type(error).__name__}: {said}".encode(errors="backslashreplace").decode()


class RuleFailed(LocalFault):
    """A rule cannot give a model: its result is not finite or has another shape.  The round fails with the
    text.
    """


class NotFinite(RuleFailed):
    """A number of the result is NaN or infinite: number `element` of all the model's numbers of `dtype`.

    Other updates may give another result, so the round is worth another try; without those of `suspects`, of whom
    the largest number is there.
    """

    def __init__(self, text: str, dtype: str, element: int, suspects: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.dtype = dtype
        self.element = element
        self.suspects = suspects


class RuleOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of a rule's `Options`: fields with types and defaults; other keys of the config are
    refused.
    """


class Rule:
    """The weighted mean (FedAvg), and the base of every other rule."""

    Options: ClassVar[type[RuleOptions]] = RuleOptions
    earlier_options: ClassVar[Mapping[str, str]] = {}
    """Names that options had before, and what they are called now."""
    states: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors that are kept from round to round; they have the model's shape, float32 or
    float64.
    """

    round: int = 1
    """The number of the round that `finish` makes, from 1 on."""

    def __init__(self, options: Any) -> None:
        """Keep `options`, an instance of the class's `Options`."""
        self.options = options

    def fold(self, acc: Vector, updates: Sequence[Vector], weights: Sequence[float], keep: float) -> None:
        """Set acc = keep · acc + Σ weights[i] · updates[i], in place.

        `acc` is (P,) float64, `updates` are (P,) in the model's dtype.  With `keep` 0, `acc` holds
        nothing yet and is not to be read.  The weights are shares: with `keep` they add up to 1.
        """
        kernels.fold(acc, updates, weights, keep)

    def merge(self, acc: Vector, partials: Sequence[Vector], scales: Sequence[float], keep: float) -> None:
        """Set acc = keep · acc + Σ scales[i] · partials[i], in place; all are (P,) float64.

        `scales` are the partials' shares: with `keep` they add up to 1.  May be called for a block at a time.
        """
        kernels.fold(acc, partials, scales, keep)

    def initial(self, name: str) -> float:
        """Return the value of each element of the state `name` before the first round."""
        return 0.0

    def finish(self, model: Vector, mean: Vector, state: Mapping[str, Vector]) -> Vector:
        """Return the block of the next model, (B,) like `model` and `mean`, all float32 or all float64.

        `model` is the block of the current model (not to be written), `mean` the clients' weighted mean
        (free to be overwritten), `state` the blocks of this rule's states, to be changed in place.
        """
        return mean

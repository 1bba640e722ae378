"""A rule of one's own, used by digits-own-rule.toml."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lifl.rules import Rule, RuleOptions


class Bounded(Rule):
    """The weighted mean, but no parameter moves by more than `step_max` in one round."""

    class Options(RuleOptions, frozen=True):
        """`step_max` is in the units of the parameters."""

        step_max: float = 0.1

    def finish(self, model: np.ndarray, mean: np.ndarray, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """All are vectors: a block of the model, the same block of the clients' mean, and of the result."""
        step = np.clip(mean - model, -self.options.step_max, self.options.step_max)
        return model + step

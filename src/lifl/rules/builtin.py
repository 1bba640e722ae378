"""The built-in rules.

FedAvg is the weighted mean (McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", algorithm 1).  The others treat Δ = mean − model as a pseudo-gradient and take a step
with a server optimiser:

* FedAvgM: Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
  Classification", section 4.3: v ← βv + Δ, x ← x + η·v.
* FedAdagrad, FedYogi, FedAdam: Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2:
      m ← β₁m + (1 − β₁)Δ
      v ← v + m²                                  (FedAdagrad)
      v ← v − (1 − β₂) m² sign(v − m²)            (FedYogi)
      v ← β₂v + (1 − β₂) m²                       (FedAdam)
      x ← x + η m / (√v + τ)
  with m₋₁ = 0 and v₋₁ = τ², and (as there) no bias correction.  The paper writes Δ for both the
  pseudo-gradient and m.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

from lifl.rules.base import Rule, RuleOptions
from lifl.rules.kernels import Vector

Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]
Decay = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]


class FedAvg(Rule):
    """The weighted mean of the updates."""


class FedAvgM(Rule):
    """FedAvg with server momentum."""

    class Options(RuleOptions, frozen=True):
        """`lr` is η, `momentum` is β."""

        lr: Positive = 1.0
        momentum: Decay = 0.9

    states = ("momentum",)

    def finish(self, model: Vector, mean: Vector, state: Mapping[str, Vector]) -> Vector:
        """Do v ← βv + Δ, x ← x + η·v."""
        velocity = state["momentum"]
        np.subtract(mean, model, out=mean)
        velocity *= self.options.momentum
        velocity += mean
        np.multiply(velocity, self.options.lr, out=mean)
        mean += model
        return mean


class _Adaptive(Rule):
    """What FedAdagrad, FedYogi and FedAdam share; each brings its own v."""

    class Options(RuleOptions, frozen=True):
        """`lr` is η, `beta1` and `beta2` are the decays of m and v, `tau` is the degree of adaptivity τ."""

        lr: Positive = 0.1
        beta1: Decay = 0.9
        beta2: Decay = 0.99
        tau: Positive = 1e-3

    states = ("momentum", "second_moment")

    def initial(self, name: str) -> float:
        """Return m₋₁ = 0 and v₋₁ = τ²."""
        tau: float = self.options.tau
        return tau * tau if name == "second_moment" else 0.0

    def finish(self, model: Vector, mean: Vector, state: Mapping[str, Vector]) -> Vector:
        """Do lines 9 to 14 of algorithm 2."""
        first, second = state["momentum"], state["second_moment"]
        np.subtract(mean, model, out=mean)
        mean *= 1.0 - self.options.beta1
        first *= self.options.beta1
        first += mean
        square = np.square(first, out=mean)
        self.accumulate(second, square)
        root = np.sqrt(second, out=mean)
        root += self.options.tau
        step = np.divide(first, root, out=mean)
        step *= self.options.lr
        step += model
        return step

    def accumulate(self, second: Vector, square: Vector) -> None:
        """Take `square` = m² into `second` = v, in place; `square` may be overwritten."""
        second += square


class FedAdagrad(_Adaptive):
    """v ← v + m².  Its momentum is off unless `beta1` is given, as in the paper's experiments."""

    class Options(RuleOptions, frozen=True):
        """`lr` is η, `beta1` the decay of m, `tau` is τ."""

        lr: Positive = 0.1
        beta1: Decay = 0.0
        tau: Positive = 1e-3


class FedAdam(_Adaptive):
    """v ← β₂v + (1 − β₂) m²."""

    def accumulate(self, second: Vector, square: Vector) -> None:
        """See `_Adaptive.accumulate`."""
        beta2: Any = self.options.beta2
        square *= 1.0 - beta2
        second *= beta2
        second += square


class FedYogi(_Adaptive):
    """v ← v − (1 − β₂) m² sign(v − m²)."""

    def accumulate(self, second: Vector, square: Vector) -> None:
        """See `_Adaptive.accumulate`."""
        sign = np.sign(second - square)
        square *= 1.0 - self.options.beta2
        square *= sign
        second -= square


BUILTIN: dict[str, type[Rule]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
}

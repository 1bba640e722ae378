"""The built-in rules.

FedAvg is the weighted mean (McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", algorithm 1).  The others treat Δ = mean − model as a pseudo-gradient and take a step
with a server optimiser.  They step as Flower's strategies of the same names do (flwr 1.42), with the same names and
defaults of options:

* FedAvgM: Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
  Classification", section 4.3: v ← βv + Δ, x ← x + η·v.
* FedAdagrad, FedYogi, FedAdam: Reddi et al. 2021, "Adaptive Federated Optimization" (arXiv 2003.00295, version 5),
  algorithm 2:
      m ← β₁m + (1 − β₁)Δ
      v ← v + Δ²                                  (FedAdagrad)
      v ← v − (1 − β₂) Δ² sign(v − Δ²)            (FedYogi)
      v ← β₂v + (1 − β₂) Δ²                       (FedAdam)
      x ← x + η m / (√v + τ)
  with m = 0 before the first round.

Where Flower leaves the paper, Flower's way is the default and the paper's an option.  v before the first round is 0
(`second_moment_start = "tau_squared"`: τ², the paper's least).  FedAdam corrects for the moments' start in round t = 1,
2, … by η·√(1 − β₂ᵗ⁺¹) / (1 − β₁ᵗ⁺¹) in the place of η (`bias_correction = false`: the paper's plain η).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np

from lifl.rules.base import Rule, RuleOptions
from lifl.rules.kernels import Vector

Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]
Decay = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
Start = Literal["zero", "tau_squared"]


class FedAvg(Rule):
    """The weighted mean of the updates."""


class FedAvgM(Rule):
    """FedAvg with server momentum."""

    class Options(RuleOptions, frozen=True):
        """`server_learning_rate` is η, `server_momentum` is β."""

        server_learning_rate: Positive = 1.0
        server_momentum: Decay = 0.0

    earlier_options: ClassVar[Mapping[str, str]] = {"lr": "server_learning_rate", "momentum": "server_momentum"}
    states = ("momentum",)

    def finish(self, model: Vector, mean: Vector, state: Mapping[str, Vector]) -> Vector:
        """Do v ← βv + Δ, x ← x + η·v; without momentum, and with η = 1, that is the mean."""
        velocity, rate, decay = state["momentum"], self.options.server_learning_rate, self.options.server_momentum
        if rate == 1.0 and decay == 0.0:
            np.subtract(mean, model, out=velocity)
            return mean
        np.subtract(mean, model, out=mean)
        velocity *= decay
        velocity += mean
        np.multiply(velocity, rate, out=mean)
        mean += model
        return mean


class _Adaptive(Rule):
    """What FedAdagrad, FedYogi and FedAdam share; each brings its own v."""

    earlier_options: ClassVar[Mapping[str, str]] = {"lr": "eta", "beta1": "beta_1", "beta2": "beta_2"}
    states = ("momentum", "second_moment")

    def initial(self, name: str) -> float:
        """Return m and v as they are before the first round."""
        paper = name == "second_moment" and self.options.second_moment_start == "tau_squared"
        return float(self.options.tau) ** 2 if paper else 0.0

    def finish(self, model: Vector, mean: Vector, state: Mapping[str, Vector]) -> Vector:
        """Do lines 9 to 14 of algorithm 2."""
        first, second = state["momentum"], state["second_moment"]
        delta = np.subtract(mean, model, out=mean)
        first *= self.options.beta_1
        first += (1.0 - self.options.beta_1) * delta
        self.accumulate(second, np.square(delta, out=delta))
        root = np.sqrt(second, out=mean)
        root += self.options.tau
        step = np.divide(first, root, out=mean)
        step *= self.rate()
        step += model
        return step

    def rate(self) -> float:
        """Return the η of this round."""
        return float(self.options.eta)

    def accumulate(self, second: Vector, square: Vector) -> None:
        """Take `square` = Δ² into `second` = v, in place; `square` may be overwritten."""
        second += square


class FedAdagrad(_Adaptive):
    """v ← v + Δ².  Its momentum is off unless `beta_1` is given, as in the paper's experiments."""

    class Options(RuleOptions, frozen=True):
        """`eta` is η, `beta_1` the decay of m, `tau` is τ.  `eta_l`, the clients' rate, is not used here."""

        eta: Positive = 0.1
        eta_l: Positive = 0.1
        beta_1: Decay = 0.0
        tau: Positive = 1e-3
        second_moment_start: Start = "zero"


class FedAdam(_Adaptive):
    """v ← β₂v + (1 − β₂) Δ²."""

    class Options(RuleOptions, frozen=True):
        """`eta` is η, `beta_1` and `beta_2` are the decays of m and v, `tau` is the degree of adaptivity τ.

        `eta_l`, the clients' rate, is not used here.
        """

        eta: Positive = 0.1
        eta_l: Positive = 0.1
        beta_1: Decay = 0.9
        beta_2: Decay = 0.99
        tau: Positive = 1e-3
        second_moment_start: Start = "zero"
        bias_correction: bool = True

    def rate(self) -> float:
        """Return η, corrected for the moments' start as Flower does."""
        options, power = self.options, self.round + 1
        if not options.bias_correction:
            return float(options.eta)
        return float(options.eta * math.sqrt(1.0 - options.beta_2**power) / (1.0 - options.beta_1**power))

    def accumulate(self, second: Vector, square: Vector) -> None:
        """See `_Adaptive.accumulate`."""
        beta_2: Any = self.options.beta_2
        square *= 1.0 - beta_2
        second *= beta_2
        second += square


class FedYogi(_Adaptive):
    """v ← v − (1 − β₂) Δ² sign(v − Δ²)."""

    class Options(RuleOptions, frozen=True):
        """As FedAdam's."""

        eta: Positive = 0.01
        eta_l: Positive = 0.0316
        beta_1: Decay = 0.9
        beta_2: Decay = 0.99
        tau: Positive = 1e-3
        second_moment_start: Start = "zero"

    def accumulate(self, second: Vector, square: Vector) -> None:
        """See `_Adaptive.accumulate`."""
        sign = np.sign(second - square)
        square *= 1.0 - self.options.beta_2
        square *= sign
        second -= square


BUILTIN: dict[str, type[Rule]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
}

"""Which of Flower's strategies LIFL can aggregate for, by which of its rules; and why not the others."""

from __future__ import annotations

from typing import Any, NamedTuple

from flwr.serverapp import strategy as flower

from lifl.core.errors import Refused


class FlowerRule(NamedTuple):
    """A rule of LIFL with the options that a strategy was made with."""

    name: str
    options: dict[str, Any]


_ADAPTIVE = ("eta", "eta_l", "beta_1", "tau")
_RULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "FedAvg": ("fedavg", ()),
    "FedProx": ("fedavg", ()),
    "FedAvgM": ("fedavgm", ("server_learning_rate", "server_momentum")),
    "FedAdagrad": ("fedadagrad", _ADAPTIVE),
    "FedAdam": ("fedadam", (*_ADAPTIVE, "beta_2")),
    "FedYogi": ("fedyogi", (*_ADAPTIVE, "beta_2")),
}
_ALL_AT_ONCE = "it compares all updates with each other, so that none can be folded when it comes"
_TREES = "its updates are trees of XGBoost, and no tensors that can be averaged"
_PRIVATE = "it changes each update on the server before the sum, and adds noise to the result"
_REASONS = {
    "Bulyan": _ALL_AT_ONCE,
    "DifferentialPrivacyClientSideAdaptiveClipping": _PRIVATE,
    "DifferentialPrivacyClientSideFixedClipping": _PRIVATE,
    "DifferentialPrivacyServerSideAdaptiveClipping": _PRIVATE,
    "DifferentialPrivacyServerSideFixedClipping": _PRIVATE,
    "FedMedian": _ALL_AT_ONCE,
    "FedTrimmedAvg": _ALL_AT_ONCE,
    "FedXgbBagging": _TREES,
    "FedXgbCyclic": _TREES,
    "Krum": _ALL_AT_ONCE,
    "MultiKrum": _ALL_AT_ONCE,
    "QFedAvg": "it weighs each update by the loss of the model before, and by its distance from that model",
}
_OURS = ("start", "aggregate_train")
"""What is not the given strategy's any more."""


def rule_of(strategy: Any) -> FlowerRule:
    """Return the rule that does what a strategy does.  Raise `Refused`, with its name and the reason."""
    if isinstance(strategy, type):
        raise Refused(
            "bad-strategy", "strategy", f"{strategy.__name__} is a class: give an object, {strategy.__name__}()"
        )
    name = type(strategy).__name__
    if not isinstance(strategy, flower.Strategy):
        text = f"{name} is no strategy of flwr.serverapp.strategy (those of flwr.server are of Flower's earlier API)"
        raise Refused("bad-strategy", "strategy", text)
    kinds = type(strategy).__mro__
    place, base = next((i, kind) for i, kind in enumerate(kinds) if getattr(flower, kind.__name__, None) is kind)
    if base.__name__ not in _RULES:
        reason = _REASONS.get(base.__name__, "LIFL has no rule that does the same")
        text = f"{name} cannot be aggregated by LIFL: {reason}. Taken are {', '.join(_RULES)}; or use {name} by itself"
        raise Refused("bad-strategy", "strategy", text)
    for kind in kinds[:place]:
        own = [method for method in _OURS if method in vars(kind)]
        if own:
            text = f"{kind.__name__} has a `{own[0]}` of its own, which would not be called: put it into a subclass of"
            raise Refused("bad-strategy", "strategy", f"{text} LiflStrategy, which may call super().{own[0]}(...)")
    rule, options = _RULES[base.__name__]
    return FlowerRule(rule, {option: getattr(strategy, option) for option in options})

"""The aggregator as a library: a program opens folds, adds updates, and gets their mean.

with lifl.Aggregator(node=":local:", rule="fedavg") as aggregator:
    with aggregator.open(model, expected=32) as fold:
        fold.add(tensors, weight=120, metrics={"loss": 0.3}, client="site-3")
        result = fold.result()
"""

from __future__ import annotations

from lifl.aggregator.aggregator import Aggregator
from lifl.aggregator.fold import Fold
from lifl.aggregator.outcomes import FoldFailed, FoldResult, UpdateRefused
from lifl.aggregator.part import Part, take_part
from lifl.aggregator.rule_state import RuleState

__all__ = ["Aggregator", "Fold", "FoldFailed", "FoldResult", "Part", "RuleState", "UpdateRefused", "take_part"]

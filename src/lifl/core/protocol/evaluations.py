"""The order to have a user's function look at a model, and the report of what it has found (`commands.py`)."""

from __future__ import annotations

from lifl.core.fields import Count, Message, Metrics, RuleName, Seconds, Text


class EvaluateModel(Message, frozen=True):
    """Home: have the user's function look at the model that `round` has made.  The answer is ModelEvaluated."""

    number: Count
    round: Count
    function: RuleName
    deadline_s: Seconds


class ModelEvaluated(Message, frozen=True):
    """What the user's function has found of the model of `round`; else `fault` says why it has found nothing."""

    number: Count
    round: Count
    metrics: Metrics
    fault: Text = ""

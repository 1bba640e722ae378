"""How a job's updates become a model: the section `aggregation`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from lifl.core.errors import ConfigError
from lifl.core.fields import ConfigPath, Seconds, TensorPatterns
from lifl.core.limits import FAN_IN_MAX, RULE_CHARS_MAX, TASK_DEADLINE_S

Policy = Literal["best-fit", "first-fit", "worst-fit", "round-robin"]

FAN_IN = 2


class AggregationSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How updates become a model: the `rule` (a built-in's name or ``module:Class``) with its `options`.

    A leaf task takes `fan_in` updates (none given: 2, or up to 32 small ones of 4 MiB together), a middle task
    `middle_fan_in` partials; ``eager`` folds what has arrived, eight updates or four partials at a time (small ones all
    together), ``lazy`` when a task's inputs are all there.
    `rule_folder` is where ``module`` is imported from.
    `exclude`, `fixed` and `first` are patterns of tensors' names (``*`` is any text): the excluded are averaged, and no
    server optimiser steps them; the fixed stay the model's own; of the first, one update's are taken.
    In a cluster `placement` chooses the nodes that take a round's updates (`planning/placement.py`) when a round
    begins, and every `replan_interval_s` for what has not come by then.
    A task that has all its inputs and does not end within `task_deadline_s` (none given: 300) is killed, and its round
    fails; a node whose part of a closed round does not come within twice that, and half a minute, is given
    up for that round.
    With `reproducible` the same updates give the same model bit for bit, in whatever order and on whichever nodes they
    are summed; weights are whole numbers then, and a partial takes three times the bytes.
    """

    rule: Annotated[str, msgspec.Meta(min_length=1, max_length=RULE_CHARS_MAX)] = "fedavg"
    options: dict[str, Any] = {}
    timing: Literal["eager", "lazy"] = "eager"
    fan_in: Annotated[int, msgspec.Meta(ge=1, le=FAN_IN_MAX)] | msgspec.UnsetType = msgspec.UNSET
    middle_fan_in: Annotated[int, msgspec.Meta(ge=2, le=FAN_IN_MAX)] = 8
    rule_folder: ConfigPath = ""
    placement: Policy = "best-fit"
    replan_interval_s: Seconds = 120.0
    exclude: TensorPatterns = ("*running_mean", "*running_var", "*num_batches_tracked")
    fixed: TensorPatterns = ()
    first: TensorPatterns = ()
    task_deadline_s: Seconds | msgspec.UnsetType = msgspec.UNSET  # what is not said does not travel to earlier versions
    reproducible: bool | msgspec.UnsetType = msgspec.UNSET

    @property
    def leaf_fan_in(self) -> int:
        """How many updates a leaf task takes; a new job that does not say has a number given (`with_fan_in`)."""
        return FAN_IN if isinstance(self.fan_in, msgspec.UnsetType) else self.fan_in

    @property
    def is_reproducible(self) -> bool:
        """Whether the same updates give the same model, bit for bit."""
        return self.reproducible is True

    @property
    def task_limit_s(self) -> float:
        """How long a task may take that has all its inputs."""
        return TASK_DEADLINE_S if isinstance(self.task_deadline_s, msgspec.UnsetType) else self.task_deadline_s


def check_aggregation(section: AggregationSection) -> None:
    """Raise `ConfigError` for a rule that can be none, and for keys that exclude each other."""
    if section.is_reproducible and section.first:
        text = "one update's are taken of its tensors, of whichever comes first; use fixed, or leave reproducible out"
        raise ConfigError("aggregation.first", text)
    rule = section.rule
    if not re.fullmatch(r"[A-Za-z0-9_-]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*", rule):
        raise ConfigError(
            "aggregation.rule", f"{rule!r} is neither a built-in rule's name nor module:Class of your own"
        )

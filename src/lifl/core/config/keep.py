"""What of a job's rounds stays when they are over: models as files (section `checkpoint`), and rows (`history`)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lifl.core.errors import ConfigError
from lifl.core.limits import (
    HISTORY_RECEIPTS,
    HISTORY_ROUNDS,
    KEEP_LAST,
    METRIC_NAME_CHARS_MAX,
    ROUNDS_MAX,
    ROUNDS_REMEMBERED,
)

OF_EVALUATION = "evaluation."
"""Before the name of a metric: what evaluations have found of it, not what clients have measured when they trained."""
BestMetric = Annotated[str, msgspec.Meta(max_length=METRIC_NAME_CHARS_MAX + 1 + len(OF_EVALUATION))]


class KeepSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The models of the `last` rounds stay; beside them those of each `every`-th round, 0 included (0: of none).

    And that of the round with the `best` mean of a metric of its clients: the largest, or with ``-`` before the name of
    the metric the smallest; empty: none for that.  ``evaluation.accuracy`` is what the job's evaluations have found
    of it (`[evaluation]`), of which the rounds that were not evaluated have none.
    """

    last: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS_MAX)] = KEEP_LAST
    every: Annotated[int, msgspec.Meta(ge=0, le=ROUNDS_MAX)] = 0
    best: BestMetric = ""


class HistoryKeep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rows of the last `rounds` rounds stay, with their metrics, and those of rounds whose models do.

    Those of the last `receipts` have what the round has cost, and who was in it, too.
    """

    rounds: Annotated[int, msgspec.Meta(ge=ROUNDS_REMEMBERED, le=ROUNDS_MAX)] = HISTORY_ROUNDS
    receipts: Annotated[int, msgspec.Meta(ge=ROUNDS_REMEMBERED, le=ROUNDS_MAX)] = HISTORY_RECEIPTS


class HistorySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of rounds that are over: ``keep = {rounds = 100_000, receipts = 1_000}``."""

    keep: HistoryKeep = HistoryKeep()


def check_keep(keep: KeepSection) -> None:
    """Raise `ConfigError` for a metric that cannot be one."""
    name = keep.best.removeprefix("-").removeprefix(OF_EVALUATION)
    if keep.best and not (0 < len(name) <= METRIC_NAME_CHARS_MAX and name.isprintable()):
        text = f"{keep.best!r:.80} names no metric: write its name, with - before it where the smallest is the best"
        raise ConfigError("checkpoint.keep.best", text)


def check_best(keep: KeepSection, evaluates: bool) -> None:
    """Raise `ConfigError` for a metric of evaluations in a new job that has none."""
    if keep.best.removeprefix("-").startswith(OF_EVALUATION) and not evaluates:
        text = f"{keep.best!r} is found by evaluations, and the job has none: add [evaluation], or leave out the prefix"
        raise ConfigError("checkpoint.keep.best", text)

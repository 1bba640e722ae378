"""What one training job is: `JobConfig`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from lifl.core.config.parse import convert, overridden
from lifl.core.errors import ConfigError
from lifl.core.fields import ClientPatterns, ConfigPath, Name, Seconds, TensorPatterns, TrainablePatterns, Word
from lifl.core.limits import (
    BRANCH_UPDATES_MAX,
    BYTES_PER_S_MAX,
    CLIENTS_LISTED_MAX,
    CLIENTS_PER_ROUND_MAX,
    COPIES_MAX,
    FAN_IN_MAX,
    FOLD_MORE_MIN,
    OPTIONS_BYTES_MAX,
    OPTIONS_DEPTH_MAX,
    PATTERNS_MAX,
    ROUNDS_MAX,
    RULE_CHARS_MAX,
    TASK_DEADLINE_S,
    WORKERS_MAX,
)

Policy = Literal["best-fit", "first-fit", "worst-fit", "round-robin"]
Fraction = Annotated[float, msgspec.Meta(ge=1.0, le=10.0)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class JobSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`name` is how clients and the CLI call the job; it commits `rounds` models, then ends.

    What is ACCEPTED survives all processes with `durability` ``memory``, and with ``disk`` the machine's memory, too.
    `kind` is ``fold`` for the session of a program that aggregates by itself (`fold_job`); no file says so.
    `trainable` are patterns of tensors' names (``*`` is any text): the job is about these tensors alone, as if the
    model's file had no others, and each is averaged over the clients that have sent it.
    """

    name: Name
    rounds: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS_MAX)]
    durability: Literal["memory", "disk"] = "memory"
    kind: Literal["fold"] | msgspec.UnsetType = msgspec.UNSET
    trainable: TrainablePatterns | msgspec.UnsetType = msgspec.UNSET


class ModelSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model that round 1 starts from: the safetensors file `path`, or an `example` made with `seed`."""

    path: ConfigPath = ""
    example: Word = ""
    seed: Seed = 0


class SelectionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which clients take part in a round, and when it ends.

    A round selects `clients_per_round` x `over_provision` clients and closes when `clients_per_round`
    updates are accepted, or at `deadline_s` when at least `quorum` are (none given: all of
    `clients_per_round`).  A round that fails is tried again, `attempts` times in all, then the job fails.
    `seed` draws the clients when more wait than are needed.
    Only those whose names are among `clients` may take part (``*`` in one is any text), and those that the file
    `clients_file` lists, a line each; neither given: everybody.
    """

    clients_per_round: Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_PER_ROUND_MAX)]
    over_provision: Fraction = 1.0
    quorum: Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_PER_ROUND_MAX)] | None = None
    deadline_s: Seconds = 600.0
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    seed: Seed = 0
    clients: ClientPatterns | msgspec.UnsetType = msgspec.UNSET
    clients_file: ConfigPath | msgspec.UnsetType = msgspec.UNSET


class AggregationSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How updates become a model: the `rule` (a built-in's name or ``module:Class``) with its `options`.

    A leaf task takes `fan_in` updates, a middle task `middle_fan_in` partials; ``eager`` folds what has arrived, eight
    updates or four partials at a time (small ones all together), ``lazy`` when a task's inputs are all there.
    `rule_folder` is where ``module`` is imported from.
    `exclude`, `fixed` and `first` are patterns of tensors' names (``*`` is any text): the excluded are averaged, and no
    server optimiser steps them; the fixed stay the model's own; of the first, one update's are taken.
    In a cluster `placement` chooses the nodes that take a round's updates (`planning/placement.py`) when a round
    begins, and every `replan_interval_s` for what has not come by then.
    A task that has all its inputs and does not end within `task_deadline_s` (none given: 300) is killed, and its round
    fails; a node whose part of a closed round does not come within twice that, and half a minute, is given
    up for that round.
    """

    rule: Annotated[str, msgspec.Meta(min_length=1, max_length=RULE_CHARS_MAX)] = "fedavg"
    options: dict[str, Any] = {}
    timing: Literal["eager", "lazy"] = "eager"
    fan_in: Annotated[int, msgspec.Meta(ge=1, le=FAN_IN_MAX)] = 2
    middle_fan_in: Annotated[int, msgspec.Meta(ge=2, le=FAN_IN_MAX)] = 8
    rule_folder: ConfigPath = ""
    placement: Policy = "best-fit"
    replan_interval_s: Seconds = 120.0
    exclude: TensorPatterns = ("*running_mean", "*running_var", "*num_batches_tracked")
    fixed: TensorPatterns = ()
    first: TensorPatterns = ()
    task_deadline_s: Seconds | msgspec.UnsetType = msgspec.UNSET  # what is not said does not travel to earlier versions

    @property
    def task_limit_s(self) -> float:
        """How long a task may take that has all its inputs."""
        return TASK_DEADLINE_S if isinstance(self.task_deadline_s, msgspec.UnsetType) else self.task_deadline_s


class CheckpointSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where committed models are written; empty: ``jobs/<job name>`` in the node's state folder.

    A round is committed when its model is there, and so on `replicas` other nodes, each in its own state folder.
    """

    folder: ConfigPath = ""
    # What is not said is not in rows that earlier versions read.
    replicas: Annotated[int, msgspec.Meta(ge=0, le=COPIES_MAX)] | msgspec.UnsetType = msgspec.UNSET

    @property
    def copies(self) -> int:
        """On how many other nodes a model is to be."""
        return 0 if isinstance(self.replicas, msgspec.UnsetType) else self.replicas


class ClientSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` are handed to the trainers with each round, as they are."""

    options: dict[str, Any] = {}


class QuotaSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of what jobs share this one may take.

    Of each node: `arena_share` of its arena at most, its round's tasks in `workers` workers (0: no limit), and
    `bytes_per_s` of updates and models over its gateway (0: no limit).  In all, `updates_in_flight` updates are on
    their way at a time (0: no limit).
    """

    arena_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    workers: Annotated[int, msgspec.Meta(ge=0, le=WORKERS_MAX)] = 0
    updates_in_flight: Annotated[int, msgspec.Meta(ge=0, le=BRANCH_UPDATES_MAX)] = 0
    bytes_per_s: Annotated[int, msgspec.Meta(ge=0, le=BYTES_PER_S_MAX)] = 0


class JobConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training job."""

    job: JobSection
    selection: SelectionSection
    model: ModelSection = ModelSection()
    aggregation: AggregationSection = AggregationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    client: ClientSection = ClientSection()
    quota: QuotaSection = QuotaSection()

    @property
    def trainable(self) -> tuple[str, ...]:
        """The patterns of `job.trainable`; empty: all tensors are, and each update has all of them."""
        return () if isinstance(self.job.trainable, msgspec.UnsetType) else self.job.trainable

    @property
    def is_fold(self) -> bool:
        """Whether its rounds are the folds of a program: nobody is selected, and nothing is written to files."""
        return self.job.kind == "fold"


FOLD_FAN_IN, FOLD_MIDDLE_FAN_IN = 8, 4
"""A fold's updates come one after the other, most often: a leaf that takes eight writes an eighth of the partials."""


def most_of(expected: int) -> int:
    """Return how many updates a fold takes of which so many are expected."""
    return min(expected + max(2 * expected, FOLD_MORE_MIN), CLIENTS_PER_ROUND_MAX)


def fold_job(
    name: str,
    expected: int,
    rule: str,
    options: Mapping[str, Any],
    rule_folder: str = "",
    trainable: Sequence[str] = (),
) -> JobConfig:
    """Return the job whose rounds are the folds of a program, of about `expected` updates.  Raise `ConfigError`."""
    which = {"trainable": list(trainable)} if trainable else {}
    return parse_job(
        {
            "job": {"name": name, "rounds": ROUNDS_MAX, "kind": "fold"} | which,
            "selection": {"clients_per_round": most_of(expected), "attempts": 1},
            "aggregation": {
                "rule": rule,
                "options": dict(options),
                "rule_folder": rule_folder,
                "fan_in": FOLD_FAN_IN,
                "middle_fan_in": FOLD_MIDDLE_FAN_IN,
            },
        }
    )


def parse_job(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobConfig:
    """Return the job that the table `data` describes, with `overrides` laid over it.  Raise `ConfigError`."""
    table = overridden(data, overrides)
    config = convert(table, JobConfig)
    _check_job(config)
    return config


def with_listed(config: JobConfig, listed: Sequence[str]) -> JobConfig:
    """Return `config` with more clients on its list: those of `selection.clients_file`.  Raise `ConfigError`."""
    given = config.selection.clients
    clients = list(dict.fromkeys((*(() if isinstance(given, msgspec.UnsetType) else given), *listed)))
    if not clients:
        raise ConfigError(
            "selection.clients_file", "lists no client: nobody could take part; write a name on each line"
        )
    table = msgspec.to_builtins(config)
    table["selection"]["clients"] = clients
    try:
        return parse_job(table)
    except ConfigError as error:
        where = error.path.replace("selection.clients", "selection.clients_file")
        raise ConfigError(where, error.problem) from error


def _check_job(config: JobConfig) -> None:
    listed = config.selection.clients
    if not isinstance(listed, msgspec.UnsetType) and sum("*" in name for name in listed) > PATTERNS_MAX:
        text = f"more than {PATTERNS_MAX} patterns with `*`; names without one may be {CLIENTS_LISTED_MAX}"
        raise ConfigError("selection.clients", text)
    if not config.is_fold and bool(config.model.path) == bool(config.model.example):
        given = "both are given" if config.model.path else "neither is given"
        raise ConfigError("model.path", f"give exactly one of model.path and model.example; {given}")
    if config.checkpoint.copies and config.checkpoint.folder:
        text = "each node keeps its copies in its own state folder: leave checkpoint.folder out, or checkpoint.replicas"
        raise ConfigError("checkpoint.replicas", text)
    quorum, goal = config.selection.quorum, config.selection.clients_per_round
    if quorum is not None and quorum > goal:
        raise ConfigError(
            "selection.quorum",
            f"{quorum} is more than selection.clients_per_round = {goal}; lower it to {goal} or less",
        )
    if config.job.trainable == ():
        raise ConfigError("job.trainable", "names no tensor; give patterns such as *lora_*, or leave the key out")
    if config.trainable and config.aggregation.first:
        text = "one update's are taken of its tensors, and with job.trainable an update may lack them; use fixed"
        raise ConfigError("aggregation.first", text)
    rule = config.aggregation.rule
    if not re.fullmatch(r"[A-Za-z0-9_-]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*", rule):
        raise ConfigError(
            "aggregation.rule", f"{rule!r} is neither a built-in rule's name nor module:Class of your own"
        )
    for path, options in (
        ("aggregation.options", config.aggregation.options),
        ("client.options", config.client.options),
    ):
        _check_options(options, path)
        nbytes = len(msgspec.msgpack.encode(options))
        if nbytes > OPTIONS_BYTES_MAX:
            raise ConfigError(path, f"takes {nbytes} bytes, at most {OPTIONS_BYTES_MAX} fit; name a file instead")


def _check_options(value: Any, path: str, depth: int = 0) -> None:
    """Refuse options that cannot travel to workers and trainers.

    Texts, numbers of 64 bits, booleans, lists and tables can.
    """
    if depth > OPTIONS_DEPTH_MAX:
        raise ConfigError(path, f"is nested deeper than {OPTIONS_DEPTH_MAX} levels")
    if isinstance(value, Mapping):
        for key, below in value.items():
            if not isinstance(key, str):
                raise ConfigError(path, f"has the key {key!r:.40}, which is no text")
            _check_options(below, f"{path}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            _check_options(below, f"{path}[{index}]", depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(path, f"{value} does not fit 64 bits")
    elif not isinstance(value, str | int | float | bool):
        raise ConfigError(path, f"a {type(value).__name__} cannot be sent to a trainer; write it as a text in quotes")

"""What one training job is: `JobConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from lifl.core.config.aggregation import AggregationSection, check_aggregation
from lifl.core.config.condition import parse_condition
from lifl.core.config.evaluation import EvaluationSection, check_evaluation
from lifl.core.config.keep import HistoryKeep, HistorySection, KeepSection, check_keep
from lifl.core.config.parse import convert, overridden
from lifl.core.config.placement import PlacementSection
from lifl.core.config.schedules import check_schedules, resolved
from lifl.core.config.stopping import parse_stop, stop_function
from lifl.core.config.upload_url import UploadUrl, check_upload
from lifl.core.config.users_code import is_function
from lifl.core.errors import ConfigError
from lifl.core.fields import (
    ClientPatterns,
    ConditionText,
    ConfigPath,
    LabelName,
    ModelSource,
    Name,
    Seconds,
    TrainablePatterns,
    Word,
)
from lifl.core.limits import (
    BRANCH_UPDATES_MAX,
    BYTES_PER_S_MAX,
    CLIENTS_LISTED_MAX,
    CLIENTS_PER_ROUND_MAX,
    COPIES_MAX,
    FOLD_MORE_MIN,
    OPTIONS_BY_LABEL_MAX,
    OPTIONS_BYTES_MAX,
    OPTIONS_CHANGED_BYTES_MAX,
    OPTIONS_DEPTH_MAX,
    PATTERNS_MAX,
    PRIORITY_MAX,
    ROUNDS_MAX,
    RULE_CHARS_MAX,
    STOP_CHARS_MAX,
    WORKERS_MAX,
)

PRIORITY = 50
"""Of a job that says none."""
STRATEGIES = ("uniform", "power_of_choice")
Fraction = Annotated[float, msgspec.Meta(ge=1.0, le=10.0)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class JobSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`name` is how clients and the CLI call the job; it commits `rounds` models, then ends.

    What is ACCEPTED survives all processes with `durability` ``memory``, and with ``disk`` the machine's memory, too.
    `kind` is ``fold`` for the session of a program that aggregates by itself (`fold_job`); no file says so.
    Where the arena has no room for it yet it waits: a job of a higher `priority` (none given: 50) begins first.
    `trainable` are patterns of tensors' names (``*`` is any text): the job is about these tensors alone, as if the
    model's file had no others, and each is averaged over the clients that have sent it.
    `stop` ends the job as finished before all its rounds, by its metrics or ``module:function`` (`config/stopping.py`).
    """

    name: Name
    rounds: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS_MAX)]
    durability: Literal["memory", "disk"] = "memory"
    kind: Literal["fold"] | msgspec.UnsetType = msgspec.UNSET
    trainable: TrainablePatterns | msgspec.UnsetType = msgspec.UNSET
    stop: Annotated[str, msgspec.Meta(min_length=1, max_length=STOP_CHARS_MAX)] | msgspec.UnsetType = msgspec.UNSET
    priority: Annotated[int, msgspec.Meta(ge=1, le=PRIORITY_MAX)] | msgspec.UnsetType = msgspec.UNSET


class ModelSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model that round 1 starts from: the safetensors file `path`, or an `example` made with `seed`.

    `from` is another job of the node: its last committed model, or with ``@12`` that of round 12.  It is resolved when
    the job is submitted.
    """

    path: ConfigPath = ""
    example: Word = ""
    seed: Seed = 0
    source: ModelSource | msgspec.UnsetType = msgspec.field(name="from", default=msgspec.UNSET)


class SelectionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which clients take part in a round, and when it ends.

    A round selects `clients_per_round` x `over_provision` clients and closes when `clients_per_round`
    updates are accepted, or at `deadline_s` when at least `quorum` are (none given: all of
    `clients_per_round`).  A round that fails is tried again, `attempts` times in all, then the job fails.
    `seed` draws the clients when more wait than are needed.
    Only those whose names are among `clients` may take part (``*`` in one is any text), and those that the file
    `clients_file` lists, a line each; neither given: everybody.
    With `where` those alone are selected of whom the condition is true (`config/condition.py`).  By the label
    `stratify` each group of clients has its share of a round; by the `strategy` ``power_of_choice`` so many
    `candidates` are drawn, twice as many as are wanted when that is not said, and those with the greatest loss are
    taken (`planning/draw.py`); by ``module:function`` those are that the function names (`coordinator/choosing.py`).
    """

    clients_per_round: Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_PER_ROUND_MAX)]
    over_provision: Fraction = 1.0
    quorum: Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_PER_ROUND_MAX)] | None = None
    deadline_s: Seconds = 600.0
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    seed: Seed = 0
    clients: ClientPatterns | msgspec.UnsetType = msgspec.UNSET
    clients_file: ConfigPath | msgspec.UnsetType = msgspec.UNSET
    where: ConditionText | msgspec.UnsetType = msgspec.UNSET
    stratify: LabelName | msgspec.UnsetType = msgspec.UNSET
    strategy: Annotated[str, msgspec.Meta(min_length=1, max_length=RULE_CHARS_MAX)] | msgspec.UnsetType = msgspec.UNSET
    candidates: Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_PER_ROUND_MAX * 10)] | msgspec.UnsetType = msgspec.UNSET

    @property
    def function(self) -> str:
        """The user's function that selects; empty: none does."""
        return self.strategy if isinstance(self.strategy, str) and ":" in self.strategy else ""

    @property
    def by_loss(self) -> bool:
        """Whether the clients' last losses have a part in who is selected."""
        return self.strategy == "power_of_choice" or bool(self.function)


class CheckpointSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where committed models are written; empty: ``jobs/<job name>`` in the node's state folder.

    A round is committed when its model is there, and so on `replicas` other nodes, each in its own state folder.
    `keep` says which of them stay when later ones are committed: ``{last = 3, every = 100, best = "accuracy"}``.
    Each is brought to `upload`, too (``s3://BUCKET/PREFIX``, or another address that fsspec knows), after it is
    committed.
    """

    folder: ConfigPath = ""
    # What is not said is not in rows that earlier versions read.
    replicas: Annotated[int, msgspec.Meta(ge=0, le=COPIES_MAX)] | msgspec.UnsetType = msgspec.UNSET
    keep: KeepSection | msgspec.UnsetType = msgspec.UNSET
    upload: UploadUrl | msgspec.UnsetType = msgspec.UNSET

    @property
    def upload_url(self) -> str:
        """Where each model goes, too; empty: nowhere."""
        return "" if isinstance(self.upload, msgspec.UnsetType) else self.upload

    @property
    def kept(self) -> KeepSection:
        """Which models stay."""
        return KeepSection() if isinstance(self.keep, msgspec.UnsetType) else self.keep

    @property
    def copies(self) -> int:
        """On how many other nodes a model is to be."""
        return 0 if isinstance(self.replicas, msgspec.UnsetType) else self.replicas


class LabelOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` that take the place of the others for clients of whom the condition `where` is true."""

    where: ConditionText
    options: dict[str, Any]


class ClientSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` are handed to the trainers with each round; some may be schedules (`config/schedules.py`).

    Of `by_label` the first whose condition is true of a client has it get other options.
    """

    options: dict[str, Any] = {}
    by_label: Annotated[tuple[LabelOptions, ...], msgspec.Meta(max_length=OPTIONS_BY_LABEL_MAX)] | msgspec.UnsetType = (
        msgspec.UNSET
    )

    @property
    def groups(self) -> tuple[LabelOptions, ...]:
        """The groups of clients with options of their own."""
        return () if isinstance(self.by_label, msgspec.UnsetType) else self.by_label

    def options_of(self, number: int, rounds: int, group: int = -1) -> dict[str, Any]:
        """Return the options of a round, for the clients of a group (-1: of none)."""
        own = {} if group < 0 else self.groups[group].options
        return {key: resolved(value, number, rounds) for key, value in (self.options | own).items()}


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


class MetricsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a job's metrics go, and how much of them is kept.

    Each committed round is told to the `tracker`, by a process of its own beside lifld, at the `address`: the URL of an
    MLflow server (none given: http://127.0.0.1:5000), or the folder of TensorBoard or of Weights & Biases' offline runs
    (none given: ``trackers`` in the node's state folder).
    With `per_client` a round's receipt keeps what each client measured, too, of 256 of them at the most: that tells
    about a site's data.
    """

    tracker: Literal["mlflow", "tensorboard", "wandb"] | msgspec.UnsetType = msgspec.UNSET
    address: ConfigPath | msgspec.UnsetType = msgspec.UNSET
    per_client: bool = False


class JobConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training job."""

    job: JobSection
    selection: SelectionSection
    model: ModelSection = ModelSection()
    aggregation: AggregationSection = AggregationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    client: ClientSection = ClientSection()
    quota: QuotaSection = QuotaSection()
    evaluation: EvaluationSection | msgspec.UnsetType = msgspec.UNSET
    history: HistorySection | msgspec.UnsetType = msgspec.UNSET  # what is not said is not in rows, as above
    metrics: MetricsSection | msgspec.UnsetType = msgspec.UNSET
    placement: PlacementSection | msgspec.UnsetType = msgspec.UNSET

    @property
    def remembered(self) -> HistoryKeep:
        """Which rows of rounds stay."""
        return HistoryKeep() if isinstance(self.history, msgspec.UnsetType) else self.history.keep

    @property
    def told(self) -> MetricsSection:
        """What is said of metrics, or what holds where nothing is."""
        return MetricsSection() if isinstance(self.metrics, msgspec.UnsetType) else self.metrics

    @property
    def trainable(self) -> tuple[str, ...]:
        """The patterns of `job.trainable`; empty: all tensors are, and each update has all of them."""
        return () if isinstance(self.job.trainable, msgspec.UnsetType) else self.job.trainable

    @property
    def priority(self) -> int:
        """How soon it begins, beside others that wait for the arena."""
        return PRIORITY if isinstance(self.job.priority, msgspec.UnsetType) else self.job.priority

    @property
    def server_function(self) -> str:
        """The user's function that looks at models; empty: none does."""
        evaluation = self.evaluation
        given = evaluation.server if isinstance(evaluation, EvaluationSection) else ""
        return given if isinstance(given, str) else ""

    @property
    def functions(self) -> dict[str, str]:
        """The functions of the user's that a worker calls at home, by the keys that name them."""
        stop = stop_function(self.job.stop) if isinstance(self.job.stop, str) else ""
        named = {"evaluation.server": self.server_function, "selection.strategy": self.selection.function}
        return {key: name for key, name in {**named, "job.stop": stop}.items() if name}

    @property
    def node_labels(self) -> Mapping[str, str]:
        """The labels that a node needs to take its updates."""
        return {} if isinstance(self.placement, msgspec.UnsetType) else self.placement.nodes

    @property
    def is_fold(self) -> bool:
        """Whether its rounds are the folds of a program: nobody is selected, and nothing is written to files."""
        return self.job.kind == "fold"


FOLD_FAN_IN, FOLD_FAN_IN_SMALL = 4, 32
"""How many updates a link of a fold's chain takes: they stay in the arena until all of them are folded.  Each link
reads and writes a partial, too, and is a task; of small updates, of `FOLD_SMALL_BYTES` at most, memory is no matter."""
FOLD_SMALL_BYTES = 1 << 20
FOLD_PLACES_FREE = 1
"""Places of a fold's tree that no update gets: it is not complete before its program says so."""


def most_of(expected: int) -> int:
    """Return how many updates a fold takes of which so many are expected."""
    return min(expected + max(2 * expected, FOLD_MORE_MIN), CLIENTS_PER_ROUND_MAX)


def expected_of(places: int) -> int:
    """Return how many updates are expected of a fold whose tree has so many places; 0: nobody can say."""
    most = places - FOLD_PLACES_FREE
    found = most // 3 if most >= FOLD_MORE_MIN * 3 // 2 else most - FOLD_MORE_MIN
    return found if found > 0 and most_of(found) == most < CLIENTS_PER_ROUND_MAX else 0


def fold_job(
    name: str,
    expected: int,
    rule: str,
    options: Mapping[str, Any],
    rule_folder: str = "",
    trainable: Sequence[str] = (),
    update_bytes: int = 0,
    reproducible: bool = False,
) -> JobConfig:
    """Return the job whose rounds are the folds of a program, of about `expected` updates of so many bytes.

    Raise `ConfigError`.
    """
    which = {"trainable": list(trainable)} if trainable else {}
    summed = {"reproducible": True} if reproducible else {}
    return parse_job(
        {
            "job": {"name": name, "rounds": ROUNDS_MAX, "kind": "fold"} | which,
            "selection": {"clients_per_round": most_of(expected), "attempts": 1},
            "aggregation": {
                "rule": rule,
                "options": dict(options),
                "rule_folder": rule_folder,
                "fan_in": FOLD_FAN_IN if update_bytes > FOLD_SMALL_BYTES else FOLD_FAN_IN_SMALL,
            }
            | summed,
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
    given = [key for key, value in (("path", config.model.path), ("example", config.model.example)) if value]
    given += ["from"] if config.model.source else []
    if not config.is_fold and len(given) != 1:
        told = f"{' and '.join(given)} are given" if given else "none is given"
        raise ConfigError("model.path", f"give exactly one of model.path, model.example and model.from; {told}")
    if config.checkpoint.copies and config.checkpoint.folder:
        text = "each node keeps its copies in its own state folder: leave checkpoint.folder out, or checkpoint.replicas"
        raise ConfigError("checkpoint.replicas", text)
    check_keep(config.checkpoint.kept)
    if config.checkpoint.upload_url:
        check_upload(config.checkpoint.upload_url)
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
    _check_tracker(config.told)
    check_aggregation(config.aggregation)
    for path, options in (
        ("aggregation.options", config.aggregation.options),
        ("client.options", config.client.options),
        *((f"client.by_label[{index}].options", group.options) for index, group in enumerate(config.client.groups)),
    ):
        _check_options(options, path)
        nbytes = len(msgspec.msgpack.encode(options))
        if nbytes > OPTIONS_BYTES_MAX:
            raise ConfigError(path, f"takes {nbytes} bytes, at most {OPTIONS_BYTES_MAX} fit; name a file instead")
    _check_of_clients(config)


def _check_of_clients(config: JobConfig) -> None:
    """Refuse conditions, schedules and options of groups that are none, or too large to go with each selection."""
    selection, client, rounds = config.selection, config.client, config.job.rounds
    if isinstance(selection.where, str):
        parse_condition(selection.where, "selection.where")
    strategy = selection.strategy
    if isinstance(strategy, str) and strategy not in STRATEGIES and not is_function(strategy):
        raise ConfigError("selection.strategy", f"{strategy!r:.80} is none of {', '.join(STRATEGIES)}, module:function")
    if selection.function and isinstance(selection.stratify, str):
        raise ConfigError(
            "selection.stratify", f"{selection.function} chooses (selection.strategy): leave one of them out"
        )
    if isinstance(selection.candidates, int) and selection.strategy != "power_of_choice":
        raise ConfigError("selection.candidates", 'goes with selection.strategy = "power_of_choice" alone')
    if isinstance(config.job.stop, str):
        parse_stop(config.job.stop, "job.stop")
    if isinstance(config.evaluation, EvaluationSection):
        check_evaluation(config.evaluation)
    check_schedules(client.options, "client.options", rounds)
    for index, group in enumerate(client.groups):
        parse_condition(group.where, f"client.by_label[{index}].where")
        check_schedules(group.options, f"client.by_label[{index}].options", rounds)
    base = client.options_of(1, rounds)
    for index in range(-1, len(client.groups)):
        path = "client.options" if index < 0 else f"client.by_label[{index}].options"
        for number in {1, (1 + rounds) // 2, rounds}:
            nbytes = len(msgspec.msgpack.encode(options_changed(base, client.options_of(number, rounds, index))))
            if nbytes > OPTIONS_CHANGED_BYTES_MAX:
                text = f"what a round or a label makes of them takes {nbytes} bytes, and {OPTIONS_CHANGED_BYTES_MAX} go"
                raise ConfigError(path, f"{text} with each selection; put schedules at the top, and name files")


def options_changed(base: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return which of the options are others than in `base`."""
    return {key: value for key, value in options.items() if key not in base or base[key] != value}


def _check_tracker(metrics: MetricsSection) -> None:
    address = metrics.address or ""
    if address and not metrics.tracker:
        raise ConfigError("metrics.address", "is where a tracker is: say which one with metrics.tracker")
    scheme, separator, rest = str(address).partition("://")
    if metrics.tracker == "mlflow" and address and (scheme not in ("http", "https") or not separator or not rest):
        raise ConfigError("metrics.address", f"{address!r:.80} is no URL of an MLflow server; give http://HOST:PORT")
    if metrics.tracker != "mlflow" and separator:
        text = f"{address!r:.80} is a URL; {metrics.tracker} writes into a folder: name one"
        raise ConfigError("metrics.address", text)
    if "@" in rest.partition("/")[0]:
        text = "has a user's name or password, and a job's config is shown; set MLFLOW_TRACKING_USERNAME and"
        raise ConfigError("metrics.address", f"{text} MLFLOW_TRACKING_PASSWORD in lifld's environment instead")


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

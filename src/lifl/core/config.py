"""Configurations: tables as TOML gave them in, one frozen and checked object out.

A job's config says what one training job is (`JobConfig`); a node's says how one `lifld` runs
(`NodeConfig`).  Parsing is three steps, each of which refuses with the dotted path of the key at fault:
overrides (``section.key=value``, the value in TOML's syntax) are laid over the table; keys that do not
exist are refused with the nearest one that does; msgspec checks types and ranges, and the rules that join
several keys are checked last.  Files, the environment and the machine are not looked at here: that is the
business of whoever calls.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from lifl.core.errors import ConfigError
from lifl.core.messages import NAME_RULE, Name
from lifl.core.placement import Policy

ROUNDS_MAX = 1_000_000
CLIENTS_PER_ROUND_MAX = 10_000
FAN_IN_MAX = 64
DEADLINE_S_MAX = 30 * 24 * 3600.0
ARENA_BYTES_MIN = 1 << 24
ARENA_BYTES_MAX = 1 << 44
WORKERS_MAX = 1_000
CAPACITY_MAX = 1e6
CONNECTIONS_MAX = 65_536
STATE_DIR_BYTES_MAX = 90
"""A Unix socket's address holds 107 bytes, and the longest name in the state folder is put behind it."""
OPTIONS_DEPTH_MAX = 8

Fraction = Annotated[float, msgspec.Meta(ge=1.0, le=10.0)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=DEADLINE_S_MAX)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class JobSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`name` is how clients and the CLI call the job; it commits `rounds` models, then ends."""

    name: Name
    rounds: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS_MAX)]


class ModelSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model that round 1 starts from: the safetensors file `path`, or an `example` made with `seed`."""

    path: str = ""
    example: str = ""
    seed: Seed = 0


class SelectionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes part in a round, and when it ends.

    A round selects `clients_per_round` x `over_provision` clients and closes when `clients_per_round`
    updates are accepted, or at `deadline_s` when at least `quorum` are (none given: all of
    `clients_per_round`).  A round that fails is tried again, `attempts` times in all, then the job fails.
    `seed` draws the clients when more wait than are needed.
    """

    clients_per_round: Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_PER_ROUND_MAX)]
    over_provision: Fraction = 1.0
    quorum: Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_PER_ROUND_MAX)] | None = None
    deadline_s: Seconds = 600.0
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    seed: Seed = 0


class AggregationSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How updates become a model: the `rule` (a built-in's name or ``module:Class``) with its `options`.

    A leaf task takes `fan_in` updates, a middle task `middle_fan_in` partials; ``eager`` folds what has arrived, four
    or more at a time (small ones all together), ``lazy`` when a task's inputs are all there.  `rule_folder` is where
    ``module`` is imported from.
    In a cluster `placement` chooses the nodes that take a round's updates (`core/placement.py`) when a round begins,
    and every `replan_interval_s` for what has not come by then.
    """

    rule: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] = "fedavg"
    options: dict[str, Any] = {}
    timing: Literal["eager", "lazy"] = "eager"
    fan_in: Annotated[int, msgspec.Meta(ge=1, le=FAN_IN_MAX)] = 2
    middle_fan_in: Annotated[int, msgspec.Meta(ge=2, le=FAN_IN_MAX)] = 8
    rule_folder: str = ""
    placement: Policy = "best-fit"
    replan_interval_s: Seconds = 120.0


class CheckpointSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where committed models are written; empty: ``jobs/<job name>`` in the node's state folder."""

    folder: str = ""


class ClientSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` are handed to the trainers with each round, as they are."""

    options: dict[str, Any] = {}


class JobConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training job."""

    job: JobSection
    selection: SelectionSection
    model: ModelSection = ModelSection()
    aggregation: AggregationSection = AggregationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    client: ClientSection = ClientSection()


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node.

    `listen` is the gateway's HOST:PORT (port 0: any free one); `arena_bytes` the size of the shared-memory
    segment; workers that had no task for `idle_timeout_s` end; at most `workers_max` run at once (0: one
    more than the machine has cores).
    `capacity` is the node's MC (`core/capacity.py`), the updates that it folds at a time; 0: measured at start-up.
    `connections_max` bounds the gateway's connections, `wait_queue_max` the updates that wait for room in the
    arena before others are told BUSY.
    `control` is the HOST:PORT at which other nodes reach this one; with `join`, the control address of any member, the
    node joins that member's cluster.  Nothing is encrypted, so a node listens beyond loopback only with `insecure`.
    """

    state_dir: str = ""
    listen: str = "127.0.0.1:7433"
    arena_bytes: Annotated[int, msgspec.Meta(ge=ARENA_BYTES_MIN, le=ARENA_BYTES_MAX)] = 1 << 30
    redirector: Literal["auto", "sockmap", "unix"] = "auto"
    idle_timeout_s: Annotated[float, msgspec.Meta(ge=0, le=DEADLINE_S_MAX)] = 30.0
    workers_max: Annotated[int, msgspec.Meta(ge=0, le=WORKERS_MAX)] = 0
    capacity: Annotated[float, msgspec.Meta(ge=0, le=CAPACITY_MAX)] = 0.0
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=CONNECTIONS_MAX)] = 1024
    wait_queue_max: Annotated[int, msgspec.Meta(ge=0, le=CONNECTIONS_MAX)] = 1024
    control: str = ""
    join: str = ""
    insecure: bool = False


C = TypeVar("C", JobConfig, NodeConfig)


def parse_job(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobConfig:
    """The job that the table `data` describes, with `overrides` laid over it.  Raises `ConfigError`."""
    table = _overridden(data, overrides)
    config = _convert(table, JobConfig)
    _check_job(config)
    return config


def parse_node(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> NodeConfig:
    """The node that the table `data` describes, with `overrides` laid over it.  Raises `ConfigError`.

    `arena_bytes` may be a text with a unit, such as ``"2GiB"``.
    """
    table = _overridden(data, overrides)
    if isinstance(table.get("arena_bytes"), str):
        table["arena_bytes"] = parse_size(table["arena_bytes"], "arena_bytes")
    config = _convert(table, NodeConfig)
    split_address(config.listen, "listen")
    if config.control:
        split_address(config.control, "control")
    if config.join:
        split_address(config.join, "join")
    if not config.insecure:
        _check_loopback(config)
    if len(config.state_dir.encode()) > STATE_DIR_BYTES_MAX:
        raise ConfigError(
            "state_dir",
            f"the path has {len(config.state_dir.encode())} bytes; the sockets in it allow at most "
            f"{STATE_DIR_BYTES_MAX}: choose a shorter one",
        )
    return config


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_UNIT_BYTES = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base ** (power + 1)
    for power, prefix in enumerate("KMGT")
    for suffix, base in (("B", 1000), ("iB", 1024))
}


def parse_size(text: str, path: str = "") -> int:
    """The bytes that a size such as ``2GiB``, ``1.5 GB`` or ``4096`` means.  Raises `ConfigError`."""
    match = _SIZE.fullmatch(text.strip())
    units = {unit.lower(): size for unit, size in _UNIT_BYTES.items()}
    if match is None or match[2].lower() not in units:
        raise ConfigError(
            path,
            f"{text!r} is not a size; write a number with B, KB, MB, GB, TB, KiB, MiB, GiB, TiB: 2GiB",
        )
    whole, _, decimals = match[1].partition(".")
    scale: int = units[match[2].lower()]
    # In integers, so that no size is rounded by a float.
    scaled: int = int(whole + decimals) * scale // 10 ** len(decimals)
    return scaled


def split_address(text: str, path: str = "") -> tuple[str, int]:
    """HOST and PORT of ``HOST:PORT`` (an IPv6 host in brackets).  Raises `ConfigError` at `path`."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    well_formed = colon and bare and (bare != host or ":" not in host) and re.fullmatch(r"[0-9]{1,5}", port)
    if not well_formed or int(port) > 65_535:
        raise ConfigError(path, f"{text!r} is not HOST:PORT with a port of 0 to 65535, such as 127.0.0.1:7433")
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than ``localhost`` may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def beyond_loopback(config: NodeConfig) -> dict[str, str]:
    """The addresses on which others than this machine may reach the node, by their keys."""
    listening = {"listen": config.listen} | ({"control": config.control} if config.control else {})
    return {key: address for key, address in listening.items() if not is_loopback(split_address(address, key)[0])}


def _check_loopback(config: NodeConfig) -> None:
    for key, address in beyond_loopback(config).items():
        raise ConfigError(
            key,
            f"{address} is reached from other machines, and nothing is encrypted or authenticated yet: whoever "
            "reaches it can read and change models; listen on 127.0.0.1, or say insecure = true (--insecure) where "
            "the network is your own",
        )


def _overridden(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    table = _copied(data)
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        keys = path.split(".")
        if not equals or not all(keys):
            raise ConfigError("", f"the override {override!r} is not of the form section.key=value")
        here = table
        for depth, key in enumerate(keys[:-1], start=1):
            below = here.setdefault(key, {})
            if not isinstance(below, dict):
                raise ConfigError(path, f"{'.'.join(keys[:depth])} is a value, so nothing can be set within it")
            here = below
        here[keys[-1]] = _toml_value(text.strip(), path)
    return table


def _toml_value(text: str, path: str) -> Any:
    """`text` as TOML's value, or as a string without quotes when it is none."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if text[:1] in ('"', "'", "[", "{"):
            raise ConfigError(path, f"{text!r} is not a TOML value: {error}") from error
        return text
    # A line break within the text would add keys of its own.
    return table["value"] if set(table) == {"value"} else text


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _convert(table: Mapping[str, Any], kind: type[C]) -> C:
    _check_keys(table, kind)
    try:
        config = msgspec.convert(table, type=kind)
    except msgspec.ValidationError as error:
        raise _config_error(str(error), table, kind) from error
    for path, value in _leaves(table, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(path, f"{value} is not a finite number")
    return config


def _check_keys(table: Mapping[str, Any], kind: type[msgspec.Struct]) -> None:
    """Refuses the first key of `table` that `kind` does not have."""
    known = dict(_known_keys(kind, ""))
    sections = [path for path, is_section in known.items() if is_section]
    for key, value in table.items():
        if key not in known:
            raise _unknown_key(key, known)
        if key not in sections:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(key, f"is a section: write its keys under [{key}]")
        for inner in value:
            if f"{key}.{inner}" not in known:
                raise _unknown_key(f"{key}.{inner}", known)


def _known_keys(kind: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, bool]]:
    """The dotted keys of `kind`, each with whether it is a section."""
    hints = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for name, hint in hints.items():
        is_section = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
        yield prefix + name, is_section
        if is_section:
            yield from _known_keys(hint, f"{prefix}{name}.")


def _unknown_key(path: str, known: Mapping[str, bool]) -> ConfigError:
    last = path.rpartition(".")[2]
    # The right name in a wrong section first, then the nearest spelling.
    found = [name for name in known if name.rpartition(".")[2] == last]
    found = found or difflib.get_close_matches(path, known, 1, 0.6)
    if not found:
        near = difflib.get_close_matches(last, [name.rpartition(".")[2] for name in known], 1, 0.6)
        found = [name for name in known if near and name.rpartition(".")[2] == near[0]]
    section = path.rpartition(".")[0]
    here = [name for name in known if name.rpartition(".")[0] == section] or list(known)
    hint = f"did you mean {found[0]}?" if found else f"known here: {', '.join(here)}"
    return ConfigError(path, f"unknown key; {hint}")


_AT = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`$")


def _config_error(text: str, table: Mapping[str, Any], kind: type[msgspec.Struct]) -> ConfigError:
    """msgspec's complaint as ours: with the dotted path and the value given."""
    at = _AT.search(text)
    path = at[1] if at else ""
    problem = text[: at.start()] if at else text
    missing = _MISSING.match(problem)
    if missing:
        return ConfigError(f"{path}.{missing[1]}" if path else missing[1], "is missing and has no default")
    value: Any = table
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if problem.startswith("Invalid enum value"):
        return ConfigError(path, f"{value!r:.80} is none of {', '.join(_choices(kind, path))}")
    if "matching regex" in problem:
        return ConfigError(path, f"{value!r:.80} is no name: {NAME_RULE}")
    problem = problem.replace("`", "")
    hint = '; write it in quotes ("...")' if problem.startswith("Expected str, got") else ""
    return ConfigError(path, f"{problem[:1].lower()}{problem[1:]} (given: {value!r:.80}){hint}")


def _choices(kind: Any, path: str) -> tuple[str, ...]:
    """What the key at `path` may be, where that is one of a few words."""
    for key in path.split("."):
        kind = {field.name: field.type for field in msgspec.structs.fields(kind)}[key]
    return get_args(kind)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _check_job(config: JobConfig) -> None:
    if bool(config.model.path) == bool(config.model.example):
        given = "both are given" if config.model.path else "neither is given"
        raise ConfigError("model.path", f"give exactly one of model.path and model.example; {given}")
    quorum, goal = config.selection.quorum, config.selection.clients_per_round
    if quorum is not None and quorum > goal:
        raise ConfigError(
            "selection.quorum",
            f"{quorum} is more than selection.clients_per_round = {goal}; lower it to {goal} or less",
        )
    rule = config.aggregation.rule
    if not re.fullmatch(r"[A-Za-z0-9_-]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*", rule):
        raise ConfigError(
            "aggregation.rule", f"{rule!r} is neither a built-in rule's name nor module:Class of your own"
        )
    _check_options(config.aggregation.options, "aggregation.options")
    _check_options(config.client.options, "client.options")


def _check_options(value: Any, path: str, depth: int = 0) -> None:
    """Options travel to workers and trainers: texts, numbers of 64 bits, booleans, lists and tables."""
    if depth > OPTIONS_DEPTH_MAX:
        raise ConfigError(path, f"is nested deeper than {OPTIONS_DEPTH_MAX} levels")
    if isinstance(value, Mapping):
        for key, below in value.items():
            _check_options(below, f"{path}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            _check_options(below, f"{path}[{index}]", depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(path, f"{value} does not fit 64 bits")
    elif not isinstance(value, str | int | float | bool):
        raise ConfigError(path, f"a {type(value).__name__} cannot be sent to a trainer; write it as a text in quotes")

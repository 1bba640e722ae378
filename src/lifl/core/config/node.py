"""How one `lifld` runs: `NodeConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from lifl.core.config.parse import convert, overridden
from lifl.core.config.store_url import parse_store
from lifl.core.config.values import is_loopback, parse_size, split_address
from lifl.core.errors import ConfigError
from lifl.core.fields import Address, ConfigPath, NodeLabels, UserName
from lifl.core.limits import (
    ARENA_BYTES_MAX,
    ARENA_BYTES_MIN,
    BYTES_PER_S_MAX,
    CAPACITY_MAX,
    CONNECTIONS_MAX,
    DEADLINE_S_MAX,
    JOBS_KEPT,
    JOBS_KEPT_MAX,
    JOBS_REMEMBERED,
    REQUESTS_PER_S,
    REQUESTS_PER_S_MAX,
    STATE_DIR_BYTES_MAX,
    STORE_URL_CHARS_MAX,
    STREAMS_MAX,
    WORKERS_MAX,
)

Smoothing = Literal["queue", "rate-and-time"]
Reached = Literal["local", "plain", "tls"]
"""How clients and other nodes reach a node: on its own machine alone, or over its link, in plain or by TLS."""


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node.

    `listen` is the gateway's HOST:PORT (port 0: any free one); `arena_bytes` the size of the shared-memory
    segment; workers that had no task for `idle_timeout_s` end; at most `workers_max` run at once (0: one
    more than the machine has cores).
    `capacity` is the node's MC (`planning/capacity.py`), the updates that it folds at a time; 0: measured at start-up.
    Its load is smoothed as a `queue`, or by `rate-and-time` (`planning/capacity.py`).
    `connections_max` bounds the gateway's connections (0: 10,240, or as many as its process may have descriptors for),
    `connections_per_client` those of one certificate's name (where
    none is asked for: of one name from one place) and `connections_per_address` those from one address (0: no limit of
    its own); a client sends `requests_per_s` beside what its updates take, and receives and sends `client_bytes_per_s`
    of models and updates (0: no limit).
    A large body goes over at most `streams` connections (0: under TLS half as many as the machine has cores, up to 4;
    else one).
    `wait_queue_max` updates of one job may wait for room in the arena before others are told BUSY.
    Of jobs that are over the last `jobs_kept` are known, the others forgotten as by ``lifl rm``; their models stay.
    `http` is the HOST:PORT at which clients come by HTTP; empty: none do.
    `control` is the HOST:PORT at which other nodes reach this one; with `join`, the control address of any member, the
    node joins that member's cluster; with an identity, or else by the token in `token_file`.
    `ca_cert` and `ca_key` are an authority of the operator's own, for the first node, which else makes one.
    A node that root starts is `user`'s from its first file on.
    `log_format` ``json`` makes each line of the log an object, for programs.
    `labels` are what jobs with `placement.nodes` go by: ``{zone = "eu"}``.
    `store` is where a cluster keeps its rows of which any node may coordinate (`store_url.py`); it is reached with the
    certificates in `store_ca`, `store_cert` and `store_key`, or else plainly.
    A node that other machines or nodes reach is secured: TLS, by certificates on both sides; any other takes clients
    of its own account alone (`trust/cookie.py`).  `insecure` does without both, and cannot be in one cluster with a
    secured node.
    """

    state_dir: ConfigPath = ""
    listen: Address = "127.0.0.1:7433"
    arena_bytes: Annotated[int, msgspec.Meta(ge=ARENA_BYTES_MIN, le=ARENA_BYTES_MAX)] = 1 << 30
    redirector: Literal["auto", "sockmap", "unix"] = "auto"
    idle_timeout_s: Annotated[float, msgspec.Meta(ge=0, le=DEADLINE_S_MAX)] = 30.0
    workers_max: Annotated[int, msgspec.Meta(ge=0, le=WORKERS_MAX)] = 0
    capacity: Annotated[float, msgspec.Meta(ge=0, le=CAPACITY_MAX)] = 0.0
    smoothing: Smoothing = "queue"
    connections_max: Annotated[int, msgspec.Meta(ge=0, le=CONNECTIONS_MAX)] = 0
    connections_per_client: Annotated[int, msgspec.Meta(ge=0, le=CONNECTIONS_MAX)] = 64
    connections_per_address: Annotated[int, msgspec.Meta(ge=0, le=CONNECTIONS_MAX)] = 0
    requests_per_s: Annotated[int, msgspec.Meta(ge=1, le=REQUESTS_PER_S_MAX)] = REQUESTS_PER_S
    client_bytes_per_s: Annotated[int, msgspec.Meta(ge=0, le=BYTES_PER_S_MAX)] = 0
    streams: Annotated[int, msgspec.Meta(ge=0, le=STREAMS_MAX)] = 0
    wait_queue_max: Annotated[int, msgspec.Meta(ge=0, le=CONNECTIONS_MAX)] = 1024
    jobs_kept: Annotated[int, msgspec.Meta(ge=JOBS_REMEMBERED, le=JOBS_KEPT_MAX)] = JOBS_KEPT
    http: Address = ""
    control: Address = ""
    join: Address = ""
    token_file: ConfigPath = ""
    ca_cert: ConfigPath = ""
    ca_key: ConfigPath = ""
    user: UserName = ""
    store: Annotated[str, msgspec.Meta(max_length=STORE_URL_CHARS_MAX)] = ""
    store_ca: ConfigPath = ""
    store_cert: ConfigPath = ""
    store_key: ConfigPath = ""
    insecure: bool = False
    log_format: Literal["text", "json"] = "text"
    labels: NodeLabels = {}


def parse_node(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> NodeConfig:
    """Return the node that the table `data` describes, with `overrides` laid over it.  Raise `ConfigError`.

    `arena_bytes` may be a text with a unit, such as ``"2GiB"``.
    """
    table = overridden(data, overrides)
    if isinstance(table.get("arena_bytes"), str):
        table["arena_bytes"] = parse_size(table["arena_bytes"], "arena_bytes")
    config = convert(table, NodeConfig)
    for name in (name for name, value in config.labels.items() if not value):
        raise ConfigError("labels", f"{name} has no value: no job could ask for it; write NAME=VALUE, such as zone=eu")
    split_address(config.listen, "listen")
    if config.http:
        split_address(config.http, "http")
    if config.control:
        split_address(config.control, "control")
    if config.join:
        split_address(config.join, "join")
    _check_authority(config)
    _check_store(config)
    if len(config.state_dir.encode()) > STATE_DIR_BYTES_MAX:
        raise ConfigError(
            "state_dir",
            f"the path has {len(config.state_dir.encode())} bytes; the sockets in it allow at most "
            f"{STATE_DIR_BYTES_MAX}: choose a shorter one",
        )
    return config


def _check_store(config: NodeConfig) -> None:
    files = {key: getattr(config, key) for key in ("store_ca", "store_cert", "store_key")}
    if not config.store:
        for key in (key for key, value in files.items() if value):
            raise ConfigError(key, "is for a node whose cluster keeps its rows in a store: say which one with store")
        return
    url = parse_store(config.store)
    missing = [key for key, value in files.items() if not value]
    if 0 < len(missing) < len(files):
        raise ConfigError(missing[0], "is missing: give store_ca, store_cert and store_key, or none of them")
    beyond = [endpoint for endpoint in url.endpoints if not is_loopback(split_address(endpoint, "store")[0])]
    if missing and beyond and not config.insecure:
        text = f"{beyond[0]} is reached over a network: give store_ca, store_cert and store_key, or say insecure = true"
        raise ConfigError("store_ca", f"{text} where the network is your own")
    if config.control and split_address(config.control, "control")[0] in ("0.0.0.0", "::"):
        text = f"{config.control}: any node may coordinate, so say the address at which the others reach this one"
        raise ConfigError("control", text)


def _check_authority(config: NodeConfig) -> None:
    if bool(config.ca_cert) != bool(config.ca_key):
        given, missing = ("ca_cert", "ca_key") if config.ca_cert else ("ca_key", "ca_cert")
        raise ConfigError(missing, f"is missing: an authority is a certificate and its key, and {given} is given")
    if config.join and config.ca_cert:
        text = "is for the first node of a cluster; this one joins another's, which has the authority"
        raise ConfigError("ca_cert", text)
    if config.token_file and not config.join:
        raise ConfigError("token_file", "is for a node that joins a cluster: say which one with join (--join)")


def beyond_loopback(config: NodeConfig) -> dict[str, str]:
    """Return the addresses on which other machines may reach the node, by their keys."""
    addresses = {"listen": config.listen, "control": config.control, "http": config.http}
    listening = {key: address for key, address in addresses.items() if address}
    return {key: address for key, address in listening.items() if not is_loopback(split_address(address, key)[0])}


def coordinates(config: NodeConfig) -> bool:
    """Return whether the node coordinates from its start on, and for all its life."""
    return not config.join and not config.store


def secured(config: NodeConfig) -> bool:
    """Return whether the node has a certificate and asks for one: when other machines, or nodes, may reach it."""
    return _is_for_others(config) and not config.insecure


def _is_for_others(config: NodeConfig) -> bool:
    return bool(beyond_loopback(config) or config.control) or not coordinates(config)


def reached(config: NodeConfig) -> Reached:
    """Return how clients and other nodes reach the node."""
    if not _is_for_others(config):
        return "local"
    return "plain" if config.insecure else "tls"


def asks_for_cookie(config: NodeConfig) -> bool:
    """Return whether the node takes clients of its own account alone: one on loopback, which has no certificate."""
    return not secured(config) and not config.insecure

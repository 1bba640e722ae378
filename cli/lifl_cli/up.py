"""`lifl up`.

In the foreground `lifl up` becomes `lifld`, and ends as that does, with exit code 0, also when it is told to while it
starts.  With ``-d`` a child in a session of its own does, and tells by a pipe when the node is ready or why it cannot
start, so the exit code of `lifl up -d` is the truth.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from lifl.core.config.node import NodeConfig, parse_node
from lifl.core.errors import EndedEarly, LiflError, ResourceFault
from lifl.core.trust.tokens import Token
from lifl_cli.config_file import read_toml
from lifl_cli.labels import labels_of
from lifl_cli.options import STATE_HELP
from lifl_cli.output import done, tell
from lifl_cli.render.figures import size_text
from lifl_cli.state import DEFAULT_STATE_DIR, LOG_FILE, absolute
from lifl_cli.token_file import token_of

NODE_FLAGS = {
    "listen": "The gateway's address; port 0 takes any free one.",
    "arena_bytes": "Size of the shared memory, such as 2GiB.",
    "redirector": "How records reach workers: sockmap is eBPF; auto takes it where it can be loaded.",
    "idle_timeout_s": "Workers without a task end after this many seconds.",
    "workers_max": "At most this many workers (aggregator processes); 0: one more than there are cores.",
    "capacity": "Updates that the node folds at a time; 0: measured after the start.",
    "smoothing": "How the load is smoothed for plans: as a queue, or by arrival rate and execution time each.",
    "connections_max": "At most this many client connections; 0: 10,240, or as many as descriptors are allowed for.",
    "connections_per_client": "At most this many connections of one client from one place; 0: no limit of its own.",
    "connections_per_address": "At most this many connections from one address; 0: no limit of its own.",
    "requests_per_s": "Requests per second of one client, beside what its updates take; more are slowed.",
    "client_bytes_per_s": "Bytes per second of one client's models and updates; 0: no limit.",
    "streams": "A large model or update goes over at most this many connections; 0: by the cores, where it is TLS.",
    "wait_queue_max": "Updates of one job that may wait for room in the arena; more are told BUSY.",
    "jobs_kept": "Of jobs that are over the last ones are known, so many; the models of others stay.",
    "http": "Clients come by HTTP, too, at this address (alone: 127.0.0.1:7480).",
    "control": "The address at which other nodes reach this one.",
    "join": "Join the cluster of the node that has this control address.",
    "token_file": "The file with the token by which a node joins that has no identity yet; - is standard input.",
    "ca_cert": "The cluster's authority, if it is not to be made: certificate, and those above it.",
    "ca_key": "The key of --ca-cert.",
    "user": "Run as this user; root starts it, and loads eBPF before.",
    "store": "The cluster keeps its rows there, and any of its nodes may coordinate.",
    "store_ca": "The authority of the store's certificates.",
    "store_cert": "This node's certificate for the store.",
    "store_key": "The key of --store-cert.",
    "labels": "A label of the node, for jobs with placement.nodes; give it once for each.",
    "log_format": "With json each line of the log is an object.",
    "insecure": "No TLS, no cookie: nothing is encrypted, and anybody may take part.",
}
PATH_KEYS = ("token_file", "ca_cert", "ca_key", "store_ca", "store_cert", "store_key")
"""Keys whose paths are relative to the config's folder, or as flags to the working folder."""
METAVARS = {
    **dict.fromkeys(("listen", "http", "control", "join"), "HOST:PORT"),
    **dict.fromkeys(PATH_KEYS, "FILE"),
    "arena_bytes": "SIZE",
    "idle_timeout_s": "SECONDS",
    "redirector": "auto|sockmap|unix",
    "smoothing": "queue|rate-and-time",
    "log_format": "text|json",
    "store": "etcd://HOST:PORT,...",
    "user": "ACCOUNT",
}
"""What a flag's value is called; of the others it is a number, N."""
BARE = {"http": "127.0.0.1:7480"}
"""What a flag means that is given without a value."""
LOG_TAIL_LINES = 5

F = TypeVar("F", bound=Callable[..., Any])


def node_flags(command: F) -> F:
    """Add one flag for each key of a node's config."""
    fields = {field.name: field for field in msgspec.structs.fields(NodeConfig)}
    for key in reversed(NODE_FLAGS):
        if key == "labels":
            names = ("--label", "--labels")
            command = click.option(*names, key, multiple=True, metavar="NAME=VALUE", help=NODE_FLAGS[key])(command)
            continue
        default = fields[key].default
        flag = f"--{key.replace('_', '-')}"
        if isinstance(default, bool):
            command = click.option(flag, key, is_flag=True, default=None, help=NODE_FLAGS[key])(command)
            continue
        kind = click.STRING if key == "arena_bytes" or isinstance(default, str) else type(default)
        shown = size_text(default) if key == "arena_bytes" else str(default)
        text = f"{NODE_FLAGS[key]}  [default: {shown}]" if shown else NODE_FLAGS[key]
        bare: dict[str, Any] = {"is_flag": False, "flag_value": BARE[key]} if key in BARE else {}
        command = click.option(flag, key, type=kind, metavar=METAVARS.get(key, "N"), help=text, **bare)(command)
    return command


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Return when the node is ready; lifld stays.")
@click.option("--config", "config_path", type=click.Path(exists=True, dir_okay=False), help="A node config in TOML.")
@click.option(
    "--state",
    "--state-dir",
    "state_dir",
    envvar="LIFL_STATE",
    metavar="DIR",
    help=STATE_HELP,
)
@click.option("--json", "as_json", is_flag=True, help="Print the start-up report as JSON.")
@click.option(
    "--web",
    "web",
    is_flag=False,
    flag_value=BARE["http"],
    metavar="HOST:PORT",
    help="Serve a page for browsers there, as --http does, and with -d print a link to it (lifl web).",
)
@node_flags
def up(
    detach: bool, config_path: str | None, state_dir: str | None, as_json: bool, web: str | None, **flags: Any
) -> None:
    """Start lifld, the daemon of this machine."""
    if web is not None:
        if flags["http"] is not None:
            raise click.UsageError("--web and --http are one door: give its address to one of them")
        flags["http"] = web
    printed = _announce_json if as_json else _announce
    if detach:
        config = _node_config(config_path, state_dir, {key: flags[key] for key in NODE_FLAGS})
        _make_state_dir(config)
        info = _start_detached(config, _token(config))
        _tell(printed, {**info, "web": _link(config)} if web is not None else info, config.insecure)
        return
    from lifl.confine import signals

    signals.heed_early()
    try:
        config = _node_config(config_path, state_dir, {key: flags[key] for key in NODE_FLAGS})
        _make_state_dir(config)
        _run(config, printed)
    except (KeyboardInterrupt, Exception) as error:
        if not signals.came_early() and not isinstance(error, EndedEarly):
            raise
        click.echo("lifld was ended while it was starting", err=True)


def _run(config: NodeConfig, printed: Callable[[dict[str, Any], bool], None]) -> None:
    """Be `lifld`, until it ends.  Raise `LiflError`."""
    token = _token(config)
    from lifl.node.daemon import run

    run(config, partial(_tell, printed, insecure=config.insecure), token=token)


def _node_config(path: str | None, state_dir: str | None, flags: dict[str, Any]) -> NodeConfig:
    table = read_toml(path) if path else {}
    flags = flags | {"labels": labels_of(flags["labels"], "labels") if flags["labels"] else None}
    table.update({key: value for key, value in flags.items() if value is not None})
    if state_dir is not None:
        table["state_dir"] = str(absolute(state_dir))
    elif not table.get("state_dir"):
        table["state_dir"] = str(absolute(DEFAULT_STATE_DIR))
    elif path and isinstance(table["state_dir"], str):
        table["state_dir"] = str(absolute(table["state_dir"], absolute(path).parent))
    for key in PATH_KEYS:
        if isinstance(table.get(key), str) and table[key] not in ("", "-"):
            given = flags.get(key) is not None
            table[key] = str(absolute(table[key], None if given or not path else absolute(path).parent))
    return parse_node(table)


def _link(config: NodeConfig) -> str:
    """Return a link to the page of the node that has just started; or why there is none."""
    from lifl.core.protocol.cli import OpenPage
    from lifl_cli.daemon_client import DaemonClient
    from lifl_cli.web import link_of

    try:
        with DaemonClient(Path(config.state_dir)) as daemon:
            return link_of(daemon.ask(OpenPage()))
    except LiflError as error:
        return f"no link: {error}"


def _token(config: NodeConfig) -> Token | None:
    """Return the token of a node that joins; one that has an identity which it can use needs none."""
    from lifl.tls.contexts import is_usable
    from lifl.tls.folder import load, node_folder

    if not config.token_file:
        return None
    files = load(node_folder(Path(config.state_dir)))
    return None if files is not None and is_usable(files) else token_of(config.token_file)


def _make_state_dir(config: NodeConfig) -> None:
    from lifl.confine.account import Account
    from lifl.node.modes import private_folder

    folder = Path(config.state_dir)
    try:
        Account(config.user).own(folder)
        private_folder(folder)
    except OSError as error:
        raise ResourceFault(
            f"cannot make the state folder {folder}: {error.strerror}; choose another with --state DIR"
        ) from error


def _tell(printed: Callable[[dict[str, Any], bool], None], info: dict[str, Any], insecure: bool) -> None:
    """Print the report if that is possible; the node runs, whoever hears of it."""
    printed(info, insecure)
    done(f"lifld is up (pid {info['pid']})")


def _announce(info: dict[str, Any], insecure: bool) -> None:
    """Print the start-up report."""
    redirector = "sockmap (eBPF)" if info["redirector"] == "sockmap" else "AF_UNIX (no eBPF)"
    rows = [
        ("node", info["node"]),
        ("pid", info["pid"]),
        ("listens on", ", ".join([*info["listen"], info["socket"]])),
        *([("http", info["http"])] if info.get("http") else []),
        *([("page", info["web"])] if info.get("web") else []),
        *([("control", info["control"])] if info.get("control") else []),
        *([("joins", _joins_text(info))] if info.get("join") else []),
        *([("identity", info["identity"])] if info.get("identity") else []),
        ("arena", f"{size_text(info['arena_bytes'])} of shared memory"),
        *([("capacity", _capacity_text(info))] if "capacity" in info else []),
        ("redirector", f"{redirector}: {info['why']}" if info.get("why") else redirector),
        ("state", info["state_dir"]),
    ]
    adopted = info.get("adopted") or {}
    if any(adopted.values()):
        rows.append(("adopted", ", ".join(f"{count} {what}" for what, count in adopted.items())))
    rows += [("warning", text) for text in info.get("warnings", ())]
    click.echo("lifld is up")
    for label, value in rows:
        tell(f"  {label:<11} {value}")
    if insecure:
        doors = " or ".join(filter(None, [*info["listen"], info.get("control")]))
        text = f"whoever reaches {doors} can read and change models: nothing is encrypted"
        click.secho(f"  {'INSECURE':<11} {text}", fg="red", bold=True)


def _joins_text(info: dict[str, Any]) -> str:
    if info["joined"]:
        return f"{info['join']}: it is in the cluster"
    return f"{info['join']}: NOT YET, and it goes on trying (lifl nodes): {info['join_trouble']}"


def _capacity_text(info: dict[str, Any]) -> str:
    found = f"{info['capacity']:g} updates at a time"
    if info.get("capacity_kept"):
        return f"{found}, as `lifl calibrate` has found"
    return found if info["capacity_given"] else f"{found}, until it has been measured (lifl nodes, lifl top)"


def _announce_json(info: dict[str, Any], insecure: bool) -> None:
    click.echo(msgspec.json.encode({**info, "insecure": insecure}))


def _start_detached(config: NodeConfig, token: Token | None) -> dict[str, Any]:
    """Start `lifld` in its own session; return its report.  Raise `ResourceFault` with its reason."""
    log_path = Path(config.state_dir) / LOG_FILE
    # What the interpreter itself may say before and beside the log goes to the log's file too.
    from lifl.confine.account import Account
    from lifl.node.modes import open_private, told

    with Account(config.user).lowered(), told(log_path.parent):
        log_fd = open_private(log_path, os.O_WRONLY | os.O_APPEND)
    with open(log_fd, "ab") as log:
        child = subprocess.Popen(
            # -P: the working folder must not shadow modules.
            [sys.executable, "-P", "-m", "lifl_cli.detached"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        # Not communicate(): it waits for the child's end, and this one stays.
        with child.stdin, child.stdout:
            child.stdin.write(msgspec.json.encode(config) + b"\n")
            child.stdin.write(token.line().encode() if token is not None else b"")
            child.stdin.close()
            report = child.stdout.read()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise
    answer = msgspec.json.decode(report) if report else {}
    if "ready" in answer:
        ready: dict[str, Any] = answer["ready"]
        return ready
    code = child.wait()
    if "error" in answer:
        raise ResourceFault(answer["error"])
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    raise ResourceFault(f"lifld ended with code {code} before it was ready; the end of {log_path}:\n{tail}")

"""`lifl store`: where a cluster keeps the rows of its jobs and rounds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import click

from lifl.core.config.node import NodeConfig, parse_node
from lifl.core.errors import LiflError, ResourceFault
from lifl.core.protocol.cli import Snapshot
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did
from lifl_cli.render.figures import printable, who_coordinates
from lifl_cli.state import absolute

SQLITE = "sqlite"
_FILE = click.Path(exists=True, dir_okay=False)


@click.group()
def store() -> None:
    """Move the cluster's rows from one store to another."""


@store.command()
@click.argument("source")
@click.argument("target")
@click.option("--store-ca", type=_FILE, help="The authority of etcd's certificates.")
@click.option("--store-cert", type=_FILE, help="A certificate for etcd.")
@click.option("--store-key", type=_FILE, help="The key of --store-cert.")
@click.option("--insecure", is_flag=True, help="Reach etcd plainly beyond loopback.")
@json_option
@state_option
def migrate(
    source: str,
    target: str,
    store_ca: str | None,
    store_cert: str | None,
    store_key: str | None,
    insecure: bool,
    as_json: bool,
    state_dir: Path,
) -> None:
    """Move all jobs and their rounds from SOURCE to TARGET, while no node of the cluster is up.

    One of the two is `sqlite`, the database of the state folder (of the node that coordinates or did), the other one
    etcd://HOST:PORT,HOST:PORT,.../NAME. What was cut off is finished by the same command.
    """
    if (source == SQLITE) == (target == SQLITE):
        raise click.UsageError("one of SOURCE and TARGET is sqlite, the other one etcd://HOST:PORT,...")
    url = target if source == SQLITE else source
    given = {"store_ca": store_ca, "store_cert": store_cert, "store_key": store_key}
    files = {key: str(absolute(path)) for key, path in given.items() if path}
    config = parse_node({"state_dir": str(state_dir), "store": url, "insecure": insecure, **files})
    command = shlex.join(["lifl", "store", "migrate", source, target, "--state", str(state_dir)])
    moved = _moved(config, state_dir, source == SQLITE, command)
    said = [f"moved to {target}: {len(moved['running'])} jobs that run, {len(moved['over'])} that are over"]
    if source == SQLITE:
        said += [f"  all nodes must reach {printable(folder)}, under this path" for folder in moved["folders"]]
        said += [f"start all nodes with --store {target}"]
    else:
        said += [f"start this node with `lifl up --state {state_dir}`, the others with --join"]
    did(said[0], json.dumps(moved) if as_json else "\n".join(said))


def _moved(config: NodeConfig, state_dir: Path, to_etcd: bool, command: str) -> dict[str, Any]:
    import asyncio

    from lifl.node.etcd.migration import migrate as run
    from lifl.node.locks import StateLocks
    from lifl_cli.repair import as_owner

    if not state_dir.is_dir():
        raise ResourceFault(f"there is no state folder {state_dir}; `lifl up` makes it")
    with as_owner(state_dir), closing(StateLocks(state_dir)):
        return asyncio.run(run(config, state_dir, to_etcd, command))._asdict()


def look(state_dir: Path) -> Iterator[tuple[Literal["ok", "warn"], str, str, str]]:
    """Yield what is to be said of the store of a running node: level, subject, text, and what to do."""
    try:
        with DaemonClient(state_dir) as daemon:
            store = daemon.ask(Snapshot())["node"]["store"]
    except LiflError:
        return
    if store is None:
        return
    if store["trouble"]:
        fix = "most of etcd's members must be up, and be reached from here (etcdctl endpoint status)"
        yield "warn", "store", store["trouble"], fix
    else:
        gone_s = store["failover_s"]
        yield (
            "ok",
            "store",
            f"coordinator: {who_coordinates(store)}; one that is gone is replaced after {gone_s:g} s",
            "",
        )

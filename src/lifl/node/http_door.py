"""`lifld`'s side of the HTTP door: a process of its own (`node/http/`), beside the gateway and confined as that.

It parses what strangers send and knows nothing of jobs: it brings each client to the gateway by a socket pair, of which
one end goes through `lifld`, with who has come.  Nobody else can say that, for both links are inherited.

**The header.**  On loopback, without certificates, who comes shows that it has read a file of the state folder, as by
`curl -H @FILE`: a line of chance, another one in each life of the node.  So what somebody hears of it who listens in
the place of a node that is down is of no use when the node is back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Collection
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lifl.core.config.node import NodeConfig, asks_for_cookie
from lifl.core.coordinator.evaluation import values_of_evaluation
from lifl.core.errors import ConfigError, ResourceFault
from lifl.core.limits import JOB_METRIC_SERIES_MAX
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import http as hm
from lifl.node import machine
from lifl.node.authority.enforcement import Enforcement
from lifl.node.children import Child
from lifl.node.modes import open_private
from lifl.tls.contexts import Contexts

log = logging.getLogger("lifl.daemon")

HEADER = "http.header"
"""The file in the state folder."""
NEEDS = "h11"
OF_JOB = ("name", "status", "round", "rounds", "committed", "clients", "last_round")
NOTHING_FOUND: dict[str, Any] = {"metrics": {}}
"""Of a model that was not evaluated."""
OF_ROUND = (
    "round",
    "attempt",
    "phase",
    "selected",
    "uploading",
    "accepted",
    "counted",
    "goal",
    "quorum",
    "time_left_s",
)


def check_library(config: NodeConfig) -> None:
    """Raise `ConfigError` when the node is to have a door for HTTP and the library for it is not here."""
    if config.http and find_spec(NEEDS) is None:
        raise ConfigError("http", f"takes the library {NEEDS}, which is not installed: pip install 'lifl[http]'")


def make_header(folder: Path) -> Path:
    """Write a new header into the state folder, and return its file.  Raise `OSError`."""
    path = folder / HEADER
    with open(open_private(path, os.O_WRONLY | os.O_TRUNC), "w") as file:
        file.write(f"Authorization: Bearer {secrets.token_hex(32)}\n")
    return path


class HttpDoor:
    """The process and its link; at each of its ends `mend` makes the arena whole, for that may be why.

    `snapshot` returns what `lifl top` shows, `trouble` why no update can be taken; `told` has the process told whom not
    to believe.
    """

    def __init__(
        self,
        config: NodeConfig,
        folder: Path,
        listener: socket.socket,
        contexts: Contexts | None,
        gateway: Child,
        passed: Collection[int],
        mend: Callable[[], None],
        on_broken: Callable[[ResourceFault], None],
        clock: Callable[[], float],
    ) -> None:
        self.address = machine.shown(listener)
        self.landlock = 0
        self.header: Path | None = None
        self._gateway = gateway
        self._mend = mend
        self.told: Callable[[], None] = lambda: None
        self.snapshot: Callable[[], dict[str, Any]] = dict
        self.on_page: Callable[[Any], None] = lambda _message: None
        """Told what the process says of the page (`node/pages.py`), and that it has begun."""
        self.trouble: Callable[[], str] = str
        self._loop = asyncio.get_running_loop()
        options = ["--http-fd", str(listener.fileno()), "--requests-per-s", str(config.requests_per_s)]
        options += ["--connections-per-client", str(config.connections_per_client)]
        if contexts is not None:
            options += ["--identity", str(contexts.files.folder)]
        elif asks_for_cookie(config):
            self.header = make_header(folder)
            options += ["--header", str(self.header)]
        descriptors = [*passed, listener.fileno()]
        said = (hm.FromHttp, self._heard, self._gone, on_broken, clock)
        self.child = Child("lifl.node.http.main", options, descriptors, *said, takes_descriptors=True)

    def belongs(self, snapshot: Callable[[], dict[str, Any]], enforcement: Enforcement) -> None:
        """Know the parts of the daemon that are made later."""
        self.snapshot, self.told = snapshot, enforcement.tell_children
        enforcement.children.append(self.child)

    def start(self) -> None:
        """Start the process.  Raise `OSError`."""
        self.child.start()
        self.told()

    def stop(self, timeout_s: float) -> None:
        """End it."""
        self.child.stop(timeout_s)
        if self.header is not None:
            self.header.unlink(missing_ok=True)

    def shown(self) -> dict[str, Any]:
        """Return what `lifl top` says of it."""
        return {"pid": self.child.pid, "address": self.address, "landlock": self.landlock}

    def _heard(self, message: Any) -> None:
        match message:
            case hm.HttpReady():
                self.landlock = message.landlock
                self.on_page(message)
            case gm.ClientCame():
                fd = self.child.taken_descriptor()
                try:
                    self._gateway.send(message, descriptors=[fd])
                finally:
                    os.close(fd)
            case hm.StatusAsked(number):
                self.child.send(hm.StatusTold(number, status_of(self.snapshot())))
            case hm.HealthAsked(number):
                self.child.send(hm.HealthTold(number, not self.trouble()))
            case _:
                self.on_page(message)

    def _gone(self) -> None:
        log.warning("http.ended %s", self.child.last_words() or "without a word")
        self._mend()
        self.landlock = 0
        self._loop.call_soon(self.told)


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("lifl")


def status_of(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a snapshot of the node that is told by HTTP."""
    node = snapshot["node"]
    gateway, arena = node["gateway"], node["arena"]
    idle = sum(worker["state"] == "idle" for worker in snapshot["workers"])
    return {
        "node": node["node"],
        "version": _version(),
        "uptime_s": node["uptime_s"],
        "started_unix_s": node["started_unix_s"],
        "warnings": len(node["warnings"]),
        "paused": int(node["paused"]),
        "leads": int(node["leads"]),
        "arena": {name: arena[name] for name in ("bytes", "used_bytes", "peak_bytes", "objects", "waiting")},
        "gateway": {name: gateway.get(name, 0) for name in ("received_bytes", "sent_bytes", "connections")},
        "redirector": node["redirector"],
        "cpu_s": node["cpu_s"],
        "workers": {"busy": len(snapshot["workers"]) - idle, "idle": idle},
        "nodes": dict(Counter(line["state"] for line in snapshot["nodes"])),
        "jobs": [_job(line) for line in snapshot["jobs"]],
    }


def _told(now: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what is told of a round that runs: its figures, without its tree."""
    return {name: now[name] for name in OF_ROUND} if now is not None else None


def _job(line: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of a job: some of its line, the metrics of its last round, and the round that runs.

    What an evaluation found of the last round's model is `evaluated`: what the server did, else the clients' mean.
    """
    metrics = dict(sorted(line.get("metrics", {}).items())[:JOB_METRIC_SERIES_MAX])
    found = dict(sorted(values_of_evaluation(line.get("evaluation") or NOTHING_FOUND).items())[:JOB_METRIC_SERIES_MAX])
    told = {name: line[name] for name in OF_JOB if name in line}
    return told | {"metrics": metrics, "evaluated": found, "now": _told(line.get("now"))}

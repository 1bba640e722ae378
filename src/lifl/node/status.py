"""What a node says of itself: when it is up, and in `lifl top`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec

from lifl.core.protocol import gateway as gm
from lifl.node import views
from lifl.node.audit_log import AuditLog
from lifl.node.authority.health import IdentityHealth
from lifl.node.children import Child
from lifl.node.cluster.bridge import Bridge
from lifl.node.driver import Driver
from lifl.node.http_door import HttpDoor
from lifl.node.journal.journal import Journal
from lifl.node.meters import Meters
from lifl.node.succession import Succession
from lifl.node.trackers import Trackers
from lifl.node.workers import Workers
from lifl.shm.owned_arena import OwnedArena


class NodeStatus:
    """The figures of one node.  `bridge` is None while the node is in no cluster.

    `known`: whether its capacity is given, and whether one is kept.
    """

    def __init__(
        self,
        identity: views.NodeIdentity,
        folder: Path,
        known: tuple[bool, bool],
        warnings: list[str],
        faulty: tuple[AuditLog, Journal],
        driver: Driver,
        arena: OwnedArena,
        gateway: Child,
        zygote: Child,
        workers: Workers,
        meters: Meters,
    ) -> None:
        self._identity = identity
        self._folder = folder
        self.capacity_given = known[0]
        self.capacity_kept = known[1] and not known[0]  # as `lifl calibrate` has found it
        self.warnings = warnings
        self._audit, self.journal = faulty
        self._driver = driver
        self._engine = driver.engine
        self._arena = arena
        self._gateway = gateway
        self._zygote = zygote
        self._workers = workers
        self._meters = meters
        self._started_unix_s, self._started_s = time.time(), time.monotonic()
        self.bridge: Bridge | None = None
        self.health: IdentityHealth | None = None
        self.succession: Succession | None = None
        self.http: HttpDoor | None = None
        self.trackers = Trackers(folder, driver.engine)
        self.gateway_stats: gm.GatewayStats | None = None  # as the gateway told last
        self.landlock = {"gateway": 0, "zygote": 0}  # the versions that hold them, as they told

    def report(self, adopted: dict[str, int]) -> dict[str, Any]:
        """Return what `lifl up` prints."""
        more = self.health.warnings() if self.health is not None else []
        return {
            "node": f"{self._identity.number:016x}",
            "pid": os.getpid(),
            "listen": [self._identity.gateway],
            "identity": self.health.text() if self.health is not None else "",
            "control": self.bridge.control if self.bridge is not None else "",
            **({"http": self.http.address} if self.http is not None else {}),
            "socket": str(self._folder / "gateway.sock"),
            "arena_bytes": self._arena.arena_bytes,
            "capacity": self._engine.agent.load.capacity,
            "capacity_given": self.capacity_given,
            "capacity_kept": self.capacity_kept,
            "labels": dict(self._engine.agent.labels),
            "redirector": self._workers.redirector.name,
            "why": self._workers.redirector.why,
            "state_dir": str(self._folder),
            "adopted": adopted,
            "warnings": [*self.warnings, *filter(None, self._faults()), *more],
        }

    def _faults(self) -> tuple[str, ...]:
        return str(self._driver.fault or ""), self._audit.fault, self.journal.fault, self.journal.damage

    def nodes(self) -> list[dict[str, Any]]:
        """Return the cluster's nodes, the coordinator first; none for a node in no cluster."""
        return self.bridge.shown.rows() if self.bridge is not None else []

    def node(self, name: str) -> dict[str, Any]:
        """Return a node's row; one that is gone is not drained."""
        return next((row for row in self.nodes() if row["node"] == name), {"node": name, "drain": ""})

    @property
    def arena_bytes(self) -> int:
        """The arena's size."""
        return self._arena.arena_bytes

    def authority_address(self) -> str:
        """Return the control address of the node with the authority; empty when none is known."""
        return self.bridge.authority_address() if self.bridge is not None else ""

    def trees(self) -> dict[int, tuple[dict[str, Any], ...]]:
        """Return the tasks at other nodes, by node."""
        return self.bridge.shown.trees() if self.bridge is not None else {}

    def now(self) -> dict[str, Any]:
        """Return what `lifl top` shows of the node itself.

        The gateway is asked for its figures, and the next call has the answer: nothing waits.
        """
        self._gateway.send(gm.AskStats())
        report, redirector, stats = self.report({}), self._workers.redirector, self.gateway_stats
        load = self._engine.agent.load
        return {
            **report,
            "warnings": [
                *report["warnings"],
                *self.trackers.faults(),
                *filter(None, [self.bridge.peers.trouble if self.bridge is not None else ""]),
            ],
            "uptime_s": time.monotonic() - self._started_s,
            "load": {
                "rate_per_s": load.rate_at(time.monotonic()),
                "execution_s": load.execution_s,
                "folded": load.folded,
                "busy_s": load.busy_s,
            },
            "started_unix_s": self._started_unix_s,
            "paused": self._driver.fault is not None,
            "leads": self._engine.coordinator is not None,
            "arena": {
                "bytes": self._arena.arena_bytes,
                "used_bytes": self._arena.used_bytes,
                "peak_bytes": self._arena.peak_bytes,
                "objects": self._arena.objects,
                "waiting": len(self._engine.agent.uploads.waiting),
            },
            "redirector": {"kind": redirector.name, **views.redirector_line(redirector.totals())},
            "gateway": {"pid": self._gateway.pid, **(msgspec.structs.asdict(stats) if stats else {})},
            "cpu_s": self._meters.read(),
            "zygote_pid": self._zygote.pid,
            "http_door": self.http.shown() if self.http is not None else None,
            "landlock": self.landlock,
            "store": self.succession.shown() if self.succession is not None else None,
        }

    def known_door(self, http: HttpDoor | None) -> Child | None:
        """Know the HTTP door, if there is one, and have it know how the node fares; return its process."""
        self.http = http
        if http is None:
            return None
        http.trouble = self.trouble
        return http.child

    def trouble(self) -> str:
        """Return why no update can be taken now; empty: nothing is wrong."""
        store = self.succession.trouble if self.succession is not None else ""
        peers = self.bridge.peers.trouble if self.bridge is not None else ""
        return str(self._driver.fault or "") or store or peers

    def workers(self) -> list[dict[str, Any]]:
        """Return the workers, each with the task that it has."""
        return views.worker_lines(self._engine)

"""What a node tells of itself and of the others: its heartbeat, and the rows of `lifl nodes`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lifl.core.coordinator.drains import state_of
from lifl.core.engine import Engine, hosted_bytes
from lifl.core.limits import TREE_LINES_MAX
from lifl.core.planning.capacity import NodeLoad
from lifl.core.protocol import cluster as p
from lifl.node.views import NodeIdentity, tree_lines


class NodesShown:
    """Looks at the engine, at the members, and at what others told last of themselves (`beats`, by node)."""

    def __init__(self, identity: NodeIdentity, engine: Engine, members: Callable[[], list[dict[str, Any]]]) -> None:
        self._identity = identity
        self._engine = engine
        self._members = members
        self.beats: dict[int, p.Heartbeat] = {}

    def load(self) -> p.Heartbeat:
        """Return an agent's next heartbeat."""
        agent = self._engine.agent
        load, used = agent.load, agent.quota.used_bytes
        rate = load.told_rate(time.monotonic())
        tree = tuple(tree_lines(agent, TREE_LINES_MAX))
        hosted = hosted_bytes(self._engine)
        return p.Heartbeat(load.capacity, rate, load.execution_s, used, len(agent.pool.workers), tree, hosted)

    def trees(self) -> dict[int, tuple[dict[str, Any], ...]]:
        """Return the tasks at other nodes, by node, as these told last."""
        return {node: beat.tree for node, beat in self.beats.items()}

    def _load_of(self, number: int) -> NodeLoad | None:
        """Return the load of a node, if this one knows it: its own, and on the coordinator everyone's."""
        if number == self._identity.number:
            return self._engine.agent.load
        node = self._engine.coordinator.nodes.get(number) if self._engine.coordinator is not None else None
        return node.load if node is not None else None

    def _drain_of(self, number: int) -> str:
        """Return ``draining`` or ``drained``: on the coordinator of all nodes, else of this one, as far as it knows."""
        if self._engine.coordinator is not None:
            return state_of(self._engine.coordinator, number)
        agent = self._engine.agent
        if number != self._identity.number or not agent.drains:
            return ""
        return "draining" if agent.busy() or agent.orphans else "drained"

    def _labels_of(self, number: int) -> dict[str, str]:
        """Return a node's labels: on the coordinator of all nodes, else of this one."""
        if number == self._identity.number:
            return dict(self._engine.agent.labels)
        node = self._engine.coordinator.nodes.get(number) if self._engine.coordinator is not None else None
        return dict(node.labels) if node is not None else {}

    def rows(self) -> list[dict[str, Any]]:
        """Return what `lifl nodes` shows, the coordinator first."""
        found = []
        for row in self._members():
            number = int(row["node"], 16)
            beat = self.load() if number == self._identity.number else self.beats.get(number, p.Heartbeat())
            load = self._load_of(number)
            capacity = load.capacity if load is not None else row["capacity"]
            rate = load.told_rate(time.monotonic()) if load is not None else 0.0
            execution = load.execution_s if load is not None else 0.0
            found.append(
                {
                    "node": row["node"],
                    "state": row["state"],
                    "drain": self._drain_of(number) if row["state"] in ("alive", "suspect") else "",
                    "coordinator": row["role"] == "coordinator",
                    "incarnation": row["incarnation"],
                    "control": row["control"],
                    "gateway": row["gateway"],
                    "since_s": max(0.0, time.time() - row["since_unix_s"]),
                    "capacity": capacity,
                    "rate_per_s": rate,
                    "execution_s": execution,
                    "residual": capacity - rate * execution,
                    "arena_bytes": row["arena_bytes"],
                    "arena_used_bytes": beat.arena_used_bytes,
                    "workers": beat.workers,
                    "labels": self._labels_of(number),
                }
            )
        return found

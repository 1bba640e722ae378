"""The CPU time of a node's standing processes, and the part of it that a round's receipt tells."""

from __future__ import annotations

import os
from typing import Any

from lifl.core import effects as fx
from lifl.node import machine
from lifl.node.children import Child


class Meters:
    """What `lifld`, the gateway and the zygote have used."""

    def __init__(self, gateway: Child, zygote: Child, http: Child | None = None) -> None:
        self._gateway = gateway
        self._zygote = zygote
        self._http = http
        self._opened: dict[tuple[str, int], dict[str, float]] = {}  # by job and round: the meters when it opened

    def read(self) -> dict[str, float]:
        """Return the CPU seconds of each process until now."""
        pids = {"lifld": os.getpid(), "gateway": self._gateway.pid, "zygote": self._zygote.pid}
        if self._http is not None:
            pids["http"] = self._http.pid
        return {name: machine.cpu_s([pid] if pid else []) for name, pid in pids.items()}

    def published(self, event: fx.Publish) -> None:
        """Read the meters when a round opens."""
        if event.name == "round.opened":
            self._opened[event.job, event.fields["round"]] = self.read()

    def complete(self, row: fx.SaveRound, redirector: str) -> None:
        """Add to a round's receipt what only this node's machine knows."""
        receipt: dict[str, Any] | None = row.fields.get("receipt")
        if not receipt:
            return
        receipt["redirector"] = redirector
        before = self._opened.pop((row.job, row.round), None)
        if before is not None:
            # A process that was started again since counts from zero.
            receipt["cpu_s"] |= {
                name: max(0.0, now - before[name]) for name, now in self.read().items() if name in before
            }

"""The CPU time of a node's standing processes, and the part of it that a round's receipt tells."""

from __future__ import annotations

import os
from typing import Any

from lifl.core import effects as fx
from lifl.core.limits import JOBS_MAX
from lifl.node import machine
from lifl.node.children import Child

OPENED_MAX = 2 * JOBS_MAX
"""Rounds whose beginning is noted: of a job one that is open, and one that is being saved."""


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
            self._opened.pop(at := (event.job, event.fields["round"]), None)
            self._opened[at] = self.read()
            if len(self._opened) > OPENED_MAX:  # of rounds that another node has ended
                del self._opened[next(iter(self._opened))]
        elif event.name == "job.over":  # its last round has no receipt
            self._opened = {at: read for at, read in self._opened.items() if at[0] != event.job}

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

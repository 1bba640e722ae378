"""Flower's own `FedAvg` in a ServerApp; only when a round begins is decided by the benchmark.

The benchmark gives the path of a Unix socket in the run's config.  Before each round the strategy reads a line of JSON
from it, and after each it writes one, with the instants (time.monotonic_ns) at which Flower had all replies and at
which its aggregate was ready, and writes the aggregate to a file if asked.  What sends, receives and aggregates is
Flower's code as installed.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from typing import Any, TextIO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
ROUNDS_MAX = 10_000


class Over(Exception):
    """The benchmark wants no more rounds."""


class RoundByRound(FedAvg):
    """`FedAvg` that waits for the benchmark before each round and tells it of each aggregate."""

    def __init__(self, control: socket.socket, lines: TextIO, clients: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self._control = control
        self._lines = lines
        self._order: dict[str, Any] = {}

    def tell(self, **what: Any) -> None:
        """Send one line to the benchmark."""
        self._control.sendall(json.dumps(what).encode() + b"\n")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        line = self._lines.readline()
        self._order = json.loads(line) if line else {"over": True}
        if self._order.get("over"):
            raise Over
        # A round of the benchmark's random updates need not send their clients a model; a training must.
        sent = arrays if self._order["model"] else ArrayRecord([np.zeros(1, np.float32)])
        return super().configure_train(server_round, sent, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        received_ns = time.monotonic_ns()
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        ready_ns = time.monotonic_ns()
        path = self._order["path"]
        if arrays is not None and path:
            with open(path, "wb") as file:
                for name in self._order["names"]:
                    file.write(memoryview(np.ascontiguousarray(arrays[name].numpy(), np.float32)).cast("B"))
        counted = [round(float(reply.content["metrics"]["client"])) for reply in replies if not reply.has_error()]
        errors = sorted({reply.error.reason for reply in replies if reply.has_error()})
        self.tell(received_ns=received_ns, ready_ns=ready_ns, counted=counted, errors=errors, full=arrays is not None)
        return arrays, metrics


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run rounds until the benchmark says that they are over."""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(context.run_config["control"]))
        lines = control.makefile("r", encoding="utf-8")
        first = json.loads(lines.readline())
        strategy = RoundByRound(control, lines, int(first["clients"]))
        names, shapes = first["names"], first["shapes"]
        values = np.fromfile(first["model"], np.float32) if first["model"] else np.zeros(1, np.float32)
        arrays: dict[str, Any] = {}
        begin = 0
        for name, shape in zip(names, shapes, strict=True) if first["model"] else ():
            count = int(np.prod(shape))
            arrays[name] = values[begin : begin + count].reshape(shape)
            begin += count
        initial = ArrayRecord({k: Array(v) for k, v in arrays.items()} if arrays else {"none": Array(values)})
        try:
            strategy.start(grid, initial, num_rounds=ROUNDS_MAX, timeout=float(first["timeout_s"]))
        except Over:
            return

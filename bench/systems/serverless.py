"""SL: aggregation as functions of a serverless platform: a broker, a proxy at each function, processes started cold.

The broker is Debian's redis-server (nothing written to disk), the proxies are Debian's haproxy in TCP mode.  Clients
send their updates through the platform's proxy to the broker.  A dispatcher, which always runs, places each update on
the function instance with the fewest (least connection), and starts an instance, a fresh interpreter and the haproxy
beside it, when it gets its first one.  An instance fetches its updates as they come, and folds them when all are there
(lazy); its partial sum goes through the broker to the top, which is started by the first partial.  After the round no
function is left.  At most `INSTANCES_MAX` leaves run at a time.  `last_in_s` is when the broker had the last update;
`out_s` is when the model is in the broker and the dispatcher has been told.

    python -m systems.serverless WORKLOAD      (the clients' own entry)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import psutil
from measure import Helper, cpu_s

from systems import fleet
from systems.broker import Broker, connected
from systems.interface import RECYCLING, TUNED, Arrival, Idle, RoundResult, Watch, family, private_bytes
from systems.workload import Workload

INSTANCES_MAX = 4
UPDATES_PER_INSTANCE = 2
VARIANT = "lazy, cold"
HANDOFF = "systems.serverless_handoff"
PARTS = {"redis-server": "redis-server", "haproxy": "haproxy"}

COPIES = 2.3
"""Of all updates, in memory at the worst: in the broker and in the functions."""


class Serverless:
    """See `interface.System`."""

    name = "SL"
    tolerance = 2e-6

    def __init__(self) -> None:
        self._opened = ExitStack()

    def variants(self) -> list[str]:
        return [VARIANT, VARIANT + TUNED]

    def versions(self) -> dict[str, str]:
        told = {"redis (Python)": version("redis"), "hiredis": version("hiredis")}
        for program in PARTS:
            lines = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout
            told[program] = lines.splitlines()[0]
        return told

    def missing(self) -> str:
        absent = [package for program, package in PARTS.items() if shutil.which(program) is None]
        if absent and (os.geteuid() != 0 or shutil.which("apt-get") is None):
            return f"cannot be installed here without root and apt: apt-get install {' '.join(absent)}"
        if absent:
            return "not installed: sh bench/debian.sh"
        try:
            version("redis"), version("hiredis")
        except PackageNotFoundError as error:
            return f"not installed: pip install {error.name}"
        return ""

    def needs_bytes(self, workload: Workload, clients: int) -> float:
        return COPIES * clients * workload.nbytes

    def start(self, workload: Workload, clients: int, variant: str, folder: Path) -> None:
        self._workload = workload
        self._result = folder / "model.npy"
        settings = RECYCLING if variant.endswith(TUNED) else {}
        self._broker = self._opened.enter_context(Broker(folder, settings))
        arguments = [str(folder), str(self._broker.port), str(workload.nbytes)]
        self._dispatcher = Helper("systems.serverless_dispatcher", arguments, environment=settings)
        self._opened.callback(self._dispatcher.close)
        self._dispatcher.reply()
        self._fleet = fleet.Fleet("systems.serverless", workload, clients)
        self._opened.callback(self._fleet.close)

    @property
    def _pids(self) -> list[int]:
        return [*self._broker.pids, self._dispatcher.pid]

    def round(self, arrivals: Sequence[Arrival]) -> RoundResult:
        clients = [arrival.client for arrival in arrivals]
        instances = min(-(-len(clients) // UPDATES_PER_INSTANCE), INSTANCES_MAX)
        self._fleet.prepare(clients, port=self._broker.proxy_port)
        with Watch(lambda: self._pids, roots_cpu_only=True) as watch:
            self._dispatcher.order(expect=len(clients), instances=instances, path=str(self._result))
            sent = self._fleet.send(arrivals)
            told = self._dispatcher.reply()
        return RoundResult(
            sent.first_s,
            sent.last_s,
            sent.since(told["done_ns"]),
            watch.cpu_s + told["functions_cpu_s"],
            sent.cpu_s,
            watch.peak_bytes,
            0,
            self._workload.error(np.load(self._result), clients),
            rest_bytes=watch.rest_bytes,
            note=f"{instances} leaves and a top, all cold",
        )

    def idle(self, seconds: float) -> Idle:
        pids = family(self._pids)
        before_s = cpu_s(pids)
        time.sleep(seconds)
        functions = [pid for pid in pids if "serverless_function" in " ".join(psutil.Process(pid).cmdline())]
        return Idle(cpu_s(pids) - before_s, sum(map(private_bytes, pids)), 0, len(pids), len(functions))

    def stop(self) -> None:
        self._opened.close()


class Trainer:
    """A client: connected to the broker through the platform's proxy before the round begins."""

    def __init__(self, workload: Workload, client: int, port: int) -> None:
        self._name = f"update-{client}"
        self._weight = workload.weight(client)
        self._view = workload.flat(client).view(np.uint8).data
        self._redis = connected(port)

    def send(self) -> bool:
        self._redis.set(self._name, self._view)
        self._redis.rpush("events", f"update {self._name} {self._weight}")
        return True

    def close(self) -> None:
        self._redis.close()


if __name__ == "__main__":
    fleet.serve(Trainer)

"""LIFL as users run it: a node by `lifl up`, a job of one round for each round measured, `lifl.Client` in the clients.

A round begins when the node has selected all clients.  `durable_s` is when the benchmark was told COMMITTED, after the
checkpoint's fsync.  The receipt says how long before that the last update was accepted (`last_in_s`: complete, checked
and sealed; its client is told a little later) and how long before that the model was sealed in the arena, from where
the next round's clients get it (`out_s`).  The server's processes are all of the node's.

    python -m systems.lifl WORKLOAD      (the clients' own entry)
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from lifl_cli.daemon_client import DaemonClient
from measure import uninterrupted
from redirectors import found, kinds
from safetensors.numpy import load_file, save_file

from lifl import Client
from lifl.core.config.job import parse_job
from lifl.core.protocol import cli as om
from systems import fleet
from systems.interface import Arrival, Idle, RoundResult, System, Watch, cpu_by_pid, environment, family, private_bytes
from systems.workload import Workload

LIFL = [sys.executable, "-m", "lifl_cli.main"]
FLAT = 64
VARIANTS: dict[str, dict[str, Any]] = {
    "eager, tree, sockmap": {},
    "lazy, tree, sockmap": {"timing": "lazy"},
    "eager, flat, sockmap": {"fan_in": FLAT},
    "eager, tree, unix": {"redirector": "unix"},
    "eager, tree, sockmap, direct": {"direct": True},
}
"""The last one: clients of the same machine write into the arena themselves."""
SPARE_OBJECTS = 20
"""Room in the arena beside the updates, in updates: partials (each takes two), the model and the last model."""
COMMAND_S = 120.0
SETTLED_S = 0.5
SLEPT_CPU_S = 0.0005


class Lifl:
    """See `interface.System`."""

    name = "LIFL"
    tolerance = 2e-6

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._jobs = count(1)

    def variants(self) -> list[str]:
        if "sockmap" in kinds():
            return list(VARIANTS)
        return [name for name in VARIANTS if "sockmap" not in name]

    def versions(self) -> dict[str, str]:
        return {
            "lifl": version("lifl"),
            "numpy": version("numpy"),
            "redirectors": f"{', '.join(kinds())} ({found()[1]})",
        }

    def missing(self) -> str:
        return ""

    def needs_bytes(self, workload: Workload, clients: int) -> float:
        return self._arena_bytes(workload, clients)

    @staticmethod
    def _arena_bytes(workload: Workload, clients: int) -> int:
        return max((clients + SPARE_OBJECTS) * (workload.nbytes + (1 << 20)), 64 << 20)

    def shares(self, variant: str, other: str) -> bool:
        return VARIANTS[variant].get("redirector") == VARIANTS[other].get("redirector")

    def also(self, variant: str) -> System:
        other = copy.copy(self)
        other._settings, other._opened = VARIANTS[variant], ExitStack()
        return other

    def start(self, workload: Workload, clients: int, variant: str, folder: Path) -> None:
        self._workload = workload
        self._settings = VARIANTS[variant]
        self._state = folder / "state"
        self._model = folder / "model.safetensors"
        save_file({name: np.zeros(shape, np.float32) for name, shape in workload.tensors}, self._model)
        command = [*LIFL, "up", "-d", "--json", "--state", str(self._state), "--listen", "127.0.0.1:0"]
        command += ["--arena-bytes", str(self._arena_bytes(workload, clients))]
        command += ["--redirector", self._settings.get("redirector", "sockmap")]
        options = {"env": environment(variant), "stdout": subprocess.PIPE, "timeout": COMMAND_S, "process_group": 0}
        with uninterrupted():
            self._node = json.loads(subprocess.run(command, check=True, **options).stdout)
            self._opened.callback(self._down)
        self._fleet = fleet.Fleet("systems.lifl", workload, clients)
        self._opened.callback(self._fleet.close)

    def _down(self) -> None:
        command = [*LIFL, "down", "--state", str(self._state)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=COMMAND_S, process_group=0)

    def settle(self) -> None:
        """Wait until the arena is populated: nothing runs for a while."""
        while True:
            if self._spent_s(SETTLED_S) < SLEPT_CPU_S:
                return

    def _spent_s(self, seconds: float) -> float:
        """Return the CPU seconds of the node in a time in which workers may end."""
        before = cpu_by_pid(family([self._node["pid"]]))
        time.sleep(seconds)
        return sum(now - before.get(pid, 0.0) for pid, now in cpu_by_pid(family([self._node["pid"]])).items())

    def round(
        self, arrivals: Sequence[Arrival], dying: frozenset[int] = frozenset(), goal: int | None = None
    ) -> RoundResult:
        """Run a round; `dying` clients leave at their time, with a `goal` it closes when so many updates are there."""
        clients = [arrival.client for arrival in arrivals]
        job = f"round-{next(self._jobs)}"
        with DaemonClient(self._state) as daemon, ThreadPoolExecutor(1) as follower:
            config = self._config(job, goal or len(clients), len(clients) / (goal or len(clients)))
            daemon.ask(om.SubmitJob(msgspec.to_builtins(config), follow=True))
            gateway = str(self._state) if self._settings.get("direct") else self._node["listen"][0]
            self._fleet.prepare(clients, gateway=gateway, job=job, dying=sorted(dying), late=goal is not None)
            with Watch(lambda: [self._node["pid"]]) as watch:
                following = follower.submit(self._committed, daemon)
                sent = self._fleet.send(arrivals)
                committed, durable_ns, receipt = following.result()
        durable_s = sent.since(durable_ns)
        workers_s = watch.cpu_s - receipt["cpu_s"]["gateway"] - receipt["cpu_s"]["lifld"]
        model = load_file(committed)
        flat = np.concatenate([model[name].reshape(-1) for name, _ in self._workload.tensors])
        saved_s = receipt["last_accepted_to_commit_s"] - receipt["last_accepted_to_sealed_s"]
        return RoundResult(
            sent.first_s,
            durable_s - receipt["last_accepted_to_commit_s"],
            durable_s - saved_s,
            watch.cpu_s,
            sent.cpu_s,
            watch.peak_bytes,
            receipt["arena_peak_bytes"],
            self._workload.error(flat, sent.clients),
            durable_s,
            watch.rest_bytes,
            f"workers: {receipt['workers_cold']} cold, {receipt['workers_warm']} warm,"
            f" {receipt['workers_promoted']} promoted; CPU: gateway {receipt['cpu_s']['gateway']:.2f} s, tasks"
            f" {receipt['cpu_s']['workers']:.3f} s, other work of the workers (checkpoint)"
            f" {max(0.0, workers_s - receipt['cpu_s']['workers']):.3f} s",
        )

    def _config(self, job: str, clients: int, over_provision: float) -> Any:
        aggregation = {key: self._settings[key] for key in ("timing", "fan_in") if key in self._settings}
        return parse_job(
            {
                "job": {"name": job, "rounds": 1},
                "model": {"path": str(self._model)},
                "selection": {"clients_per_round": clients, "over_provision": over_provision},
                "aggregation": aggregation,
            }
        )

    @staticmethod
    def _committed(daemon: DaemonClient) -> tuple[str, int, dict[str, Any]]:
        """Return file, instant and receipt of the job's only round.  Raise `RuntimeError` when it failed."""
        found = None
        for event in daemon.events():
            if event.name == "round.committed":
                found = (event.fields["path"], time.monotonic_ns(), event.fields["receipt"])
            elif event.name == "job.over" and event.fields.get("status") != "finished":
                raise RuntimeError(f"the job is {event.fields.get('status')}: {event.fields.get('reason')}")
        if found is None:
            raise RuntimeError("the job ended without a committed round")
        return found

    def idle(self, seconds: float) -> Idle:
        self.settle()
        spent_s = self._spent_s(seconds)
        pids = family([self._node["pid"]])
        return Idle(
            spent_s,
            sum(map(private_bytes, pids)),
            sum(file.stat().st_blocks for file in Path("/dev/shm").glob(f"lifl-{self._node['node']}*")) * 512,
            len(pids),
            sum("lifl-worker" in psutil.Process(pid).name() for pid in pids),
        )

    def stop(self) -> None:
        self._opened.close()


class Trainer:
    """A client: `lifl.Client`, selected before the round begins."""

    def __init__(
        self, workload: Workload, client: int, gateway: str, job: str, dying: Sequence[int] = (), late: bool = False
    ) -> None:
        self._dying = client in dying
        self._may_be_late = late
        self._workload = workload
        self._number = client
        self._client = Client(gateway, job=job, client=f"c{client}")
        self._round = next(self._client.rounds(models=False))

    def send(self) -> bool:
        if self._dying:
            self._client.close()
            return False
        done = self._round.submit(self._workload.update(self._number), self._workload.weight(self._number))
        if not done.accepted and not self._may_be_late:
            raise RuntimeError(f"client {self._number} was not taken: {done.reason}")
        return done.accepted

    def close(self) -> None:
        self._client.close()


if __name__ == "__main__":
    fleet.serve(Trainer)

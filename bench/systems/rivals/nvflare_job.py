"""Runs the benchmark's job in NVFlare's simulator: its server in one process, each client in a process of its own.

    <the environment of NVFlare>/bin/python nvflare_job.py FOLDER CLIENTS CONTROL WORKLOAD-FILE

Two things of the simulator's start are eased here, for of a hundred clients some do not come.  It looks for a port that
is free at that moment for each client's process to listen at, so that two may be given the same, or an outgoing
connection takes it: here no port is given twice, and they lie below those that the kernel gives to connections.  And it
starts all processes at once, each of which must be connected to the server within 10 s, a limit that no setting
changes; on two cores a hundred that import NVFlare at the same time are not: here they start one after the other.
`FedJob.simulator_run` would start the simulator as another program, out of the reach of this; so the job is exported
and given to `SimulatorRunner`, as NVFlare's command ``nvflare simulator`` does.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

SYSTEMS = str(Path(__file__).resolve().parent.parent)
"""Where `workload.py` is."""
PORTS = range(10_000, 32_000)
START_EVERY_S = 0.4
"""About what a client's process takes of two cores until it is connected."""


class Ports:
    """The simulator asks for a port just before it starts a client's process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ports = iter(PORTS)

    def __call__(self, number: int) -> list[int]:
        with self._lock:
            time.sleep(START_EVERY_S)
            return [self._free() for _ in range(number)]

    def _free(self) -> int:
        for port in self._ports:
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise RuntimeError(f"no port from {PORTS.start} to {PORTS.stop} is free")


def main() -> None:
    """Run until the benchmark ends the job."""
    from nvflare.job_config.api import FedJob
    from nvflare.private.fed.app.simulator import simulator_runner
    from nvflare_parts import RoundByRound, TimedExecutor

    simulator_runner.get_open_ports = Ports()
    folder, clients, control, described = sys.argv[1:]
    job = FedJob(name="bench", min_clients=int(clients))
    job.to_server(RoundByRound(int(clients), control))
    job.to_clients(TimedExecutor(control, SYSTEMS, described), tasks=["train"])
    job.export_job(f"{folder}/jobs")
    simulator = simulator_runner.SimulatorRunner(
        f"{folder}/jobs/{job.name}",
        f"{folder}/workspace",
        n_clients=int(clients),
        threads=int(clients),
        log_config="concise",
    )
    sys.exit(simulator.run() or 0)


if __name__ == "__main__":
    main()

"""Runs the benchmark's job in NVFlare's simulator: its server in one process, each client in a process of its own.

    <the environment of NVFlare>/bin/python nvflare_job.py FOLDER CLIENTS CONTROL WORKLOAD-FILE

Two things of the simulator's start are mended here, for else some of a hundred clients never come.  It looks for a port
that is free at that moment for each client's process to listen at, so that two may be given the same, or an outgoing
connection takes it: here no port is given twice, and they lie below those that the kernel gives to connections.  And it
starts all processes at once, each of which must have its connection to the server 10 s later: here a little one after
the other.
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
"""What a client's process computes until it is connected, on two cores."""


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
    """Until the benchmark ends the job."""
    from nvflare.job_config.api import FedJob
    from nvflare.private.fed.app.simulator import simulator_runner
    from nvflare_parts import RoundByRound, TimedExecutor

    simulator_runner.get_open_ports = Ports()
    folder, clients, control, described = sys.argv[1:]
    job = FedJob(name="bench", min_clients=int(clients))
    job.to_server(RoundByRound(int(clients), control))
    job.to_clients(TimedExecutor(control, SYSTEMS, described), tasks=["train"])
    count = int(clients)
    status = job.simulator_run(f"{folder}/workspace", n_clients=count, threads=count, log_config="concise")
    sys.exit(status or 0)


if __name__ == "__main__":
    main()

"""Runs the benchmark's job in NVFlare's simulator: its server in one process, each client in a process of its own.

<the environment of NVFlare>/bin/python nvflare_job.py FOLDER CLIENTS CONTROL WORKLOAD-FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

SYSTEMS = str(Path(__file__).resolve().parent.parent)
"""Where `workload.py` is."""


def main() -> None:
    """Until the benchmark ends the job."""
    from nvflare.job_config.api import FedJob
    from nvflare_parts import RoundByRound, TimedExecutor

    folder, clients, control, described = sys.argv[1:]
    job = FedJob(name="bench", min_clients=int(clients))
    job.to_server(RoundByRound(int(clients), control))
    job.to_clients(TimedExecutor(control, SYSTEMS, described), tasks=["train"])
    count = int(clients)
    status = job.simulator_run(f"{folder}/workspace", n_clients=count, threads=count, log_config="concise")
    sys.exit(status or 0)


if __name__ == "__main__":
    main()

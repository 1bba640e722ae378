"""NVFlare: its `FedAvg` controller with the in-time aggregator, in its simulator.

The simulator runs NVFlare's server in a process, with the same controller, the same communication (CellNet over TCP of
the loopback) and the same streaming of tensors as a deployment, and each client in a process of its own (as many
threads as clients: with fewer it starts a new process for every task).  Nothing is encrypted, as with all systems here.

The round starts when each client has its task and its update in memory.  `last_in_s` is when the controller is given
the last complete result, `out_s` when the aggregate is ready: adding the last result lies between them, and NVFlare's
looking whether all tasks are done (every 0.5 s, its default).  `durable_s` is when it has written the model.
Only the server's process is counted as server, though the clients' processes are its children.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from systems.interface import TUNED, Arrival, Idle, RoundResult, Watch, cpu_by_pid, environment, private_bytes
from systems.venvs import Lines, Program, missing, python, versions
from systems.workload import Workload

HERE = Path(__file__).parent
CONNECT_S = 30.0
CONNECT_CLIENT_S = 1.0
"""More for each client: its process imports NVFlare first, and they start one after the other."""
ROUND_S = 300.0
CLIENT_BYTES = 110e6
"""A client's process before it has any data."""
COPIES = 2.2
"""Of all updates, in memory at the worst: at the clients, and what is on its way when all come at once."""


class NVFlare:
    """The system; see `interface.System`."""

    name = "NVFlare"
    tolerance = 1e-5

    def __init__(self) -> None:
        self._job: Program | None = None
        self._listener: socket.socket | None = None
        self._sockets: list[socket.socket] = []
        self._server: Lines | None = None
        self._server_pid = 0
        self._clients: dict[int, Lines] = {}
        self._count = 0
        self._pids: list[int] = []
        self._workload: Workload | None = None
        self._folder = Path()

    def variants(self) -> list[str]:
        """Return: as installed, and with a malloc that recycles."""
        return ["in-time", "in-time" + TUNED]

    def versions(self) -> dict[str, str]:
        """Return the versions of its parts."""
        return versions("nvflare", ("nvflare", "numpy"))

    def missing(self) -> str:
        """Return why it cannot run here."""
        return missing("nvflare")

    def needs_bytes(self, workload: Workload, clients: int) -> float:
        """See `interface.System`."""
        return clients * (COPIES * workload.nbytes + CLIENT_BYTES)

    def start(self, workload: Workload, clients: int, variant: str, folder: Path) -> None:
        """Start the simulator with the job, and each client's process."""
        self._workload, self._folder, self._count = workload, folder, clients
        described = folder / "workload.json"
        described.write_text(workload.to_json())
        control = folder / "control"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(control))
        self._listener.listen(self._count + 1)
        program = HERE / "rivals" / "nvflare_job.py"
        command: list[str | Path] = [python("nvflare"), program, folder, str(self._count), control, described]
        own = {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
        self._job = Program(command, folder / "simulator.log", {**environment(variant), **own}, merged=True)
        end_s = time.monotonic() + CONNECT_S + CONNECT_CLIENT_S * self._count
        while self._server is None or len(self._clients) < self._count:
            self._accept(end_s)

    def round(
        self, arrivals: Sequence[Arrival], dying: frozenset[int] = frozenset(), goal: int | None = None
    ) -> RoundResult:
        """Run one round of `FedAvg`; `dying` clients answer nothing; a `goal` is the task's ``min_responses``."""
        assert self._server and self._workload
        if sorted(arrival.client for arrival in arrivals) != list(range(self._count)):
            raise ValueError("a round of NVFlare here has each client once")
        result = self._folder / "aggregate"
        names = [name for name, _ in self._workload.tensors]
        self._server.order(path=str(result), names=names, min_responses=goal)
        for line in self._clients.values():
            line.reply(ROUND_S)
        before = sum(cpu_by_pid(self._pids).values())
        with Watch(lambda: [self._server_pid], alone=True) as watch:
            start_ns = time.monotonic_ns()
            for arrival in arrivals:
                dies = arrival.client in dying
                self._clients[arrival.client].order(at_ns=start_ns + round(arrival.at_s * 1e9), dies=dies)
            told = self._server.reply(ROUND_S)
        clients_cpu_s = sum(cpu_by_pid(self._pids).values()) - before
        saved_ns = self._server.reply(ROUND_S)["saved_ns"]
        for client in dying:
            self._clients[client].order(over=True)
        begun = [line.reply(ROUND_S)["begun_ns"] for line in self._clients.values()]
        flat = np.fromfile(result, np.float32)
        result.unlink()
        if len(told["counted"]) < (goal or len(arrivals)):
            raise RuntimeError(f"NVFlare counted {len(told['counted'])} of {len(arrivals)} updates")
        return RoundResult(
            first_in_s=(min(begun) - start_ns) / 1e9,
            last_in_s=(told["last_in_ns"] - start_ns) / 1e9,
            out_s=(told["ready_ns"] - start_ns) / 1e9,
            cpu_s=watch.cpu_s,
            clients_cpu_s=clients_cpu_s,
            peak_bytes=watch.peak_bytes,
            arena_bytes=0,
            rest_bytes=watch.rest_bytes,
            error=self._workload.error(flat, told["counted"]),
            durable_s=(saved_ns - start_ns) / 1e9,
            note=f"adding alone {told['fold_s']:.2f} s",
        )

    def idle(self, seconds: float) -> Idle:
        """Watch the server's process; the clients ask for tasks all the time, as they do."""
        before = cpu_by_pid([self._server_pid])
        time.sleep(seconds)
        after = cpu_by_pid([self._server_pid])
        return Idle(
            cpu_s=sum(after.values()) - sum(before.values()),
            private_bytes=private_bytes(self._server_pid),
            shared_bytes=psutil.Process(self._server_pid).memory_info().shared,
            processes=1,
            aggregators=1,
        )

    def stop(self) -> None:
        """End the simulator and all its processes."""
        if self._job is not None:
            self._job.close(gently=False)
        for each in self._sockets:
            each.close()
        if self._listener is not None:
            self._listener.close()
        self.__init__()  # type: ignore[misc]

    def _accept(self, end_s: float) -> None:
        """Accept the next process.  Raise `TimeoutError` at `end_s`, `RuntimeError` on the job's end."""
        assert self._listener and self._job
        self._listener.settimeout(1.0)
        while time.monotonic() < end_s:
            if not self._job.alive:
                raise RuntimeError(f"NVFlare's simulator ended: {self._job.tail(12)}")
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self._sockets.append(connection)
            connection.setblocking(True)
            line = Lines(connection.fileno(), connection.fileno(), "NVFlare")
            hello: dict[str, Any] = line.reply(CONNECT_S)
            if hello["role"] == "server":
                self._server, self._server_pid = line, hello["pid"]
            else:
                self._clients[hello["client"]] = line
                self._pids.append(hello["pid"])
            return
        raise TimeoutError(f"{len(self._clients)} of {self._count} clients of NVFlare came: {self._job.tail(6)}")

"""Flower: SuperLink and ServerApp as installed, `FedAvg` over the Message API, and clients over its Fleet API.

Server processes are those that `flower-superlink` starts: the SuperLink itself, its SuperExec and the ServerApp's
process, which runs Flower's `FedAvg` (`rivals/flower_app/`).  Settings are those of its documentation for one machine:
no TLS (``--insecure``, as all systems here), state in memory, isolation by subprocess; the installation of an app's
own dependencies is off, for there are none.  Clients are nodes over the connection of a SuperNode
(`rivals/flower_clients.py`).

The round starts when each client has its message and its serialised reply ready, so that neither the way down nor the
clients' work is in its figures.  `last_in_s` is when the SuperLink has acknowledged the last chunk of the last update,
`out_s` when `FedAvg.aggregate_train` has returned.  Between them lies Flower's own way: the ServerApp looks for replies
every 3 s (`Grid.send_and_receive`, no setting changes it) and pulls what is there; the note says what of the time the
aggregation alone took.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from systems.interface import TUNED, Arrival, Idle, RoundResult, Watch, cpu_by_pid, environment, family, private_bytes
from systems.venvs import VENVS, Lines, Program, free_port, missing, python, versions
from systems.workload import Workload

HERE = Path(__file__).parent
CONNECT_S = 90.0
PREPARE_S = 180.0
ROUND_S = 300.0
CLIENT_PROCESSES = 2
COPIES = 3.3
"""Of all updates, in memory at the worst: at the clients, in the SuperLink, in the ServerApp, and on their way."""


class Flower:
    """The system; see `interface.System`."""

    name = "Flower"
    tolerance = 1e-5
    timeout_s = 3600.0
    """Of `Strategy.start`, its default; a round that loses clients lasts until then."""

    def __init__(self) -> None:
        self._link: Program | None = None
        self._clients: list[Program] = []
        self._of: dict[int, Program] = {}
        self._listener: socket.socket | None = None
        self._control: socket.socket | None = None
        self._app: Lines | None = None
        self._workload: Workload | None = None
        self._folder = Path()

    def variants(self) -> list[str]:
        """Return: as installed, and with a malloc that recycles."""
        return ["SuperLink", "SuperLink" + TUNED]

    def versions(self) -> dict[str, str]:
        """Return the versions of its parts."""
        return versions("flower", ("flwr", "numpy", "uvicorn", "httpx", "protobuf"))

    def missing(self) -> str:
        """Return why it cannot run here."""
        return missing("flower")

    def needs_bytes(self, workload: Workload, clients: int) -> float:
        """See `interface.System`."""
        return COPIES * clients * workload.nbytes

    def start(self, workload: Workload, clients: int, variant: str, folder: Path) -> None:
        """Start SuperLink, clients, and the app with its strategy waiting for the first round."""
        self._workload, self._folder = workload, folder
        described = folder / "workload.json"
        described.write_text(workload.to_json())
        address = self._start_link(variant, folder)
        count = min(CLIENT_PROCESSES, clients)
        for part in np.array_split(np.arange(clients), count):
            program_file = HERE / "rivals" / "flower_clients.py"
            command: list[str | Path] = [
                python("flower"),
                program_file,
                address,
                str(part[0]),
                str(len(part)),
                described,
            ]
            program = Program(command, folder / f"clients-{part[0]}.log", self._environment("clients"))
            self._clients.append(program)
            self._of |= dict.fromkeys(part.tolist(), program)
        for program in self._clients:
            program.lines.reply(CONNECT_S)
        self._start_app(
            address, {"clients": clients, "names": [], "shapes": [], "model": "", "timeout_s": self.timeout_s}
        )

    def round(
        self, arrivals: Sequence[Arrival], dying: frozenset[int] = frozenset(), goal: int | None = None
    ) -> RoundResult:
        """Run one round of `FedAvg`, all nodes sampled; `dying` ones never reply, and only the timeout ends it."""
        assert self._app and self._link and self._workload
        if len(arrivals) != len(self._of):
            raise ValueError(f"{len(arrivals)} arrivals for {len(self._of)} clients: FedAvg here samples all")
        result = self._folder / "aggregate"
        names = [name for name, _ in self._workload.tensors]
        self._app.order(path=str(result), names=names, model=False)
        for program in self._clients:
            program.lines.order(do="prepare", clients=[c for c in self._of if self._of[c] is program])
        for program in self._clients:
            program.lines.reply(PREPARE_S)
        pids = [program.pid for program in self._clients]
        before = sum(cpu_by_pid(pids).values())
        with Watch(lambda: [self._link.pid] if self._link else []) as watch:
            start_ns = time.monotonic_ns()
            for program in self._clients:
                mine = [(a.at_s, a.client) for a in arrivals if self._of[a.client] is program and a.client not in dying]
                program.lines.order(do="send", start_ns=start_ns, arrivals=mine)
            sent = [program.lines.reply(ROUND_S) for program in self._clients]
            told = self._app.reply(ROUND_S)
        clients_cpu_s = sum(cpu_by_pid(pids).values()) - before
        if told["errors"] or (goal is None and len(told["counted"]) != len(arrivals)):
            raise RuntimeError(f"Flower counted {len(told['counted'])} of {len(arrivals)} updates: {told['errors']}")
        flat = np.fromfile(result, np.float32)
        result.unlink()
        return RoundResult(
            first_in_s=(min(each["begun_ns"] for each in sent if each) - start_ns) / 1e9,
            last_in_s=(max(each["ended_ns"] for each in sent if each) - start_ns) / 1e9,
            out_s=(told["ready_ns"] - start_ns) / 1e9,
            cpu_s=watch.cpu_s,
            clients_cpu_s=clients_cpu_s,
            peak_bytes=watch.peak_bytes,
            arena_bytes=0,
            rest_bytes=watch.rest_bytes,
            error=self._workload.error(flat, told["counted"]),
            note=f"aggregate_train alone {(told['ready_ns'] - told['received_ns']) / 1e9:.2f} s",
        )

    def idle(self, seconds: float) -> Idle:
        """Watch the server's processes; the nodes' heartbeats go on."""
        assert self._link
        pids = family([self._link.pid])
        before = cpu_by_pid(pids)
        time.sleep(seconds)
        after = cpu_by_pid(pids)
        shared = sum(getattr(psutil.Process(pid).memory_info(), "shared", 0) for pid in after)
        return Idle(
            cpu_s=sum(now - before.get(pid, 0.0) for pid, now in after.items()),
            private_bytes=sum(map(private_bytes, after)),
            shared_bytes=shared,
            processes=len(after),
            aggregators=1,
        )

    def stop(self) -> None:
        """End the app, the clients and the SuperLink with all that it started."""
        with suppress(OSError):
            if self._app is not None:
                self._app.order(over=True)
        for program in self._clients:
            program.close()
        if self._link is not None:
            self._link.close(gently=False)
        for each in (self._control, self._listener):
            if each is not None:
                each.close()
        self.__init__()  # type: ignore[misc]

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _environment(self, variant: str) -> dict[str, str]:
        # The programs that the SuperLink starts are looked up by name.
        own = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(self._folder / "flwr")}
        path = f"{VENVS / 'flower' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**environment(variant), **own, "PATH": path, "PYTHONPATH": ""}

    def _start_link(self, variant: str, folder: Path) -> str:
        port, fleet, control = free_port(), free_port(), free_port()
        program = VENVS / "flower" / "bin" / "flower-superlink"
        flags = ["--insecure", "--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port)]
        # The older gRPC ports stay open beside; here on ports that are free.
        flags += ["--fleet-api-address", f"127.0.0.1:{fleet}", "--control-api-address", f"127.0.0.1:{control}"]
        self._link = Program(
            [python("flower"), program, *flags], folder / "superlink.log", self._environment(variant), merged=True
        )
        deadline = time.monotonic() + CONNECT_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return f"127.0.0.1:{port}"
            if time.monotonic() > deadline or not psutil.pid_exists(self._link.pid):
                raise RuntimeError(f"the SuperLink does not listen: {self._link.tail()}")
            time.sleep(0.1)

    def _start_app(self, address: str, first: dict[str, Any]) -> None:
        home = self._folder / "flwr"
        home.mkdir(exist_ok=True)
        text = f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "{address}"\ninsecure = true\n'
        (home / "config.toml").write_text(text)
        path = self._folder / "control"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(CONNECT_S)
        command = [VENVS / "flower/bin/flwr", "run", HERE / "rivals" / "flower_app", "bench", "-c", f'control="{path}"']
        done = subprocess.run(
            [str(part) for part in command],
            env=self._environment("clients"),
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"`flwr run` failed: {done.stdout[-500:]}{done.stderr[-500:]}")
        try:
            self._control, _ = self._listener.accept()
        except TimeoutError:
            assert self._link
            raise RuntimeError(f"the ServerApp did not start: {self._link.tail(20)}") from None
        self._app = Lines(self._control.fileno(), self._control.fileno(), "the ServerApp")
        os.write(self._control.fileno(), json.dumps(first).encode() + b"\n")

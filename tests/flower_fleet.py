"""Flower as its users run it: a SuperLink, SuperNodes, and apps by `flwr run`, in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
UP_S, RUN_S, END_S = 120.0, 700.0, 15.0


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback that nobody listens on now, all different."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class FlowerFleet:
    """A SuperLink, and SuperNodes with the node config ``partition-id=i num-partitions=N``; end it with `close`.

    `environments` are more variables of single SuperNodes, and so of their ClientApps.  With `simulation` the SuperLink
    runs so many virtual nodes by its simulation engine, in turn.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int,
        environments: Mapping[int, Mapping[str, str]] | None = None,
        simulation: bool = False,
    ) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        ports = free_ports(3 + nodes)
        self.address = f"127.0.0.1:{ports[0]}"
        home = folder / "home"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "real"\n\n[superlink.real]\naddress = "{self.address}"\ninsecure = true\n'
            + f"options.num-supernodes = {nodes}\n" * simulation
        )
        self.environment = {
            **os.environ,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_HOME": str(home),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self._start("superlink", self.environment, "flower-superlink", "--insecure", "--host", "127.0.0.1",
                    "--port", str(ports[0]), "--fleet-api-address", f"127.0.0.1:{ports[1]}",
                    "--control-api-address", f"127.0.0.1:{ports[2]}", "--disable-runtime-dependency-installation",
                    *(["--simulation"] if simulation else []))  # fmt: skip
        self._wait_for_link()
        for i in range(0 if simulation else nodes):
            more = {"FLWR_HOME": str(folder / f"home-{i}"), **(environments or {}).get(i, {})}
            self._start(f"node-{i}", self.environment | more, "flower-supernode", "--insecure",
                        "--superlink", self.address, "--port", str(ports[3 + i]),
                        "--node-config", f"partition-id={i} num-partitions={nodes}")  # fmt: skip

    def _start(self, name: str, environment: Mapping[str, str], program: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(BIN / program), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(environment),
                    cwd=self.folder,
                    start_new_session=True,
                )
            )

    def _wait_for_link(self) -> None:
        host, port = self.address.split(":")
        deadline = time.monotonic() + UP_S
        while True:
            with suppress(OSError), socket.create_connection((host, int(port)), 1.0):
                return
            assert time.monotonic() < deadline and self.processes[0].poll() is None, self.log("superlink")
            time.sleep(0.1)

    def run(self, app: Path, config: Mapping[str, object], superlink: str = "real", within_s: float = RUN_S) -> str:
        """Run an app to its end; return what its ServerApp logged."""
        given = " ".join(f"{name}={_toml(value)}" for name, value in config.items())
        command = [str(BIN / "flwr"), "run", str(app), superlink, "--stream", "-c", given]
        done = subprocess.run(
            [sys.executable, *command], env=self.environment, cwd=self.folder, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=within_s, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def log(self, name: str) -> str:
        """The end of what a process wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def close(self) -> None:
        """End all that was started, with what descends from it."""
        family: list[psutil.Process] = []
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                family += psutil.Process(process.pid).children(recursive=True)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            if process.poll() is None:
                process.kill()
                process.wait()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()  # psutil looks that the pid is still the same process
        psutil.wait_procs(family, END_S)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()

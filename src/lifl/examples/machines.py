"""Nodes on hosts of their own: started, waited for, killed and ended by what shows or measures a cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifl.examples.netns import Host
from lifl.examples.running import LIFL, DemoFailed, asked, lifl, lives, processes, segments

SETTLE_S = 20.0


class Machine:
    """A node on a host of its own, secured unless the flags say otherwise; one that joins comes by `token_file`."""

    def __init__(
        self, host: Host, work: Path, join: str, flags: Sequence[str] = (), token_file: Path | None = None
    ) -> None:
        self.host = host
        self.state_dir = work / host.name
        self.gateway, self.control = f"{host.address}:7433", f"{host.address}:7434"
        token = ["--token-file", str(token_file)] if token_file is not None else []
        self._flags = [*(["--join", join] if join else []), *token, *flags]
        self.info: dict[str, Any] = {}
        self.pids: list[int] = []

    def up(self) -> None:
        """Start `lifld` on the host."""
        flags = ["--listen", self.gateway, "--control", self.control]
        command = [*LIFL, "up", "-d", "--json", "--state", str(self.state_dir), *flags, *self._flags]
        started = subprocess.run(self.host.command(*command), stdout=subprocess.PIPE, check=False)
        if started.returncode:
            raise DemoFailed(f"node {self.host.name} did not start")
        self.info = json.loads(started.stdout)

    def token(self, path: Path, *flags: str) -> Path:
        """Have the node, which is the first one, make a token; return `path`, the file where it is."""
        made = asked(self.state_dir, "token", "create", *flags)["token"]
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(made)
        return path

    @property
    def segments(self) -> list[Path]:
        """The files of the arena that are there."""
        return segments(self.info["node"])

    def kill(self) -> None:
        """Kill all its processes by signal 9, `lifld` first, for it would start the others again."""
        for pid in processes(self.state_dir):
            self.pids.append(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it ended with lifld
                continue

    def down(self) -> None:
        """End it as a user does; whatever went wrong before, nothing stays."""
        if not self.info:
            return
        try:
            if lives(int(self.info["pid"])):
                self.pids += processes(self.state_dir)
                lifl("down", "--state", str(self.state_dir))
        except DemoFailed:
            os.kill(int(self.info["pid"]), signal.SIGKILL)
            raise
        finally:
            if not lives(int(self.info["pid"])):
                for segment in self.segments:
                    segment.unlink(missing_ok=True)


def wait_alive(machines: Sequence[Machine]) -> None:
    """Return when the first node knows all of them to be alive.  Raise `DemoFailed`."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        lines = asked(machines[0].state_dir, "nodes")["nodes"]
        if sum(each["state"] == "alive" for each in lines) == len(machines):
            return
        if time.monotonic() > deadline_s:
            raise DemoFailed(f"not all of the {len(machines)} nodes are alive: {lines}")
        time.sleep(0.2)

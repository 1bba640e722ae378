"""What the processes of a running node may not do any more: as the kernel says, and as they told of Landlock."""

from __future__ import annotations

import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lifl.core.errors import LiflError
from lifl.core.protocol.cli import Snapshot
from lifl_cli.daemon_client import DaemonClient

NO_SECCOMP = "a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or arm64"
NO_LANDLOCK = "Linux 5.13 or newer with Landlock (CONFIG_SECURITY_LANDLOCK, lsm=landlock,...); the rest holds without"


class Process(NamedTuple):
    """One process of the node; `filters` are the seccomp filters that it has put on itself, `landlock` its version."""

    name: str
    pid: int
    filters: int
    landlock: int | None


def boxes(state_dir: Path) -> Iterator[tuple[str, str, str]]:
    """Yield for each process of the node that runs on the folder its name, what holds it, and how it would be more."""
    try:
        with DaemonClient(state_dir) as daemon:
            shown = daemon.ask(Snapshot())
    except LiflError:
        return
    for process in _processes(shown):
        try:
            status = _status(process.pid)
        except OSError:
            continue  # it has ended
        yield process.name, *_told(process, status)


def _processes(shown: dict[str, object]) -> Iterator[Process]:
    node, workers = dict(shown["node"]), list(shown["workers"])  # type: ignore[call-overload]
    landlock = node["landlock"]
    yield Process("lifld", node["pid"], 0, None)
    yield Process("gateway", node["gateway"]["pid"], 1, landlock["gateway"])
    if node["http_door"]:
        yield Process("http", node["http_door"]["pid"], 1, node["http_door"]["landlock"])
    yield Process("zygote", node["zygote_pid"], 1, landlock["zygote"])
    for worker in workers:
        tied = worker["tied"]
        name = f"worker {worker['worker']}" + (" (own rule)" if tied else "")
        yield Process(name, worker["pid"], 3 if tied else 2, landlock["zygote"])


def _told(process: Process, status: dict[str, str]) -> tuple[str, str]:
    """Return what holds a process, and what would be needed for what does not."""
    held, missing = [], []
    uid = int(status["Uid"].split()[1])
    try:
        held.append(f"user {pwd.getpwuid(uid).pw_name}")
    except KeyError:
        held.append(f"user {uid}")
    for name, text in (("CapEff", "no capabilities"), ("CapPrm", "none permitted")):
        if int(status[name], 16):
            missing.append(f"it has {name} {status[name]}: end it and start it anew")
        elif name == "CapEff":
            held.append(text)
    if status["NoNewPrivs"] == "1":
        held.append("no new privileges")
    else:
        missing.append("it may take new privileges: end it and start it anew")
    filters = int(status.get("Seccomp_filters", "1" if status.get("Seccomp") == "2" else "0"))
    if process.filters:
        held.append(f"seccomp ({filters})" if filters else "no seccomp")
        if not filters:
            missing.append(NO_SECCOMP)
    if process.landlock is not None:
        held.append(f"Landlock {process.landlock}" if process.landlock else "no Landlock")
        if not process.landlock:
            missing.append(NO_LANDLOCK)
    return f"pid {process.pid}: {', '.join(held)}", "; ".join(missing)


def _status(pid: int) -> dict[str, str]:
    from lifl.confine.capabilities import status_of

    return status_of(pid)

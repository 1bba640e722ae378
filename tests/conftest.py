"""What all tests share: a node by the command line, and a look at what each test file leaves behind.

A test file fails when, after its last test, a process that it started still lives, or its own process has more
descriptors of sockets, shared memory, eBPF or pipes than before.  Where the machine is the run's own, so does a run
that leaves shared memory, eBPF objects, network namespaces or mounts: the file that did when one process runs all
tests, else (pytest -n) the run as a whole (`whole_run.py`).
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import leaks
import psutil
import pytest
from arrows import pytest_collection_modifyitems, pytest_xdist_make_scheduler
from hypothesis import HealthCheck, settings
from whole_run import PART, pytest_configure, pytest_sessionfinish, pytest_terminal_summary

from lifl import failpoints

__all__ = [
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_xdist_make_scheduler",
]

LIFL = [sys.executable, "-m", "lifl_cli.main"]
COMMAND_TIMEOUT_S = 120.0
LOG_TAIL_LINES = 80

# How long an example takes, or the making of its data, says something of the machine and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="module", autouse=True)
def leak_check() -> Iterator[None]:
    """Fails the file that leaves something behind."""
    fds, machine, processes = _descriptors(), leaks.machine(), set(_own_processes())
    yield
    found = [f"process {pid}: {text}" for pid, text in leaks.settled(lambda: _new_processes(processes)).items()]
    gc.collect()
    found += [f"descriptors: {count} more of {kind}" for kind, count in (_descriptors() - fds).items()]
    if os.environ.get(leaks.OWN_MACHINE) and not PART:
        found += leaks.machine_leaks(machine)
    assert not found, "left behind: " + "; ".join(found)


def _own_processes() -> dict[int, str]:
    """Our children (zombies too: they were not waited for) and all marked processes below this one."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            found[child.pid] = f"{' '.join(child.cmdline())[:200]} ({child.status()})"
        except psutil.NoSuchProcess:
            continue
    found |= leaks.marked_processes(os.environ[leaks.MARK])
    ancestors = {parent.pid for parent in psutil.Process().parents()}
    # Python's own helper of multiprocessing lives as long as its process.
    return {
        pid: text
        for pid, text in found.items()
        if pid not in ancestors and "multiprocessing.resource_tracker" not in text
    }


def _new_processes(before: set[int]) -> dict[int, str]:
    return {pid: text for pid, text in _own_processes().items() if pid not in before}


def _descriptors() -> Counter[str]:
    """This process's descriptors of the kinds that the code under test opens."""
    kinds = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the listing's own
        kind = target.partition("[")[0] if target.startswith("anon_inode") else target.partition(":")[0]
        if kind in ("socket", "pipe") or kind.startswith(("anon_inode", "/dev/shm/lifl", "/memfd")):
            kinds.append(target if kind.startswith("anon_inode") else kind)
    return Counter(kinds)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A private state folder with a short path: sockets are made in it."""
    folder = Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run_lifl(
    *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S, points: str = ""
) -> subprocess.CompletedProcess[str]:
    """`lifl` with these arguments, in a process of its own; its exit code is the test's business.

    `points` are failpoints, as in the variable.
    """
    return subprocess.run(
        [*LIFL, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        env={**os.environ, failpoints.VARIABLE: points},
    )


class Node:
    """A node of the test's own, started by `lifl up -d`; `info` is its start-up report."""

    def __init__(self, state_dir: Path, flags: tuple[str, ...], points: str = "") -> None:
        self.state_dir = state_dir
        self.points = points
        """Failpoints of all its processes, from the next start on."""
        # Given: measuring the capacity takes CPU at each start, and some tests hold several workers at work.
        self._flags = ("--capacity", "8", "--workers-max", "8", *flags)
        self.info: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        return int(self.info["pid"])

    @property
    def address(self) -> str:
        """The gateway's HOST:PORT."""
        return str(self.info["listen"][0])

    @property
    def segment(self) -> Path:
        """The arena's file."""
        return Path("/dev/shm") / f"lifl-{self.info['node']}"

    def up(self, *more: str) -> None:
        """Starts `lifld` and waits until it is ready."""
        flags = [*self._flags, *more]
        done = run_lifl("up", "-d", "--json", "--state", str(self.state_dir), *flags, points=self.points)
        assert done.returncode == 0, done.stderr
        self.info = json.loads(done.stdout)

    def lifl(self, *arguments: str) -> str:
        """What a command that succeeds printed."""
        done = run_lifl(*arguments, "--state", str(self.state_dir))
        assert done.returncode == 0, f"lifl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What a command printed with --json."""
        return json.loads(self.lifl(*arguments, "--json"))

    def snapshot(self) -> dict[str, Any]:
        """`lifl top --json`."""
        found: dict[str, Any] = self.json("top")
        return found

    def is_up(self) -> bool:
        """Whether `lifld` lives."""
        try:
            return bool(self.info) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def down(self) -> None:
        """Stops it as a user does."""
        self.lifl("down")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to `lifld`, and waits until it has ended."""
        process = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(process, number)
            ended, _, _ = select.select([process], [], [], COMMAND_TIMEOUT_S)
            assert ended, f"lifld (pid {self.pid}) lives {COMMAND_TIMEOUT_S} s after signal {number}"
        finally:
            os.close(process)


@pytest.fixture
def start_node(state_dir: Path) -> Iterator[Callable[..., Node]]:
    """`start_node(*flags)` gives a running node with a small arena on a free port; it is stopped after the test."""
    nodes: list[Node] = []

    def start(*flags: str, folder: Path = state_dir, points: str = "") -> Node:
        node = Node(folder, ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", *flags), points)
        nodes.append(node)
        node.up()
        return node

    yield start
    for node in nodes:
        # pytest shows it when the test failed.
        log = node.state_dir / "lifld.log"
        print("\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]) if log.exists() else "no log")
        # A killed node's arena goes the way it would for a user: the next lifld adopts it and clears up.
        if not node.is_up() and node.info and node.segment.exists():
            node.up()
        if node.is_up():
            node.down()

"""What all tests share: a node by the command line, and a look at what each test file leaves behind.

A test file fails when, after its last test, a process that it started still lives, or its own process has more
descriptors of sockets, shared memory, eBPF or pipes than before.  Where the machine is the run's own, so does a run
that leaves shared memory, eBPF objects, network namespaces or mounts: the file that did when one process runs all
tests, else (pytest -n) the run as a whole (`whole_run.py`).
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import leaks
import psutil
import pytest
from arrows import pytest_collection_modifyitems, pytest_xdist_make_scheduler
from hypothesis import HealthCheck, settings
from nodes import FOLDERS, LOG_TAIL_LINES, Node
from whole_run import PART, pytest_configure, pytest_sessionfinish, pytest_terminal_summary

__all__ = [
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_xdist_make_scheduler",
]


# How long an example takes, or the making of its data, says something of the machine and nothing of the code.
# With LIFL_SEED a run draws what another with it has drawn (`fleet.seeded`), and so does hypothesis.
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("LIFL_SEED")),
)
settings.load_profile("any machine")
# A run under nohup, or in a shell's background, ignores them, and so would the nodes that tests start.
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def leak_check() -> Iterator[None]:
    """Fails the file that leaves something behind."""
    fds, machine, processes = _descriptors(), leaks.machine(), set(_own_processes())
    yield
    found = [f"process {pid}: {text}" for pid, text in leaks.settled(lambda: _new_processes(processes)).items()]
    gc.collect()
    # gRPC closes what it polls with in a thread of its own, some time after its last channel.
    found += [f"descriptors: {n} more of {kind}" for kind, n in leaks.settled(lambda: _descriptors() - fds).items()]
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
    folder = Path(tempfile.mkdtemp(prefix="lt-", dir=FOLDERS))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start_node(state_dir: Path) -> Iterator[Callable[..., Node]]:
    """`start_node(*flags)` gives a running node with a small arena on a free port; it is stopped after the test."""
    nodes: list[Node] = []

    def start(*flags: str, folder: Path = state_dir, points: str = "", build: Path | None = None) -> Node:
        node = Node(folder, ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", *flags), points)
        node.build = build
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

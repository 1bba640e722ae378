"""What a system that is compared offers to the benchmark, and what a section of the benchmark hands to the report.

A `System` is driven by the benchmark's process, with real server processes and real clients of its own: `start`, then
rounds and idle times, then `stop`, which also runs after a failure and leaves nothing behind.  All instants are of
`time.monotonic_ns`, one clock for all processes of a machine; those of a round are seconds from its start.

The rest of this file is the small change that adapters share: the settings of a malloc that keeps its memory, and how
CPU seconds and memory of a family of processes are read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
import psutil
from measure import HELPER_ENVIRONMENT, Target, cpu_s

from systems.workload import Workload

RECYCLING = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_ARENA_MAX": "1",
}
"""glibc's malloc keeps what it once got from the kernel: fresh pages are dear on some machines."""
TUNED = ", recycling malloc"
"""How the name of a variant ends that runs with `RECYCLING`."""
SAMPLE_S = 0.02
ALSO: dict[str, tuple[str, ...]] = {"LIFL": ("eager, flat, sockmap",)}
"""Variants, by system, that are measured beside the recommended one where not all are: fewer hops, for one node."""
MEMORY_SHARE = 0.8
"""Of the memory that is free, for what the benchmark starts."""


class Arrival(NamedTuple):
    """When, from the round's start, a client begins to send its update."""

    at_s: float
    client: int


class RoundResult(msgspec.Struct):
    """One round: instants in seconds from its start, and what it cost.

    `last_in_s` is when the last update was complete at the server, as near as the system tells: an adapter's docstring
    says which instant that is.  `out_s` is when the aggregate can be read by any process; `durable_s` when it is
    on the disk, for systems that write it there.  `peak_bytes` is the highest sum of the server processes' private
    memory (anonymous resident pages), `rest_bytes` what that sum was when the round began, `arena_bytes` the highest
    use of shared memory.  `error` is the aggregate's largest relative error against the mean in float64.
    """

    first_in_s: float
    last_in_s: float
    out_s: float
    cpu_s: float
    clients_cpu_s: float
    peak_bytes: int
    arena_bytes: int
    error: float
    durable_s: float | None = None
    rest_bytes: int = 0
    note: str = ""


class Idle(msgspec.Struct):
    """What a started system costs while nothing arrives; `processes` are those that do aggregation work."""

    cpu_s: float
    private_bytes: int
    shared_bytes: int
    processes: int
    aggregators: int


class System(Protocol):
    """One of the systems that are compared.

    `tolerance` bounds `RoundResult.error`.  `variants` are settings of the system, the first being the one that its
    authors recommend; a name that ends in `TUNED` runs with `RECYCLING` in the environment of its servers.
    """

    name: str
    tolerance: float

    def variants(self) -> list[str]:
        """Return the variants' names for `start`."""

    def versions(self) -> dict[str, str]:
        """Return the versions of its parts."""

    def missing(self) -> str:
        """Return why it cannot run here and what to install; empty when it can."""

    def needs_bytes(self, workload: Workload, clients: int) -> float:
        """Return the memory that a round of all clients takes at the worst, of servers and clients."""

    def start(self, workload: Workload, clients: int, variant: str, folder: Path) -> None:
        """Start the servers, and processes for `clients` clients; `folder` is empty and the system's own."""

    def round(self, arrivals: Sequence[Arrival]) -> RoundResult:
        """Run one round over all the clients of `arrivals`; may be called again and again."""

    def idle(self, seconds: float) -> Idle:
        """Watch the system, which no client uses, for so long."""

    def stop(self) -> None:
        """End all that was started; may be called twice, and after a `start` that failed."""


@runtime_checkable
class Shares(Protocol):
    """A system some of whose variants need no servers of their own: what differs is said round by round."""

    def shares(self, variant: str, other: str) -> bool:
        """Return whether the servers of one variant can run the other, too."""

    def also(self, variant: str) -> System:
        """Start another variant on the servers that were started; what ends them is the first one's `stop`."""


@runtime_checkable
class Settles(Protocol):
    """A system that goes on with something when it has started: others may start meanwhile."""

    def settle(self) -> None:
        """Wait until it is done with that; before the first round."""


# ---- sections of the report ----------------------------------------------------------------------------------------


@dataclass
class Table:
    """A table of the report."""

    title: str
    head: list[str]
    rows: list[list[str]]
    about: str = ""


@dataclass
class Plot:
    """A picture: `draw` gets matplotlib's axes.  `name` is the PNG's, without its ending."""

    name: str
    title: str
    draw: Callable[[Any], None]


@dataclass
class Outcome:
    """What a section found.

    `absent` are cells that did not run, each with the reason; `failures` those that should have run or whose result is
    wrong: one of them fails the quick run.  `data` is all that was measured, for JSON.
    """

    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    data: Any = None


@dataclass
class Context:
    """What a section is given: it is to be done when `left_s()` reaches 0, and leaves out cells rather than be late.

    `folder` is for temporary files.  `costs` are figures that later sections reckon with, by name (such as
    ``fold_bytes_per_s``); each section adds what it measured.
    """

    quick: bool
    seed: int
    folder: Path
    systems: Sequence[System]
    left_s: Callable[[], float]
    costs: dict[str, float] = field(default_factory=dict)


class Section(Protocol):
    """A module `bench/section_*.py`: its names, the seconds that it may take (in full and quick), and `run`."""

    NAME: str
    TITLE: str
    BUDGET_S: float
    QUICK_BUDGET_S: float

    def run(self, context: Context) -> Outcome:
        """Measure."""


# ---- processes -----------------------------------------------------------------------------------------------------


def environment(variant: str) -> dict[str, str]:
    """Return the environment of a variant's server processes."""
    return {**os.environ, **HELPER_ENVIRONMENT, **(RECYCLING if variant.endswith(TUNED) else {})}


class Watch:
    """CPU seconds and peak of private memory of processes and all their descendants, within a `with` block.

    Processes that end within the block are counted up to the last sample before; an adapter that knows their CPU
    seconds better says `roots_cpu_only` and adds them itself.  `alone`: the descendants are not the server's.
    """

    def __init__(self, roots: Callable[[], Iterable[int]], roots_cpu_only: bool = False, alone: bool = False) -> None:
        self._roots = roots
        self._family: Callable[[Iterable[int]], list[int]] = list if alone else family
        self._roots_cpu_only = roots_cpu_only
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._before: Mapping[int, float] = {}
        self._latest: dict[int, float] = {}
        self.rest_bytes = 0
        self.peak_bytes = 0
        self.cpu_s = 0.0

    def __enter__(self) -> Watch:
        pids = self._family(self._roots())
        self._before = self._cpu(pids)
        self.rest_bytes = sum(map(private_bytes, pids))
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self.cpu_s = sum(now - self._before.get(pid, 0.0) for pid, now in self._latest.items())

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._look()

    def _cpu(self, pids: Iterable[int]) -> dict[int, float]:
        return cpu_by_pid(self._roots() if self._roots_cpu_only else pids)

    def _look(self) -> None:
        pids = self._family(self._roots())
        self._latest |= self._cpu(pids)
        self.peak_bytes = max(self.peak_bytes, sum(map(private_bytes, pids)))


def family(roots: Iterable[int]) -> list[int]:
    """Return the processes and all their descendants, those that live."""
    pids = []
    for pid in roots:
        with suppress(psutil.NoSuchProcess):
            pids += [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return pids


def cpu_by_pid(pids: Iterable[int]) -> dict[int, float]:
    """Return the CPU seconds of each process that lives."""
    found = {}
    for pid in pids:
        with suppress(OSError):
            found[pid] = cpu_s([pid])
    return found


def private_bytes(pid: int) -> int:
    """Return the anonymous resident memory of a process, without what it shares; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0

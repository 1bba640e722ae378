"""What all benchmarks share: clocks, helper processes, cells with their spread, tables, the machine's description.

A *cell* is one thing measured: its repetitions (wall time or rate) and, beside each, the CPU seconds that it cost.  The
repetitions of cells that are compared are interleaved, so that a machine whose speed drifts slows all of them; where
one is a fraction of the other, the fraction is taken within each repetition.  A cell is shown as median (min–max).

CPU seconds of another process are read from its own CPU clock, in nanoseconds, not from the ticks of /proc.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

PACKAGES = ("lifl", "numpy", "uvloop", "msgspec", "posix-ipc")
ROOT = Path(__file__).resolve().parent.parent
REPLY_S = 60.0
"""How long a helper process may take for one order before the benchmark gives up."""
END_S = 10.0
FRESH_BYTES = 1 << 30
_CPUCLOCK_SCHED = 2
# One thread for BLAS: a benchmark of one core, and of processes that fork.
HELPER_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds of living processes until now, all of their threads (clock_getcpuclockid(3))."""
    return sum(time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) for pid in pids)


def cpu_by_part(node: psutil.Process) -> dict[str, float]:
    """Return the CPU seconds of a node's processes until now: of `lifld`, the gateway and the workers."""
    found = {"lifld": cpu_s([node.pid]), "gateway": 0.0, "workers": 0.0}
    for child in node.children(recursive=True):
        if "lifl-worker" in child.name():
            found["workers"] += cpu_s([child.pid])
        elif "lifl.node.gateway.main" in child.cmdline():
            found["gateway"] += cpu_s([child.pid])
    return found


def _memory(pid: int) -> dict[str, int]:
    """Return what /proc/PID/status says of how much memory the process has or had, in bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS", "RssShmem")}


@contextmanager
def grown_bytes(pids: Iterable[int]) -> Iterator[list[int]]:
    """Append how much memory of their own the processes took at the most within the block, beyond what they had."""
    before = {}
    for pid in pids:
        with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # the peak begins anew (proc_pid_clear_refs(5))
        before[pid] = _memory(pid)
    grown: list[int] = []
    yield grown
    after = {pid: _memory(pid) for pid in before}
    shared = {pid: after[pid]["RssShmem"] - had["RssShmem"] for pid, had in before.items()}
    grown.append(sum(max(0, after[pid]["VmHWM"] - had["VmRSS"] - shared[pid]) for pid, had in before.items()))


class Helper:
    """A process that takes orders as lines of JSON on its stdin and answers each by one line on its stdout.

    It ends when its stdin does.  `program` is a script beside this file (``x.py``) or a module (``systems.x``), run by
    the interpreter `python`; `descriptors` are inherited under the same numbers; `environment` is laid over this
    process's own.
    """

    def __init__(
        self,
        program: str,
        arguments: Sequence[str],
        descriptors: Sequence[int] = (),
        python: str = sys.executable,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        bench = Path(__file__).parent
        run = [str(bench / program)] if program.endswith(".py") else ["-P", "-m", program]
        paths = [str(bench), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [python, *run, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            env={**os.environ, **HELPER_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths), **environment},
            process_group=0,  # Ctrl-C is for the benchmark, which ends its helpers
        )
        self._buffer = b""

    @property
    def pid(self) -> int:
        """The helper's process."""
        return self._process.pid

    def order(self, **what: Any) -> None:
        """Send an order; `reply` waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()

    def reply(self) -> dict[str, Any]:
        """Return the next answer.  Raise `RuntimeError` when the helper ends or takes too long."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + REPLY_S
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            ready = select.select([fd], [], [], left_s)[0] if left_s > 0 else []
            data = os.read(fd, 65536) if ready else b""
            if not data:
                why = "ended" if ready else f"did not answer within {REPLY_S:g} s"
                raise RuntimeError(f"the helper {self._process.args!r} {why}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **what: Any) -> dict[str, Any]:
        """Send an order and wait for its answer."""
        self.order(**what)
        return self.reply()

    def close(self) -> None:
        """End the helper."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM wait until the block is done, so that what it starts is known when it must end."""
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def orders() -> Iterable[dict[str, Any]]:
    """Yield a helper's orders, until its stdin ends."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(**what: Any) -> None:
    """Send a helper's answer to one order."""
    print(json.dumps(what), flush=True)


# ---- results -------------------------------------------------------------------------------------------------------


@dataclass
class Cell:
    """One thing measured: `values` in `unit`, one for each repetition.

    Beside them `cpu`, in the group's CPU unit, and `grown_mb`, the memory of their own that the processes took at the
    most, beyond what they had.
    """

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    grown_mb: list[float] = field(default_factory=list)

    def add(self, value: float, cpu: float | None = None, grown_mb: float | None = None) -> None:
        """Add one repetition."""
        self.values.append(value)
        if cpu is not None:
            self.cpu.append(cpu)
        if grown_mb is not None:
            self.grown_mb.append(grown_mb)

    @property
    def median(self) -> float:
        """Of the repetitions."""
        return statistics.median(self.values)

    def row(self) -> list[str]:
        """Return it as a line of its group's table."""
        spread = f"{number(min(self.values))} – {number(max(self.values))}"
        beside = [number(statistics.median(values)) if values else "" for values in (self.cpu, self.grown_mb)]
        return [self.name, self.unit, number(self.median), spread, *beside, str(len(self.values))]

    def builtins(self) -> dict[str, Any]:
        """Return it for JSON."""
        return vars(self)


def cells_head(cpu_unit: str) -> list[str]:
    """Return what stands above `Cell.row`."""
    return ["", "unit", "median", "min – max", f"CPU, {cpu_unit}", "memory grown, MB", "n"]


@dataclass
class Target:
    """What is to be reached: `measured` at most (or, `at_least`, at least) `limit`."""

    name: str
    unit: str
    limit: float
    measured: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Return whether the median is on the right side."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def row(self) -> list[str]:
        """Return it as a line of the table of targets."""
        sign = "≥" if self.at_least else "≤"
        limit = f"{sign} {self.limit:g} {self.unit}".rstrip()
        return [self.name, limit, f"{number(self.measured)} {self.unit}".rstrip(), "met" if self.met else "MISSED"]


@dataclass
class Group:
    """Cells that are compared, what they mean, and the targets that they serve."""

    name: str
    title: str
    about: str
    cpu_unit: str
    cells: list[Cell]
    targets: list[Target]

    def markdown(self) -> str:
        """Return title, table and explanation."""
        shown = table(cells_head(self.cpu_unit), [cell.row() for cell in self.cells])
        return f"## {self.title}\n\n{shown}\n\n{self.about}\n"

    def builtins(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "title": self.title,
            "cpu_unit": self.cpu_unit,
            "cells": [cell.builtins() for cell in self.cells],
        }


def number(value: float) -> str:
    """Return the number with three digits that count, without an exponent; a count as it is."""
    if isinstance(value, int):
        return str(value)
    if value == 0 or abs(value) < 5e-5:
        return "0.00"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that is also readable as it is."""
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])


def targets_markdown(targets: Sequence[Target]) -> str:
    """Return the table of targets."""
    return f"## Targets\n\n{table(['', 'to reach', 'measured', ''], [target.row() for target in targets])}\n"


# ---- the machine ---------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """Return what the figures were measured on and with."""
    memory = psutil.virtual_memory().total
    return {
        "processor": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{memory / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "system": _os_name(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "commit": _commit(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def fresh_memory() -> str:
    """Measure how fast a process gets pages that it has not had before.

    Where it is slow (a virtual machine that gives free memory back to its host), a program that allocates for each
    update pays for it, and all do in their first round.
    """
    with mmap.mmap(-1, FRESH_BYTES) as pages:
        begun_s = time.perf_counter()
        for offset in range(0, FRESH_BYTES, mmap.PAGESIZE):
            pages[offset] = 1
        return f"{FRESH_BYTES / 1e9 / (time.perf_counter() - begun_s):.2f} GB/s"


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        found = dict(line.rstrip().partition(":")[::2] for line in file if ":" in line)
    told = {key.strip(): value.strip() for key, value in found.items()}
    family, model = told.get("cpu family", "?"), told.get("model", "?")
    return f"{told.get('model name', platform.machine())} (family {family}, model {model})"


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

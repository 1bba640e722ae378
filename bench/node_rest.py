"""A whole node at rest, and the command line's start.

The node is a real one, by `lifl up -d` with default settings on a state folder of its own.  After its start-up work
(the arena's pages are populated in the background) has ended, all of its processes are watched through their CPU
clocks, which count nanoseconds: a node that polls anywhere cannot show 0.00.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from measure import Cell, Group, Target, cpu_s, uninterrupted

LIFL = [sys.executable, "-m", "lifl_cli.main"]
COMMAND_S = 60.0
IDLE_S, QUICK_IDLE_S = 10.0, 2.0
SETTLED_S = 2.0
"""So long must all processes have been asleep before the watch begins."""
SETTLE_MAX_S = 60.0
IDLE_REPETITIONS = 3
HELPS, QUICK_HELPS = 21, 3
HELP_S = 0.25
SLEPT_CPU_S = 0.0005


def run(quick: bool) -> Group:
    """Watch an idle node, then run the help page."""
    idle_s = QUICK_IDLE_S if quick else IDLE_S
    idle = Cell(f"CPU of an idle node in {idle_s:g} s", "s")
    aggregators = Cell("aggregators of an idle node", "")
    processes = Cell("processes of an idle node", "")
    memory = Cell("memory of an idle node beside the arena", "MB")
    with started() as info:
        node = psutil.Process(info["pid"])
        settle(node)
        for _ in range(1 if quick else IDLE_REPETITIONS):
            family = [node, *node.children(recursive=True)]
            before_s = cpu_s(p.pid for p in family)
            time.sleep(idle_s)
            idle.add(cpu_s(p.pid for p in family) - before_s)
            aggregators.add(sum("lifl-worker" in p.name() for p in [node, *node.children(recursive=True)]))
            processes.add(len(family))
            told = [p.memory_info() for p in family]
            memory.add(sum(t.rss - t.shared for t in told) / 1e6)
    helps = Cell("lifl --help", "s")
    for _ in range(QUICK_HELPS if quick else HELPS):
        before_s, begun_s = _children_cpu_s(), time.monotonic()
        subprocess.run([*LIFL, "--help"], check=True, capture_output=True, timeout=COMMAND_S)
        helps.add(time.monotonic() - begun_s, _children_cpu_s() - before_s)
    return Group(
        "rest",
        "A node at rest, and the command line",
        f"The node: `lifl up -d` with default settings, redirector {info['redirector']}; all of its processes.",
        "s",
        [idle, aggregators, processes, memory, helps],
        [
            # Rounded as it is asked for: to hundredths of a second.
            Target(f"CPU of an idle node in {idle_s:g} s", "s", 0.0, round(max(idle.values), 2)),
            Target("aggregators of an idle node", "", 0, max(aggregators.values)),
            Target("lifl --help", "s", HELP_S, helps.median),
        ],
    )


@contextmanager
def started(*flags: str) -> Iterator[dict[str, Any]]:
    """Provide a running node, started with the flags as well; yield its report."""
    with tempfile.TemporaryDirectory(prefix="lb-") as folder:
        info: dict[str, Any] = {}
        try:
            command = [*LIFL, "up", "-d", "--json", "--state", folder, "--listen", "127.0.0.1:0", *flags]
            with uninterrupted():
                done = subprocess.run(command, stdout=subprocess.PIPE, timeout=COMMAND_S, check=True, process_group=0)
                info = json.loads(done.stdout)
            yield info
        finally:
            if info:
                down = [*LIFL, "down", "--state", folder]
                subprocess.run(down, stdout=subprocess.DEVNULL, timeout=COMMAND_S, check=True, process_group=0)


def settle(node: psutil.Process) -> None:
    """Wait until the node's start-up work has ended.  Raise `RuntimeError` when it never rests."""
    for _ in range(int(SETTLE_MAX_S / SETTLED_S)):
        pids = [node.pid, *(child.pid for child in node.children(recursive=True))]
        with suppress(OSError):  # one of them has ended meanwhile
            before_s = cpu_s(pids)
            time.sleep(SETTLED_S)
            if cpu_s(pids) - before_s < SLEPT_CPU_S:
                return
    raise RuntimeError(f"the node did not rest within {SETTLE_MAX_S:g} s of its start")


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

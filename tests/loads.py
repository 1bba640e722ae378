"""Runs the tests under three loads and says how each run ended: a test that means something passes under all of them.

    python tests/loads.py [ARGUMENTS OF PYTEST]

*idle* is the machine as it is; *busy* has a process on each core that never stops computing, at the same priority; *one
core* has all processes of the run on the first core that this one may use.  The busy processes are children of this
one; it ends them, and should it be killed they end by themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

BUSY = "import ctypes\nctypes.CDLL(None).prctl(1, 9)\nwhile True:\n    pass"  # PR_SET_PDEATHSIG, SIGKILL


@contextmanager
def idle() -> Iterator[list[str]]:
    """No load; what to put before the command."""
    yield []


@contextmanager
def busy() -> Iterator[list[str]]:
    """Every core has something else to do as well."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in os.sched_getaffinity(0)]
    try:
        yield []
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


@contextmanager
def one_core() -> Iterator[list[str]]:
    """All on one core."""
    yield ["taskset", "-c", str(min(os.sched_getaffinity(0)))]


LOADS = {"idle": idle, "busy": busy, "one core": one_core}


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when the tests passed under all loads."""
    results = {}
    for name, load in LOADS.items():
        print(f"== {name}", flush=True)
        began_s = time.monotonic()
        with load() as prefix:
            code = subprocess.run([*prefix, sys.executable, "-m", "pytest", *arguments], check=False).returncode
        results[name] = code, time.monotonic() - began_s
    print("== the three loads")
    for name, (code, took_s) in results.items():
        print(f"{name:<10}{'passed' if code == 0 else f'FAILED ({code})':<14}{took_s:6.0f} s")
    return max(code != 0 for code, _ in results.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The benchmark of a cluster runs from end to end, and its report is of what it has measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lifl.examples.netns import why_not

BENCH = Path(__file__).parents[2] / "bench" / "cluster.py"
TIMEOUT_S = 600.0


@pytest.mark.skipif(bool(why_not()), reason=f"NOT TESTED: it needs namespaces, and {why_not()}")
def test_the_quick_run_measures_the_first_and_the_last_step() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), "--quick"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    cells = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| baseline ")]
    cells += [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| + eager ")]
    (*_, first_mb, first_nodes, first_starts), (*_, last_mb, last_nodes, last_starts) = cells[:2]
    assert (first_mb.strip(), first_nodes.strip()) == ("1.6", "3"), "two of three nodes send a partial, in float64"
    assert (last_mb.strip(), last_nodes.strip()) == ("0.0", "1"), "one node has all of it"
    cold, kept = (int(starts.split(" / ")[0]) for starts in (first_starts, last_starts))
    assert kept < cold, "workers are kept"
    assert sum(map(int, last_starts.split(" / ")[1:])) > 0, "and take the next task"

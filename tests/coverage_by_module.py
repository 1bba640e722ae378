"""How much of each module of core its own tests cover, alone: branches by `coverage.py`.

    make coverage

Each line is a module with the tests that are its own (`OWN_TESTS`); whatever else runs through it is not counted, for
then nothing asks whether what it does is right.  The exit code is 1 where an area that decides (`DECIDES`) is below
`BRANCHES_MIN`, where a module has no line in the table, or where a test fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CORE = ROOT / "src/lifl/core"
BRANCHES_MIN = 0.95
DECIDES = ("agent", "coordinator", "engine", "event_log", "snapshot", "planning")

OWN_TESTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("tests/agent",): (
        "agent/*.py",
        "engine.py",
        "event_log.py",
        "snapshot.py",
        "turn.py",
        "effects.py",
        "events.py",
        "object_store.py",
        "protocol/commands.py",
    ),
    ("tests/coordinator",): ("coordinator/[!m]*.py",),
    ("tests/unit/test_membership.py",): ("coordinator/membership.py", "protocol/cluster.py"),
    ("tests/unit/test_tree.py",): ("planning/tree.py",),
    ("tests/unit/test_capacity.py",): ("planning/capacity.py",),
    ("tests/unit/test_placement.py",): ("planning/placement.py",),
    ("tests/unit/test_plan.py", "tests/unit/test_decisions.py"): (
        "planning/plan.py",
        "planning/planner.py",
        "planning/request.py",
        "planning/arena_need.py",
    ),
    ("tests/unit/test_keeping.py",): ("planning/keeping.py",),
    ("tests/unit/test_config.py", "tests/unit/test_keeping.py"): ("config/*.py",),
    ("tests/unit/test_protocol.py",): (
        "protocol/admission.py",
        "protocol/contribution.py",
        "ids.py",
        "schema.py",
        "errors.py",
        "limits.py",
    ),
    ("tests/fuzz/test_wire.py",): ("protocol/*.py", "fields.py"),
    ("tests/unit/test_modelfile.py",): ("modelfile.py",),
}
"""Tests, and the modules of core whose own they are."""


class Covered(NamedTuple):
    """Branches (each way that a condition can go), and statements."""

    branches: int = 0
    of_branches: int = 0
    statements: int = 0
    of_statements: int = 0

    def __add__(self, other: Iterable[int]) -> Covered:  # type: ignore[override]
        return Covered(*(one + another for one, another in zip(self, other, strict=True)))

    @property
    def share(self) -> float:
        """The share of branches; of what has none, that of statements."""
        if self.of_branches:
            return self.branches / self.of_branches
        return self.statements / self.of_statements if self.of_statements else 1.0


def measure(tests: Iterable[str], data: Path) -> dict[str, Covered]:
    """What these tests cover of core, by file below it.  Raises `SystemExit` when one fails."""
    coverage = [sys.executable, "-m", "coverage"]
    run = [*coverage, "run", "--branch", f"--source={CORE}", f"--data-file={data}"]
    run += ["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(run, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\ncoverage: tests failed: {' '.join(tests)}")
    report = [*coverage, "json", "-q", f"--data-file={data}", "-o", f"{data}.json"]
    subprocess.run(report, cwd=ROOT, check=True)
    found = {}
    for name, file in json.loads(Path(f"{data}.json").read_text())["files"].items():
        of = file["summary"]
        counts = (of["covered_branches"], of["num_branches"], of["covered_lines"], of["num_statements"])
        found[str((ROOT / name).relative_to(CORE))] = Covered(*counts)
    return found


def main() -> int:
    """Print the table; return the exit code."""
    left = {str(path.relative_to(CORE)) for path in CORE.rglob("*.py") if path.name != "__init__.py"}
    areas: dict[str, Covered] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (tests, patterns) in enumerate(OWN_TESTS.items()):
            print(f"\n{' '.join(tests)}", flush=True)
            covered = measure(tests, Path(folder) / str(number))
            for pattern in patterns:
                for path in sorted(CORE.glob(pattern)):
                    name = str(path.relative_to(CORE))
                    if name in left:
                        left.remove(name)
                        of = covered[name]
                        print(f"  {of.share:7.1%}  {of.branches:4d} of {of.of_branches:4d} branches  {name}")
                        area = name.partition("/")[0].removesuffix(".py")
                        areas[area] = areas.get(area, Covered()) + of
    low = [area for area in DECIDES if areas[area].share < BRANCHES_MIN]
    print("\nwhat decides")
    for area in DECIDES:
        print(f"  {areas[area].share:7.1%}  {area}{'  BELOW ' + format(BRANCHES_MIN, '.0%') if area in low else ''}")
    for name in sorted(left):
        print(f"no own tests stand in tests/coverage_by_module.py: {name}")
    return 1 if low or left else 0


if __name__ == "__main__":
    sys.exit(main())

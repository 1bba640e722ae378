"""Skips: each reason that a test may give is in the table, and a run that is to be complete fails for the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import leaks
import pytest
import skips

TESTS = Path(__file__).parents[1]
GIVEN = re.compile(r"""(?:pytest\.skip\(|skipif\([^\n]*reason=|importorskip\([^\n]*reason=)f?["']([^"']*)["']""")


def test_every_reason_that_stands_in_a_test_is_in_the_table() -> None:
    given = [
        reason
        for path in TESTS.rglob("*.py")
        if path.parent != TESTS and path.name != "test_skips.py"
        for reason in GIVEN.findall(path.read_text())
    ]
    assert given
    for reason in given:
        assert any(re.search(pattern, reason) for pattern in skips.ALLOWED), reason


def test_reasons_are_counted() -> None:
    assert skips.counted(["Skipped: a", "Skipped: a", "b"]) == {"a": 2, "b": 1}


@pytest.mark.parametrize("holds", [True, False])
def test_a_reason_is_refused_where_it_does_not_hold(monkeypatch: pytest.MonkeyPatch, holds: bool) -> None:
    monkeypatch.setattr(skips, "ALLOWED", {"needs root": lambda: holds})
    assert skips.refused(["NOT TESTED, needs root", "it rains"]) == (
        ["it rains"] if holds else ["NOT TESTED, needs root", "it rains"]
    )


@pytest.mark.parametrize("variable", [leaks.OWN_MACHINE, "CI", ""])
@pytest.mark.parametrize("processes", [0, 1])
def test_a_run_that_is_to_be_complete_fails_for_a_skip_without_need(
    tmp_path: Path, variable: str, processes: int
) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\ndef test_it():\n    pytest.skip('it rains')\n")
    environment = {k: v for k, v in os.environ.items() if k not in (leaks.OWN_MACHINE, "CI", "PYTEST_XDIST_WORKER")}
    environment |= {variable: "true"} if variable == "CI" else {}
    environment["PYTHONPATH"] = str(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "whole_run", "--rootdir", str(tmp_path)]
    if variable == leaks.OWN_MACHINE:
        # Its other half, what is left on the machine, is not this test's: others may be at work here.
        environment["CI"] = "1"
    done = subprocess.run(
        [*command, "-n", str(processes)], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "1 tests were skipped" in done.stdout, done.stdout + done.stderr
    assert re.search(r"^ +1  it rains$", done.stdout, re.MULTILINE), done.stdout
    assert done.returncode == (1 if variable else 0), done.stdout
    assert ("FAILED: skipped, though it need not be: it rains" in done.stdout) == bool(variable)

"""The run of the tests as a whole: what it leaves on the machine, which tests it left out, and what that is worth.

Where several processes run the tests (pytest -n), the one that waits for them looks at the machine.  A plugin of
pytest, whose hooks `conftest.py` takes over.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid

import leaks
import pytest
import skips
from nodes import FOLDERS

# All descendants inherit it.  Where several processes run the tests, each has a mark below that of the run.
os.environ.setdefault(leaks.MARK, f"pytest-{uuid.uuid4().hex}")
PART = os.environ.get("PYTEST_XDIST_WORKER", "")
if PART:
    os.environ[leaks.MARK] += f"/{PART}"

MACHINE_BEFORE = pytest.StashKey[dict[str, set[str]]]()
COMPLAINTS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """What is on the machine before the first test; tests' folders are where state folders are."""
    config.stash[MACHINE_BEFORE] = leaks.machine()
    if not PART and config.option.basetemp is None:  # the parts are given theirs below it
        config.option.basetemp = tempfile.mkdtemp(prefix="lt-", dir=FOLDERS)
        config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Has the run fail, though all tests passed, for what it left behind or left out without need."""
    if PART:
        return
    complaints = []
    if skips.must_be_complete():
        without_need = skips.refused(_skipped(session.config))
        complaints += [f"skipped, though it need not be: {reason}" for reason in without_need]
    if os.environ.get(leaks.OWN_MACHINE):
        complaints += [f"left behind: {leak}" for leak in leaks.machine_leaks(session.config.stash[MACHINE_BEFORE])]
    session.config.stash[COMPLAINTS] = complaints
    if complaints and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tells which tests were not run and why, and what the run is refused for."""
    skipped = skips.counted(_skipped(config))
    terminalreporter.section(f"{skipped.total()} tests were skipped")
    for reason, count in skipped.most_common():
        terminalreporter.line(f"{count:5d}  {reason}")
    for complaint in config.stash.get(COMPLAINTS, []):
        terminalreporter.line(f"FAILED: {complaint}", red=True)


def _skipped(config: pytest.Config) -> list[str]:
    """The reason of each test that was skipped."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter is not None else []
    return [str(report.longrepr[2]) for report in reports]

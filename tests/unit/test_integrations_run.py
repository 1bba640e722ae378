"""How a run with other libraries is told: what was left out is said, and one that failed is no page of the docs."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import integrations_run as run
import pytest

REPORT = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"><failure message="no"/></testcase>
<testcase name="c"><error message="no"/></testcase>
<testcase name="d"><skipped message="NOT TESTED: needs root"/></testcase>
<testcase name="e"><skipped message="collection skipped">('/t/test_s3.py', 17, 'Skipped: NOT TESTED: no s3fs')</skipped>
</testcase></testsuite></testsuites>"""


def test_what_pytest_reports_is_counted_with_the_reasons_of_what_was_skipped(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    assert run.counted(report) == (0, 0, Counter())  # pytest died before it wrote one
    report.write_text(REPORT)
    assert run.counted(report) == (1, 2, Counter({"needs root": 1, "no s3fs": 1}))


def test_a_file_that_failed_or_was_ended_is_no_good_and_its_line_says_so() -> None:
    good = run.Outcome("test_a", 3, 0, Counter({"no s3fs": 2}), 1.0, "flwr 1")
    assert good.good and "passed  flwr 1\n" in run.summary([good]) and "2 x no s3fs" in run.summary([good])
    failed = good._replace(failed=1)
    ended = good._replace(ended="ENDED after 900 s")
    assert not failed.good and "FAILED" in run.summary([failed])
    assert not ended.good and "ENDED after 900 s" in run.summary([ended])


def test_a_run_that_is_ended_says_which_files_it_has_not_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []

    def ran(_python: Path, file: str, _arguments: object, _running: object) -> tuple[run.Outcome, str]:
        began.append(file)
        if len(began) == 2:
            raise KeyboardInterrupt
        return run.Outcome(file, 1, 0, Counter(), 1.0, ""), "what it said"

    monkeypatch.setattr(run, "run", ran)
    monkeypatch.setattr(run, "AT_ONCE", 1)
    monkeypatch.setattr(run, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.main(tmp_path, []) == 1
    rows = [line for line in run.PAGE.read_text().splitlines() if line.startswith("| `tests")]
    told = {row.split("/")[-1].split(".")[0]: row.rsplit("|", 2)[1].strip() for row in rows}
    assert sorted(told) == sorted(run.LIBRARIES) and began == list(run.SLOW[:2])
    assert [told.pop(file) for file in began] == ["", "ENDED: the run was"]
    assert set(told.values()) == {"NOT RUN: the run was ended"}


def test_who_ends_a_run_ends_the_files_that_run_and_the_one_that_begins_just_then() -> None:
    running, first, through, late = run.Running(), Process(), Process(), Process()
    with running.noted(through):  # type: ignore[arg-type]
        pass
    with running.noted(first):  # type: ignore[arg-type]
        running.end()
    with running.noted(late):  # type: ignore[arg-type]
        pass
    assert (first.got, through.got, late.got) == ([signal.SIGINT], [], [signal.SIGINT])


class Process:
    """What is told of a process that is signalled."""

    def __init__(self) -> None:
        self.got: list[int] = []

    def send_signal(self, number: int) -> None:
        self.got.append(number)


def test_each_file_of_tests_says_what_it_is_there_for_and_stands_in_the_page() -> None:
    files = {path.stem for path in run.FOLDER.glob("test_*.py")}
    assert set(run.LIBRARIES) == files
    assert all(f"tests/integrations/{file}.py" in run.PAGE.read_text() for file in files)

"""What looks at etcd's history finds each thing that must not be in one: here are histories that have it."""

from __future__ import annotations

import ast
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import store_history
from store_history import Change, dumped, judged, read


def row(**fields: Any) -> bytes:
    return b"Z" + zlib.compress(msgpack.packb(fields))


class Writer:
    """Writes a history: each call is one transaction."""

    def __init__(self) -> None:
        self.found: list[Change] = []
        self.revision = 0
        self.term = 0

    def write(self, *pairs: tuple[str, bytes | None], created: int = 0) -> None:
        self.revision += 1
        self.found += [Change(key, value, self.revision, created or self.revision) for key, value in pairs]

    def elect(self) -> None:
        self.write(("leader", b"somebody"))
        self.term = self.revision

    def resign(self) -> None:
        self.write(("leader", None))

    def open(self, number: int, attempt: int = 1) -> None:
        self.write(self._round(number, attempt, "open"))

    def commit(self, number: int, attempt: int = 1, term: int = 0) -> None:
        pair = (f"commits/0000001/{number:07d}", row(attempt=attempt, term=term or self.term))
        self.write(self._round(number, attempt, "committed", term), pair)

    def set_aside(self, number: int) -> None:
        self.write((f"commits/0000001/{number:07d}", None), self._round(number, 1, "damaged"))

    def _round(self, number: int, attempt: int, status: str, term: int = 0) -> tuple[str, bytes]:
        return f"rounds/0000001/{number:07d}/{attempt:03d}", row(status=status, term=term or self.term)


def good() -> Writer:
    """Two leaders, three rounds; the last was set aside and is committed once more."""
    writer = Writer()
    writer.elect()
    writer.commit(0)
    writer.open(1)
    writer.commit(1)
    writer.resign()
    writer.elect()
    writer.commit(2)
    writer.set_aside(2)
    writer.commit(2, attempt=2)
    return writer


def test_a_good_history_has_no_fault_also_when_it_was_kept_in_a_file() -> None:
    found = judged(read(dumped(good().found)))
    assert found == judged(good().found)
    assert (found.faults, found.terms, found.commits) == ([], 2, 4)


# ---- what must be found ----------------------------------------------------------------------------------------------


def two_leaders_at_once(writer: Writer) -> None:
    writer.write(("leader", b"another"))


def a_leaders_key_is_written_over(writer: Writer) -> None:
    writer.write(("leader", b"another"), created=writer.term)


def a_term_that_was_before(writer: Writer) -> None:
    writer.resign()
    writer.write(("leader", b"another"), created=1)


def a_stale_leader_commits(writer: Writer) -> None:
    writer.commit(3, term=1)


def a_stale_leader_opens_a_round(writer: Writer) -> None:
    writer.term = 1
    writer.open(3)


def one_writes_while_nobody_leads(writer: Writer) -> None:
    writer.resign()
    writer.commit(3)


def two_commits_of_a_round(writer: Writer) -> None:
    writer.commit(2, attempt=3)


def a_round_is_left_out(writer: Writer) -> None:
    writer.commit(4)


def a_commit_without_its_round(writer: Writer) -> None:
    writer.write(("commits/0000001/0000003", row(attempt=1, term=writer.term)))


def a_commit_of_an_attempt_that_failed(writer: Writer) -> None:
    writer.write(
        ("rounds/0000001/0000003/001", row(status="failed", term=writer.term)),
        ("commits/0000001/0000003", row(attempt=1, term=writer.term)),
    )


def a_commit_is_taken_back(writer: Writer) -> None:
    writer.write(("commits/0000001/0000002", None))


def a_committed_round_fails_after_all(writer: Writer) -> None:
    writer.write(("rounds/0000001/0000001/001", row(status="failed", term=writer.term)))


BAD = {
    two_leaders_at_once: "was changed while it lived",
    a_leaders_key_is_written_over: "was changed while it lived",
    a_term_that_was_before: "term 1 comes after",
    a_stale_leader_commits: "was written in term 1",
    a_stale_leader_opens_a_round: "was written in term 1",
    one_writes_while_nobody_leads: "and the leader is of None",
    two_commits_of_a_round: "was committed a second time",
    a_round_is_left_out: "was committed after 2",
    a_commit_without_its_round: "without the row of attempt 1",
    a_commit_of_an_attempt_that_failed: "without the row of attempt 1",
    a_commit_is_taken_back: "was taken back",
    a_committed_round_fails_after_all: "was committed, and is failed",
}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_a_bad_one_is_found(bad: Callable[[Writer], None]) -> None:
    writer = good()
    bad(writer)
    faults = judged(writer.found).faults
    assert any(BAD[bad] in fault for fault in faults), faults
    assert all(fault.startswith(f"revision {writer.revision}: ") for fault in faults), "what was before is good"


def test_by_hand_it_reads_what_was_kept_and_its_exit_code_says_what_it_found(tmp_path: Path) -> None:
    kept, script = tmp_path / "history", str(store_history.__file__)
    for bad, code in ((None, 0), (a_round_is_left_out, 1)):
        writer = good()
        if bad is not None:
            bad(writer)
        kept.write_text(dumped(writer.found))
        done = subprocess.run((sys.executable, script, "--from", kept), capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert done.stdout.splitlines()[-1].endswith(f": {code} faults")


def test_it_shares_no_code_with_what_writes() -> None:
    tree = ast.parse(Path(str(store_history.__file__)).read_text())
    named = [each for node in ast.walk(tree) if isinstance(node, ast.Import) for each in (a.name for a in node.names)]
    named += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert named and not [name for name in named if name.startswith("lifl")]

"""The audit log: its chain shows what was changed, its files are bounded, and nothing waits for the disk."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lifl import failpoints
from lifl.core import audit, limits
from lifl.core.audit import Note, Tally, check, digest_of, line_of, mark_of, parsed, tail_of
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import tickets as tm
from lifl.node import audit_log
from lifl.node.audit_log import AuditLog, audit_files, check_files, last_lines, page_before
from lifl.node.callers import Callers

WAIT_S = 60.0


def chain(count: int) -> list[bytes]:
    last, lines = audit.Link(), []
    for number in range(count):
        line = line_of(Note("client.join", f"10.0.0.{number}", {"job": "j"}), 1000.0 + number, last)
        last = audit.Link(last.seq + 1, digest_of(line))
        lines.append(line)
    return lines


def placed(lines: list[bytes]) -> Iterator[tuple[str, bytes]]:
    return ((f"f:{number}", line) for number, line in enumerate(lines, start=1))


# ---- the chain -------------------------------------------------------------------------------------------------------


def test_a_line_says_when_who_and_what_and_names_the_one_before() -> None:
    first, second = chain(2)
    assert json.loads(first) == {
        "seq": 1,
        "at": "1970-01-01T00:16:40.000Z",
        "event": "client.join",
        "who": "10.0.0.0",
        "job": "j",
        "prev": audit.START,
    }
    assert json.loads(second)["prev"] == digest_of(first)
    assert check(placed([first, second])) == audit.Checked(1, audit.Link(2, digest_of(second)), 0, "", 0)


def test_each_change_of_any_line_but_the_last_is_found_at_the_first_line_that_shows_it() -> None:
    lines = chain(6)
    for index in range(5):
        changed = [*lines]
        changed[index] = changed[index].replace(b"10.0.0.", b"10.9.0.")
        assert check(placed(changed)).broken.startswith(f"f:{index + 2}: "), index
        without = [line for number, line in enumerate(lines) if number != index]
        found = check(placed(without))
        # Without its beginning it is what is left when the oldest file is removed: that is told by `first`.
        assert (found.broken.startswith(f"f:{index + 1}: "), found.first) == ((True, 1) if index else (False, 2))
        twice = [*lines[: index + 1], *lines[index:]]
        assert check(placed(twice)).broken.startswith(f"f:{index + 2}: ")
    swapped = [lines[0], lines[2], lines[1], *lines[3:]]
    assert check(placed(swapped)).broken.startswith("f:2: ")


def test_what_is_no_line_is_broken_unless_a_mark_says_so() -> None:
    lines = chain(4)
    for garbage in (b"", b"{", b"[]", b'{"seq": "1"}', b"\xff\x00", lines[1][:-9], b"[" * 100_000):
        found = check(placed([lines[0], garbage, *lines[2:]]))
        assert found.broken.startswith("f:2: it is no line"), garbage[:20]


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_torn_line_is_marked_and_the_chain_goes_on(pieces: int) -> None:
    lines = chain(3)
    data = b"\n".join(lines[:2]) + b"\n" + lines[2][:30]
    for _ in range(pieces):
        tail = tail_of(data)
        mark = mark_of(tail, 2000.0)
        # The second time the mark itself is torn.
        data += b"\n" + (mark if _ == pieces - 1 else mark[:40])
    after = audit.Link(parsed(mark)["seq"], digest_of(mark))  # type: ignore[index]
    data += b"\n" + line_of(Note("node.started", "x"), 2001.0, after) + b"\n"
    found = check(placed(data.split(b"\n")[:-1]))
    assert (found.broken, found.torn, found.unmarked) == ("", pieces, 0)
    assert found.last.seq == 2 + pieces + 2
    for old, new in ((lines[2][:30], lines[2][:29]), (lines[1], lines[1].replace(b"10.0.0.", b"10.9.0."))):
        assert check(placed(data.replace(old, new).split(b"\n")[:-1])).broken


@pytest.mark.parametrize("seq", [0, -1, limits.COUNT_MAX + 1, int("9" * 4300)], ids=["0", "below", "beyond", "long"])
def test_a_line_of_a_number_that_no_line_has_is_none(seq: int) -> None:
    put_in = json.dumps({"seq": seq, "event": "client.join", "who": "10.0.0.9", "prev": audit.START}).encode()
    assert parsed(put_in) is None
    # Also before lines whose beginning is not there any more.
    assert check(placed([put_in, *chain(4)[2:]])).broken.startswith("f:1: ")


def test_what_is_torn_at_the_very_end_is_told_and_breaks_nothing() -> None:
    lines = chain(2)
    assert check(placed([*lines, lines[1][:20]]))[2:] == (0, "", 21)


def test_a_line_at_all_its_limits_fits_and_what_is_beyond_is_cut() -> None:
    long = "\x01" * (limits.AUDIT_TEXT_CHARS_MAX + 1)
    about = {f"field-{number}": long for number in range(limits.AUDIT_FIELDS_MAX)}
    line = line_of(Note("client.refused", long, about, long, limits.COUNT_MAX), 2e9, audit.Link(limits.COUNT_MAX - 1))
    assert len(line) <= limits.AUDIT_LINE_BYTES_MAX
    found = parsed(line)
    assert found is not None
    assert found["who"] == found["text"] == found["field-0"] == long[:-1]
    assert parsed(b" " * (limits.AUDIT_LINE_BYTES_MAX - len(line)) + line) is not None
    assert parsed(b" " * (limits.AUDIT_LINE_BYTES_MAX - len(line) + 1) + line) is None
    half = line_of(Note("client.refused", "\ud800", {}, "\udfff"), 0.0, audit.Link())
    assert parsed(half)["who"] == "\ud800"  # type: ignore[index]


# ---- equal notes -----------------------------------------------------------------------------------------------------


def refusal(who: str, code: str = "unknown-job", text: str = "") -> Note:
    return Note("client.refused", who, {"client": "c", "code": code}, text)


def test_of_equal_refusals_the_first_is_written_and_the_others_are_counted() -> None:
    tally = Tally()
    assert tally.add(refusal("a", text="one"), 10.0) == [refusal("a", text="one")]
    assert tally.due_s == 10.0 + limits.AUDIT_WINDOW_S
    for number in range(1000):
        assert tally.add(refusal("a", text=f"{number}"), 11.0) == []
    assert tally.add(refusal("b"), 12.0) == [refusal("b")]
    assert [(note.who, note.count) for note in tally.flush()] == [("a", 1000)]
    assert tally.due_s is None
    assert tally.add(refusal("a"), 400.0) == [refusal("a")]


def test_what_an_operator_does_is_never_counted_together() -> None:
    tally = Tally()
    for _ in range(3):
        assert tally.add(Note("job.cancelled", "local uid=0", {"job": "j"}), 0.0)
    assert tally.due_s is None


def test_what_anybody_else_can_repeat_is_counted_together() -> None:
    """Else a reader could rid the log of its older lines, with links to the page that are never opened."""
    by_operators_and_the_node_itself = """
        node.started node.down node.ended node.drained node.calibrated node.undrained job.submitted session.opened
        job.cancelled job.paused job.resumed job.edited job.removed token.made token.revoked cert.told cert.revoked
        cert.kept cert.rotated
    """
    by_tokens_and_certificates_that_are_few = "token.used cert.renewed"
    uncounted = {*by_operators_and_the_node_itself.split(), *by_tokens_and_certificates_that_are_few.split()}
    assert set(audit.EVENTS) - set(audit.KINDS_MAX) == {*uncounted, audit.TORN, audit.DROPPED}
    tally = Tally()
    written = [tally.add(Note(event, f"reader {n % 3}"), 0.0) for n in range(1000) for event in audit.KINDS_MAX]
    assert sum(map(len, written)) == 3 * len(audit.KINDS_MAX)


def test_refusals_of_more_kinds_than_the_limit_are_counted_by_code() -> None:
    tally = Tally()
    for number in range(limits.AUDIT_REFUSALS_MAX):
        assert tally.add(refusal(f"10.0.{number}.1"), 0.0)
    for number in range(5000):
        assert not tally.add(refusal(f"10.1.{number}.1", f"code-{number % 2}"), 0.0)
    counted = tally.flush()
    assert [(note.who, note.about, note.count) for note in counted] == [
        (audit.OTHERS, {"code": "code-0"}, 2500),
        (audit.OTHERS, {"code": "code-1"}, 2500),
    ]


# ---- the files -------------------------------------------------------------------------------------------------------


def notes_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in last_lines(folder, limits.COUNT_MAX)]


def test_lines_are_their_users_alone_and_the_chain_goes_on_over_lives(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    for life in range(3):
        log = AuditLog(folder)
        log.note("job.submitted", "local uid=0", job=f"j{life}", nothing="")
        log.close()
    assert [note["job"] for note in notes_of(folder)] == ["j0", "j1", "j2"]
    assert "nothing" not in notes_of(folder)[0]
    found = check_files(folder)
    assert (found.first, found.last.seq, found.broken) == (1, 3, "")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_note_is_written_at_once_and_synced_without_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = threading.Event()
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (sync(fd), synced.set()))
    log = AuditLog(tmp_path / "audit")
    log.note("token.made", "local uid=0", role="client")
    assert synced.wait(WAIT_S)
    assert [note["event"] for note in notes_of(tmp_path / "audit")] == ["token.made"]
    log.close()


def test_files_are_bounded_and_the_chain_goes_on_from_one_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "AUDIT_FILE_BYTES_MAX", 2000)
    monkeypatch.setattr(audit_log, "AUDIT_FILES_MAX", 3)
    folder = tmp_path / "audit"
    for life in range(40):
        log = AuditLog(folder)
        for number in range(10):
            log.note("job.cancelled", "local uid=0", job=f"j{life}-{number}")
        log.close()
        assert len(audit_files(folder)) <= 3
    found = check_files(folder)
    assert (found.broken, found.last.seq) == ("", 400)
    assert found.first > 1
    assert notes_of(folder)[-1]["job"] == "j39-9"
    assert [note["job"] for note in map(json.loads, last_lines(folder, 12))][:2] == ["j38-8", "j38-9"]
    # A file that somebody takes out of the middle is missed, at the first line behind it.
    _oldest, middle, newest = audit_files(folder)
    middle.unlink()
    assert check_files(folder).broken.startswith(f"{newest.name}:1: line ")


KILLED = """
import sys
from pathlib import Path
from lifl.node.audit_log import AuditLog
log = AuditLog(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    log.note("job.cancelled", "local uid=0", job=f"{sys.argv[3]}-{number}")
log.close()
"""


def test_a_kill_in_the_middle_of_a_line_leaves_a_marked_one_and_no_other_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    written = 0
    for life in range(4):
        points = "lifld.audit_line.half=kill@1" if life % 2 else ""
        arguments = [sys.executable, "-c", KILLED, str(folder), "1", f"j{life}"]
        done = subprocess.run(arguments, check=False, env={**os.environ, failpoints.VARIABLE: points}, timeout=WAIT_S)
        assert done.returncode == (-9 if life % 2 else 0)
        written += not life % 2
        found = check_files(folder)
        assert (found.broken, bool(found.unmarked)) == ("", bool(life % 2))
    log = AuditLog(folder)
    log.note("node.started", "x")
    log.close()
    found = check_files(folder)
    assert (found.broken, found.torn, found.unmarked) == ("", 2, 0)
    events = [parsed(line) for line in last_lines(folder, 100)]
    assert [event["event"] for event in events if event] == [
        "job.cancelled",
        "audit.torn",
        "job.cancelled",
        "audit.torn",
        "node.started",
    ]


def test_what_a_power_cut_leaves_is_marked_however_long_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    for _life in range(2):
        log = AuditLog(folder)
        log.note("node.started", "lifld")
        log.close()
        with open(audit_files(folder)[-1], "ab") as file:  # the size is on the disk, the lines are not
            file.write(bytes(3 * limits.AUDIT_LINE_BYTES_MAX))
        assert check_files(folder).unmarked == 3 * limits.AUDIT_LINE_BYTES_MAX
    AuditLog(folder).close()
    log = AuditLog(folder)
    log.note("node.started", "lifld")
    log.close()
    found = check_files(folder)
    assert (found.broken, found.torn, found.unmarked, found.last.seq) == ("", 2, 0, 7)


@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
def test_a_disk_that_takes_nothing_is_told_and_holds_nobody_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(audit_log, "AUDIT_RETRY_S", 0.01)
    monkeypatch.setattr(audit_log, "AUDIT_RETRY_S_MAX", 0.01)
    log = AuditLog(tmp_path / "audit")
    tries = threading.Semaphore(0)
    write = audit_log._write_all

    def full(fd: int, data: bytes) -> None:
        write(fd, data[: len(data) // 2])
        tries.release()
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(audit_log, "_write_all", full)
    for number in range(300):
        log.note("job.cancelled", "local uid=0", job=f"j{number}")
    for _ in range(3):
        assert tries.acquire(timeout=WAIT_S)
    assert os.strerror(getattr(errno, code)) in log.fault
    assert str(tmp_path / "audit") in log.fault
    monkeypatch.setattr(audit_log, "_write_all", write)
    log.close()
    assert log.fault == ""
    assert [note["job"] for note in notes_of(tmp_path / "audit")] == [f"j{number}" for number in range(300)]
    assert check_files(tmp_path / "audit").broken == ""


def test_notes_beyond_what_may_wait_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "AUDIT_WAITING_MAX", 20)
    gate, reached = threading.Event(), threading.Event()
    write = audit_log._write_all

    def slow(fd: int, data: bytes) -> None:
        reached.set()
        assert gate.wait(WAIT_S)
        write(fd, data)

    monkeypatch.setattr(audit_log, "_write_all", slow)
    log = AuditLog(tmp_path / "audit")
    log.note("job.cancelled", "x", job="first")
    assert reached.wait(WAIT_S)
    for number in range(50):
        log.note("job.cancelled", "x", job=f"j{number}")
    gate.set()
    log.close()
    notes = notes_of(tmp_path / "audit")
    assert [note["job"] for note in notes if "job" in note] == ["first", *(f"j{number}" for number in range(20))]
    assert [(note["event"], note["count"]) for note in notes if "job" not in note] == [(audit.DROPPED, 30)]


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit").chmod(0o777)
    log = AuditLog(tmp_path / "audit")
    log.note("node.started", "x")
    log.close()
    assert "chmod 700" in log.fault
    assert not audit_files(tmp_path / "audit")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_in_the_place_of_one_is_told_and_holds_nobody(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "audit"
    log = AuditLog(folder)
    log.note("node.started", "lifld")
    log.close()
    make(folder / "audit-000000000009.jsonl")
    for read in (check_files, lambda folder: last_lines(folder, 1)):
        with pytest.raises(OSError, match=r"no file|directory"):
            read(folder)
    log = AuditLog(folder)
    log.note("node.started", "lifld")
    log.close()
    assert "cannot be written" in log.fault
    assert not log._thread.is_alive()


def test_a_file_that_the_node_removes_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path)
    log.note("node.started", "lifld")
    log.close()
    files = [tmp_path / "audit-000000000000.jsonl", *audit_files(tmp_path)]
    monkeypatch.setattr(audit_log, "audit_files", lambda folder: files)
    assert len(last_lines(tmp_path, 9)) == 1
    assert check_files(tmp_path).last.seq == 1


def test_a_line_that_is_being_written_is_not_taken_for_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = chain(2)

    pieces = [lines[0] + b"\n" + lines[1][:20], b"", lines[1][20:] + b"\n", b""]

    class Growing(io.RawIOBase):
        """A file that has the beginning of its second line at first, and all of it after its end was met."""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            piece = pieces.pop(0)
            buffer[: len(piece)] = piece
            return len(piece)

    (tmp_path / "audit-000000000001.jsonl").touch()
    monkeypatch.setattr(audit_log, "_opened", lambda path: io.BufferedReader(Growing()))
    assert check_files(tmp_path) == audit.Checked(1, audit.Link(1, digest_of(lines[0])), 0, "", 20)


# ---- in pages --------------------------------------------------------------------------------------------------------


def written(folder: Path, lines: list[bytes], *firsts: int) -> None:
    """Files of a log, each from the line with this number on."""
    for at, first in enumerate(firsts):
        end = firsts[at + 1] - 1 if at + 1 < len(firsts) else len(lines)
        (folder / f"audit-{first:012d}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines[first - 1 : end]))


def pages(folder: Path) -> list[list[int]]:
    found, before = [], limits.COUNT_MAX
    while before is not None:
        page = page_before(folder, before)
        assert page["more"] is None or page["more"] < before
        found.append([line["seq"] for line in page["lines"]])
        before = page["more"]
    return found


def test_pages_hold_each_line_once_over_files(tmp_path: Path) -> None:
    most = limits.AUDIT_PAGE_LINES
    written(tmp_path, chain(2 * most + 1), 1, most - 3, 2 * most)
    assert pages(tmp_path) == [[*range(most + 2, 2 * most + 2)], [*range(2, most + 2)], [1]]
    (tmp_path / f"audit-{1:012d}.jsonl").unlink()
    assert pages(tmp_path)[-1][0] == most - 3, "lines before the oldest file are gone, and not asked for without end"
    assert pages(tmp_path / "none") == [[]]


def test_lines_that_are_none_are_shown_as_such_and_numbers_that_lie_lead_nowhere(tmp_path: Path) -> None:
    lines = chain(4)
    lines[1] = b"<script>\xff" + b"x" * 20_000
    lines[2] = json.dumps({"seq": 1, "event": "e", "prev": "p", "who": "w"}).encode()
    written(tmp_path, lines, 1)
    (tmp_path / "audit-0x.jsonl").write_bytes(b"no\n")
    page = page_before(tmp_path, 4)["lines"]
    assert [line["seq"] for line in page] == [1, 2, 1] and page[1]["torn"].startswith("<script>\ufffd")
    assert len(page[1]["torn"]) <= limits.AUDIT_TEXT_CHARS_MAX and "prev" not in page[0]
    assert len(pages(tmp_path)) == 1


# ---- who is at the gateway -------------------------------------------------------------------------------------------


def test_what_a_host_says_of_its_tickets_is_noted_with_who_it_is(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    callers = Callers(log)
    assert callers.heard(gm.Greeted(7, "client hospital-1"))
    assert not callers.heard(tm.RevocationAsked(7, "s", 0, "c9")), "the engine is to hear it, too"
    log.close()
    (said,) = (json.loads(line) for line in last_lines(tmp_path, 9))
    wanted = {"event": "ticket.revoked", "who": "client hospital-1", "client": "c9", "job": "s", "fold": 0}
    assert wanted.items() <= said.items()

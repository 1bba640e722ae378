"""The node's database: what it lets happen once only."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lifl import failpoints
from lifl.core.config.job import JobConfig, parse_job
from lifl.core.errors import ResourceFault
from lifl.core.ids import HOSTED_MAX, HOSTED_MIN
from lifl.core.limits import PLAN_BYTES_MAX, ROUNDS_MAX
from lifl.core.planning.plan import NodeFacts, PlanRequest
from lifl.core.planning.planner import make_plan
from lifl.node.database import DatabaseFault
from lifl.node.rows import SHOWN_ONLY, JobRow, PlanRow, UnreadableJob, UnreadablePlan
from lifl.node.store import NodeStore, add_session, keep_capacity, kept_capacity
from lifl.node.views import round_line

CONFIG = parse_job({"job": {"name": "a", "rounds": 1}, "model": {"path": "/m"}, "selection": {"clients_per_round": 1}})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NodeStore]:
    opened = NodeStore(tmp_path / "lifl.db")
    yield opened
    opened.close()


def test_a_round_commits_once_whatever_the_attempt(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "lifl.db")
    try:
        store.save_round("j", 1, 1, "open", {})
        store.save_round("j", 1, 1, "failed", {"reason": "late"})
        store.save_round("j", 1, 2, "open", {})
        store.save_round("j", 1, 2, "committed", {"members": ["a"]})
        with pytest.raises(sqlite3.IntegrityError):
            store.save_round("j", 1, 3, "committed", {"members": ["a", "b"]})
        with pytest.raises(sqlite3.IntegrityError):
            store.save_round("j", 1, 1, "committed", {"members": []})
        store.save_round("j", 1, 2, "failed", {"reason": "too late"})  # a commit is not taken back
        store.save_round("j", 2, 1, "committed", {"members": ["c"]})
        committed = [(row.round, row.attempt, row.fields) for row in store.rounds("j") if row.status == "committed"]
    finally:
        store.close()
    assert committed == [(1, 2, {"members": ["a"]}), (2, 1, {"members": ["c"]})]


def test_the_row_of_a_round_on_several_nodes_is_read_whole(store: NodeStore) -> None:
    """Branch 0, the top's, is one of them; without it no job on several nodes could be taken up again."""
    fields = {"parts": [[0, "aa", 3], [1, "bb", 2]], "next_part": 2}
    store.save_round("j", 1, 1, "open", fields)
    store.save_round("j", 2, 1, "committed", {"members": ["a"], "digests": ["d"], "term": 7})
    opened, committed = store.rounds("j")
    assert (opened.fault, committed.fault) == ("", "")
    assert opened.fields == {"parts": [(0, "aa", 3), (1, "bb", 2)], "next_part": 2}
    assert committed.fields["term"] == 7


def test_rounds_that_are_set_aside_may_be_committed_again_once(store: NodeStore) -> None:
    for number in range(4):
        store.save_round("j", number, 1, "committed", {"members": ["a"], "digests": ["d"]})
    store.save_round("j", 4, 1, "open", {})
    store.set_aside("j", 1, "damaged")
    store.set_aside("j", 1, "said twice")
    assert [(row.round, row.status, row.fields.get("reason")) for row in store.rounds("j")] == [
        (0, "committed", None),
        (1, "committed", None),
        (2, "damaged", "damaged"),
        (3, "damaged", "damaged"),
        (4, "damaged", "damaged"),
    ]
    assert [row.round for row in store.committed("j", 16)] == [0, 1]
    store.save_round("j", 2, 2, "committed", {})
    with pytest.raises(sqlite3.IntegrityError):
        store.save_round("j", 2, 3, "committed", {})


def test_rounds_come_in_pages_from_the_last_one_on(store: NodeStore) -> None:
    for number in range(1, 6):
        store.save_round("j", number, 1, "failed", {})
        store.save_round("j", number, 2, "committed", {})
    store.save_round("j", 6, 1, "open", {})
    seen, before = [], (1 << 40, 0)
    while rows := store.rounds_before("j", before, 3):
        seen += [(row.round, row.attempt) for row in rows]
        before = seen[-1]
    assert seen == [(number, attempt) for number in range(5, 0, -1) for attempt in (2, 1)]
    assert [row.attempt for row in store.round("j", 3)] == [1, 2]


def test_a_job_whose_row_cannot_be_read_keeps_no_other_from_being_read(store: NodeStore) -> None:
    for name in ("a", "b"):
        job = msgspec.structs.replace(CONFIG, job=msgspec.structs.replace(CONFIG.job, name=name))
        store.add_job(job, (), (), f"/{name}")
        store.save_job(name, "running", "")
    store._db.execute("UPDATE jobs SET config = ? WHERE name = 'a'", (b"\xc1",))
    bad, good = store.jobs()
    assert isinstance(bad, UnreadableJob) and bad.folder == "/a" and "cannot be read" in bad.fault
    assert isinstance(good, JobRow) and good.config.job.name == "b"
    assert (store.job("a"), store.job("b"), store.job("c")) == (bad, good, None)


def config_of(name: str) -> JobConfig:
    selection = {"clients_per_round": 1}
    return parse_job({"job": {"name": name, "rounds": 1}, "model": {"path": "/m"}, "selection": selection})


def test_a_job_that_was_refused_and_not_dropped_keeps_its_name_from_nobody(store: NodeStore) -> None:
    first = store.add_job(config_of("a"), (), (), "/a")
    second = store.add_job(config_of("a"), (), (), "/a")
    assert second > first
    store.save_job("a", "running", "")
    with pytest.raises(sqlite3.IntegrityError):
        store.add_job(config_of("a"), (), (), "/a")
    assert [row.number for row in store.jobs()] == [second]


def test_a_session_that_a_node_hosts_has_a_number_that_no_job_gets(store: NodeStore) -> None:
    first = store.add_job(config_of("a"), (), (), "/a")
    numbers = [add_session(store, config_of(name), (), ()) for name in ("s", "t")]
    assert all(HOSTED_MIN <= number <= HOSTED_MAX for number in numbers)
    for number in numbers:
        store.drop_job(number)
    assert store.add_job(config_of("b"), (), (), "/b") == first + 1


def test_what_a_jobs_row_says_already_needs_no_room(store: NodeStore) -> None:
    store.add_job(config_of("a"), (), (), "/a")
    store.save_job("a", "cancelled", "x")
    log = store.path.with_name("lifl.db-wal")
    before = log.stat().st_size
    store.save_job("a", "cancelled", "x")
    assert log.stat().st_size == before
    store.save_job("a", "cancelled", "y")
    assert log.stat().st_size > before


@pytest.mark.parametrize("point", ["job_row", "round_row", "plan_row", "set_aside"])
@pytest.mark.parametrize("code", ["ENOSPC", "EIO", "EROFS"])
def test_a_disk_that_refuses_a_row_is_said_with_its_path_and_what_to_do(
    store: NodeStore, point: str, code: str
) -> None:
    calls = {
        "job_row": lambda: store.save_job("j", "failed", ""),
        "round_row": lambda: store.save_round("j", 1, 1, "open", {}),
        "plan_row": lambda: store.save_plan("j", 1, 1, None, None),
        "set_aside": lambda: store.set_aside("j", 1, ""),
    }
    with failpoints.armed(f"lifld.{point}.before=raise:{code}"), pytest.raises(DatabaseFault) as told:
        calls[point]()
    assert str(store.path) in str(told.value) and "make room" in str(told.value)
    calls[point]()


def test_a_full_database_is_said_and_takes_rows_when_there_is_room(store: NodeStore) -> None:
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DatabaseFault, match="full"):
        store.save_round("j", 1, 1, "open", {"fill": "x" * 100_000})
    store._db.execute(f"PRAGMA max_page_count = {pages + 100}")
    store.save_round("j", 1, 1, "open", {"fill": "x" * 100_000})


def test_a_database_that_is_none_is_damage_and_the_command_that_repairs_is_named(tmp_path: Path) -> None:
    (tmp_path / "lifl.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(ResourceFault, match=r"is damaged.*lifl doctor --repair"):
        NodeStore(tmp_path / "lifl.db")


def test_the_number_of_rounds_costs_a_restart_nothing(store: NodeStore) -> None:
    with store._db:
        store._db.execute("BEGIN")
        for number in range(100_000):
            row = ("j", number, 1, "committed", b"\x80", 0.0)
            store._db.execute("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?)", row)
    read: list[str] = []
    store._db.set_trace_callback(read.append)
    assert [row.round for row in store.committed("j", 2)] == [99_998, 99_999]
    assert [row.round for row in store.rounds_before("j", (50_000, 1), 1)] == [49_999]
    for statement in read:
        plan = store._db.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        assert all("SEARCH" in line[3] for line in plan), plan


def test_of_a_rounds_row_what_cannot_be_read_is_named_and_the_rest_is_shown(store: NodeStore) -> None:
    fields = {"path": 7, "receipt": ["a list"], "metrics": {"loss": 0.5}, "members": ["a"], "digests": ["d"]}
    store.save_round("j", 3, 1, "committed", fields)
    (row,) = store.committed("j", 1)
    assert (row.round, row.attempt, row.status) == (3, 1, "committed")
    assert row.fields == {"metrics": {"loss": 0.5}, "members": ["a"], "digests": ("d",)}
    assert row.unread == {"path", "receipt"} <= SHOWN_ONLY, "a job goes on without these"
    assert "row of job j, round 3, attempt 1, cannot be read: path: Expected str, got int; receipt: " in row.fault
    line = round_line(row)
    assert line["reason"].startswith(row.fault) and (line["path"], line["receipt"]) == ("", None)


@pytest.mark.parametrize(
    ("column", "value"), [("round", "'three'"), ("round", "-1"), ("attempt", "x'00'"), ("round", str(ROUNDS_MAX + 1))]
)
def test_rows_of_no_round_are_found_by_themselves_and_hide_no_other(store: NodeStore, column: str, value: str) -> None:
    for number in (1, 2, 3):
        store.save_round("j", number, 1, "committed", {})
    store._db.execute(f"UPDATE rounds SET {column} = {value} WHERE round = 2")
    assert [row.round for row in store.committed("j", 16)] == [1, 3] == [row.round for row in store.rounds("j")]
    assert [row.round for row in store.rounds_before("j", (ROUNDS_MAX + 1, 0), 9)] == [3, 1]
    (odd,) = store.odd_rounds("j", 9)
    assert column in odd.unread and "of job j, round " in odd.fault
    read: list[str] = []
    store._db.set_trace_callback(read.append)
    assert store.odd_rounds("j", 9)
    plan = store._db.execute(f"EXPLAIN QUERY PLAN {read[0]}").fetchall()
    assert "odd_rounds" in plan[0][3], "or each look at a job would read all its rows"


def test_a_damaged_row_is_set_aside_like_others(store: NodeStore) -> None:
    store.save_round("j", 1, 1, "committed", {})
    store._db.execute("UPDATE rounds SET fields = x'c1'")
    store.set_aside("j", 0, "it is lost")
    (row,) = store.rounds("j")
    assert (row.status, row.fields, row.fault) == ("damaged", {"reason": "it is lost"}, "")


@pytest.mark.parametrize("name", ["x'6a'", "'-1'", "''", "'a' || char(0)", "CAST(x'6aff' AS TEXT)"])
def test_a_job_without_a_name_goes_by_its_number(store: NodeStore, name: str) -> None:
    number = store.add_job(CONFIG, (), (), "/a")
    store.save_job("a", "running", "")
    store._db.execute(f"UPDATE jobs SET name = {name}")
    (row,) = store.jobs()
    assert isinstance(row, UnreadableJob) and row.name == f"#{number}"
    assert store.job(f"#{number}") == row and store.known_names() == [f"#{number}"]
    store.save_job(f"#{number}", "cancelled", "")
    assert [each.status for each in store.jobs()] == ["cancelled"]
    store._db.execute("UPDATE jobs SET status = 'new', folder = x'00'")
    assert store.unaccepted() == [(number, "")]
    store.drop_job(number)
    assert list(store.jobs()) == []


@pytest.mark.parametrize("value", ["'text'", "1e300", "-5", str((1 << 63) - 1), "x'00'"])
def test_a_count_of_lives_that_is_none_begins_anew(store: NodeStore, value: str) -> None:
    store.node_id()
    store._db.execute(f"UPDATE node SET incarnation = {value}")
    assert [store.next_incarnation(), store.next_incarnation(7), store.next_incarnation()] == [1, 8, 9]


def test_a_decision_that_cannot_be_read_is_named_and_the_others_are_shown(store: NodeStore) -> None:
    request = PlanRequest(1, 10, 10, (NodeFacts("a", 1.0, 1000),))
    for attempt in (1, 2, 3, 4, 5):
        store.save_plan("j", 1, attempt, request, make_plan(request))
    bomb = zlib.compress(b"\xc0" * (PLAN_BYTES_MAX + 1))
    for attempt, column, value in ((1, "decided_unix_s", 1e308), (3, "decision", "text"), (4, "decision", bomb)):
        store._db.execute(f"UPDATE plans SET {column} = ? WHERE attempt = ?", (value, attempt))
    rows = [row for _, row in store.plans("j", 1)]
    assert [isinstance(row, PlanRow) for row in rows] == [False, True, False, False, True]
    assert isinstance(rows[0], UnreadablePlan) and "about round 1 of job j, attempt 1, cannot be read" in rows[0].fault
    assert [row for _, row in store.plans("j", 1, after=4)] == rows[4:]


def test_a_capacity_is_kept_and_one_that_is_none_keeps_no_node_from_starting(store: NodeStore) -> None:
    assert kept_capacity(store) == 0
    for capacity in (2.5, 0.0, 3.0):
        keep_capacity(store, capacity)
        assert kept_capacity(store) == capacity
    for damaged in ("'much'", "-1.0", "1e300", "x'00'"):
        store._write(f"UPDATE capacity SET capacity = {damaged}")
        assert kept_capacity(store) == 0

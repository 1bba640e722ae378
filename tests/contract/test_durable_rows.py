"""The rows of jobs and rounds: the same suite over the database of a node, and over the store that a cluster shares.

`again` is what comes next: a `lifld` that starts on its database, or another node that leads.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from etcd_servers import Etcd as Servers
from etcd_servers import etcd

from lifl.core import effects as fx
from lifl.core.config.edits import edited
from lifl.core.config.job import parse_job
from lifl.core.limits import ROUNDS_REMEMBERED
from lifl.core.schema import TensorSpec
from lifl.node import store
from lifl.node.durable_rows import DurableRows, LocalRows, write_now
from lifl.node.etcd import cluster_rows
from lifl.node.etcd.client import Etcd
from lifl.node.etcd.cluster_rows import ClusterRows, meet
from lifl.node.etcd.keys import Keys
from lifl.node.etcd.mirror import Mirror
from lifl.node.rows import JobRow, UnreadableJob
from lifl.node.store import NodeStore

TENSORS = (TensorSpec("w", "float32", (10, 10)),)
NAMES = (f"cluster{number}" for number in count())


class Local:
    """A node's database."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lifl.db"
        self.store = NodeStore(self._path)
        self.rows: DurableRows = LocalRows(self.store, 1)
        self._runner = asyncio.Runner()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def again(self) -> None:
        self.store.close()
        self.store = NodeStore(self._path)
        self.rows = LocalRows(self.store, 1)

    def close(self) -> None:
        self.store.close()
        self._runner.close()


class Shared:
    """The store of a cluster; each node that comes to lead has a copy of its own."""

    def __init__(self, folder: Path, servers: Servers) -> None:
        self._folder = folder
        self._numbers = count()
        self._runner = asyncio.Runner()
        self.keys = Keys(next(NAMES))
        self.etcd = self.run(self._made(servers))
        self.deposed = 0
        self.again()

    async def _made(self, servers: Servers) -> Etcd:
        return Etcd(servers.endpoints)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def again(self) -> None:
        self.run(self._led())

    async def _led(self) -> None:
        self.store = Mirror(self._folder / f"{next(self._numbers)}.db")
        cluster = await meet(self.etcd, self.keys)
        self.rows = self.shared = ClusterRows(self.etcd, self.keys, cluster, self.store, self._note)
        await self.shared.begin(await self.lead())

    async def lead(self) -> int:
        """Another term begins; its number."""
        pb = self.etcd.pb
        gone = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=self.keys.leader))
        await self.etcd.txn(pb.TxnRequest(success=[gone]))
        put = pb.RequestOp(request_put=pb.PutRequest(key=self.keys.leader, value=b"n"))
        return int((await self.etcd.txn(pb.TxnRequest(success=[put]))).header.revision)

    def _note(self) -> None:
        self.deposed += 1

    def close(self) -> None:
        self.run(self.etcd.close())
        self._runner.close()


Harness = Local | Shared


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with etcd(3) as made:
        yield made


@pytest.fixture(params=["sqlite", "etcd"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    harness = Local(tmp_path) if request.param == "sqlite" else Shared(tmp_path, request.getfixturevalue("servers"))
    yield harness
    harness.close()


def config(name: str) -> Any:
    return parse_job(
        {"job": {"name": name, "rounds": 9}, "model": {"path": "/m"}, "selection": {"clients_per_round": 1}}
    )


def add(kept: Harness, name: str = "j", accept: bool = True, tensors: tuple[TensorSpec, ...] = TENSORS) -> int:
    """A job is submitted; its number."""
    number: int = kept.run(kept.rows.new_job(config(name), tensors, ("m",), f"/f/{name}"))
    if accept:
        write(kept, fx.SaveJob(name, "running", ""))
    return number


def write(kept: Harness, row: Any) -> None:
    kept.run(write_now(kept.rows, row))


def save(kept: Harness, number: int, status: str, attempt: int = 1, job: str = "j", **fields: Any) -> None:
    write(kept, fx.SaveRound(job, number, attempt, status, fields))


def rounds(kept: Harness, job: str = "j") -> list[tuple[int, int, str, dict[str, Any]]]:
    return [(row.round, row.attempt, row.status, row.fields) for row in kept.store.rounds(job)]


def both(kept: Harness, look: Callable[[], Any]) -> Any:
    """What is read now, which is also what is read by whoever comes next."""
    found = look()
    kept.again()
    assert look() == found, "the next one reads something else"
    return found


# ---- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_is_read_as_it_was_submitted(kept: Harness) -> None:
    number = add(kept)
    row = both(kept, lambda: kept.store.job("j"))
    assert isinstance(row, JobRow)
    assert (row.number, row.config, row.tensors, row.states) == (number, config("j"), TENSORS, ("m",))
    assert (row.folder, row.status, row.reason) == ("/f/j", "running", "")
    assert row.submitted_unix_s > 1e9


def test_one_that_was_never_accepted_is_none(kept: Harness) -> None:
    add(kept, accept=False)
    assert list(kept.store.jobs()) == []
    assert kept.store.job("j") is None


def test_jobs_come_in_the_order_of_their_submission_and_no_number_twice(kept: Harness) -> None:
    first = add(kept, "b")
    dropped = add(kept, "x", accept=False)
    kept.store.drop_job(dropped)
    kept.again()
    second = add(kept, "a")
    assert first < dropped < second
    assert both(kept, lambda: [row.name for row in kept.store.jobs()]) == ["b", "a"]


def test_what_became_of_a_job_is_kept(kept: Harness) -> None:
    add(kept)
    write(kept, fx.SaveJob("j", "failed", "too few"))
    row = both(kept, lambda: kept.store.job("j"))
    assert (row.status, row.reason) == ("failed", "too few")


def test_what_a_jobs_config_has_become_is_kept(kept: Harness) -> None:
    add(kept)
    changed = edited(config("j"), ["job.rounds=11", "client.options.lr=0.5"]).config
    write(kept, fx.SaveConfig("j", changed))
    write(kept, fx.SaveJob("j", "running", "paused"))
    row = both(kept, lambda: kept.store.job("j"))
    assert (row.config, row.tensors, row.reason) == (changed, TENSORS, "paused")


def test_a_job_that_was_over_runs_again(kept: Harness) -> None:
    add(kept)
    save(kept, 1, "committed", members=["a"])
    write(kept, fx.SaveJob("j", "failed", "too few"))
    kept.run(kept.rows.have_job("j"))
    write(kept, fx.SaveJob("j", "running", ""))
    assert both(kept, lambda: (kept.store.job("j").status, rounds(kept)[0][2])) == ("running", "committed")


def test_a_job_that_is_forgotten_leaves_its_name_and_no_round(kept: Harness) -> None:
    for name in ("j", "k"):
        add(kept, name)
        save(kept, 1, "committed", job=name, members=["a"])
    number = kept.store.job("j").number
    write(kept, fx.SaveJob("j", "finished", ""))
    write(kept, fx.DropJob("j", number))
    assert both(kept, lambda: (kept.store.job("j"), rounds(kept), len(rounds(kept, "k")))) == (None, [], 1)
    assert add(kept) > number
    assert both(kept, lambda: (kept.store.job("j").status, rounds(kept))) == ("running", [])


def test_a_job_that_was_refused_after_all_is_forgotten(kept: Harness) -> None:
    number = add(kept)
    assert kept.run(kept.rows.forget_job("j", number))
    kept.again()
    assert kept.store.job("j") is None


def test_a_job_that_was_refused_as_another_came_to_lead_may_run(servers: Servers, tmp_path: Path) -> None:
    """Who submitted it is to know: the next one goes on with it."""
    kept = Shared(tmp_path, servers)
    try:
        number = add(kept)
        kept.run(kept.lead())
        assert not kept.run(kept.rows.forget_job("j", number))
        kept.again()
        assert kept.store.job("j") is not None
    finally:
        kept.close()


def test_the_last_jobs_that_were_forgotten_with_their_models_are_known(
    kept: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_rows, "REMOVED_COPIES_MAX", 2)
    monkeypatch.setattr(store, "REMOVED_COPIES_MAX", 2)
    numbers = {}
    for name, copies in (("a", True), ("b", False), ("c", True), ("d", True)):
        add(kept, name)
        numbers[name] = kept.store.job(name).number
        write(kept, fx.SaveJob(name, "finished", ""))
        write(kept, fx.DropJob(name, numbers[name], copies))
    found = both(kept, lambda: kept.rows.removed_copies)
    assert found == [(numbers["c"], "c"), (numbers["d"], "d")]


def test_a_node_that_leads_later_forgets_what_was_forgotten_meanwhile(servers: Servers, tmp_path: Path) -> None:
    """Its copy has rows that the cluster has no more: of a job that runs under its name by then, and of another one."""
    kept = Shared(tmp_path, servers)
    for name in ("j", "k"):
        add(kept, name)
        save(kept, 1, "committed", job=name, members=["old"])
    earlier = kept.store
    for name in ("j", "k"):
        write(kept, fx.SaveJob(name, "cancelled", ""))
        write(kept, fx.DropJob(name, earlier.job(name).number))
    add(kept, "j")
    first = [tuple(row) for row in earlier._all("SELECT name FROM jobs")]
    assert first == [("j",)]
    # Another node's copy, as it was before all that.
    other = Mirror(tmp_path / "other.db")
    other.add_numbered(1, ("j", "/f/j", *(b"\x80", b"\x90", b"\x90")))
    other.save_job("j", "finished", "")
    other.add_numbered(2, ("k", "/f/k", *(b"\x80", b"\x90", b"\x90")))
    other.save_job("k", "finished", "")
    other.save_round("j", 0, 1, "committed", {})
    kept.shared.mirror = other
    kept.run(kept.shared.begin(kept.run(kept.lead())))
    assert [row.name for row in other.jobs()] == ["j"]
    assert (other.job("j").status, other.rounds("j")) == ("running", [])
    other.close()
    kept.close()


def test_of_many_jobs_that_are_over_one_goes_on_that_the_store_has_forgotten(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_rows, "OVER_KEPT", 1)
    kept = Shared(tmp_path, servers)
    for name in ("j", "k"):
        add(kept, name)
        save(kept, 1, "committed", job=name, members=[name])
        write(kept, fx.SaveJob(name, "finished", ""))
    assert [*kept.shared.jobs] == ["k"]
    kept.run(kept.rows.have_job("j"))
    write(kept, fx.SaveJob("j", "running", ""))
    kept.again()  # a copy that begins empty: all comes from the store
    assert {row.name: row.status for row in kept.store.jobs()} == {"j": "running", "k": "finished"}
    assert rounds(kept, "j") == [(1, 1, "committed", {"members": ["j"]})]
    kept.close()


def test_a_long_schema_is_kept_whole(kept: Harness) -> None:
    """Of this one etcd takes no request: it is stored in parts."""
    tensors = tuple(
        TensorSpec(f"{number:0200x}"[::-1] + f"{hash(number * 7919):x}", "float32", (3, number))
        for number in range(1, 20_000)
    )
    add(kept, tensors=tensors)
    assert both(kept, lambda: kept.store.job("j").tensors) == tensors


# ---- rounds ----------------------------------------------------------------------------------------------------------


def test_attempts_are_read_as_they_were_saved(kept: Harness) -> None:
    add(kept)
    parts = {"parts": [(0, "aa", 3), (1, "bb", 2)], "next_part": 2}
    save(kept, 1, "open", **parts)
    save(kept, 1, "failed", reason="late")
    save(kept, 1, "open", attempt=2, **parts)
    assert both(kept, lambda: rounds(kept)) == [(1, 1, "failed", {"reason": "late"}), (1, 2, "open", parts)]


def test_a_round_commits_once_whatever_the_attempt(kept: Harness) -> None:
    add(kept)
    save(kept, 1, "open")
    save(kept, 1, "committed", attempt=2, members=["a"], digests=["d"], term=3)
    for attempt in (1, 3):
        with pytest.raises(sqlite3.IntegrityError):
            save(kept, 1, "committed", attempt=attempt, members=["b"])
    kept.again()
    with pytest.raises(sqlite3.IntegrityError):
        save(kept, 1, "committed", attempt=3, members=["b"])
    fields = {"members": ["a"], "digests": ("d",), "term": 3}
    assert both(kept, lambda: rounds(kept)) == [(1, 1, "open", {}), (1, 2, "committed", fields)]


def test_a_commit_is_not_taken_back(kept: Harness) -> None:
    add(kept)
    save(kept, 1, "committed", members=["a"])
    save(kept, 1, "failed", reason="too late")
    assert both(kept, lambda: rounds(kept)) == [(1, 1, "committed", {"members": ["a"]})]


def test_rounds_that_are_set_aside_may_be_committed_again_once(kept: Harness) -> None:
    add(kept)
    for number in range(4):
        save(kept, number, "committed", members=["a"], digests=["d"])
    save(kept, 4, "open")
    write(kept, fx.SetAside("j", 1, "damaged"))
    write(kept, fx.SetAside("j", 1, "said twice"))
    kept.again()
    said = [(row.round, row.status, row.fields.get("reason")) for row in kept.store.rounds("j")]
    assert said == [
        (0, "committed", None),
        (1, "committed", None),
        (2, "damaged", "damaged"),
        (3, "damaged", "damaged"),
        (4, "damaged", "damaged"),
    ]
    save(kept, 2, "committed", attempt=2, members=["b"])
    with pytest.raises(sqlite3.IntegrityError):
        save(kept, 2, "committed", attempt=3, members=["c"])
    assert [row.round for row in both(kept, lambda: kept.store.committed("j", 9))] == [0, 1, 2]


def test_what_was_found_of_a_model_stands_in_the_row_of_its_round(kept: Harness) -> None:
    add(kept)
    save(kept, 1, "failed", reason="late")
    save(kept, 1, "committed", attempt=2, members=["a"], stopping=[[None, 0]])
    found = {"evaluation": {"clients": 1, "metrics": {"loss": {"mean": 0.5}}}, "stopping": [[0.5, 3]]}
    write(kept, fx.SaveEvaluation("j", 1, 1, found))  # not of that attempt
    write(kept, fx.SaveEvaluation("j", 1, 2, found))
    read = both(kept, lambda: [(row.attempt, row.fields, row.unread) for row in kept.store.round("j", 1)])
    committed = {"members": ["a"], "evaluation": found["evaluation"], "stopping": [(0.5, 3)]}
    assert read == [(1, {"reason": "late"}, frozenset()), (2, committed, frozenset())]


def test_a_round_of_ten_thousand_clients_is_kept_whole(kept: Harness) -> None:
    add(kept)
    members = [f"{hash(str(number)):020d}-{number:043d}" for number in range(10_000)]
    save(kept, 1, "committed", members=members)
    assert both(kept, lambda: rounds(kept)) == [(1, 1, "committed", {"members": members})]


def test_the_rounds_that_a_job_goes_on_from_are_there_after_many(kept: Harness) -> None:
    add(kept)
    last = 2 * ROUNDS_REMEMBERED
    for number in range(last + 1):
        save(kept, number, "open")
        save(kept, number, "committed", members=[f"c{number}"])
    save(kept, last + 1, "open")
    found = both(kept, lambda: kept.store.committed("j", ROUNDS_REMEMBERED))
    assert [row.fields["members"] for row in found] == [
        [f"c{n}"] for n in range(last + 1 - ROUNDS_REMEMBERED, last + 1)
    ]
    assert [row.status for row in kept.store.rounds("j", above=last)] == ["open"]


def test_of_jobs_each_has_its_own_rounds(kept: Harness) -> None:
    for name in ("a", "b"):
        add(kept, name)
        save(kept, 1, "committed", job=name, members=[name])
    write(kept, fx.SetAside("a", 0, "lost"))
    assert both(kept, lambda: (rounds(kept, "a")[0][2], rounds(kept, "b")[0][2])) == ("damaged", "committed")


def test_a_job_that_cannot_be_read_is_named_and_can_be_ended(kept: Harness) -> None:
    add(kept)
    if isinstance(kept, Local):
        kept.store._write("UPDATE jobs SET config = ?", (b"\xc1",))
    else:
        pb = kept.etcd.pb
        put = pb.PutRequest(key=kept.keys.job(1), value=b"Wgarbage")
        kept.run(kept.etcd.txn(pb.TxnRequest(success=[pb.RequestOp(request_put=put)])))
    kept.again()
    (row,) = kept.store.jobs()
    assert isinstance(row, UnreadableJob)
    assert (row.number, row.status) == (1, "running")
    write(kept, fx.SaveJob(row.name, "cancelled", "by the user"))
    (row,) = both(kept, lambda: list(kept.store.jobs()))
    assert (row.status, row.reason) == ("cancelled", "by the user")

"""Jobs that are over: the last ones are known, older ones are forgotten, and none goes that anybody needs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifl.core import events as ev
from lifl.core.config.job import parse_job
from lifl.core.planning.jobs_kept import FORGOTTEN_AT_ONCE, OverJob, beyond
from lifl.core.schema import TensorSpec
from lifl.node.database import DatabaseFault
from lifl.node.durable_rows import LocalRows
from lifl.node.job_requests import JobRequests
from lifl.node.jobs_kept import JobsKept
from lifl.node.resume import known_jobs
from lifl.node.store import NodeStore, over_jobs

OVER = st.lists(st.builds(OverJob, st.integers(1, 500), st.floats(0, 2e9)), unique_by=lambda job: job.number)


@given(OVER, st.integers(0, 20), st.sets(st.integers(1, 500)))
def test_the_last_ones_stay_and_what_is_needed_and_the_oldest_go_first(
    over: list[OverJob], kept: int, needed: set[int]
) -> None:
    gone = beyond(over, kept, needed)
    assert len(set(gone)) == len(gone) <= FORGOTTEN_AT_ONCE and not needed & set(gone)
    stay = [job for job in over if job.number not in gone]
    assert len(stay) >= min(kept, len(over))
    when = {job.number: (job.at_unix_s, job.number) for job in over}
    assert [when[number] for number in gone] == sorted(when[number] for number in gone)
    could = [job for job in stay if job.number not in needed]
    assert all(when[job.number] > when[number] for job in could for number in gone)
    if len(gone) < FORGOTTEN_AT_ONCE:
        assert len(stay) <= kept + len(needed)


@pytest.mark.parametrize(("jobs", "gone"), [(3, []), (4, [1])])
def test_at_the_limit_and_one_beyond(jobs: int, gone: list[int]) -> None:
    assert beyond([OverJob(number, 7.0) for number in range(jobs, 0, -1)], 3) == gone


class Kept:
    """A node's database, and what forgets jobs of it; `known` are those in the coordinator's memory."""

    def __init__(self, folder: Path, kept: int, known: Collection[str] = (), unsent: Collection[int] = ()) -> None:
        self.store = NodeStore(folder / "lifl.db")
        self.said: list[Any] = []
        self.events: list[ev.JobRemoved] = []
        jobs = {name: SimpleNamespace(spec=SimpleNamespace(number=self._number(name))) for name in known}
        self.engine: Any = SimpleNamespace(
            coordinator=object(), jobs=jobs, agent=SimpleNamespace(tasks=SimpleNamespace(_open={}, _abandoned=()))
        )
        driver: Any = SimpleNamespace(engine=self.engine, fault=None, idle=self._idle, handle=self.events.append)
        audit: Any = SimpleNamespace(note=lambda *said, **about: self.said.append((*said, about)))
        keeper, other = SimpleNamespace(seen={}), SimpleNamespace()
        hands: Any = (driver, LocalRows(self.store, 1), self.store, other, folder, audit, other, keeper)
        outbound: Any = SimpleNamespace(needed=lambda number: {1} if number in unsent else set())
        self.jobs_kept = JobsKept(JobRequests(*hands), self.store, outbound, kept)

    def _number(self, name: str) -> int:
        row = self.store.job(name)
        return row.number if row is not None else 0

    async def _idle(self) -> None:
        pass

    def add(self, name: str, status: str = "finished", round_at_s: float | None = None) -> None:
        self.store.add_job(parse_job(table(name)), (TensorSpec("w", "float32", (1,)),), (), f"/f/{name}")
        self.store.save_job(name, status, "")
        if round_at_s is not None:
            self.store.save_round(name, 1, 1, "committed", {}, round_at_s)

    def look(self) -> list[str]:
        """What is left when it has looked."""

        async def run() -> None:
            self.jobs_kept.look()
            while self.jobs_kept._tasks:
                await asyncio.gather(*self.jobs_kept._tasks)

        asyncio.run(run())
        return [row.name for row in self.store.jobs()]


def table(name: str) -> dict[str, Any]:
    selection = {"clients_per_round": 1, "deadline_s": 1.0}
    return {"job": {"name": name, "rounds": 1}, "model": {"path": "/m"}, "selection": selection}


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    found = Kept(tmp_path, 2)
    with closing(found.store):
        yield found


def test_the_oldest_goes_with_its_rows_and_its_name_is_free(kept: Kept) -> None:
    for name in ("a", "b"):
        kept.add(name, round_at_s=1.0)
    assert kept.look() == ["a", "b"] and not kept.events, "as many as may stay"
    kept.add("c")
    assert kept.look() == ["b", "c"]
    assert kept.events == [ev.JobRemoved("a")]
    assert kept.said == [("job.removed", "lifld", "2 others were over later (jobs_kept)", {"job": "a", "number": 1})]
    assert kept.store.rounds("a") == []
    kept.add("a", "running")
    assert kept.look() == ["b", "c", "a"]


def test_one_that_ran_for_long_goes_by_its_last_round(kept: Kept) -> None:
    kept.add("long", round_at_s=3e9)
    for name in ("b", "c", "d"):
        kept.add(name, "cancelled")
    assert kept.look() == ["long", "d"]


def test_none_goes_that_runs_waits_or_is_paused_and_none_is_counted(kept: Kept) -> None:
    for name in ("a", "b", "c"):
        kept.add(name, "running")  # the row of a job that waits in line, or is paused, says so, too
    for name in ("d", "e"):
        kept.add(name, "failed")
    assert kept.look() == ["a", "b", "c", "d", "e"]


def test_nothing_goes_where_another_node_coordinates(kept: Kept) -> None:
    for name in ("a", "b", "c"):
        kept.add(name)
    kept.engine.coordinator = None
    assert kept.look() == ["a", "b", "c"]


def test_what_the_coordinator_knows_or_has_models_to_send_stays(tmp_path: Path) -> None:
    first = Kept(tmp_path, 2)
    for name in "abcdef":
        first.add(name)
    first.store.close()
    found = Kept(tmp_path, 2, known=["a"], unsent=[2])
    with closing(found.store):
        assert found.look() == ["a", "b", "e", "f"]


def test_a_job_that_was_resumed_meanwhile_stays(kept: Kept) -> None:
    for name in ("a", "b", "c", "d"):
        kept.add(name)
    number = kept.store.job("b").number  # type: ignore[union-attr]

    async def idle() -> None:
        kept.store.save_job("b", "running", "")

    kept.jobs_kept._changes._driver.idle = idle  # type: ignore[method-assign]
    kept.jobs_kept.beyond = lambda: [number]  # type: ignore[method-assign]
    assert kept.look() == ["a", "b", "c", "d"]


def test_many_of_earlier_lives_go_bit_by_bit_and_the_next_start_takes_up_the_last_ones(kept: Kept) -> None:
    names = [f"j{number}" for number in range(FORGOTTEN_AT_ONCE + 5)]
    for name in names:
        kept.add(name)
    assert kept.look() == names[FORGOTTEN_AT_ONCE:]
    assert kept.look() == names[-2:], "the rest with the next job that is over"
    known = known_jobs(kept.store, 1, Path("/nowhere"))
    assert [facts.config.job.name for facts, *_ in known.over] == names[-2:]


def test_a_disk_that_is_full_is_told_and_the_next_job_tries_again(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        kept.add(name)

    def full(_row: object) -> None:
        raise DatabaseFault("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(kept.jobs_kept._changes._rows, "write", full)
        assert kept.look() == ["a", "b", "c"]
    assert "jobs.not_forgotten the disk is full" in caplog.text
    assert kept.look() == ["b", "c"]


def test_damaged_times_are_the_oldest(kept: Kept) -> None:
    for name in ("a", "b", "c"):
        kept.add(name, round_at_s=9e9)
    kept.store._write("UPDATE jobs SET submitted_unix_s = 'x' WHERE name = 'b'", ())
    kept.store._write("UPDATE rounds SET saved_unix_s = 'x' WHERE job = 'b'", ())
    assert OverJob(2, 0.0) in over_jobs(kept.store, 2)
    assert over_jobs(kept.store, 3) == []
    assert kept.look() == ["a", "c"]

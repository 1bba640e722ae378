"""Workers that are prepared: as many as granted updates will need, never more than allowed, and they end unused."""

from __future__ import annotations

from lifl.core.agent.pool import Pool, WorkerState


def test_a_task_that_waits_for_a_prepared_worker_counts_as_cold_and_forks_none() -> None:
    pool = Pool(4, 30.0)
    (number,) = pool.prepare(1)
    worker, how = pool.place(7, ("j", 1))
    assert (worker.number, how, worker.new) == (number, "cold", False)
    assert pool.ready(number, 100, 1.0) == [7], "the task is handed over when it runs"


def test_a_prepared_worker_that_runs_is_warm() -> None:
    pool = Pool(4, 30.0)
    (number,) = pool.prepare(1)
    pool.ready(number, 100, 1.0)
    worker, how = pool.place(7, ("j", 1))
    assert (worker.number, how) == (number, "warm")


def test_no_more_are_prepared_than_leaves_lack_one_and_than_may_run() -> None:
    pool = Pool(3, 30.0)
    assert len(pool.prepare(2)) == 2
    assert pool.prepare(2) == [], "two are free already"
    assert len(pool.prepare(9)) == 1
    pool.place(7, ("j", 1))
    assert pool.prepare(9) == []


def test_one_whose_update_never_comes_ends() -> None:
    pool = Pool(4, 30.0)
    (number,) = pool.prepare(1)
    pool.ready(number, 100, 5.0)
    assert pool.next_timer() == 35.0
    assert pool.expired(35.0) == [number]
    assert pool.workers[number].state is WorkerState.RETIRING
    assert len(pool.prepare(1)) == 1, "one that ends is not free"


def test_where_no_worker_is_kept_none_is_prepared() -> None:
    assert Pool(4, 0.0).prepare(3) == []

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


def test_a_worker_that_ran_a_jobs_own_code_is_given_to_no_other_job() -> None:
    pool = Pool(1, 30.0)
    own, _ = pool.place(1, ("j", 1), tie=7)
    pool.ready(own.number, 100, 0.0)
    other, how = pool.place(2, ("k", 1))
    assert (other is own, how) == (False, "cold"), "also beyond the limit"
    third, how = pool.place(3, ("l", 1), tie=8)
    assert third not in (own, other), "nor does own code come to a worker that has others' tasks"
    assert pool.place(4, ("k", 1)) == (other, "shared")
    pool.release(own.number, 1, 1.0)
    assert pool.place(5, ("j", 2), tie=7) == (own, "warm")


def test_workers_beyond_the_limit_end_when_they_are_idle() -> None:
    pool = Pool(1, 30.0)
    own, _ = pool.place(1, ("j", 1), tie=7)
    pool.ready(pool.fork(own), 100, 0.0)
    other, _ = pool.place(2, ("k", 1))
    pool.ready(pool.fork(other), 101, 0.0)
    assert pool.expired(1.0) == []
    pool.release(own.number, 1, 2.0)
    assert pool.next_timer() == 2.0
    assert pool.expired(2.0) == [own.number]
    pool.release(other.number, 2, 2.0)
    assert pool.expired(2.0) == []
    assert pool.next_timer() == 32.0

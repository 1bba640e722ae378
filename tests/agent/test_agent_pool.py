"""The pool alone: whom a task is given to, of several that could have it."""

from __future__ import annotations

import math

from lifl.core.agent.pool import Pool, WorkerState

SERVED, OTHER = ("j", 1), ("k", 2)


def running(pool: Pool, *addresses: int, at: float = 0.0, served: tuple[str, int] = SERVED) -> int:
    """A worker that runs with these tasks, none if there are none; its number."""
    worker = pool._new()
    pool.fork(worker)
    worker.tasks = dict.fromkeys(addresses)
    worker.served = served
    pool.ready(worker.number, 100, at)
    return worker.number


def test_an_idle_one_that_served_the_round_comes_first_then_the_one_idle_the_shortest() -> None:
    pool = Pool(9, 30.0)
    served, older, newer = (
        running(pool, at=1.0),
        running(pool, at=2.0, served=OTHER),
        running(pool, at=3.0, served=OTHER),
    )
    assert [pool.place(address, SERVED)[0].number for address in (1, 2, 3)] == [served, newer, older]
    assert pool.starts == {"promoted": 1, "warm": 2}
    assert pool.workers[newer].served == SERVED


def test_then_one_that_starts_and_has_no_task_then_a_new_one_then_the_least_busy() -> None:
    pool = Pool(3, 30.0)
    running(pool, 1, 2)
    (starting,) = pool.prepare(1)
    assert pool.place(3, SERVED) == (pool.workers[starting], "cold")
    worker, how = pool.place(4, SERVED)
    assert (worker.new, how) == (True, "cold")
    pool.fork(worker)
    assert pool.place(5, SERVED) == (pool.workers[starting], "shared")


def test_one_that_ends_takes_no_place_and_no_task() -> None:
    pool = Pool(1, 30.0)
    running(pool)
    assert pool.expired(30.0) == [1]
    worker, how = pool.place(1, SERVED)
    assert (worker.number, how) == (2, "cold")
    assert not pool.running(1) and not pool.running(2) and not pool.running(3)


def test_it_is_full_of_those_that_do_not_end() -> None:
    pool = Pool(1, 30.0)
    assert not pool.full
    running(pool)
    assert pool.full
    pool.expired(30.0)
    assert not pool.full


def test_a_task_ends_where_it_is_and_the_worker_is_idle_after_its_last() -> None:
    pool = Pool(2, 30.0)
    number = running(pool, 1, 2)
    pool.release(number, 7, 1.0)
    pool.release(99, 1, 1.0)
    pool.release(number, 1, 1.0)
    assert pool.workers[number].state is WorkerState.BUSY
    assert pool.next_timer() == math.inf
    pool.release(number, 2, 5.0)
    assert (pool.workers[number].state, pool.workers[number].tasks_done) == (WorkerState.IDLE, 2)
    assert pool.next_timer() == 35.0


def test_a_task_that_is_given_up_before_its_worker_runs_leaves_it_starting() -> None:
    pool = Pool(2, 30.0)
    worker, _ = pool.place(1, SERVED)
    pool.release(worker.number, 1, 1.0)
    assert worker.state is WorkerState.STARTING
    assert pool.ready(worker.number, 100, 2.0) == []
    assert worker.state is WorkerState.IDLE


def test_of_one_that_is_lost_the_tasks_are_told_once() -> None:
    pool = Pool(2, 30.0)
    number = running(pool, 1, 2)
    assert pool.gone(number) == [1, 2]
    assert pool.gone(number) == []

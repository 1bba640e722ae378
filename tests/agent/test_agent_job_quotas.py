"""What a job may take of a node that others use too: its share of the arena, its workers, its rate."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, Arena, Scene

from lifl.core.agent.pool import Pool
from lifl.core.agent.quota import Quota
from lifl.core.config.job import QuotaSection
from lifl.core.errors import ArenaFull
from lifl.core.ids import Kind
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import gateway as gm

# ---- the arena -------------------------------------------------------------------------------------------------------


def test_a_job_takes_its_share_and_no_more_whatever_is_free() -> None:
    quota = Quota(Arena(100))
    quota.limit(1, 0.25)
    key = quota.alloc(Kind.UPDATE, 1, EPOCH, 20, 5)
    with pytest.raises(ArenaFull, match=r"the job has 25 of 25 bytes that it may take \(quota.arena_share\)"):
        quota.alloc(Kind.UPDATE, 1, EPOCH, 1)
    quota.alloc(Kind.UPDATE, 2, EPOCH, 75)
    quota.free(key)
    quota.alloc(Kind.UPDATE, 1, EPOCH, 25)
    assert not list(quota.problems())


def test_what_is_reserved_for_a_job_it_may_take_beyond_its_share() -> None:
    quota = Quota(Arena(100))
    quota.limit(1, 0.25)
    assert quota.reserve(1, 40)
    quota.alloc(Kind.UPDATE, 1, EPOCH, 40)
    with pytest.raises(ArenaFull, match="arena_share"):
        quota.alloc(Kind.UPDATE, 1, EPOCH, 1)


def test_the_limit_goes_with_the_job() -> None:
    quota = Quota(Arena(100))
    quota.limit(1, 0.25)
    quota.limit(1, 1.0)
    quota.alloc(Kind.UPDATE, 1, EPOCH, 100)


def test_updates_beyond_the_share_wait_in_line_until_the_job_itself_frees_some() -> None:
    scene = Scene(elements=LARGE, clients_per_round=4)
    share = 30 * scene.layout.data_bytes
    scene = Scene(elements=LARGE, clients_per_round=4, arena_bytes=share * 4)
    scene.has_model(quota=QuotaSection(arena_share=0.25))
    scene.has_model(2, "k")
    scene.has_branch(40)
    for number in range(1, 41):
        scene.grant(f"c{number}")
    assert 4 < len(scene.keys) < 20
    assert scene.agent.quota.job_used_bytes(NUMBER) <= share
    assert len(scene.agent.uploads.waiting) == 4  # the line's length; the others were told BUSY
    assert scene.agent.quota.free_bytes > 2 * share
    scene.handle(gm.Aborted(1, scene.keys["c1"].pack(), "gone"))
    assert len(scene.agent.uploads.waiting) == 3
    assert scene.agent.quota.job_used_bytes(NUMBER) <= share


# ---- workers ---------------------------------------------------------------------------------------------------------


def test_a_task_that_is_to_stay_among_some_workers_goes_to_the_least_busy_of_them() -> None:
    pool = Pool(8, 30.0)
    for address in (1, 2, 3):
        worker, _ = pool.place(address, ("j", 1))
        pool.fork(worker)
        pool.ready(worker.number, 100, 0.0)
    pool.place(4, ("j", 1), among=[1])
    assert [pool.place(5, ("j", 1), among=[1, 2])[0].number, len(pool.workers)] == [2, 3]
    assert pool.place(6, ("j", 1), among=[99])[1] == "cold", "one that is gone is none"


@pytest.mark.parametrize(("limit", "forked"), [(0, 5), (1, 1), (2, 2), (9, 5)])
def test_a_jobs_rounds_take_no_more_workers_than_its_quota(limit: int, forked: int) -> None:
    scene = Scene(workers_max=16, fan_in=1, middle_fan_in=8)
    scene.has_model(quota=QuotaSection(workers=limit))
    scene.has_branch(8)
    for number in range(1, 9):
        scene.upload(f"c{number}")
    workers = scene.agent.pool.workers
    assert len(workers) == forked
    scene.all_ready()
    assert all(task.state is TaskState.RUNNING for task in scene.tasks() if task.role == "leaf")
    if limit:
        assert len({task.worker for task in scene.tasks()}) <= limit


def test_another_job_has_workers_of_its_own() -> None:
    scene = Scene(workers_max=4)
    scene.has_model(quota=QuotaSection(workers=1))
    scene.has_branch(8)
    scene.upload("c1")
    scene.upload("c3")
    assert len(scene.agent.pool.workers) == 1
    scene.all_ready()
    worker, how = scene.agent.pool.place(900, ("k", 1))
    assert (worker.number, how) == (2, "cold")


# ---- bytes -----------------------------------------------------------------------------------------------------------


def test_the_gateway_is_told_the_jobs_rate() -> None:
    scene = Scene()
    led = scene.handle(scene.open_job(quota=QuotaSection(bytes_per_s=1000)))
    (schema,) = [each for each in led if isinstance(each, gm.JobSchema)]
    assert schema.bytes_per_s == 1000
    assert scene.engine.schemas()[0].bytes_per_s == 1000
    (plain,) = [each for each in Scene().handle(scene.open_job()) if isinstance(each, gm.JobSchema)]
    assert plain.bytes_per_s == 0

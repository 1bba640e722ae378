"""What the core does wrong today, each as a life that ends badly, with the right behaviour as the reason.

A mended one passes, and `strict` says so: its mark goes, and random lives no longer tolerate it.
"""

from __future__ import annotations

import pytest
from scenes import job, scene, until, writing

from lifl.core.agent.branch_runner import BranchRunner
from lifl.core.errors import ArenaFull, LocalFault
from lifl.core.ids import Kind
from lifl.core.protocol import worker as wm


def test_a_full_disk_does_not_end_a_job() -> None:
    cluster = scene(job("a"))
    worker, checkpoint = until(cluster, writing(cluster, 1))
    worker.file = None
    worker.fail(checkpoint, "No space left on device", retry=True)
    cluster.run(0)
    assert cluster.jobs["a"].row == ("finished", "")


def test_a_round_that_is_being_saved_is_committed_when_the_next_one_fails() -> None:
    cluster = scene(job("a", goal=1))
    worker, _ = until(cluster, writing(cluster, 1))
    worker.frozen_until = 1000.0
    until(cluster, lambda: any(worker.tasks for worker in cluster.home.workers.values()))
    for worker in cluster.home.workers.values():
        for task in list(worker.tasks.values()):
            worker.fail(task, "the rule raised ValueError", retry=False)
    cluster.by_number[1].excuse = "the rule raised ValueError"
    cluster.disk.calm = False
    cluster.run(0)
    assert 1 in cluster.jobs["a"].commits


def test_a_job_is_cancelled_while_its_checkpoint_is_being_written() -> None:
    cluster = scene(job("a"), job("b"))
    until(cluster, lambda: next((w for w in cluster.home.workers.values() if _writes(w, "a")), None))
    cluster.faults.cancel("a")
    cluster.run(0)


def _writes(worker, name: str) -> bool:
    return isinstance(worker.file, wm.Checkpoint) and worker.file.job == name


@pytest.mark.xfail(strict=True, reason="a fault in one job's books ends that job, not the engine")
def test_a_fault_of_one_job_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scene(job("a"), job("b"))
    right = BranchRunner.feed_waiting

    def feed(self: BranchRunner):
        if self.job == 1:
            raise LocalFault("the books of job a contradict each other")
        return right(self)

    monkeypatch.setattr(BranchRunner, "feed_waiting", feed)
    cluster.by_number[1].excuse = "its books contradict each other"
    cluster.run(0)
    assert cluster.jobs["b"].row == ("finished", "")


def test_a_worker_that_hangs_holds_no_round_up_for_ever() -> None:
    cluster = scene(job("a"))
    worker = until(cluster, lambda: next((w for w in cluster.home.workers.values() if w.tasks), None))
    worker.frozen_until = 1e9
    cluster.disk.calm = False
    until(cluster, lambda: cluster.jobs["a"].over or cluster.now > 1e6)
    assert cluster.now < 1e6


def test_a_failure_is_told_again_after_the_connection_was_down() -> None:
    cluster = scene(job("a", goal=8), hosts=3)
    host = until(cluster, lambda: next((h for h in cluster.others() if any(w.tasks for w in h.workers.values())), None))
    cluster.lives.unlink(host)
    worker = next(w for w in host.workers.values() if w.tasks)
    worker.fail(next(iter(worker.tasks.values())), "an object is gone", retry=True)
    until(cluster, lambda: not worker.out)
    cluster.lives.link(host)
    cluster.disk.calm = False
    cluster.run(0)
    assert cluster.jobs["a"].row == ("finished", "")


def test_two_jobs_that_find_no_room_after_a_restart_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reservations count bytes; the gaps between what was left may all be too short for an output."""
    cluster = scene(job("a", goal=8), job("b", goal=8))
    until(cluster, lambda: all(each.status == "running" for each in cluster.engine.jobs.values()))
    with monkeypatch.context() as patch:
        patch.setattr(cluster.workers, "choices", lambda host: [])
        until(cluster, lambda: all(len(each.round.accepted) == 8 for each in cluster.engine.jobs.values()))
    cluster.lives.crash()
    store, right = cluster.home.store, cluster.home.store.alloc

    def alloc(kind, *given):
        if (
            kind is Kind.PARTIAL
            and len({thing.job for thing in store.things.values() if thing.kind is Kind.UPDATE}) > 1
        ):
            raise ArenaFull("no gap is long enough")
        return right(kind, *given)

    store.alloc = alloc
    cluster.disk.calm = False
    cluster.run(0)

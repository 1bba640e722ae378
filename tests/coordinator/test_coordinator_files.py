"""Checkpoints that cannot be written or read: the job waits, what was sealed is committed, an older model is used."""

from __future__ import annotations

import pytest
from coordinator_scene import CLOSED, HOME, NUMBER, B, Led, Scene, joined

from lifl.core import effects as fx
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.round import Phase
from lifl.core.ids import epoch_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o

FULL = o.FilePaused(NUMBER, "/f/1 cannot be written: no space")
OPENED = o.JobOpened(NUMBER)

# ---- the disk is full ------------------------------------------------------------------------------------------------


def test_a_job_whose_checkpoint_cannot_be_written_begins_no_round_and_goes_on_when_it_is() -> None:
    scene = Scene(rounds=4)
    scene.running()
    scene.is_saving(1, ["c1"])
    scene.has_round(Phase.AGGREGATING, [(HOME, 2, CLOSED)], accepted={"c1": 0, "c2": 0}, number=2)
    scene.job.rounds.committed = 0
    assert scene.handle(FULL) == Led(events=[("job.paused", {"reason": FULL.text})])
    assert scene.handle(FULL) == Led(), "it is said once"
    assert scene.job.commits.paused == FULL.text
    led = scene.handle(o.ModelSealed(NUMBER, epoch_of(2, 1), {}))
    assert (scene.job.round, led.rows, len(led.ordered(o.SaveModel))) == (None, [], 1)
    led = scene.handle(o.ModelSaved(NUMBER, epoch_of(1, 1), ("d1",)))
    assert [(row.round, row.status) for row in led.rows] == [(1, "committed"), (3, "open")]
    assert led.rows[0].fields["digests"] == ["d1"]
    assert led.named("job.goes_on") == [{"committed": 1}]
    assert (scene.job.commits.paused, scene.round.number) == ("", 3)


def test_a_round_that_fails_in_a_pause_begins_anew_after_it() -> None:
    scene = Scene(rounds=4)
    scene.running()
    scene.is_saving(1, ["c1"])
    scene.has_round(number=2)
    scene.job.rounds.committed = 0
    scene.handle(FULL)
    scene.handle(o.BranchFailed(NUMBER, epoch_of(2, 1), "a worker died", True))
    assert scene.job.round is None
    scene.handle(o.ModelSaved(NUMBER, epoch_of(1, 1)))
    assert (scene.round.number, scene.round.attempt) == (2, 2)


def test_a_model_that_cannot_be_read_yet_is_waited_for() -> None:
    scene = Scene()
    scene.loading()
    scene.handle(FULL)
    assert (scene.job.status, scene.job.commits.paused) == ("loading", FULL.text)
    scene.handle(OPENED)
    assert (scene.job.status, scene.job.commits.paused) == ("running", "")


# ---- what was sealed is committed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("retry", [False, True])
def test_a_job_that_fails_while_a_checkpoint_is_written_commits_that_first(retry: bool) -> None:
    scene = Scene(rounds=4, attempts=1)
    scene.here("c1", "c2")
    scene.running()
    scene.is_saving(1, ["c1"])
    scene.has_round(number=2, accepted={"c2": 0})
    scene.job.rounds.committed = 0
    led = scene.handle(o.BranchFailed(NUMBER, epoch_of(2, 1), "the rule raised", retry))
    assert [(row.round, row.status) for row in led.rows] == [(2, "failed")]
    assert [(conn, word.round) for conn, word in led.said(cm.RoundOver)] == [(2, 2)]
    assert (scene.job.over, scene.job.round) == (False, None)
    assert scene.handle(joined("c3")) == Led(), "no round begins for it"
    led = scene.handle(o.ModelSaved(NUMBER, epoch_of(1, 1)))
    committed, over = led.rows
    assert (committed.round, committed.status) == (1, "committed")
    assert isinstance(over, fx.SaveJob) and over.status == "failed" and "the rule raised" in over.reason
    assert led.said(cm.Committed) == [(1, cm.Committed("j", 1, counted=True))]


def test_a_job_whose_deadlines_pass_while_a_checkpoint_is_written_commits_that_first() -> None:
    scene = Scene(rounds=4, attempts=1)
    scene.running()
    scene.is_saving(1, ["c1"])
    scene.has_round(number=2)
    scene.job.rounds.committed = 0
    scene.do(scene.coordinator.tick, at=1000.0)
    assert not scene.job.over
    assert scene.coordinator.next_timer() == float("inf")
    scene.handle(o.ModelSaved(NUMBER, epoch_of(1, 1)))
    assert scene.job.status == "failed"


def test_a_cancel_does_not_wait_for_it() -> None:
    scene = Scene()
    scene.running()
    scene.is_saving(1, ["c1"])
    scene.do(scene.coordinator.cancel, "j")
    assert scene.job.status == "cancelled"


# ---- a checkpoint is damaged -----------------------------------------------------------------------------------------

STORED = {0: (0, ("d0",)), 1: (1, ("d1",)), 2: (3, ("d2", "s2"))}


def resumed(scene: Scene, committed: int = 2, stored: object = STORED, **more: object) -> Job:
    job = scene.coordinator.make(scene.spec)
    counted = {number: frozenset({f"c{number}"}) for number in range(1, committed + 1)}
    job.resume(committed, counted, more.get("rows", {}), bool(more.get("adopting", False)), stored)
    led = scene.do(scene.coordinator.start, job)
    ((_node, order),) = led.orders
    assert type(order) is o.LoadJob and order.digests == dict(stored).get(committed, (0, ()))[1]
    return job


def test_an_older_model_is_loaded_and_the_rounds_after_it_are_set_aside_and_run_again() -> None:
    scene = Scene(nodes=(HOME, B), rounds=4)
    branches = {"parts": [[1, f"{B:016x}", 2]], "next_part": 2}
    resumed(scene, rows={3: (2, "open", branches)}, adopting=True)
    led = scene.handle(o.JobFailed(NUMBER, "/f/2 is damaged"))
    assert [type(order) for _node, order in led.orders] == [o.CloseJob, o.LoadJob]
    loaded = led.orders[1][1]
    assert (loaded.round, loaded.path, loaded.digests, loaded.adopt) == (
        1,
        "/f/round-00001.safetensors",
        ("d1",),
        False,
    )
    assert led.rows == [], "nothing is set aside before another one is found"
    led = scene.handle(OPENED)
    assert led.rows == [fx.SetAside("j", 1, "/f/2 is damaged"), fx.SaveRound("j", 2, 4, "open", {})]
    assert led.named("model.damaged") == [{"round": 2, "used": 1, "reason": "/f/2 is damaged"}]
    assert [order.adopt for _node, order in led.ordered(o.OpenJob)] == [False]
    assert (scene.job.rounds.committed, scene.job.rounds.counted) == (1, {1: frozenset({"c1"})})
    # The round after it had begun too: it begins under another epoch.
    scene.job.rounds.current = None
    scene.is_saving(2, ["c1"])
    scene.job.rounds.saving[0].epoch = epoch_of(2, 4)
    led = scene.do(scene.job._begin_round)
    assert led.rows == [fx.SaveRound("j", 3, 3, "open", {})]


def test_when_none_can_be_read_nothing_is_set_aside_and_the_job_fails() -> None:
    scene = Scene()
    resumed(scene)
    for _ in range(2):
        assert scene.handle(o.JobFailed(NUMBER, "/f/2 is damaged")).rows == []
    led = scene.handle(o.JobFailed(NUMBER, "/f/0 is lost"))
    text = "none of the last 3 checkpoints can be used; of the newest: /f/2 is damaged"
    assert led.rows == [fx.SaveJob("j", "failed", text)]


def test_rounds_that_were_set_aside_in_an_earlier_life_begin_under_another_epoch() -> None:
    scene = Scene(rounds=4)
    resumed(scene, 1, rows={2: (3, "damaged", {}), 3: (1, "damaged", {})})
    assert scene.handle(OPENED).rows == [fx.SaveRound("j", 2, 4, "open", {})]


def test_a_checkpoint_of_an_earlier_version_has_no_digest_and_that_is_said() -> None:
    scene = Scene(rounds=4)
    resumed(scene, 1, {1: (1, ())})
    (said,) = scene.handle(OPENED).named("model.unchecked")
    assert said["round"] == 1


def test_one_that_can_be_read_is_used_without_a_word() -> None:
    scene = Scene(rounds=4)
    resumed(scene)
    led = scene.handle(OPENED)
    assert led.events == [("job.running", {"rounds": 4})]


def test_a_new_job_whose_file_cannot_be_read_fails() -> None:
    scene = Scene()
    scene.loading()
    scene.job.start()
    scene.led()
    assert scene.handle(o.JobFailed(NUMBER, "NaN")).rows == [fx.SaveJob("j", "failed", "NaN")]


def test_what_running_jobs_are_promised_at_home_is_in_no_other_jobs_plan() -> None:
    scene = Scene(nodes=(HOME, B))
    nodes = scene.coordinator.nodes
    assert nodes.promised == {}
    scene.do(scene.coordinator.queue.go_on, scene.loading())
    scene.handle(OPENED)
    need, whole = scene.spec.bytes_min(), nodes.get(HOME).arena_bytes
    assert nodes.promised == {NUMBER: {HOME: need}}
    for job, left in ((None, whole), (NUMBER, whole), (NUMBER + 1, whole - need)):
        assert [each.arena_bytes for each in nodes.facts(0.0, job=job)] == [left, nodes.get(B).arena_bytes]
        assert nodes.has_room(left, job) and not nodes.has_room(left + 1, job)
    scene.do(scene.coordinator.cancel, "j")
    assert nodes.promised == {}

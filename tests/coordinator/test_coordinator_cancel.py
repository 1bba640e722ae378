"""A job ends before its last round: cancelled by the user, or failed."""

from __future__ import annotations

import pytest
from coordinator_scene import B, CLOSED, HOME, NUMBER, RECOVERING, Led, Scene, admit, joined, sealed

from lifl.core import effects as fx
from lifl.core.coordinator.branch_record import BranchState
from lifl.core.coordinator.round import Phase
from lifl.core.errors import Refused
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm

CANCELLED = "cancelled by the user"


def test_a_cancelled_job_frees_everything_everywhere_and_its_clients_are_told() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.here("c1", "c2")
    scene.here("c3", node=B)
    round_ = scene.has_round(number=2, accepted={"c1": 0}, selected=["c3"])
    saving = scene.is_saving(1, ["c2"])
    scene.job.rounds.committed = 0
    led = scene.do(scene.coordinator.cancel, "j")
    over, job_over = "the job is cancelled", cm.JobOver("j", "cancelled", CANCELLED)
    assert led == Led(
        orders=[(HOME, o.CloseJob(NUMBER)), (B, o.CloseJob(NUMBER))],
        told=[
            (HOME, 1, cm.RoundOver("j", 2, over)),
            (HOME, 2, cm.RoundOver("j", 1, over)),
            (HOME, 1, job_over),
            (HOME, 2, job_over),
            (B, 3, cm.RoundOver("j", 2, over)),
            (B, 3, job_over),
        ],
        rows=[fx.SaveJob("j", "cancelled", CANCELLED)],
        events=[("job.over", {"status": "cancelled", "reason": CANCELLED})],
    )
    assert round_.phase is saving.phase is Phase.FAILED  # COLLECTING, SAVING -> FAILED
    assert (scene.job.status, scene.job.reason, scene.coordinator.running) == ("cancelled", CANCELLED, {})


@pytest.mark.parametrize(
    ("phase", "state"), [(Phase.WAITING, None), (Phase.RECOVERING, RECOVERING), (Phase.AGGREGATING, CLOSED)]
)
def test_it_ends_in_every_phase_of_its_round(phase: Phase, state: BranchState | None) -> None:
    scene = Scene()
    round_ = scene.has_round(phase, [(HOME, 2, state)] if state else [])
    scene.do(scene.coordinator.cancel, "j")
    assert round_.phase is Phase.FAILED
    assert scene.job.round is None


def test_a_job_that_is_not_there_or_over_cannot_be_cancelled() -> None:
    scene = Scene()
    with pytest.raises(Refused, match="no job 'j'"):
        scene.coordinator.cancel("j")
    scene.running()
    scene.do(scene.coordinator.cancel, "j")
    with pytest.raises(Refused, match="job 'j' is cancelled already") as refused:
        scene.coordinator.cancel("j")
    assert refused.value.code == "job-over"
    assert scene.led() == Led()


def test_a_job_that_cannot_go_on_at_a_node_fails() -> None:
    scene = Scene()
    scene.loading()
    led = scene.handle(o.JobFailed(NUMBER, "no such file"))
    assert led.rows == [fx.SaveJob("j", "failed", "no such file")]
    assert scene.job.over


def test_what_comes_for_a_job_that_is_over_is_answered_or_dropped() -> None:
    scene = Scene()
    scene.here("c1")
    scene.has_round(accepted={"c1": 0}, granted={"c2": 0})
    scene.do(scene.coordinator.cancel, "j")
    assert scene.handle(sealed("c2")) == Led()
    assert scene.do(scene.coordinator.tick, at=1000.0) == Led()
    assert scene.coordinator.next_timer() == float("inf")
    assert not scene.coordinator.busy()
    ((_node, _conn, refusal),) = scene.handle(admit("c2")).told
    assert refusal.code == "round-over"
    assert scene.handle(joined("c1")) == Led(told=[(HOME, 1, cm.JobOver("j", "cancelled", CANCELLED))])
    assert scene.handle(gm.ClientLeft(1)) == Led()


def test_a_job_that_was_over_in_an_earlier_life_is_recalled_for_its_clients() -> None:
    scene = Scene()
    job = scene.coordinator.make(scene.spec)
    job.resume(2, {1: frozenset({"c1"}), 2: frozenset()}, {}, False)
    assert scene.do(scene.coordinator.recall, job, "finished", "") == Led()
    told = [message for _node, _conn, message in scene.handle(joined("c1", holding=1)).told]
    text = "the round was committed without this update"
    over = cm.JobOver("j", "finished", "")
    assert told == [cm.Committed("j", 1, counted=True), cm.RoundOver("j", 2, text), over]

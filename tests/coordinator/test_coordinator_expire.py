"""Time passes: deadlines with and without a quorum, attempts, and when the clock is to be looked at next."""

from __future__ import annotations

import math

from coordinator_scene import CLOSED, EPOCH, HOME, NUMBER, OPEN, RECOVERING, B, Led, Scene

from lifl.core import effects as fx
from lifl.core.coordinator.round import Phase
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o

RAISE = ": raise selection.deadline_s above the time that training takes, or lower selection.quorum"


def test_a_deadline_with_a_quorum_closes_the_round() -> None:
    scene = Scene(goal=3, quorum=1)
    scene.has_round(accepted={"c1": 0})
    assert scene.do(scene.coordinator.tick, at=99.0) == Led()
    led = scene.do(scene.coordinator.tick, at=100.0)
    deadline = ("round.deadline", {"round": 1, "accepted": 1})
    assert led == Led(orders=[(HOME, o.CloseBranch(NUMBER, EPOCH, 0))], events=[deadline])
    assert scene.round.phase is Phase.AGGREGATING  # COLLECTING -> AGGREGATING


def test_a_deadline_without_a_quorum_fails_the_attempt_and_the_next_one_begins() -> None:
    scene = Scene(goal=3, nodes=(HOME, B))
    scene.here("c1", "c2")
    failed = scene.has_round(branches=[(HOME, 2, OPEN), (B, 1, OPEN)], accepted={"c1": 0}, selected=["c2"])
    led = scene.do(scene.coordinator.tick, at=100.0)
    reason = "deadline of 100 s passed with 1 updates accepted; the quorum is 3" + RAISE
    assert led.orders == [(HOME, o.DropBranch(NUMBER, EPOCH)), (B, o.DropBranch(NUMBER, EPOCH))]
    assert led.told == [(HOME, 1, cm.RoundOver("j", 1, reason)), (HOME, 2, cm.RoundOver("j", 1, reason))]
    assert [(row.attempt, row.status) for row in led.rows] == [(1, "failed"), (2, "open")]
    assert led.rows[0].fields["reason"] == reason
    assert led.rows[0].fields["receipt"]["counted"] == 0
    assert led.events == [("round.failed", {"round": 1, "reason": reason})]
    assert (failed.phase, failed.reason) == (Phase.FAILED, reason)
    assert (scene.round.number, scene.round.attempt, scene.round.deadline_at_s) == (1, 2, 200.0)


def test_after_the_last_attempt_the_job_fails() -> None:
    scene = Scene(attempts=1)
    scene.has_round()
    led = scene.do(scene.coordinator.tick, at=100.0)
    text = "round 1 failed 1 times, at last: deadline of 100 s passed with 0 updates accepted; the quorum is 2" + RAISE
    assert led.rows[-1] == fx.SaveJob("j", "failed", text)
    assert (scene.job.status, scene.coordinator.running) == ("failed", {})


def test_epochs_run_out_before_they_are_used_twice() -> None:
    scene = Scene(attempts=100)
    scene.has_round(attempt=255)
    scene.do(scene.coordinator.tick, at=100.0)
    assert scene.job.status == "failed"


def test_a_round_that_waits_for_clients_begins_with_a_quorum_at_its_deadline() -> None:
    scene = Scene(quorum=1)
    scene.here("c1")
    scene.has_round(Phase.WAITING, [])
    assert scene.coordinator.next_timer() == 100.0
    assert scene.do(scene.coordinator.tick, at=99.0) == Led()
    led = scene.do(scene.coordinator.tick, at=100.0)
    assert led.named("round.opened") == [{"round": 1, "selected": 1, "goal": 2}]
    assert scene.round.phase is Phase.COLLECTING  # WAITING -> COLLECTING


def test_a_round_that_waits_for_clients_begins_though_another_event_comes_at_its_deadline() -> None:
    scene = Scene(quorum=1)
    scene.here("c1")
    scene.has_round(Phase.WAITING, [])
    scene.do(lambda: None, at=100.5)
    assert scene.coordinator.next_timer() == 100.0
    scene.do(scene.coordinator.tick)
    assert scene.round.phase is Phase.COLLECTING


def test_a_round_that_has_no_quorum_at_its_deadline_waits_on() -> None:
    scene = Scene(quorum=1)
    scene.has_round(Phase.WAITING, [])
    assert scene.do(scene.coordinator.tick, at=100.0) == Led()
    assert scene.coordinator.next_timer() == math.inf  # for a client


def test_the_clock_is_looked_at_when_something_is_due() -> None:
    scene = Scene()
    assert scene.coordinator.next_timer() == math.inf
    scene.running()
    assert scene.coordinator.next_timer() == math.inf
    assert scene.do(scene.coordinator.tick) == Led()
    round_ = scene.has_round()
    assert scene.coordinator.next_timer() == 100.0
    round_.replan_at_s = 7.0
    assert scene.coordinator.next_timer() == 7.0
    round_.phase = Phase.AGGREGATING
    assert scene.coordinator.next_timer() == math.inf
    assert scene.do(scene.coordinator.tick, at=100.0) == Led()


def test_a_round_that_can_begin_with_all_clients_only_has_no_deadline_to_wait_for() -> None:
    scene = Scene()
    scene.has_round(Phase.WAITING, [])
    assert scene.coordinator.next_timer() == math.inf


def test_a_recovering_round_is_looked_at_when_the_nodes_have_had_their_time() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.has_round(Phase.RECOVERING, [(HOME, 1, CLOSED), (B, 1, RECOVERING)])
    scene.round.deadline_at_s = 10.0
    assert scene.coordinator.next_timer() == 10.0
    scene.turn.now = 10.0
    assert scene.coordinator.next_timer() == 10.0, "until it was looked at"
    scene.do(scene.coordinator.tick)
    assert scene.coordinator.next_timer() == math.inf

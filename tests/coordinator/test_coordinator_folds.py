"""A session of folds, as the coordinator has it: what its agent reports, and the books beside other jobs'."""

from __future__ import annotations

import pytest
from coordinator_scene import HOME, LAYOUT, NUMBER, Scene, members

from lifl.core import effects as fx
from lifl.core.config.job import fold_job, most_of
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.presence import Connection
from lifl.core.coordinator.round_planner import RoundPlanner
from lifl.core.coordinator.session import Session
from lifl.core.errors import Refused
from lifl.core.ids import epoch_of
from lifl.core.limits import SESSION_ROOM_S
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import folds as fm


def test_a_session_goes_on_behind_the_result_that_its_agent_has_found() -> None:
    scene = Scene()
    scene.spec = JobSpec(NUMBER, fold_job("j", 2, "fedavg", {}), LAYOUT, (), "")
    session = scene.loading()
    assert isinstance(session, Session)
    scene.led()
    fold = epoch_of(3, 2)
    scene.handle(o.FoldAdopted(NUMBER, 3, fold, members("c1", "c2")), HOME)
    session.hosted(Connection(HOME, 7))
    led = scene.handle(o.JobOpened(NUMBER), HOME)
    assert led.said(fm.SessionReady) == [(7, fm.SessionReady("j", 3, fold, "home:1"))]
    led = scene.do(session.open_fold, fold, 2)
    assert led.said(fm.FoldDone) == [(7, fm.FoldDone("j", fold, 2.0, {}, ("c1", "c2")))]
    led = scene.do(session.open_fold, epoch_of(4, 1), 2)
    assert led.said(fm.FoldOpen) == [(7, fm.FoldOpen("j", epoch_of(4, 1), most_of(2)))]
    assert not led.rows, "a fold writes no row"


def waiting_session(scene: Scene) -> Session:
    """A session whose host is there, and whose agent has no room for it yet."""
    scene.spec = JobSpec(NUMBER, fold_job("j", 2, "fedavg", {}), LAYOUT, (), "")
    session = scene.coordinator.make(scene.spec)
    scene.coordinator.start(session)
    assert isinstance(session, Session)
    session.hosted(Connection(HOME, 7))
    scene.led()
    return session


def test_a_session_for_which_there_is_no_room_is_refused_after_a_while_and_forgotten() -> None:
    scene = Scene()
    waiting_session(scene)
    led = scene.do(scene.coordinator.tick, at=SESSION_ROOM_S - 0.1)
    assert not led.told
    assert scene.coordinator.next_timer() == SESSION_ROOM_S
    led = scene.do(scene.coordinator.tick, at=SESSION_ROOM_S)
    [(conn, refusal)] = led.said(cm.Refusal)
    assert (conn, refusal.code, refusal.job) == (7, "no-room", "j")
    assert str(scene.spec.bytes_min()) in refusal.text
    assert not led.said(cm.JobOver), "the refusal is the answer, and the only one"
    assert led.rows == [fx.DropJob("j", NUMBER)]
    assert "j" not in scene.coordinator.jobs


def test_a_session_that_gets_its_room_in_time_is_open_for_as_long_as_its_host_likes() -> None:
    scene = Scene()
    session = waiting_session(scene)
    assert scene.handle(o.JobOpened(NUMBER), HOME, at=SESSION_ROOM_S - 0.1).said(fm.SessionReady)
    assert not scene.do(scene.coordinator.tick, at=10 * SESSION_ROOM_S).told
    assert not session.over


def test_what_was_accepted_waits_for_room_as_long_as_it_takes() -> None:
    scene = Scene()
    scene.spec = JobSpec(NUMBER, fold_job("j", 2, "fedavg", {}), LAYOUT, (), "")
    session = scene.coordinator.make(scene.spec)
    session.resume(0, {}, {}, adopting=True)
    scene.coordinator.start(session)
    assert isinstance(session, Session)
    session.hosted(Connection(HOME, 7))
    scene.do(scene.coordinator.tick, at=10 * SESSION_ROOM_S)
    assert not session.over


def test_a_fold_that_never_fits_is_refused_by_what_its_host_can_change() -> None:
    scene = Scene()
    spec = JobSpec(NUMBER, fold_job("j", 2, "fedavg", {}), LAYOUT, (), "")
    with pytest.raises(Refused, match="arena_bytes=") as refused:
        RoundPlanner(spec, scene.turn, scene.coordinator.nodes).check(spec.bytes_min() - 1)
    assert refused.value.code == "too-large"
    for key in ("middle_fan_in", "clients_per_round"):
        assert key not in refused.value.text, "a key of a job's file, which an Aggregator has not"
    RoundPlanner(spec, scene.turn, scene.coordinator.nodes).check(spec.bytes_min())

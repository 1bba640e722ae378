"""A session of folds, as the coordinator has it: what its agent reports, and the books beside other jobs'."""

from __future__ import annotations

from coordinator_scene import HOME, LAYOUT, NUMBER, Scene, members

from lifl.core.config.job import fold_job, most_of
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.presence import Connection
from lifl.core.coordinator.session import Session
from lifl.core.ids import epoch_of
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

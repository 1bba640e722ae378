"""A fault in one job's books ends that job here, and no other; a second one of the same job is the engine's."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, NUMBER, SCENES, Scene

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.job_replica import JobReplica
from lifl.core.errors import Impossible
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o


def faulty(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """All that the job does by this method is wrong from now on."""
    right = getattr(JobReplica, method)

    def wrong(replica: JobReplica, *given: object) -> object:
        if replica.spec.number == NUMBER:
            raise KeyError("c1")
        return right(replica, *given)

    monkeypatch.setattr(JobReplica, method, wrong)


@pytest.mark.parametrize("method", ["settle", "obey", "act"])
def test_the_job_is_dropped_and_the_coordinator_told_what_is_left(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.has_model()
    scene.has_model(2, "k")
    scene.has_branch(2)
    scene.upload("c1")
    scene.upload("c2")
    scene.all_ready()
    (top,) = scene.tasks()
    faulty(monkeypatch, method)
    led = scene.handle(o.CloseBranch(NUMBER, EPOCH, 0)) if method != "act" else scene.done(top, "c1", "c2")
    broke = [each for each in led if isinstance(each, fx.JobBroke)]
    assert [(each.job, each.text) for each in broke] == [(NUMBER, "KeyError: 'c1'")]
    assert [each.jobs for each in led if isinstance(each, p.Inventory)] == [(2,)]
    assert list(scene.agent.replicas) == [2]
    scene.engine.validate()
    assert scene.handle(ev.Tick()) == []
    SCENES.clear()  # the replay meets no fault


def test_a_second_fault_of_the_job_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.has_model()
    faulty(monkeypatch, "settle")
    scene.handle(o.ModelAt(NUMBER, 1, "home:1"))
    assert not scene.agent.replicas
    with pytest.raises(Impossible, match="c1"):
        scene.handle(scene.open_job())
    SCENES.clear()

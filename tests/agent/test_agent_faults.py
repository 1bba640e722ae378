"""A fault in one job's books ends that job here, and no other; a second one of the same job is the engine's."""

from __future__ import annotations

from typing import Any

import pytest
from agent_scene import EPOCH, NUMBER, SCENES, Scene

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.branch_runner import BranchRunner
from lifl.core.agent.job_replica import JobReplica
from lifl.core.agent.model_slot import ModelSlot
from lifl.core.errors import Impossible
from lifl.core.ids import Key
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm


def faulty(monkeypatch: pytest.MonkeyPatch, method: str, owner: Any = JobReplica) -> None:
    """All that the job does by this method is wrong from now on."""
    right = getattr(owner, method)

    def wrong(part: Any, *given: object) -> object:
        spec = part.spec if owner is JobReplica else part._spec
        if spec.number == NUMBER:
            raise KeyError("c1")
        return right(part, *given)

    monkeypatch.setattr(owner, method, wrong)


def check_dropped(scene: Scene, led: list[Any]) -> None:
    """The job is no more here, what is left is right, and another fault of it would be the engine's."""
    broke = [each for each in led if isinstance(each, fx.JobBroke)]
    assert [(each.job, each.text) for each in broke] == [(NUMBER, "KeyError: 'c1'")]
    assert [each.jobs for each in led if isinstance(each, p.Inventory)] == [(2,)]
    assert list(scene.agent.replicas) == [2]
    scene.engine.validate()
    assert scene.handle(ev.Tick()) == []
    SCENES.clear()  # the replay meets no fault


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
    check_dropped(scene, led)


@pytest.mark.parametrize("what", ["grant", "aborted", "gateway lost", "partial", "model", "fetched"])
def test_so_it_is_in_whatever_part_the_fault_is(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    if what == "fetched":
        scene.has_job()
        scene.has_model(2, "k")
        scene.handle(gm.WantModel(5, "j", 1))
        (fetch,) = scene.handle(o.ModelAt(NUMBER, 0, "home:1"))
        faulty(monkeypatch, "fetched")
        check_dropped(scene, scene.handle(gm.FetchEnded(fetch.key, "gone", 0)))
        return
    scene.has_model()
    scene.has_model(2, "k")
    if what == "model":
        faulty(monkeypatch, "serve", ModelSlot)
        check_dropped(scene, scene.handle(gm.WantModel(5, "j", 1)))
        return
    scene.has_branch(4, others=(1,))
    if what == "grant":
        faulty(monkeypatch, "admit", BranchRunner)
        check_dropped(scene, scene.grant("c1"))
    elif what == "partial":
        (granted,) = scene.handle(gm.Offered(7, NUMBER, EPOCH, 1, 1, scene.layout.accumulator_bytes, 50))
        scene.arena.seal(Key.unpack(granted.key), "c9")
        faulty(monkeypatch, "arrived")
        check_dropped(scene, scene.handle(gm.Sealed(7, granted.key, 10)))
    else:
        scene.grant("c1")
        faulty(monkeypatch, "aborted", BranchRunner)
        aborted = gm.Aborted(1, scene.keys["c1"].pack(), "gone")
        check_dropped(scene, scene.handle(aborted if what == "aborted" else gm.GatewayLost()))


def test_a_second_fault_of_the_job_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.has_model()
    faulty(monkeypatch, "settle")
    scene.handle(o.ModelAt(NUMBER, 1, "home:1"))
    assert not scene.agent.replicas
    with pytest.raises(Impossible, match="c1"):
        scene.handle(scene.open_job())
    SCENES.clear()

"""A model is written to its file by a worker, and stays in the arena until it is."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, NUMBER, Scene

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.pool import WorkerState
from lifl.core.ids import epoch_of
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm

SAVE = o.SaveModel(NUMBER, EPOCH, "/c1", "/s1")


def scene_of(states: tuple[str, ...] = (), ready: bool = True) -> Scene:
    """The model is being written by worker 1."""
    scene = Scene(states=states)
    scene.has_model()
    scene.handle(SAVE)
    if ready:
        scene.ready(1)
    return scene


def checkpoint(scene: Scene, attempt: int = 1) -> wm.Checkpoint:
    slot = scene.slot
    named = {name: key.pack() for name, key in slot.states.items()}
    at = (1, attempt, "j", 1, "/c1", scene.layout.packed, slot.model.pack(), "/s1", named)
    return wm.Checkpoint(*at, NUMBER, EPOCH)


@pytest.mark.parametrize("states", [(), ("m", "v")])
def test_a_worker_writes_model_and_states_which_are_pinned(states: tuple[str, ...]) -> None:
    scene = scene_of(states, ready=False)
    assert scene.ready(1) == [fx.SendWorker(1, checkpoint(scene))]
    assert scene.slot.pins == dict.fromkeys([scene.slot.model, *scene.slot.states.values()], 1)


def test_an_initial_model_has_no_states_to_write() -> None:
    scene = Scene(states=("m",))
    scene.has_model()
    scene.agent.quota.free(scene.slot.states.pop("m"))
    scene.anew()
    scene.handle(SAVE)
    (told,) = scene.ready(1)
    assert told.message.states == {}


def test_a_file_that_is_written_is_reported_and_the_pins_end() -> None:
    scene = scene_of()
    led = scene.done(scene.agent.tasks.at(1).task, worker=1)
    assert led == [o.ModelSaved(NUMBER, EPOCH)]
    assert (scene.slot.pins, scene.agent.tasks.find(1)) == ({}, None)
    assert scene.agent.pool.workers[1].state is WorkerState.IDLE  # BUSY -> IDLE


def test_a_model_that_is_replaced_while_it_is_written_stays_until_it_is() -> None:
    scene = scene_of()
    model = scene.slot.model
    scene.handle(o.ModelAt(NUMBER, 1, "other:1"))
    assert model in scene.arena.objects
    scene.done(scene.agent.tasks.at(1).task, worker=1)
    assert scene.arena.objects == {}


def test_the_end_of_the_gateway_does_not_end_the_writing() -> None:
    scene = scene_of()
    model = scene.slot.model
    scene.handle(gm.WantModel(5, "j", 1))
    assert scene.slot.pins == {model: 2}
    scene.handle(gm.GatewayLost())
    assert scene.slot.pins == {model: 1}


def test_a_file_that_cannot_be_written_fails_the_job_and_its_end_frees_it() -> None:
    scene = scene_of()
    led = scene.handle(ev.FromWorker(1, wm.TaskFailed(1, 1, "no space left")))
    assert led == [o.JobFailed(NUMBER, "the checkpoint could not be written: no space left")]
    scene.handle(o.CloseJob(NUMBER))
    assert (scene.arena.objects, scene.agent.tasks.find(1)) == ({}, None)


def test_a_worker_that_dies_while_it_writes_is_followed_by_another() -> None:
    scene = scene_of()
    assert scene.handle(ev.WorkerGone(1)) == [fx.Route(1, None), fx.ForkWorker(2)]
    assert scene.ready(2) == [fx.SendWorker(2, checkpoint(scene, attempt=2))]


def test_two_rounds_may_be_written_at_once() -> None:
    scene = scene_of()
    second = o.SaveModel(NUMBER, epoch_of(2, 1), "/c2")
    assert scene.handle(second) == [fx.ForkWorker(2)]
    assert scene.slot.pins == {scene.slot.model: 2}
    scene.ready(2)
    assert scene.done(scene.agent.tasks.at(2).task, worker=2) == [o.ModelSaved(NUMBER, second.epoch)]
    assert scene.slot.pins == {scene.slot.model: 1}


def test_a_job_that_is_closed_while_its_model_is_written_lets_go_of_it_when_the_worker_has() -> None:
    scene = scene_of(states=("m",))
    led = scene.handle(o.CloseJob(NUMBER))
    assert led == [fx.Route(1, None), fx.SendWorker(1, wm.Drop(1, 1)), gm.JobForget("j")]
    assert len(scene.arena.objects) == 2, "the worker still reads them"
    assert scene.handle(ev.FromWorker(1, wm.TaskDropped(1, 1))) == []
    assert scene.arena.objects == {}


def test_what_is_written_and_sent_when_its_job_is_closed_goes_with_the_last_reader() -> None:
    for worker_first in (False, True):
        scene = scene_of()
        model = scene.slot.model
        scene.handle(gm.WantModel(5, "j", 1))
        scene.handle(o.CloseJob(NUMBER))
        ends = [ev.FromWorker(1, wm.TaskDropped(1, 1)), gm.ModelSent(5, model.pack(), 10)]
        for end in ends if worker_first else reversed(ends):
            assert list(scene.arena.objects) == [model]
            assert scene.handle(end) == []
        assert scene.arena.objects == {}


def test_a_model_that_is_not_here_cannot_be_written() -> None:
    scene = Scene()
    scene.has_job()
    (broke,) = [each for each in scene.handle(SAVE) if isinstance(each, fx.JobBroke)]
    assert "job 'j' has no model to save" in broke.text
    assert not scene.agent.replicas

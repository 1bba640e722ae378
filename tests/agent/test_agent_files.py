"""A job's files on a node: a full disk is waited for, and what is being written stays as it is until it is."""

from __future__ import annotations

import math

import pytest
from agent_scene import EPOCH, NUMBER, Scene

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.ids import Kind, epoch_of
from lifl.core.limits import FILE_RETRY_S, FILE_RETRY_S_MAX
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm

SAVE = o.SaveModel(NUMBER, EPOCH, "/f/1")


def saving(scene: Scene, worker: int = 1) -> wm.Checkpoint:
    """A worker writes the job's model; what it was told."""
    scene.has_model()
    scene.handle(SAVE)
    (start,) = scene.ready(worker)
    assert isinstance(start.message, wm.Checkpoint)
    return start.message


def failed(message: wm.Checkpoint | wm.Load, text: str = "no space", retry: bool = True) -> ev.FromWorker:
    return ev.FromWorker(1, wm.TaskFailed(message.address, message.attempt, text, retry))


def done(message: wm.Checkpoint, *digests: str) -> ev.FromWorker:
    return ev.FromWorker(1, wm.TaskDone(message.address, message.attempt, 0.0, 0, 0, 0.0, 0.0, digests=digests))


def test_a_checkpoint_names_its_job_and_round_and_its_digests_are_reported() -> None:
    scene = Scene()
    order = saving(scene)
    assert (order.number, order.round, order.epoch) == (NUMBER, 1, EPOCH)
    assert scene.handle(done(order, "abc")) == [o.ModelSaved(NUMBER, EPOCH, ("abc",))]


def test_a_checkpoint_that_cannot_be_written_now_is_told_of_and_tried_again() -> None:
    scene = Scene(idle_timeout_s=1e6)
    order = saving(scene)
    model = scene.slot.model
    text = "the checkpoint could not be written: no space"
    assert scene.handle(failed(order), at=10.0) == [o.FilePaused(NUMBER, text)]
    wait_s = FILE_RETRY_S
    for attempt in range(2, 12):
        due_s = scene.now + wait_s
        assert scene.replica.files.due_s == due_s and scene.engine.next_timer() is not None
        assert scene.handle(ev.Tick(), at=due_s - 0.01) == []
        (again,) = scene.handle(ev.Tick(), at=due_s)
        assert (again.message.attempt, again.message.model) == (attempt, model.pack())
        assert scene.replica.files.due_s == math.inf
        scene.handle(failed(again.message))
        wait_s = min(2 * wait_s, FILE_RETRY_S_MAX)
    (again,) = scene.handle(ev.Tick(), at=scene.now + wait_s)
    assert scene.handle(done(again.message)) == [o.ModelSaved(NUMBER, EPOCH)]
    assert scene.arena.of(Kind.MODEL) == [model]


def test_one_that_never_can_be_fails_the_job() -> None:
    scene = Scene()
    order = saving(scene)
    text = "the checkpoint could not be written: too long"
    assert scene.handle(failed(order, "too long", retry=False)) == [o.JobFailed(NUMBER, text)]


def test_a_model_whose_folder_is_not_there_is_waited_for() -> None:
    scene = Scene()
    scene.has_job(path="/m")
    (start,) = scene.ready(1)
    assert scene.handle(failed(start.message, "no disk")) == [
        o.FilePaused(NUMBER, "the model could not be read: no disk")
    ]
    (again,) = scene.handle(ev.Tick(), at=FILE_RETRY_S)
    assert again == fx.SendWorker(1, wm.Load(1, 2, "j", "/m", scene.layout.packed, scene.slot.model.pack(), number=1))


def test_a_jobs_own_checkpoint_is_loaded_as_such() -> None:
    scene = Scene()
    order = scene.open_job(path="/f/3", round=3)
    named = {name: getattr(order, name) for name in order.__struct_fields__}
    scene.handle(o.LoadJob(**named, digests=("abc",)))
    (start,) = scene.ready(1)
    assert (start.message.number, start.message.round, start.message.digests) == (NUMBER, 3, ("abc",))


def test_a_job_that_ends_while_its_checkpoint_waits_frees_it_at_once() -> None:
    scene = Scene()
    scene.handle(failed(saving(scene)))
    scene.handle(o.CloseJob(NUMBER))
    assert (scene.arena.objects, scene.engine.next_timer()) == ({}, scene.agent.pool.next_timer())


@pytest.mark.parametrize("end", ["dropped", "done", "failed", "gone"])
def test_a_job_that_ends_while_its_checkpoint_is_written_frees_the_model_when_the_worker_has_let_go(end: str) -> None:
    """Else another job's numbers would come to stand in its place, and in the file."""
    scene = Scene(states=("m",))
    order = saving(scene)
    kept = {scene.slot.model, *scene.slot.states.values()}
    assert scene.handle(o.CloseJob(NUMBER))[1:] == [
        fx.SendWorker(1, wm.Drop(order.address, order.attempt)),
        gm.JobForget("j"),
    ]
    assert set(scene.arena.objects) == kept
    scene.handle(gm.GatewayLost())
    assert set(scene.arena.objects) == kept, "the gateway has nothing to do with it"
    events = {
        "dropped": ev.FromWorker(1, wm.TaskDropped(order.address, order.attempt)),
        "done": done(order),
        "failed": failed(order),
        "gone": ev.WorkerGone(1),
    }
    scene.handle(events[end])
    assert scene.arena.objects == {}


def test_a_model_that_is_sent_and_written_when_its_job_ends_is_freed_after_both() -> None:
    scene = Scene()
    order = saving(scene)
    scene.handle(gm.WantModel(5, "j", 1))
    model = scene.slot.model
    scene.handle(o.CloseJob(NUMBER))
    scene.handle(ev.FromWorker(1, wm.TaskDropped(order.address, order.attempt)))
    assert list(scene.arena.objects) == [model], "the gateway sends it"
    scene.handle(gm.ModelSent(5, model.pack(), 10))
    assert scene.arena.objects == {}


def test_an_older_checkpoint_is_loaded_in_the_place_of_one_that_is_damaged() -> None:
    scene = Scene()
    scene.has_job(path="/f/2", round=2)
    (start,) = scene.ready(1)
    assert scene.handle(failed(start.message, "damaged", retry=False))[0].text.endswith("damaged")
    scene.handle(o.CloseJob(NUMBER))
    assert scene.arena.objects == {}
    led = scene.handle(scene.open_job(path="/f/1", round=1))
    assert [each.message.path for each in led] == ["/f/1"]
    assert scene.arena.epoch_of(scene.slot.model) == epoch_of(1, 0)

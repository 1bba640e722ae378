"""A user's function looks at a job's model, in a worker of the job's own; what it does ends its task alone."""

from __future__ import annotations

from typing import Any

from agent_scene import NUMBER, Scene

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.worker_watch import LOOK_S
from lifl.core.ids import Kind
from lifl.core.protocol import commands as o
from lifl.core.protocol import worker as wm
from lifl.core.protocol.evaluations import EvaluateModel, ModelEvaluated
from lifl.core.protocol.user_calls import SELECTS, STOPS, CallFunction, FunctionReturned

ORDER = EvaluateModel(NUMBER, 0, "mine:look", 5.0)


def looking() -> tuple[Scene, wm.Evaluate]:
    """A worker has the model and the function; what it was told."""
    scene = Scene()
    scene.has_model(evaluates=True)
    scene.handle(ORDER)
    (start,) = scene.ready(1)
    assert isinstance(start.message, wm.Evaluate)
    assert scene.agent.pool.workers[1].tied == NUMBER
    assert list(scene.slot.pins) == [scene.slot.model]
    return scene, start.message


def reports(led: list[Any]) -> list[Any]:
    return [each for each in led if isinstance(each, ModelEvaluated)]


def test_what_the_function_finds_is_reported_and_the_model_is_let_go() -> None:
    scene, told = looking()
    assert (told.function, told.model, told.round) == ("mine:look", scene.slot.model.pack(), 0)
    done = wm.TaskDone(told.address, told.attempt, 0.0, 0, 0, 0.1, 0.1, metrics={"loss": 0.5})
    assert scene.handle(ev.FromWorker(1, done)) == [ModelEvaluated(NUMBER, 0, {"loss": 0.5})]
    assert not scene.slot.pins and scene.arena.sealed(scene.slot.model)


def test_one_that_raises_is_told_of_and_the_next_one_begins() -> None:
    scene, told = looking()
    failed = wm.TaskFailed(told.address, told.attempt, "it raised")
    assert reports(scene.handle(ev.FromWorker(1, failed))) == [ModelEvaluated(NUMBER, 0, {}, "it raised")]
    (again,) = scene.handle(ORDER)
    assert isinstance(again, fx.SendWorker) and isinstance(again.message, wm.Evaluate)


def test_one_that_does_not_return_is_told_of_at_its_deadline_and_its_worker_is_killed() -> None:
    scene, _told = looking()
    led: list[Any] = []
    while not reports(led) and scene.now < 60.0:
        led = scene.handle(ev.Tick(), at=scene.now + LOOK_S)
    (report,) = reports(led)
    assert "function mine:look (evaluation.server) did not end within 5 s" in report.fault
    assert [each for each in led if isinstance(each, fx.KillWorker)]
    scene.handle(ev.WorkerGone(1))
    assert not scene.slot.pins


def test_one_that_ends_its_process_each_time_is_given_up() -> None:
    scene, _told = looking()
    led: list[Any] = []
    for worker in range(1, 10):
        led = scene.handle(ev.WorkerGone(worker))
        if reports(led):
            break
        scene.ready(worker + 1)
    assert "mine:look" in reports(led)[0].fault
    assert not scene.slot.pins


def test_a_model_that_is_gone_is_told_of() -> None:
    scene = Scene()
    scene.has_model()
    (report,) = scene.handle(EvaluateModel(NUMBER, 3, "mine:look", 5.0))
    assert report == ModelEvaluated(NUMBER, 3, {}, "the model is not here any more")


def test_a_job_that_is_over_leaves_nothing_and_another_order_takes_the_place() -> None:
    scene, _told = looking()
    scene.handle(ORDER)
    assert list(scene.slot.pins.values()) == [1]
    scene.handle(o.CloseJob(NUMBER))
    assert not scene.agent.replicas and not scene.arena.of(Kind.MODEL)


# ---- functions that look at no model ---------------------------------------------------------------------------------


def test_functions_of_both_kinds_run_beside_each_other_and_hold_no_model() -> None:
    scene = Scene()
    scene.has_model(evaluates=True)
    scene.handle(CallFunction(NUMBER, 1, SELECTS, "mine:pick", b"x", 5.0))
    (pick,) = scene.ready(1)
    scene.handle(CallFunction(NUMBER, 1, STOPS, "mine:enough", b"y", 5.0))
    (enough,) = scene.ready(2)
    assert isinstance(pick.message, wm.Call) and isinstance(enough.message, wm.Call)
    assert (pick.message.function, pick.message.given, pick.message.number) == ("mine:pick", b"x", NUMBER)
    assert not scene.slot.pins and scene.agent.pool.workers[1].tied == NUMBER
    done = wm.TaskDone(enough.message.address, enough.message.attempt, 0.0, 0, 0, 0.1, 0.1, answer=b"z")
    assert scene.handle(ev.FromWorker(2, done)) == [FunctionReturned(NUMBER, 1, STOPS, b"z")]
    failed = wm.TaskFailed(pick.message.address, pick.message.attempt, "it raised")
    assert scene.handle(ev.FromWorker(1, failed))[-1] == FunctionReturned(NUMBER, 1, SELECTS, b"", "it raised")


def test_one_that_hangs_is_killed_and_the_next_call_takes_its_place() -> None:
    scene = Scene()
    scene.has_model(evaluates=True)
    scene.handle(CallFunction(NUMBER, 1, SELECTS, "mine:pick", b"", 5.0))
    scene.ready(1)
    led: list[Any] = []
    while not any(isinstance(each, FunctionReturned) for each in led) and scene.now < 60.0:
        led = scene.handle(ev.Tick(), at=scene.now + LOOK_S)
    (report,) = [each for each in led if isinstance(each, FunctionReturned)]
    assert "function mine:pick (selection.strategy) did not end within 5 s" in report.fault
    assert [each for each in led if isinstance(each, fx.KillWorker)]
    scene.handle(CallFunction(NUMBER, 2, SELECTS, "mine:pick", b"", 5.0))
    scene.handle(CallFunction(NUMBER, 3, SELECTS, "mine:pick", b"", 5.0))
    assert scene.replica.calls[SELECTS]._running[1].call == 3
    scene.handle(o.CloseJob(NUMBER))
    assert not scene.agent.replicas

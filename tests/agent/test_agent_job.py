"""A job is opened and closed on a node: room for it, its files, what is freed at its end."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, NUMBER, Scene, aborted, told

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.model_slot import SlotState
from lifl.core.agent.pool import WorkerState
from lifl.core.errors import Impossible
from lifl.core.ids import Kind, epoch_of
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.small_models import ModelChanged


def load(scene: Scene, attempt: int = 1, address: int = 1, **more: object) -> wm.Load:
    """What a worker is told to read."""
    slot = scene.slot
    states = {name: key.pack() for name, key in slot.states.items()}
    return wm.Load(
        address, attempt, "j", "/m", scene.layout.packed, slot.model.pack(), states=states, number=NUMBER, **more
    )


def test_a_job_whose_model_is_elsewhere_is_open_at_once() -> None:
    scene = Scene()
    led = scene.handle(scene.open_job(round=3))
    assert led == [gm.JobSchema("j", NUMBER, scene.layout.tensors)]
    assert (scene.slot.state, scene.slot.round, scene.slot.model) == (SlotState.ELSEWHERE, 3, None)
    assert scene.arena.objects == {}
    assert scene.engine.schemas() == led


def test_a_job_with_a_file_has_it_read_by_a_worker() -> None:
    scene = Scene()
    assert scene.handle(scene.open_job(path="/m")) == [fx.ForkWorker(1)]
    assert scene.slot.state is SlotState.LOADING  # WAITING -> LOADING
    assert scene.arena.of(Kind.MODEL) == [scene.slot.model]
    assert scene.ready(1) == [fx.SendWorker(1, load(scene))]
    assert scene.engine.schemas() == [gm.JobSchema("j", NUMBER, scene.layout.tensors)]


def test_a_model_that_was_read_opens_the_job() -> None:
    scene = Scene()
    scene.has_job(path="/m")
    scene.ready(1)
    task = scene.agent.tasks.at(1).task
    led = scene.done(task, worker=1)
    assert led == [gm.JobSchema("j", NUMBER, scene.layout.tensors), o.JobOpened(NUMBER)]
    assert (scene.slot.state, task.state) == (SlotState.READY, TaskState.DONE)  # LOADING -> READY, RUNNING -> DONE
    assert scene.agent.tasks.find(1) is None
    assert scene.agent.pool.workers[1].state is WorkerState.IDLE


def test_states_are_read_beside_the_model_once_there_are_any() -> None:
    scene = Scene(states=("m", "v"))
    scene.handle(scene.open_job(path="/m"))
    assert scene.slot.states == {}
    other = Scene(states=("m", "v"))
    other.handle(other.open_job(path="/m", state_path="/s", round=4))
    assert list(other.slot.states) == ["m", "v"]
    assert other.arena.of(Kind.STATE) == list(other.slot.states.values())
    assert other.arena.epoch_of(other.slot.model) == epoch_of(4, 0)
    assert other.ready(1) == [fx.SendWorker(1, load(other, state_path="/s"))]


def test_a_job_that_needs_more_than_the_arena_has_is_read_when_it_is_alone() -> None:
    """It was begun by an earlier version, whose partials were smaller: else it would load for ever."""
    scene = Scene()
    scene.arena.nbytes = scene.need() - 1
    scene.handle(scene.open_job(path="/m"))
    assert scene.slot.state is SlotState.LOADING


def test_a_job_waits_for_room_and_is_read_when_there_is_some() -> None:
    scene = Scene(states=("m",))
    scene.arena.nbytes = 2 * scene.need(states=1) - 1
    scene.has_job(2, "k", path="/k")
    assert scene.handle(scene.open_job(path="/m")) == []
    assert (scene.slot.state, scene.slot.model) == (SlotState.WAITING, None)
    assert scene.engine.schemas() == [gm.JobSchema("k", 2, scene.layout.tensors)]
    led = scene.handle(o.CloseJob(2))
    assert led == [fx.Route(1, None), gm.JobForget("k")]
    assert scene.arena.ended == [2]
    assert scene.slot.state is SlotState.LOADING  # by worker 1, which is being forked
    assert scene.ready(1) == [fx.SendWorker(1, load(scene, address=2))]


@pytest.mark.parametrize("objects", [0, 1])
def test_room_that_is_in_pieces_is_waited_for_too_and_what_was_got_of_it_is_given_back(objects: int) -> None:
    scene = Scene(states=("m",))
    scene.arena.allows = objects  # the model, but not its state
    assert scene.handle(scene.open_job(path="/m", state_path="/s")) == []
    assert (scene.arena.objects, scene.slot.state) == ({}, SlotState.WAITING)
    assert scene.agent.quota.reserve(9, scene.arena.nbytes), "it has given its reservation back"
    scene.agent.quota.release(9)
    scene.arena.allows = None
    scene.anew()
    assert scene.handle(ev.Tick()) == [fx.ForkWorker(1)]


def test_a_model_that_cannot_be_read_fails_the_job_and_its_end_frees_it() -> None:
    scene = Scene()
    scene.has_job(path="/m")
    scene.ready(1)
    failed = ev.FromWorker(1, wm.TaskFailed(1, 1, "no such file"))
    assert scene.handle(failed) == [o.JobFailed(NUMBER, "the model could not be read: no such file")]
    assert scene.agent.pool.workers[1].state is WorkerState.IDLE
    assert scene.handle(o.CloseJob(NUMBER)) == [fx.Route(1, None), gm.JobForget("j")]
    assert (scene.arena.objects, scene.agent.replicas, scene.agent.tasks.find(1)) == ({}, {}, None)


def test_the_text_of_a_failure_is_cut_to_what_a_message_holds() -> None:
    scene = Scene()
    scene.has_job(path="/m")
    scene.ready(1)
    (report,) = scene.handle(ev.FromWorker(1, wm.TaskFailed(1, 1, "x" * TEXT_CHARS_MAX)))
    assert len(report.text) == TEXT_CHARS_MAX


@pytest.mark.parametrize("sealed", [False, True])
def test_a_worker_that_dies_while_it_reads_has_read_if_the_model_is_sealed(sealed: bool) -> None:
    scene = Scene()
    scene.has_job(path="/m")
    scene.ready(1)
    if sealed:
        scene.arena.seal(scene.slot.model)
        opened = [gm.JobSchema("j", NUMBER, scene.layout.tensors), o.JobOpened(NUMBER)]
        assert scene.handle(ev.WorkerGone(1)) == opened
        return
    assert scene.handle(ev.WorkerGone(1)) == [fx.Route(1, None), fx.ForkWorker(2)]  # RUNNING -> PLACING
    assert scene.ready(2) == [fx.SendWorker(2, load(scene, attempt=2))]


def test_a_job_is_opened_once_and_orders_about_others_are_those_of_an_earlier_life() -> None:
    scene = Scene()
    replica = scene.has_job(round=3)
    assert scene.handle(scene.open_job(round=5)) == []
    assert scene.replica is replica and scene.slot.round == 3
    assert scene.handle(o.OpenBranch(9, EPOCH, 0, 2)) == []
    assert scene.handle(o.CloseJob(9)) == []


def test_the_end_of_a_job_frees_all_but_what_is_on_its_way() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(2)
    scene.upload("c1")
    scene.grant("c2")
    assert scene.handle(o.CloseJob(NUMBER)) == [fx.Route(1, None), gm.JobForget("j")]
    assert list(scene.arena.objects) == [scene.keys["c2"]]
    assert scene.arena.slabs == set()
    scene.arena.seal(scene.keys["c2"], "c2")
    assert scene.handle(gm.Sealed(2, scene.keys["c2"].pack(), 10)) == [aborted("c2")]
    assert scene.arena.objects == {}
    assert scene.agent.quota.job_used_bytes(NUMBER) == 0


def test_a_job_that_is_closed_while_its_model_is_read_frees_it_when_the_worker_has_let_go() -> None:
    scene = Scene(states=("m",))
    scene.has_job(path="/m", state_path="/s")
    scene.ready(1)
    led = scene.handle(o.CloseJob(NUMBER))
    assert led == [fx.Route(1, None), fx.SendWorker(1, wm.Drop(1, 1)), gm.JobForget("j")]
    assert len(scene.arena.objects) == 2  # the worker may still write to them
    assert scene.handle(ev.FromWorker(1, wm.TaskDropped(1, 1))) == []
    assert scene.arena.objects == {}


@pytest.mark.parametrize("gateway", [False, True])
def test_a_model_that_is_being_sent_when_its_job_ends_is_freed_when_it_is_sent(gateway: bool) -> None:
    scene = Scene()
    scene.has_model()
    scene.handle(gm.WantModel(5, "j", 1))
    model = scene.slot.model
    assert scene.handle(o.CloseJob(NUMBER)) == [ModelChanged("j"), gm.JobForget("j")]
    assert list(scene.arena.objects) == [model], "the gateway reads it"
    scene.handle(gm.GatewayLost() if gateway else gm.ModelSent(5, model.pack(), 10))
    assert scene.arena.objects == {}


def test_a_life_that_is_declared_dead_drops_all_jobs() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_job(2, "k")
    assert scene.handle(ev.LifeEnded()) == [gm.JobForget("j"), gm.JobForget("k")]
    assert (scene.agent.replicas, scene.arena.objects) == ({}, {})


def test_what_is_no_event_of_a_node_is_impossible() -> None:
    scene = Scene()
    with pytest.raises(Impossible, match="an agent does not handle a Drain"):
        scene.handle(gm.Drain())


def test_what_the_coordinator_tells_a_client_goes_to_the_gateway_as_it_is() -> None:
    scene = Scene()
    word = told(5, cm.Accepted("j", 1))
    assert scene.handle(word) == [word]


# ---- whose memory it may have ----------------------------------------------------------------------------------------


def test_the_arena_is_told_whose_the_job_is_before_it_has_an_object() -> None:
    scene = Scene()
    scene.has_model(owner="operator alice")
    scene.has_job(NUMBER + 1, "of an earlier version")
    assert scene.arena.owners == {NUMBER: "operator alice", NUMBER + 1: ""}


def test_a_users_rule_meets_the_memory_of_no_other_job() -> None:
    """What it may write to for as long as its worker lives is nobody's afterwards, and nothing was in it before."""
    scene = Scene(rule="mine:Rule")
    scene.has_job(owner="operator alice")
    assert scene.arena.owners == {NUMBER: ""}


@pytest.mark.parametrize("direct", [False, True])
def test_the_memory_of_a_job_is_lent_when_a_client_writes_its_update_itself(direct: bool) -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(2)
    scene.grant("c1", direct=direct)
    assert scene.arena.lent == ([scene.keys["c1"]] if direct else [])


@pytest.mark.parametrize("direct", [False, True])
def test_so_it_is_when_one_reads_the_model_where_it_is(direct: bool) -> None:
    """Catches a door whose segment is the next job's: it is handed to be read, and can be written to."""
    scene = Scene()
    scene.has_model()
    (granted,) = scene.handle(gm.WantModel(5, "j", 1, direct=direct))
    assert isinstance(granted, gm.ModelGranted)
    assert scene.arena.lent == ([scene.slot.model] if direct else [])

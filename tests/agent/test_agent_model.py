"""The model on a node: fetched when it is wanted, sent to who asks, kept as long as it is read."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, NUMBER, Scene, costs, told

from lifl.core import events as ev
from lifl.core.agent.model_service import FETCH_RETRY_S
from lifl.core.agent.model_slot import SlotState
from lifl.core.errors import RemoteFault
from lifl.core.ids import Key, epoch_of
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.small_models import ModelChanged, ModelServed

SOURCE = "home:1"
GONE = "the model of round {} is not here any more; wait for the next selection"


def refusal(conn: int, round_: int, job: str = "j") -> gm.TellClient:
    return told(conn, cm.Refusal("round-over", "round", GONE.format(round_), job, round_))


def elsewhere(**more: object) -> Scene:
    """The model of round 3 is at another node."""
    scene = Scene(**more)
    scene.has_job(round=2)
    scene.handle(o.ModelAt(NUMBER, 3, SOURCE))
    return scene


def fetching() -> tuple[Scene, Key]:
    """It is being fetched for a client."""
    scene = elsewhere()
    (fetch,) = scene.handle(gm.WantModel(5, "j", 4))
    return scene, Key.unpack(fetch.key)


def test_nothing_is_fetched_before_it_is_wanted() -> None:
    scene = Scene()
    scene.has_job(round=2)
    assert scene.handle(o.ModelAt(NUMBER, 3, SOURCE)) == []
    assert (scene.slot.state, scene.slot.round) == (SlotState.ELSEWHERE, 3)


def test_a_client_that_wants_it_has_it_fetched_once() -> None:
    scene = elsewhere()
    led = scene.handle(gm.WantModel(5, "j", 4))
    assert led == [gm.Fetch(scene.slot.fetching.pack(), SOURCE, "j", 4)]
    assert scene.slot.state is SlotState.FETCHING  # ELSEWHERE -> FETCHING
    assert scene.arena.epoch_of(scene.slot.fetching) == epoch_of(3, 0)
    assert scene.handle(gm.WantModel(6, "j", 4)) == []
    assert scene.slot.wanting == {5: 4, 6: 4}


def test_a_top_that_lacks_it_has_it_fetched_and_starts_when_it_is_here() -> None:
    scene = elsewhere(clients_per_round=1)
    epoch = epoch_of(4, 1)
    (fetch,) = scene.handle(o.OpenBranch(NUMBER, epoch, 0, 1))
    assert isinstance(fetch, gm.Fetch)
    scene.handle(o.Grant(NUMBER, epoch, 0, 1, "c1", 1.0, {}))
    scene.all_ready()
    (key,) = scene.runner(epoch=epoch).branch.in_flight
    scene.arena.seal(key, "c1")
    assert scene.handle(gm.Sealed(1, key.pack(), 10)) == [o.UpdateSealed(NUMBER, epoch, 0, "c1", 10)]
    (top,) = scene.runner(epoch=epoch).branch.tree.tasks
    assert top.state is TaskState.OPEN
    led = scene.handle(gm.FetchEnded(fetch.key, "", 500))
    assert led == scene.start(top)
    assert scene.runner(epoch=epoch).branch.cost.fetched_bytes == 500
    assert scene.slot.state is SlotState.READY  # FETCHING -> READY


def test_what_was_fetched_is_sent_to_all_who_wait_and_pinned_for_each() -> None:
    scene, key = fetching()
    scene.handle(gm.WantModel(6, "j", 4))
    led = scene.handle(gm.FetchEnded(key.pack(), "", 500))
    assert led == [gm.ModelGranted(5, "j", 4, key.pack()), gm.ModelGranted(6, "j", 4, key.pack())]
    assert (scene.slot.model, scene.slot.fetching, scene.slot.wanting) == (key, None, {})
    assert scene.slot.pins == {key: 2}


def test_without_a_source_or_without_room_it_is_not_fetched_yet() -> None:
    scene = Scene()
    scene.has_job(round=3)
    assert scene.handle(gm.WantModel(5, "j", 4)) == []
    scene.arena.nbytes = 0
    assert scene.handle(o.ModelAt(NUMBER, 3, SOURCE)) == []
    assert scene.slot.state is SlotState.ELSEWHERE
    scene.arena.nbytes = 1 << 20
    scene.has_room()
    (fetch,) = scene.handle(ev.Tick())
    assert isinstance(fetch, gm.Fetch)


def test_a_fetch_that_failed_is_tried_again_after_a_while() -> None:
    scene, key = fetching()
    assert scene.handle(gm.FetchEnded(key.pack(), "broken", 0), at=10.0) == []
    assert scene.slot.state is SlotState.ELSEWHERE  # FETCHING -> ELSEWHERE
    assert scene.arena.objects == {}
    assert scene.engine.next_timer() == 10.0 + FETCH_RETRY_S
    assert scene.handle(ev.Tick(), at=10.5) == []
    (fetch,) = scene.handle(ev.Tick(), at=11.0)
    assert isinstance(fetch, gm.Fetch)
    assert scene.engine.next_timer() is None


def test_a_fetch_that_failed_and_is_not_wanted_any_more_is_not_tried_again() -> None:
    scene, key = fetching()
    scene.handle(gm.ClientLeft(5))
    assert scene.handle(gm.FetchEnded(key.pack(), "broken", 0)) == []
    assert scene.engine.next_timer() is None


def test_a_model_that_is_here_when_a_newer_one_is_made_is_freed() -> None:
    scene, key = fetching()
    scene.handle(gm.FetchEnded(key.pack(), "", 500))
    scene.handle(gm.ModelSent(5, key.pack(), 10))
    assert scene.handle(o.ModelAt(NUMBER, 3, "other:1")) == []
    assert scene.slot.model == key, "it is the same"
    assert scene.handle(o.ModelAt(NUMBER, 4, SOURCE)) == [ModelChanged("j")]
    assert (scene.slot.state, scene.slot.model, scene.slot.round) == (
        SlotState.ELSEWHERE,
        None,
        4,
    )  # READY -> ELSEWHERE
    assert scene.arena.objects == {}


def test_a_model_that_comes_after_a_newer_one_was_made_is_fetched_anew() -> None:
    scene, key = fetching()
    assert scene.handle(o.ModelAt(NUMBER, 4, SOURCE)) == [gm.EndFetch(key.pack())]
    (fetch,) = scene.handle(gm.FetchEnded(key.pack(), "", 500), at=3.0)  # it had come already
    assert key not in scene.arena.objects
    assert fetch == gm.Fetch(scene.slot.fetching.pack(), SOURCE, "j", 5)
    assert scene.engine.next_timer() is None


def test_a_fetch_from_a_node_that_is_silent_ends_when_another_has_the_model() -> None:
    scene, key = fetching()
    assert scene.handle(o.ModelAt(NUMBER, 3, SOURCE)) == [], "it is said again"
    assert scene.handle(o.ModelAt(NUMBER, 3, "other:1")) == [gm.EndFetch(key.pack())]
    (fetch,) = scene.handle(gm.FetchEnded(key.pack(), "not wanted from there", 0))
    assert fetch == gm.Fetch(scene.slot.fetching.pack(), "other:1", "j", 4)
    (granted,) = scene.handle(gm.FetchEnded(fetch.key, "", 500))
    assert granted == gm.ModelGranted(5, "j", 4, fetch.key)


def test_after_a_fetch_that_was_ended_one_that_fails_waits_again() -> None:
    scene, key = fetching()
    scene.handle(o.ModelAt(NUMBER, 3, "other:1"))
    (fetch,) = scene.handle(gm.FetchEnded(key.pack(), "not wanted from there", 0), at=10.0)
    assert scene.handle(gm.FetchEnded(fetch.key, "broken", 0), at=10.0) == []
    assert scene.engine.next_timer() == 10.0 + FETCH_RETRY_S


def test_a_model_that_is_replaced_while_it_is_read_stays_until_the_last_reader_is_through() -> None:
    scene = Scene()
    scene.has_model()
    model = scene.slot.model
    for conn in (5, 6):
        assert scene.handle(gm.WantModel(conn, "j", 1)) == [gm.ModelGranted(conn, "j", 1, model.pack())]
    scene.handle(o.ModelAt(NUMBER, 1, SOURCE))
    assert (scene.slot.doomed, scene.slot.pins) == ({model: 0.0}, {model: 2})
    scene.handle(gm.ModelSent(5, model.pack(), 10))
    assert list(scene.arena.objects) == [model]
    scene.handle(gm.ModelSent(6, model.pack(), 10))
    assert (scene.arena.objects, scene.slot.doomed) == ({}, {})


def test_what_is_sent_is_part_of_the_cost_of_the_branches_that_are_not_through() -> None:
    scene = Scene()
    scene.has_job(2, "k")
    scene.has_model()
    open_, through = scene.has_branch(2), scene.has_branch(2, branch=1)
    through.sealed = True
    through.tree.root.state = TaskState.DONE
    scene.anew()
    scene.handle(gm.WantModel(5, "j", 1))
    assert scene.handle(gm.ModelSent(5, scene.slot.model.pack(), 700)) == []
    assert (open_.cost.sent_bytes, through.cost.sent_bytes) == (700, 0)
    assert costs(open_)["sent_bytes"] == 700
    assert scene.handle(gm.ModelSent(5, Key(9, 9, 9).pack(), 700)) == [], "of no job"
    assert scene.handle(ModelServed("j", 50)) == []
    assert scene.handle(ModelServed("nobody's", 50)) == []
    assert (open_.cost.sent_bytes, through.cost.sent_bytes) == (750, 0)


@pytest.mark.parametrize("why", ["no such job", "another round", "no room yet"])
def test_who_asks_for_a_model_that_is_not_the_current_one_is_refused(why: str) -> None:
    scene = Scene()
    if why == "no room yet":
        scene.arena.nbytes = 0
        scene.has_job(path="/m")
        assert scene.handle(gm.WantModel(5, "j", 1)) == [refusal(5, 1)]
        return
    scene.has_model()
    job, round_ = ("k", 1) if why == "no such job" else ("j", 2)
    assert scene.handle(gm.WantModel(5, job, round_)) == [refusal(5, round_, job)]


def test_a_client_that_leaves_is_not_sent_what_it_waited_for() -> None:
    scene, key = fetching()
    scene.handle(gm.WantModel(6, "j", 4))
    assert scene.handle(gm.ClientLeft(5)) == [gm.ClientLeft(5)]
    assert scene.handle(gm.ClientLeft(6, "k")) == [gm.ClientLeft(6, "k")]
    assert scene.handle(gm.FetchEnded(key.pack(), "", 500)) == [gm.ModelGranted(6, "j", 4, key.pack())]


@pytest.mark.parametrize("lost", [False, True])
def test_what_is_fetched_for_a_job_that_is_over_is_freed_when_the_gateway_is_through(lost: bool) -> None:
    scene, key = fetching()
    text = "the model of round 4 is not here any more; wait for the next selection"
    refused = told(5, cm.Refusal("round-over", "round", text, "j", 4))
    assert scene.handle(o.CloseJob(NUMBER)) == [refused, gm.JobForget("j")]
    assert list(scene.arena.objects) == [key]
    assert scene.handle(gm.GatewayLost() if lost else gm.FetchEnded(key.pack(), "", 5))[1:] == []
    assert scene.arena.objects == {}


def test_with_the_gateway_all_readings_and_fetches_end() -> None:
    scene, _ = fetching()
    assert scene.handle(gm.GatewayLost(), at=2.0) == [gm.GatewayLost()]
    assert (scene.slot.state, scene.slot.wanting, scene.arena.objects) == (SlotState.ELSEWHERE, {}, {})
    other = Scene()
    other.has_model()
    other.handle(gm.WantModel(5, "j", 1))
    other.handle(gm.WantModel(6, "j", 1))
    assert other.handle(gm.GatewayLost()) == [gm.GatewayLost()]
    assert other.slot.pins == {}
    assert list(other.arena.objects) == [other.slot.model]


def test_a_top_has_the_model_fetched_again_after_the_gateway_ended() -> None:
    scene = elsewhere()
    (fetch,) = scene.handle(o.OpenBranch(NUMBER, epoch_of(4, 1), 0, 1))
    report, again = scene.handle(gm.GatewayLost())
    assert (report, type(again)) == (gm.GatewayLost(), gm.Fetch)
    assert again.key != fetch.key and list(scene.arena.objects) == [Key.unpack(again.key)]


def test_the_end_of_a_fetch_that_never_began_is_the_gateway_s_fault() -> None:
    scene = Scene()
    scene.has_model()
    key = scene.slot.model
    with pytest.raises(RemoteFault, match="which is not being fetched"):
        scene.handle(gm.FetchEnded(key.pack(), "", 0))


def test_the_fetched_bytes_are_counted_by_a_branch_that_is_not_through() -> None:
    scene = elsewhere()
    through, running = scene.has_branch(1, branch=1), scene.has_branch(1, branch=2)
    through.sealed, through.tree.root.state = True, TaskState.DONE
    scene.anew()
    (fetch,) = scene.handle(gm.WantModel(5, "j", 4))
    scene.handle(gm.FetchEnded(fetch.key, "", 500))
    assert (through.cost.fetched_bytes, running.cost.fetched_bytes) == (0, 500)
    assert running.epoch == EPOCH

"""Copies of models on a node: fetched and written, served to others, read when they are all that is left."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from agent_scene import NUMBER, Scene

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.model_slot import SlotState
from lifl.core.ids import Key, Kind, epoch_of
from lifl.core.planning.keeping import Kept
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm

EPOCH = epoch_of(3, 1)
HOME, SOURCE = 7, "home:1"
COPY = o.CopyModel(NUMBER, EPOCH, HOME, SOURCE, "j/r3", "j/s3")
SERVE = o.ServeCopy(NUMBER, EPOCH, "j/r3", "j/s3", ("d1", "d2"))
FAILED = o.CopyFailed(NUMBER, EPOCH, "")


def elsewhere(**more: Any) -> Scene:
    """The model is at another node."""
    scene = Scene(states=("m",), **more)
    scene.has_job(round=2)
    return scene


def ended(scene: Scene, fetches: list[Any], error: str = "") -> list[Any]:
    """All fetches end, the last one with an error, if any; what the last led to."""
    led: list[Any] = []
    for index, fetch in enumerate(fetches):
        key, failed = Key.unpack(fetch.key), error and index == len(fetches) - 1
        if not failed:
            scene.arena.seal(key)
        led = scene.handle(gm.FetchEnded(fetch.key, error if failed else "", 10))
    return led


def failure(led: list[Any]) -> o.CopyFailed:
    (found,) = [each for each in led if isinstance(each, o.CopyFailed)]
    return found


def test_a_copy_is_fetched_part_by_part_and_written_as_its_origin_wrote_it() -> None:
    scene = elsewhere()
    fetches = scene.handle(COPY)
    assert [(each.address, each.job, each.round, each.part) for each in fetches] == [
        (SOURCE, "j", 4, 0),
        (SOURCE, "j", 4, 1),
    ]
    assert scene.handle(COPY) == [], "it is under way"
    ended(scene, fetches)
    (told,) = scene.ready(1)
    message = told.message
    assert isinstance(message, wm.Checkpoint)
    assert (message.path, message.state_path, message.node, message.round) == ("j/r3", "j/s3", HOME, 3)
    assert [message.model, *message.states.values()] == [each.key for each in fetches]
    done = wm.TaskDone(message.address, message.attempt, 1.0, 1, 2, 0.25, 0.5, digests=("d1", "d2"))
    assert o.ModelCopied(NUMBER, EPOCH, ("d1", "d2")) in scene.handle(ev.FromWorker(1, done))
    assert scene.arena.objects == {}


def test_of_a_copy_that_cannot_be_fetched_nothing_is_left() -> None:
    scene = elsewhere()
    led = ended(scene, scene.handle(COPY), "it is gone there")
    assert failure(led).text == "the model could not be fetched: it is gone there"
    assert scene.arena.objects == {}


def test_a_copy_for_which_the_arena_has_no_room_is_not_begun() -> None:
    scene = elsewhere(arena_bytes=16)
    led = scene.handle(COPY)
    assert "do not fit" in failure(led).text
    assert scene.arena.objects == {}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/r3",
        "../r3",
        "other/r3",
        "j/../r3",
        "j/..",
        "j/",
        "j",
        "j/r3/x",
        "./j/r3",
        "j//r3",
        "\N{CYRILLIC SMALL LETTER JE}/r3",
    ],
)
@pytest.mark.parametrize("of_states", [False, True])
def test_no_order_has_files_elsewhere_than_in_the_jobs_own_folder_below_the_nodes(path: str, of_states: bool) -> None:
    files = {"path": "j/r3", "state_path": path} if of_states else {"path": path}
    scene = elsewhere()
    for order in (COPY, SERVE):
        assert "job's own folder" in failure(scene.handle(msgspec.structs.replace(order, **files))).text
    assert scene.arena.objects == {}


def test_a_copy_that_cannot_be_written_is_given_up_at_once() -> None:
    scene = elsewhere()
    ended(scene, scene.handle(COPY))
    (told,) = scene.ready(1)
    failed = wm.TaskFailed(told.message.address, told.message.attempt, "no space", True)
    assert failure(scene.handle(ev.FromWorker(1, failed))).text == "the checkpoint could not be written: no space"
    assert scene.arena.objects == {}
    assert len(scene.handle(COPY)) == 2, "and may be ordered again"


def test_the_end_of_the_gateway_ends_the_fetches() -> None:
    scene = elsewhere()
    scene.handle(COPY)
    assert "the gateway ended" in failure(scene.handle(gm.GatewayLost())).text
    assert scene.arena.objects == {}


def test_what_is_being_fetched_when_the_job_ends_is_freed_when_the_gateway_is_through() -> None:
    scene = elsewhere()
    fetches = scene.handle(COPY)
    scene.handle(o.CloseJob(NUMBER))
    assert len(scene.arena.objects) == 2
    for fetch in fetches:
        scene.handle(gm.FetchEnded(fetch.key, "", 10))
    assert scene.arena.objects == {}


# ---- at home ---------------------------------------------------------------------------------------------------------


def test_a_model_is_served_until_all_copies_are_there_though_another_took_its_place() -> None:
    scene = Scene(states=("m",))
    scene.has_model(round=3)
    model, state = scene.slot.keys()
    scene.handle(o.SaveModel(NUMBER, EPOCH, "/c3", "/s3", True))
    scene.ready(1)
    scene.done(scene.agent.tasks.at(1).task, worker=1)
    scene.handle(o.ModelAt(NUMBER, 4, "other:1"))
    for part, key in enumerate((model, state)):
        assert scene.handle(gm.WantModel(5 + part, "j", 4, part)) == [gm.ModelGranted(5 + part, "j", 4, key.pack())]
        scene.handle(gm.ModelSent(5 + part, key.pack(), 10))
    assert {model, state} <= scene.arena.objects.keys()
    scene.handle(o.ReleaseModel(NUMBER, EPOCH))
    assert scene.arena.objects == {}
    (told,) = scene.handle(gm.WantModel(7, "j", 4, 0))
    assert isinstance(cm.unpacked(told.message), cm.Refusal)


def test_a_part_that_there_is_not_is_refused() -> None:
    scene = Scene()
    scene.has_model(round=3)
    (told,) = scene.handle(gm.WantModel(5, "j", 4, 1))
    assert isinstance(cm.unpacked(told.message), cm.Refusal)


# ---- a copy is all that is left --------------------------------------------------------------------------------------


def serving(fault: str = "") -> tuple[Scene, list[Any]]:
    """The node is to serve its copy; what came of it."""
    scene = elsewhere()
    scene.handle(SERVE)
    (told,) = scene.ready(1)
    assert isinstance(told.message, wm.Load)
    assert (told.message.path, told.message.round, told.message.digests) == ("j/r3", 3, ("d1", "d2"))
    if fault:
        failed = wm.TaskFailed(told.message.address, told.message.attempt, fault, False)
        return scene, scene.handle(ev.FromWorker(1, failed))
    for state in scene.slot.states.values():
        scene.arena.seal(state)
    return scene, scene.done(scene.agent.tasks.at(1).task, worker=1)


def test_a_copy_is_read_and_served() -> None:
    scene, led = serving()
    assert o.CopyServed(NUMBER, EPOCH) in led
    assert scene.slot.state is SlotState.READY  # ELSEWHERE -> LOADING -> READY
    assert len(scene.handle(gm.WantModel(5, "j", 4, 1))) == 1
    assert scene.handle(SERVE) == [o.CopyServed(NUMBER, EPOCH)], "it is here already"


def test_a_copy_that_cannot_be_read_is_told_and_the_model_is_elsewhere() -> None:
    scene, led = serving("it is damaged")
    assert failure(led).text == "the model could not be read: it is damaged"
    assert scene.slot.state is SlotState.ELSEWHERE  # LOADING -> ELSEWHERE
    assert scene.arena.objects == {}


def test_a_copy_is_not_read_while_a_model_is_fetched() -> None:
    scene = elsewhere()
    scene.handle(o.ModelAt(NUMBER, 2, SOURCE))
    scene.handle(gm.WantModel(5, "j", 3))
    before = dict(scene.arena.objects)
    assert "fetching" in failure(scene.handle(SERVE)).text
    assert scene.arena.objects == before


def fetch_job(scene: Scene) -> o.FetchJob:
    given = scene.open_job(round=3)
    return o.FetchJob(*(getattr(given, name) for name in given.__struct_fields__), SOURCE)


def test_home_fetches_the_model_that_it_has_not() -> None:
    scene = Scene(states=("m",))
    fetches = scene.handle(fetch_job(scene))
    assert [(each.address, each.round, each.part) for each in fetches] == [(SOURCE, 4, 0), (SOURCE, 4, 1)]
    led = ended(scene, fetches)
    assert o.JobOpened(NUMBER) in led
    assert scene.slot.state is SlotState.READY
    assert len(scene.arena.of(Kind.MODEL)) == len(scene.arena.of(Kind.STATE)) == 1


def test_home_says_when_it_cannot() -> None:
    scene = Scene(states=("m",))
    led = ended(scene, scene.handle(fetch_job(scene)), "it is gone there")
    assert o.JobFailed(NUMBER, "the model could not be fetched: it is gone there") in led
    scene.handle(o.CloseJob(NUMBER))
    assert scene.arena.objects == {}


@pytest.mark.parametrize("left", [0, 1])
def test_a_job_that_ends_while_home_fetches_its_model_leaves_nothing(left: int) -> None:
    scene = Scene(states=("m",))
    fetches = scene.handle(fetch_job(scene))
    ended(scene, fetches[:left])
    scene.handle(o.CloseJob(NUMBER))
    for fetch in fetches[left:]:
        scene.handle(gm.FetchEnded(fetch.key, "", 10))
    assert scene.arena.objects == {}


def test_copies_that_do_not_stay_go_from_the_jobs_own_folder() -> None:
    scene, kept = elsewhere(), Kept(9, 2)
    assert scene.handle(o.KeepCopies(NUMBER, kept)) == [fx.KeepModels("j", NUMBER, "j", kept)]

"""A node has so many addresses; where none is free, tasks wait as they do for room, and files are read and written."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, Scene, granted

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent import task_table
from lifl.core.agent.model_slot import SlotState
from lifl.core.coordinator.coordinator import JOBS_MAX
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import worker as wm

PLANNED = TaskState.PLANNED
ADDRESSES, FOR_FILES = 20, 4


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_table, "ADDRESSES_MAX", ADDRESSES + 1)
    monkeypatch.setattr(task_table, "FILE_ADDRESSES", FOR_FILES)


def scene_of(free: int) -> Scene:
    """So many addresses are free for the tasks of trees."""
    scene = Scene(elements=LARGE)
    scene.has_model()
    scene.has_branch(8)
    table = scene.agent.tasks
    for number in range(ADDRESSES - FOR_FILES - free):
        table.open(scene.runner(), Task(number, "leaf", 0))
    scene.anew()
    return scene


@pytest.mark.parametrize("free", [0, 1])
def test_an_update_whose_tasks_find_no_address_waits(free: int) -> None:
    scene = scene_of(free)
    before = dict(scene.arena.objects)
    assert scene.grant("c1") == []
    assert scene.arena.objects == before
    assert scene.tell() == [PLANNED, PLANNED, PLANNED]
    assert len(scene.agent.uploads.waiting) == 1


def test_it_goes_on_when_one_is_free() -> None:
    scene = scene_of(1)
    assert scene.grant("c1") == []
    scene.agent.tasks.close(scene.agent.tasks.at(1).task)
    scene.anew()
    led = scene.handle(ev.Tick())
    key = next(iter(scene.runner().branch.in_flight))
    assert led == [granted("c1", key), fx.ForkWorker(1)]
    assert scene.agent.tasks.addresses_free == FOR_FILES


def test_those_that_are_kept_for_files_are_enough_for_all_jobs_to_read_and_to_write() -> None:
    scene = scene_of(0)
    assert scene.handle(o.SaveModel(NUMBER, EPOCH, "/c")) == [fx.ForkWorker(1)]
    scene.handle(scene.open_job(2, "k", path="/k"))
    assert scene.agent.replicas[2].slot.state is SlotState.LOADING
    told = scene.ready(1)
    assert isinstance(told[0].message, wm.Checkpoint)


def test_each_job_may_read_one_file_and_write_two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert task_table.FILE_ADDRESSES >= 3 * JOBS_MAX
    assert {"load", "checkpoint"}.isdisjoint(task_table.ROUTED)


def test_an_address_is_used_again_as_late_as_can_be() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(8)
    table, runner = scene.agent.tasks, scene.runner()
    first, second = Task(0, "leaf", 0), Task(1, "leaf", 0)
    table.open(runner, first)
    table.close(first)
    table.open(runner, second)
    assert (first.address, second.address, table._addresses[-1]) == (1, 2, 1)
    table.close(first)
    assert table._addresses[-1] == 1, "it is closed once"
    table.close(second)
    scene.anew()

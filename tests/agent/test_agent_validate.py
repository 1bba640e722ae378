"""`validate` finds what cannot be: each book is falsified once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, SCENES, Scene

from lifl.core.agent.model_slot import SlotState
from lifl.core.agent.partial_transfers import Coming
from lifl.core.errors import LocalFault
from lifl.core.ids import Key
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm

NONE = Key(99, 1, 2)


def scene_of_all() -> Scene:
    """One with something in each book."""
    scene = Scene(elements=LARGE, wait_queue_max=1)
    scene.has_model()
    scene.has_branch(8, others=(1, 2))
    scene.upload("c1")
    scene.grant("c2")
    (grant,) = scene.handle(gm.Offered(7, NUMBER, EPOCH, 1, 1, scene.layout.accumulator_bytes, 50))
    scene.arena.seal(Key.unpack(grant.key), "c9")
    scene.handle(gm.Sealed(7, grant.key, 10))
    scene.handle(gm.Offered(8, NUMBER, EPOCH, 2, 1, scene.layout.accumulator_bytes, 50))
    scene.arena.nbytes = scene.arena.used_bytes
    scene.grant("c3")
    scene.handle(o.SaveModel(NUMBER, EPOCH, "/c"))
    scene.engine.validate()
    return scene


def branch(scene: Scene):
    return scene.runner().branch


def leaf(scene: Scene) -> Task:
    return scene.tasks()[0]


BREAKS: dict[str, Callable[[Scene], object]] = {
    "its account says": lambda s: s.agent.quota._used.update({NUMBER: 1}),
    "the arena has": lambda s: s.arena.objects.pop(s.keys["c1"]),
    "objects are shared that are gone": lambda s: s.agent.quota.share(NONE, 2),
    "is open at address": lambda s: setattr(leaf(s), "address", 77),
    "free addresses are not": lambda s: s.agent.tasks._addresses.append(5),
    "have lost their addresses": lambda s: s.agent.tasks._abandoned.update({999: []}),
    "updates of job 1 wait for room, at most 1 may": lambda s: s.agent.uploads._lines[1].update({9: waiting(s)}),
    "which is not open, wait for room": lambda s: s.agent.replicas.update({2: s.agent.replicas.pop(1)}),
    "but not in its branch": lambda s: s.agent.uploads._in_flight.update({NONE: s.runner()}),
    "which no client sends": lambda s: s.agent.uploads._in_flight.clear(),
    "a partial is on its way twice": lambda s: s.agent.partials._coming.update({NONE: _coming(s)}),
    "both wanted and unwanted": lambda s: s.agent.models._unwanted.update([s.slot.model]),
    "is kept as (1, 0)": lambda s: s.replica.runners.update({(1, 0): s.runner()}),
    "while its model is ready": lambda s: setattr(s.slot, "fetching", NONE),
    "has no model though it is ready": lambda s: setattr(s.slot, "model", None),
    "for no reader": lambda s: s.slot.doomed.update({NONE: 0.0}),
    "objects that are not pinned": lambda s: setattr(s.slot, "pins", Counter()),
    "two updates in flight": lambda s: branch(s).in_flight.update({NONE: next(iter(branch(s).in_flight.values()))}),
    "accepted and in flight": lambda s: branch(s).accepted.update({"c2": branch(s).accepted["c1"]}),
    "is followed that is not in flight": lambda s: branch(s).followed.update({NONE: 0}),
    "are here twice": lambda s: branch(s)._in_arrived.add("c1"),
    "have arrived and are awaited": lambda s: branch(s).awaited.add(1),
    "which took 1": lambda s: setattr(branch(s), "given", 7),
    "has more inputs than it expects": lambda s: setattr(leaf(s), "inputs", [NONE] * 3),
    "is sealed but its root is": lambda s: setattr(branch(s), "sealed", True),
}


def waiting(scene: Scene) -> o.Grant:
    return scene.agent.uploads.waiting[0]


def _coming(scene: Scene) -> Coming:
    return next(iter(scene.agent.partials._coming.values()))


@pytest.mark.parametrize("what", BREAKS)
def test_books_that_differ_are_found(what: str) -> None:
    scene = scene_of_all()
    BREAKS[what](scene)
    with pytest.raises(LocalFault) as fault:
        scene.engine.validate()
    assert what in str(fault.value)
    SCENES.clear()  # what is wrong cannot be replayed


def test_an_abandoned_task_may_have_another_address_than_its_own() -> None:
    scene = scene_of_all()
    scene.all_ready()
    task = leaf(scene)
    scene.handle(o.DropBranch(NUMBER, EPOCH))
    task.address = 0
    scene.engine.validate()
    assert (scene.slot.state, task.state) == (SlotState.READY, TaskState.DROPPED)
    SCENES.clear()

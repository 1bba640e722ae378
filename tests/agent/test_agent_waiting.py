"""Waiting is each job's own, and costs nothing until there is room; old models that slow clients read have a budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from agent_scene import EPOCH, NUMBER, Scene, conn, told

from lifl.core import events as ev
from lifl.core.agent import task_table
from lifl.core.agent.job_replica import JobReplica
from lifl.core.agent.uploads import BUSY_RETRY_S
from lifl.core.ids import Kind, epoch_of
from lifl.core.limits import OLD_MODEL_GRACE_S
from lifl.core.planning.tree import Task, Tree
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm


def two_jobs(**more: Any) -> Scene:
    """Jobs 1 and 2, each with a branch for eight updates."""
    scene = Scene(**more)
    scene.has_job()
    scene.has_job(2, "k")
    scene.has_branch(8, 1)
    scene.handle(o.OpenBranch(2, EPOCH, 1, 8, parent="home:1"))
    return scene


def grant(scene: Scene, client: str, number: int) -> list[Any]:
    return scene.handle(o.Grant(number, EPOCH, 1, conn(client), client, 1.0, {}))


def granted(led: list[Any]) -> list[int]:
    return [each.conn for each in led if isinstance(each, gm.Granted)]


def no_room(scene: Scene) -> int:
    """The arena is full; what it has."""
    nbytes, scene.arena.nbytes = scene.arena.nbytes, scene.arena.used_bytes
    return nbytes


# ---- the lines -------------------------------------------------------------------------------------------------------


def test_one_jobs_full_line_does_not_hold_anothers_update() -> None:
    scene = two_jobs(wait_queue_max=2)
    no_room(scene)
    for client in ("c1", "c2"):
        assert grant(scene, client, NUMBER) == []
    busy = told(3, cm.Busy("j", 1, BUSY_RETRY_S))
    assert busy in grant(scene, "c3", NUMBER)
    assert grant(scene, "c4", 2) == []  # it waits, where it was told Busy before
    scene.arena.nbytes = 1 << 40
    assert granted(grant(scene, "c5", 3 - NUMBER)) == []  # behind c4, which hears of room when something is freed
    scene.has_room()
    assert granted(scene.handle(ev.Tick())) == [1, 4, 2, 5]


def test_a_job_for_which_there_is_room_does_not_wait_behind_one_for_which_there_is_none() -> None:
    scene = two_jobs()
    room = no_room(scene)
    assert grant(scene, "c1", NUMBER) == []
    scene.arena.nbytes = room
    assert granted(grant(scene, "c2", 2)) == [2]


def test_of_a_connection_that_ends_only_its_own_place_is_given_up() -> None:
    scene = two_jobs()
    no_room(scene)
    for client, number in (("c1", NUMBER), ("c2", NUMBER), ("c1", 2)):
        grant(scene, client, number)
    assert [order.client for order in scene.agent.uploads.waiting] == ["c1", "c2", "c1"]
    scene.handle(gm.ClientLeft(1, "k"))
    assert [order.client for order in scene.agent.uploads.waiting] == ["c1", "c2"]
    scene.handle(gm.ClientLeft(1))
    assert [order.client for order in scene.agent.uploads.waiting] == ["c2"]


def test_who_waits_for_a_branch_that_closes_is_told_at_once() -> None:
    scene = two_jobs()
    no_room(scene)
    grant(scene, "c1", NUMBER)
    led = scene.handle(o.CloseBranch(NUMBER, EPOCH, 1))
    assert o.UpdateAborted(NUMBER, EPOCH, 1, "c1") in led
    assert scene.agent.uploads.waiting == []


def test_an_event_looks_at_its_own_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    for number in range(1, 51):
        scene.has_job(number, f"j{number}")
    scene.has_branch(8, 1)
    looked: list[int] = []
    settle = JobReplica.settle

    def counted(replica: JobReplica, may_fetch: bool) -> bool:
        looked.append(replica.spec.number)
        return settle(replica, may_fetch)

    monkeypatch.setattr(JobReplica, "settle", counted)
    scene.grant("c1", 1)
    assert set(looked) == {NUMBER}
    looked.clear()
    scene.handle(ev.Tick())
    scene.handle(gm.ClientJoined(9, "c9", "j9"))
    assert looked == []


# ---- who reads old models --------------------------------------------------------------------------------------------


def read_by(scene: Scene, *clients: str) -> None:
    """Clients are being sent the current model, and read nothing of it."""
    for client in clients:
        led = scene.handle(gm.WantModel(conn(client), "j", scene.slot.round + 1))
        assert [each.conn for each in led if isinstance(each, gm.ModelGranted)] == [conn(client)]


def next_model(scene: Scene, at: float) -> None:
    """The model of the next round takes the place of the current one."""
    slot = scene.slot
    scene.now = at
    scene.engine._turn.now = at
    model, _states = slot.alloc(epoch_of(slot.round + 1, 1), ())
    scene.arena.seal(model)
    slot.replace(slot.round + 1, model, {})
    scene.engine._turn.touch(NUMBER)
    scene.anew()
    scene.handle(ev.Tick())


def sent_away(led: list[Any]) -> list[int]:
    return [each.conn for each in led if isinstance(each, gm.HangUp)]


def reading_scene() -> Scene:
    scene = Scene(arena_bytes=64 << 20, elements=4 << 20)  # 16 MiB each
    scene.has_model()
    return scene


def test_one_old_model_may_be_read_as_long_as_it_takes() -> None:
    scene = reading_scene()
    read_by(scene, "c1", "c2")
    next_model(scene, 10.0)
    assert scene.engine.next_timer() is None
    assert len(scene.arena.of(Kind.MODEL)) == 2


def test_who_reads_beyond_the_budget_is_sent_away_after_the_grace_the_oldest_first() -> None:
    scene = reading_scene()
    read_by(scene, "c1", "c2")
    next_model(scene, 10.0)
    read_by(scene, "c3")
    next_model(scene, 20.0)
    assert scene.engine.next_timer() == 10.0 + OLD_MODEL_GRACE_S  # it is due
    assert sent_away(scene.handle(ev.Tick(), at=20.5)) == [1, 2]
    assert scene.engine.next_timer() is None
    old = scene.arena.of(Kind.MODEL)[0]
    for number in (1, 2):
        scene.handle(gm.ModelSent(number, old.pack(), 0))
    assert len(scene.arena.of(Kind.MODEL)) == 2


def test_within_the_grace_they_go_on() -> None:
    scene = reading_scene()
    read_by(scene, "c1")
    next_model(scene, 10.0)
    read_by(scene, "c2")
    next_model(scene, 11.0)
    assert sent_away(scene.handle(ev.Tick(), at=11.9)) == []
    assert sent_away(scene.handle(ev.Tick(), at=12.0)) == [1]


def test_of_a_job_that_ends_meanwhile_nobody_is_to_be_sent_away() -> None:
    """Else the node would wake for that again and again."""
    scene = reading_scene()
    read_by(scene, "c1")
    next_model(scene, 10.0)
    read_by(scene, "c2")
    next_model(scene, 11.0)
    assert scene.engine.next_timer() == 10.0 + OLD_MODEL_GRACE_S
    scene.handle(o.CloseJob(NUMBER), at=11.5)
    assert scene.engine.next_timer() is None


def test_when_something_waits_for_room_all_who_read_old_models_are_sent_away_at_once() -> None:
    scene = reading_scene()
    scene.has_branch(8)
    read_by(scene, "c1", "c2")
    next_model(scene, 10.0)
    no_room(scene)
    led = scene.handle(o.Grant(NUMBER, EPOCH, 0, 9, "c9", 1.0, {}))
    assert sent_away(led) == [1, 2]
    assert granted(led) == []
    old = scene.arena.of(Kind.MODEL)[0]
    assert granted(scene.handle(gm.ModelSent(1, old.pack(), 0))) == []
    scene.arena.nbytes = 256 << 20
    assert granted(scene.handle(gm.ModelSent(2, old.pack(), 0))) == [9]


def test_who_reads_the_current_model_is_left_alone() -> None:
    scene = reading_scene()
    scene.has_branch(8)
    read_by(scene, "c1")
    no_room(scene)
    assert sent_away(scene.handle(o.Grant(NUMBER, EPOCH, 0, 9, "c9", 1.0, {}))) == []


# ---- the loss of a gateway -------------------------------------------------------------------------------------------


def test_what_the_loss_of_a_gateway_costs_grows_with_its_clients_and_not_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task_table, "ADDRESSES_MAX", 1001)
    steps = []
    path = Tree.path

    def counted(tree: Tree, task: Task) -> Iterator[Task]:
        steps.append(task)
        return path(tree, task)

    taken = {}
    for clients in (50, 200):
        scene = Scene(clients_per_round=clients)
        scene.arena.nbytes = 1 << 40
        scene.has_model()
        scene.has_branch(clients)
        for index in range(1, clients + 1):
            scene.grant(f"c{index}")
        with monkeypatch.context() as patched:
            patched.setattr(Tree, "path", counted)
            steps.clear()
            led = scene.handle(gm.GatewayLost())
        assert sum(isinstance(each, o.UpdateAborted) for each in led) == clients
        taken[clients] = len(steps)
    assert taken[200] <= 4 * taken[50] + 8

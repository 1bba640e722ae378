"""Updates that are stored before they are accepted, and a branch that goes on from what is stored."""

from __future__ import annotations

from typing import Any

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, Scene

from lifl.core import events as ev
from lifl.core.errors import RemoteFault
from lifl.core.ids import Key, Kind, epoch_of
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import journal as jm
from lifl.core.protocol.journal import Stored


def scene_of(**more: Any) -> Scene:
    scene = Scene(**more)
    scene.has_model(durability="disk")
    return scene


def of(led: list[Any], kind: Any) -> list[Any]:
    return [each for each in led if isinstance(each, kind)]


def stored(scene: Scene, client: str, place: int | None = 0) -> list[Any]:
    return scene.handle(jm.UpdateStored(scene.keys[client].pack(), place))


def upload(scene: Scene, client: str, place: int = 0, branch: int = 0) -> list[Any]:
    scene.grant(client, branch)
    scene.seal(client)
    return stored(scene, client, place)


def left(*clients: str, epoch: int = EPOCH) -> dict[int, Any]:
    return {NUMBER: ((epoch, tuple(Stored(client, 1.0, {}, 8192 * n) for n, client in enumerate(clients))),)}


# ---- stored first, then accepted -------------------------------------------------------------------------------------


def test_an_update_is_accepted_and_given_to_its_task_when_it_is_stored() -> None:
    scene = scene_of()
    branch = scene.has_branch(8)
    scene.grant("c1")
    led = scene.seal("c1")
    assert led == [jm.StoreUpdate(NUMBER, EPOCH, scene.keys["c1"].pack())]
    assert not branch.accepted
    led = stored(scene, "c1", 4096)
    assert of(led, o.UpdateSealed) == [o.UpdateSealed(NUMBER, EPOCH, 0, "c1", 10)]
    assert list(branch.accepted) == ["c1"]
    assert scene.agent.journal.of(NUMBER, EPOCH) == {"c1": Stored("c1", 1.0, {}, 4096)}


def test_a_job_that_wants_no_journal_has_none() -> None:
    scene = Scene()
    scene.has_model()
    scene.has_branch(8)
    scene.grant("c1")
    assert of(scene.seal("c1"), o.UpdateSealed)
    assert not scene.agent.journal.jobs()


def test_what_is_being_stored_survives_the_gateway_and_its_client() -> None:
    scene = scene_of()
    branch = scene.has_branch(8)
    scene.grant("c1")
    scene.grant("c2")
    scene.seal("c1")
    led = scene.handle(gm.GatewayLost())
    assert [report.client for report in of(led, o.UpdateAborted)] == ["c2"]
    stored(scene, "c1")
    assert list(branch.accepted) == ["c1"]


@pytest.mark.parametrize("word", ["again", "aborted", "strange", "loaded"])
def test_a_word_that_cannot_be_true_is_refused(word: str) -> None:
    scene = scene_of()
    scene.has_branch(8)
    scene.grant("c1")
    scene.seal("c1")
    packed = scene.keys["c1"].pack()
    said: dict[str, Any] = {
        "again": gm.Sealed(1, packed, 10),
        "aborted": gm.Aborted(1, packed, "gone"),
        "strange": jm.UpdateStored(Key(77, 1, 2).pack(), 0),
        "loaded": jm.UpdateLoaded(packed),
    }
    with pytest.raises(RemoteFault):
        scene.handle(said[word])
    assert of(stored(scene, "c1"), o.UpdateSealed)


def test_one_that_is_stored_after_its_branch_was_closed_is_given_up() -> None:
    scene = scene_of()
    branch = scene.has_branch(8)
    upload(scene, "c1")
    scene.grant("c2")
    scene.seal("c2")
    scene.handle(o.CloseBranch(NUMBER, EPOCH, 0))
    led = stored(scene, "c2", 8192)
    assert [report.client for report in of(led, o.UpdateAborted)] == ["c2"]
    assert list(branch.accepted) == ["c1"]
    assert scene.keys["c2"] not in scene.arena.objects


@pytest.mark.parametrize("place", [None, 8192])
def test_one_whose_branch_is_gone_stays_until_the_journal_is_through_with_it(place: int | None) -> None:
    scene = scene_of()
    scene.has_branch(8)
    scene.grant("c1")
    scene.seal("c1")
    scene.handle(o.DropBranch(NUMBER, EPOCH))
    assert scene.keys["c1"] in scene.arena.objects
    led = stored(scene, "c1", place)
    assert scene.keys["c1"] not in scene.arena.objects
    assert of(led, jm.DropUpdates) == ([] if place is None else [jm.DropUpdates(NUMBER, EPOCH, (8192,))])
    assert not scene.agent.journal.jobs()


# ---- when a journal goes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [o.CommitBranch(NUMBER, EPOCH), o.DropBranch(NUMBER, EPOCH), o.CloseJob(NUMBER)])
def test_a_journal_goes_with_its_round_and_with_its_job(order: Any) -> None:
    scene = scene_of()
    scene.has_branch(8)
    upload(scene, "c1")
    led = scene.handle(order)
    assert jm.DropUpdates(NUMBER, EPOCH) in led
    assert not scene.agent.journal.jobs()


def test_of_a_branch_that_is_given_up_only_its_own_updates_go() -> None:
    scene = scene_of()
    scene.has_branch(4, branch=1)
    scene.has_branch(4, branch=2)
    upload(scene, "c1", 0, branch=1)
    upload(scene, "c2", 8192, branch=2)
    led = scene.handle(o.DropBranch(NUMBER, EPOCH, 1))
    assert of(led, jm.DropUpdates) == [jm.DropUpdates(NUMBER, EPOCH, (0,))]
    assert list(scene.agent.journal.of(NUMBER, EPOCH)) == ["c2"]


# ---- after the memory is gone ----------------------------------------------------------------------------------------


def adopting(scene: Scene, found: dict[int, Any], orphans: dict[int, Any] | None = None, **order: Any) -> list[Any]:
    """The node has found this on its disk (and in its arena), and is to go on from it."""
    scene.handle(ev.ArenaAdopted(orphans or {}, (), found))
    scene.has_model(durability="disk", adopt=True)
    return scene.handle(o.OpenBranch(NUMBER, EPOCH, 0, 4, adopt=True, **order))


def loads(led: list[Any]) -> list[Key]:
    return [Key.unpack(each.key) for each in of(led, jm.LoadUpdate)]


def test_what_is_on_the_disk_counts_and_is_read_and_folded() -> None:
    scene = Scene()
    led = adopting(scene, left("c1", "c2", "c3"))
    (adopted,) = of(led, o.BranchAdopted)
    assert [member[0] for member in adopted.members] == ["c1", "c2", "c3"]
    keys = loads(led)
    assert [each.place for each in of(led, jm.LoadUpdate)] == [0, 8192, 16384]
    branch = scene.runner().branch
    assert list(branch.accepted) == ["c1", "c2", "c3"]
    for key, client in zip(keys, branch.accepted, strict=True):
        scene.arena.seal(key, client)
        scene.handle(jm.UpdateLoaded(key.pack()))
    assert branch.given == 3
    assert not branch.loading
    upload(scene, "c4", 99_999)
    assert list(branch.accepted) == ["c1", "c2", "c3", "c4"]


def test_what_the_arena_has_too_is_not_read_and_what_is_stored_nowhere_was_not_accepted() -> None:
    scene = Scene()
    found = []
    for client in ("c1", "c9"):
        key = scene.arena.alloc(Kind.UPDATE, NUMBER, EPOCH, 100)
        scene.arena.seal(key, client)
        found.append((key, Kind.UPDATE, EPOCH, scene.arena.contents[key]))
    led = adopting(scene, left("c1", "c2"), {NUMBER: tuple(found)})
    (adopted,) = of(led, o.BranchAdopted)
    assert sorted(member[0] for member in adopted.members) == ["c1", "c2"]
    assert len(loads(led)) == 1
    assert found[1][0] not in scene.arena.objects


def test_what_counts_elsewhere_and_what_is_of_earlier_epochs_goes() -> None:
    scene = Scene()
    earlier = ((epoch_of(0, 1), (Stored("c5", 1.0, {}, 0),)),)
    found = {NUMBER: (*left("c1", "c2")[NUMBER], *earlier)}
    led = adopting(scene, found, without=("c2",))
    assert of(led, jm.DropUpdates) == [jm.DropUpdates(NUMBER, epoch_of(0, 1)), jm.DropUpdates(NUMBER, EPOCH, (8192,))]
    assert list(scene.runner().branch.accepted) == ["c1"]


def test_the_journal_of_a_round_that_is_being_written_stays_when_the_next_one_adopts() -> None:
    scene = Scene()
    later = epoch_of(2, 1)
    found = {NUMBER: (*left("c1")[NUMBER], *left("c2", epoch=later)[NUMBER])}
    adopting(scene, found)
    led = scene.handle(o.OpenBranch(NUMBER, later, 0, 4, adopt=True))
    assert not of(led, jm.DropUpdates)
    assert scene.agent.journal.epochs(NUMBER) == [EPOCH, later]


def test_a_job_that_is_not_to_go_on_from_it_drops_it() -> None:
    scene = Scene()
    scene.handle(ev.ArenaAdopted({}, (), left("c1")))
    led = scene.handle(scene.open_job(durability="disk"))
    assert of(led, jm.DropUpdates) == [jm.DropUpdates(NUMBER, EPOCH)]
    scene.handle(ev.ArenaAdopted({}, (), {9: left("c1")[NUMBER]}))
    assert of(scene.handle(o.CloseJob(9)), jm.DropUpdates) == [jm.DropUpdates(9, EPOCH)]


def test_updates_are_read_as_there_is_room_for_them() -> None:
    """Twelve updates of 4 MiB, an arena for a few: all of them are folded in the end, and it never overflows."""
    clients = [f"c{number}" for number in range(1, 13)]
    scene = Scene(elements=LARGE, clients_per_round=12, arena_bytes=14 * (4 << 20))
    scene.handle(ev.ArenaAdopted({}, (), left(*clients)))
    scene.has_model(durability="disk", adopt=True)
    waiting = loads(scene.handle(o.OpenBranch(NUMBER, EPOCH, 0, 12, adopt=True)))
    branch = scene.runner().branch
    names = iter(clients)
    assert len(waiting) < 12
    for _ in range(200):
        if branch.given == 12 and not branch.loading and not branch.stored:
            break
        led: list[Any] = []
        if waiting:
            key = waiting.pop(0)
            scene.arena.seal(key, next(names))
            led = scene.handle(jm.UpdateLoaded(key.pack()))
        else:
            scene.all_ready()
            task = next(t for t in scene.tasks() if t.state is TaskState.RUNNING and t.complete and t.role != "top")
            led = scene.done(task, *(f"x{task.number}" for _ in range(1)))
        waiting += loads(led)
    assert branch.given == 12


@pytest.mark.parametrize("gone", [False, True])
def test_one_that_cannot_be_read_fails_the_attempt_unless_its_branch_is_gone(gone: bool) -> None:
    scene = Scene()
    (key,) = loads(adopting(scene, left("c1")))
    if gone:
        scene.handle(o.DropBranch(NUMBER, EPOCH))
        assert key in scene.arena.objects, "it is being written to"
    led = scene.handle(jm.UpdateLoaded(key.pack(), "the file is damaged"))
    failed = of(led, o.BranchFailed)
    assert key not in scene.arena.objects
    assert len(failed) == (not gone)
    assert gone or (failed[0].retry and "client 'c1'" in failed[0].text)


def test_the_node_says_that_it_has_something_of_a_job_that_is_not_open() -> None:
    scene = Scene(connected=False)
    scene.handle(ev.ArenaAdopted({}, (), left("c1")))
    (inventory,) = of(scene.handle(ev.CoordinatorUp(stranger=False)), type(scene_inventory()))
    assert inventory.orphans == (NUMBER,)
    scene.handle(ev.CoordinatorDown())
    led = scene.handle(ev.CoordinatorUp(stranger=True))
    assert of(led, jm.DropUpdates) == [jm.DropUpdates(NUMBER, EPOCH)]


def scene_inventory() -> Any:
    from lifl.core.protocol.cluster import Inventory

    return Inventory()

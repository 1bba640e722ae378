"""A node begins to coordinate, and ends: each time it begins anew with what is sealed in its arena."""

from __future__ import annotations

from typing import Any

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, PARENT, Scene, at, conn, inventory, members

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.model_slot import SlotState
from lifl.core.config.job import parse_job
from lifl.core.coordinator.recovery import LAST_HOME_S
from lifl.core.engine import promote
from lifl.core.errors import LocalFault, Refused
from lifl.core.ids import Key, Kind, epoch_of
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm

NEW_PARENT = "other:1"
DOWN, PROMOTED = ev.Demoted(), ev.Promoted(5, b"seed", (NUMBER,))


def branch_of(*clients: str, updates: int = 8, branch: int = 1, **more: Any) -> Scene:
    """A branch that has these clients' updates."""
    scene = Scene(elements=LARGE, **more)
    scene.has_model()
    scene.has_branch(updates, branch=branch, others=() if branch else (7,))
    for client in clients:
        scene.upload(client, branch)
    return scene


def begun_anew(scene: Scene) -> list[ev.Orphan]:
    """What the node has of the job when it has come to coordinate."""
    scene.handle(PROMOTED)
    assert scene.agent.replicas == {}
    return scene.agent.orphans[NUMBER]


def who(found: list[ev.Orphan]) -> list[tuple[Kind, list[str]]]:
    """Kind and clients of each object."""
    return sorted((kind, [member.client for member in its]) for _key, kind, _epoch, its in found)


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_updates_that_wait_for_their_task_or_are_being_folded_are_kept() -> None:
    scene = branch_of("c1", "c2", "c3")
    scene.all_ready()
    leaf = scene.tasks(1)[0]
    assert leaf.state is TaskState.RUNNING
    worker = at(leaf)
    found = begun_anew(scene)
    assert who(found) == [(Kind.UPDATE, [client]) for client in ("c1", "c2", "c3")]
    assert all(epoch == EPOCH for _key, _kind, epoch, _its in found)
    assert worker in scene.agent.pool.workers, "it is told to drop its task"


def test_what_a_worker_makes_of_them_is_freed_when_it_has_let_go() -> None:
    scene = branch_of("c1", "c2")
    scene.all_ready()
    leaf = scene.tasks(1)[0]
    worker, address, output = at(leaf), leaf.address, leaf.output
    begun_anew(scene)
    assert output in scene.arena.objects
    scene.handle(ev.FromWorker(worker, wm.TaskDropped(address, 1)))
    assert sorted(scene.arena.objects) == sorted(scene.keys.values())


def test_of_a_task_that_is_done_its_partial_is_kept() -> None:
    scene = branch_of("c1", "c2", "c3", updates=4)
    scene.all_ready()
    scene.done(scene.tasks(1)[0], "c1", "c2")
    assert who(begun_anew(scene)) == [(Kind.UPDATE, ["c3"]), (Kind.PARTIAL, ["c1", "c2"])]


def test_the_partial_of_a_branch_that_is_done_is_kept() -> None:
    scene = branch_of("c1", "c2", updates=2)
    scene.all_ready()
    scene.done(scene.tasks(1)[0], "c1", "c2")
    assert who(begun_anew(scene)) == [(Kind.PARTIAL, ["c1", "c2"])]


def test_a_top_s_inputs_are_kept_also_when_its_model_is_made() -> None:
    scene = Scene(elements=LARGE)
    scene.has_model()
    scene.has_branch(1)
    scene.upload("c1")
    scene.all_ready()
    (top,) = scene.tasks()
    scene.done(top, "c1")
    assert scene.slot.round == 1
    assert who(begun_anew(scene)) == [(Kind.UPDATE, ["c1"])]
    assert scene.arena.of(Kind.MODEL) == []


def test_what_is_on_its_way_is_not_kept_and_freed_when_the_gateway_is_through_with_it() -> None:
    scene = branch_of("c1")
    scene.grant("c2", 1)
    assert who(begun_anew(scene)) == [(Kind.UPDATE, ["c1"])]
    scene.seal("c2")
    assert scene.arena.of(Kind.UPDATE) == [scene.keys["c1"]]


def test_a_partial_of_another_node_is_kept_where_the_top_is() -> None:
    scene = branch_of("c1", branch=0)
    size = scene.layout.accumulator_bytes
    (grant,) = scene.handle(gm.Offered(77, NUMBER, EPOCH, 7, 2, size, 100))
    key = scene.arena.seal(Key.unpack(grant.key), "c8", "c9")
    scene.handle(gm.Sealed(77, grant.key, 10))
    assert who(begun_anew(scene)) == [(Kind.UPDATE, ["c1"]), (Kind.PARTIAL, ["c8", "c9"])]
    assert scene.agent.quota.epoch_of(key) == EPOCH


def test_one_that_is_still_on_its_way_is_refused() -> None:
    scene = branch_of("c1", branch=0)
    (grant,) = scene.handle(gm.Offered(77, NUMBER, EPOCH, 7, 2, scene.layout.accumulator_bytes, 100))
    begun_anew(scene)
    scene.arena.seal(Key.unpack(grant.key), "c8", "c9")
    (answer,) = scene.handle(gm.Sealed(77, grant.key, 10))
    assert isinstance(answer, gm.TellClient)
    assert scene.arena.of(Kind.PARTIAL) == []


def test_what_no_branch_has_taken_yet_stays_too() -> None:
    scene = Scene(elements=LARGE, connected=False)
    key = scene.arena.alloc(Kind.UPDATE, NUMBER, epoch_of(2, 1), scene.update_bytes)
    scene.arena.seal(key, "c1")
    scene.handle(ev.ArenaAdopted({NUMBER: ((key, Kind.UPDATE, epoch_of(2, 1), scene.arena.contents[key]),)}, ()))
    scene.handle(ev.CoordinatorUp(stranger=False))
    scene.has_job(adopt=True)
    assert who(begun_anew(scene)) == [(Kind.UPDATE, ["c1"])]


def test_an_object_whose_record_is_damaged_is_freed() -> None:
    scene = branch_of("c1", "c2")
    scene.arena.damaged.add(scene.keys["c1"])
    assert who(begun_anew(scene)) == [(Kind.UPDATE, ["c2"])]
    assert scene.keys["c1"] not in scene.arena.objects


@pytest.mark.parametrize("running", [(), (9,)])
def test_of_a_job_that_does_not_run_nothing_is_kept(running: tuple[int, ...]) -> None:
    scene = branch_of("c1")
    scene.handle(ev.Promoted(5, b"", running))
    assert (scene.agent.orphans, scene.arena.objects) == ({}, {})


# ---- and what goes on ------------------------------------------------------------------------------------------------


def test_clients_are_sent_away_and_the_gateway_forgets_the_job() -> None:
    scene = branch_of("c1")
    led = scene.handle(PROMOTED)
    assert led[0] == gm.HangUp()
    assert gm.JobForget("j") in led


def config() -> Any:
    table = {"job": {"name": "j", "rounds": 2}, "model": {"path": "/m"}, "selection": {"clients_per_round": 8}}
    return parse_job(table)


def resumed(scene: Scene) -> ev.JobResumed:
    """Round 1 had branch 1 here, and branch 0 at node 9."""
    parts = [[0, f"{9:016x}", 4], [1, f"{scene.engine.node:016x}", 4]]
    history = ev.JobHistory(0, {1: (1, "open", {"parts": parts, "next_part": 2})}, {}, {}, {0: 3})
    return ev.JobResumed(ev.JobFacts(NUMBER, config(), scene.layout.tensors, (), "/f"), history)


def test_a_node_that_comes_to_coordinate_loads_the_model_and_takes_up_what_it_has() -> None:
    scene = branch_of("c1", "c2")
    scene.handle(PROMOTED)
    scene.handle(resumed(scene))
    coordinator = scene.engine.coordinating()
    assert (coordinator.nodes.home, coordinator.nodes.moves) == (scene.engine.node, True)
    load = next(each.task for each in scene.agent.tasks._open.values())
    scene.all_ready()
    led = scene.done(load)
    led += scene.handle(ev.Tick(), at=LAST_HOME_S)  # node 9 does not come
    round_ = coordinator.jobs["j"].round
    assert round_ is not None
    assert sorted(round_.accepted) == ["c1", "c2"]
    assert scene.runner(0).branch.accepted.keys() == {"c1", "c2"}
    assert not any(isinstance(each, fx.SendCoordinator) for each in led)
    scene.check_replay()


def test_a_node_coordinates_once_at_a_time() -> None:
    scene = Scene()
    scene.handle(PROMOTED)
    with pytest.raises(LocalFault, match="coordinates already"):
        promote(scene.engine, PROMOTED)


def test_a_node_that_ends_to_coordinate_says_what_it_has_as_one_that_has_started_again() -> None:
    scene = branch_of("c1", "c2")
    scene.handle(PROMOTED)
    scene.handle(resumed(scene))
    load = next(each.task for each in scene.agent.tasks._open.values())
    scene.all_ready()
    scene.done(load)
    scene.handle(ev.Tick(), at=LAST_HOME_S)
    assert scene.runner(0).branch.accepted
    assert scene.handle(DOWN)[0] == gm.HangUp()
    assert scene.engine.coordinator is None
    with pytest.raises(Refused, match="does not coordinate"):
        scene.engine.coordinating()
    joined = gm.ClientJoined(5, "c5", "j")
    assert scene.handle(joined) == []
    assert scene.handle(ev.CoordinatorUp(stranger=False, moved=True)) == [inventory(orphans=(NUMBER,)), joined]
    scene.has_model(adopt=True)
    (told, *_) = scene.handle(o.OpenBranch(NUMBER, EPOCH, 4, 2, parent=NEW_PARENT, adopt=True))
    assert told == o.BranchAdopted(NUMBER, EPOCH, 4, members("c1", "c2"))


def test_what_was_to_follow_a_row_that_was_not_written_is_forgotten() -> None:
    scene = Scene(connected=False)
    scene.handle(ev.Promoted(5, b"", ()))
    facts = ev.JobFacts(NUMBER, config(), scene.layout.tensors, (), "/f")
    assert scene.handle(ev.JobSubmitted(facts)) == [fx.SaveJob("j", "running", "")]
    assert scene.engine.writing
    scene.handle(DOWN)
    assert not scene.engine.writing
    assert scene.handle(ev.RowsWritten()) == []
    assert scene.agent.replicas == {}


def test_effects_that_only_a_coordinator_wants_are_left_out() -> None:
    mine = [gm.HangUp(), fx.SendWorker(1, wm.Retire()), fx.ForkWorker(2), fx.JobBroke(1, "")]
    not_mine = [
        fx.SendNode(3, o.CloseJob(1)),
        fx.SaveJob("j", "running", ""),
        fx.SaveRound("j", 1, 1, "committed", {}),
        fx.SetAside("j", 1, ""),
        fx.Publish("round.committed", "j", {}),
    ]
    assert fx.without_decisions([*not_mine, *mine, *not_mine]) == mine


# ---- agents of which another node comes to be the coordinator --------------------------------------------------------


def sealed_branch() -> Scene:
    scene = branch_of("c1", "c2", updates=2)
    scene.all_ready()
    scene.done(scene.tasks(1)[0], "c1", "c2")
    return scene


def move(branch: int = 1, parent: str = NEW_PARENT) -> o.MovePartial:
    return o.MovePartial(NUMBER, EPOCH, branch, parent)


def test_a_partial_goes_to_the_new_top_also_when_the_last_one_had_it() -> None:
    scene = sealed_branch()
    branch = scene.runner(1).branch
    key = branch.tree.root.output
    scene.handle(gm.CarryEnded(key.pack(), "", 10))
    assert branch.carried
    assert scene.handle(move()) == [gm.Carry(key.pack(), NEW_PARENT, NUMBER, EPOCH, 1, branch.secret)]
    assert not branch.carried
    assert scene.handle(move()) == [], "it is on its way there"


def test_one_that_the_top_has_lost_is_brought_again() -> None:
    scene = sealed_branch()
    branch = scene.runner(1).branch
    key = branch.tree.root.output
    assert scene.handle(move(parent=PARENT)) == [], "it is on its way there"
    scene.handle(gm.CarryEnded(key.pack(), "", 10))
    assert scene.handle(move(parent=PARENT)) == [gm.Carry(key.pack(), PARENT, NUMBER, EPOCH, 1, branch.secret)]


def test_one_that_is_not_made_yet_goes_there_later() -> None:
    scene = branch_of("c1", "c2", updates=2)
    assert scene.runner(1).branch.parent == PARENT
    assert scene.handle(move()) == []
    scene.all_ready()
    led = scene.done(scene.tasks(1)[0], "c1", "c2")
    assert [each.address for each in led if isinstance(each, gm.Carry)] == [NEW_PARENT]


def test_one_that_is_not_here_is_not_minded() -> None:
    assert branch_of("c1").handle(move(branch=5)) == []


def test_a_model_that_was_fetched_is_fetched_anew_from_another_coordinator() -> None:
    """What was not committed may be made again, otherwise."""
    scene = Scene()
    scene.has_model(round=3)
    scene.handle(ev.CoordinatorDown())
    scene.handle(ev.CoordinatorUp(stranger=False, moved=True))
    assert (scene.slot.state, scene.arena.of(Kind.MODEL)) == (SlotState.ELSEWHERE, [])
    scene.handle(o.ModelAt(NUMBER, 3, NEW_PARENT))
    (fetch,) = scene.handle(gm.WantModel(conn("c5"), "j", 4))
    assert (fetch.address, fetch.round) == (NEW_PARENT, 4)


def test_one_that_is_being_fetched_comes_too_late() -> None:
    scene = Scene()
    scene.has_job(round=3)
    scene.handle(o.ModelAt(NUMBER, 3, PARENT))
    (fetch,) = scene.handle(gm.WantModel(conn("c5"), "j", 4))
    scene.handle(ev.CoordinatorUp(stranger=False, moved=True))
    scene.arena.seal(Key.unpack(fetch.key))
    scene.handle(gm.FetchEnded(fetch.key, "", 10))
    assert (scene.slot.state, scene.arena.objects) == (SlotState.ELSEWHERE, {})


def test_from_the_same_coordinator_it_stays() -> None:
    scene = Scene()
    scene.has_model(round=3)
    scene.handle(ev.CoordinatorDown())
    scene.handle(ev.CoordinatorUp(stranger=False))
    assert scene.slot.state is SlotState.READY


def test_a_top_takes_nothing_that_counts_elsewhere() -> None:
    scene = branch_of("c1", "c2", "c3")
    scene.handle(PROMOTED)
    scene.handle(DOWN)
    scene.handle(ev.CoordinatorUp(stranger=False))
    scene.has_model(adopt=True)
    led = scene.handle(o.OpenBranch(NUMBER, EPOCH, 0, 8, others=(1,), adopt=True, without=("c2", "c9")))
    assert led[0] == o.BranchAdopted(NUMBER, EPOCH, 0, members("c1", "c3"))
    assert scene.keys["c2"] not in scene.arena.objects

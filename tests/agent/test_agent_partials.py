"""Partials of other nodes come to a top here; those of branches here are brought to a top elsewhere."""

from __future__ import annotations

import math

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, PARENT, Scene, members, told

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.partial_transfers import CARRY_RETRY_S
from lifl.core.agent.uploads import BUSY_RETRY_S
from lifl.core.ids import Key, Kind, epoch_of
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.arena_need import beside_bytes_min, round_bytes_min
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm

CONN = 77
ACCEPTED = told(CONN, cm.Accepted("j", 1))
BUSY = told(CONN, cm.Busy("j", 1, BUSY_RETRY_S))
UNWANTED = told(CONN, cm.Refusal("round-over", "epoch", "no round of this node takes that partial"))
TOO_LATE = told(CONN, cm.Refusal("round-over", "epoch", "the round goes on without that partial"))


def top_of(updates: int = 1, others: tuple[int, ...] = (1, 2), **more: object) -> Scene:
    """A branch with the top, that awaits partials."""
    scene = Scene(elements=LARGE)
    scene.has_model()
    scene.has_branch(updates, others=others, **more)
    return scene


def offer(scene: Scene, branch: int = 1, **more: int) -> gm.Offered:
    given = {"number": NUMBER, "epoch": EPOCH, "data_bytes": scene.layout.accumulator_bytes, **more}
    return gm.Offered(conn=CONN, branch=branch, members=2, meta_bytes=100, **given)


def coming(scene: Scene, branch: int = 1) -> Key:
    """A partial that has its slot."""
    (grant,) = scene.handle(offer(scene, branch))
    assert grant == gm.Granted(CONN, grant.key, b"")
    return Key.unpack(grant.key)


def test_one_that_is_awaited_gets_a_slot() -> None:
    scene = top_of()
    key = coming(scene)
    assert scene.arena.of(Kind.PARTIAL) == [key]
    assert scene.arena.extent_bytes(key) == scene.partial_bytes(scene.runner().branch.members_max)


def test_all_partials_are_of_one_size_where_that_costs_little() -> None:
    """What one leaves would else be too short for the next one, by a page."""
    scene = top_of(updates=8)
    for client in ("c1", "c2"):
        scene.upload(client)
    coming(scene)
    most = scene.runner().branch.members_max
    assert {scene.arena.extent_bytes(key) for key in scene.arena.of(Kind.PARTIAL)} == {scene.partial_bytes(most)}
    assert scene.replica.spec.records_bytes(2, 10**6) == 2 * CONTRIBUTION_BYTES_MAX


def test_one_comes_only_when_there_is_room_for_all_that_takes_it() -> None:
    """Many that have come would else fill the arena, and no task that takes them would have room for what it makes."""
    scene = top_of(updates=0, others=(1, 2, 3))
    scene.arena.allows = 2  # its slot, and the middle's
    assert scene.handle(offer(scene)) == [BUSY]
    assert scene.arena.of(Kind.PARTIAL) == []
    scene.arena.allows = None
    coming(scene)
    middle, *_, top = scene.tasks()
    assert (middle.state, top.state) == (TaskState.OPEN, TaskState.OPEN)


@pytest.mark.parametrize("other", ["job", "epoch", "branch"])
def test_one_that_is_not_awaited_is_refused(other: str) -> None:
    scene = top_of()
    given = {"job": {"number": 9}, "epoch": {"epoch": epoch_of(1, 2)}, "branch": {"branch": 5}}[other]
    assert scene.handle(offer(scene, **given)) == [UNWANTED]


@pytest.mark.parametrize("why", ["it is coming", "another size", "no room"])
def test_one_that_cannot_come_now_is_told_busy(why: str) -> None:
    scene = top_of()
    if why == "it is coming":
        coming(scene)
    if why == "no room":
        scene.arena.nbytes = 0
    size = scene.layout.accumulator_bytes + (why == "another size")
    assert scene.handle(offer(scene, data_bytes=size)) == [BUSY]


def test_one_that_is_sealed_is_in_the_top() -> None:
    scene = top_of()
    key = coming(scene)
    scene.arena.seal(key, "c5", "c6")
    led = scene.handle(gm.Sealed(CONN, key.pack(), 900))
    assert led == [o.PartialArrived(NUMBER, EPOCH, 1, members("c5", "c6"), 900), ACCEPTED]
    branch = scene.runner().branch
    assert (branch.arrived, branch.awaited) == ({1: members("c5", "c6")}, {2})
    (top,) = scene.tasks()
    assert top.inputs == [key]
    assert scene.handle(offer(scene)) == [ACCEPTED], "it is here already"


def test_middles_above_a_top_s_places_take_it_in_the_order_of_coming() -> None:
    scene = top_of(updates=0, others=(1, 2, 3))
    first, second = coming(scene, 3), coming(scene, 1)
    for key, client in ((second, "c6"), (first, "c5")):
        scene.arena.seal(key, client)
        scene.handle(gm.Sealed(CONN, key.pack(), 0))
    middle, top = scene.tasks()
    assert (middle.role, middle.inputs, top.inputs) == ("middle", [second, first], [])
    scene.all_ready()
    assert middle.state.value == "running"


@pytest.mark.parametrize("why", ["forgotten", "a member is here", "damaged", "the branch is gone"])
def test_one_that_is_not_wanted_any_more_when_it_is_sealed_is_freed(why: str) -> None:
    scene = top_of(updates=3)
    scene.upload("c5")
    key = coming(scene)
    if why == "forgotten":
        answer = scene.handle(o.ForgetBranch(NUMBER, EPOCH, 1))
        assert answer == [o.BranchForgotten(NUMBER, EPOCH, 1)]
    if why == "the branch is gone":
        scene.handle(o.DropBranch(NUMBER, EPOCH))
    scene.arena.seal(key, "c5" if why == "a member is here" else "c7")
    scene.arena.damaged = {key} if why == "damaged" else set()
    assert scene.handle(gm.Sealed(CONN, key.pack(), 900)) == [TOO_LATE]
    assert key not in scene.arena.objects


def test_one_whose_member_is_in_another_partial_is_freed() -> None:
    scene = top_of()
    for branch, led in ((1, ACCEPTED), (2, TOO_LATE)):
        key = coming(scene, branch)
        scene.arena.seal(key, "c5")
        assert scene.handle(gm.Sealed(CONN, key.pack(), 900))[-1] == led


@pytest.mark.parametrize("gateway", [False, True])
def test_one_that_will_not_come_leaves_its_room(gateway: bool) -> None:
    scene = top_of()
    key = coming(scene)
    led = scene.handle(gm.GatewayLost() if gateway else gm.Aborted(CONN, key.pack(), "broken"))
    assert led == ([gm.GatewayLost()] if gateway else [])
    assert scene.arena.of(Kind.PARTIAL) == []
    coming(scene)


def test_a_branch_whose_partial_is_here_is_not_forgotten() -> None:
    scene = top_of()
    key = coming(scene)
    scene.arena.seal(key, "c5")
    scene.handle(gm.Sealed(CONN, key.pack(), 900))
    led = scene.handle(o.ForgetBranch(NUMBER, EPOCH, 1))
    assert led == [o.PartialArrived(NUMBER, EPOCH, 1, members("c5"), 0)]
    assert scene.handle(o.ForgetBranch(NUMBER, EPOCH, 2)) == [o.BranchForgotten(NUMBER, EPOCH, 2)]
    assert scene.handle(offer(scene, 2)) == [UNWANTED]


def test_without_a_top_here_a_branch_is_forgotten_all_the_same() -> None:
    scene = Scene()
    scene.has_job()
    assert scene.handle(o.ForgetBranch(NUMBER, EPOCH, 1)) == [o.BranchForgotten(NUMBER, EPOCH, 1)]


def test_one_more_may_be_awaited_in_a_spare_place() -> None:
    scene = top_of(others=(1,), spare=1)
    assert scene.handle(offer(scene, 5)) == [UNWANTED]
    assert scene.handle(o.AwaitBranch(NUMBER, EPOCH, 5)) == []
    coming(scene, 5)
    assert scene.handle(o.AwaitBranch(NUMBER, epoch_of(1, 9), 5)) == [], "an attempt that is not here"


# ---- those that a branch here sends ----------------------------------------------------------------------------------


def carrying() -> tuple[Scene, gm.Carry]:
    """A branch's partial is being brought to the top."""
    scene = Scene(elements=LARGE)
    scene.has_model()
    scene.has_branch(1, branch=1)
    scene.upload("c1", branch=1)
    scene.all_ready()
    (root,) = scene.tasks(1)
    return scene, scene.done(root, "c1")[-1]


def test_one_that_is_at_the_top_s_node_stays_until_the_commit() -> None:
    scene, carry = carrying()
    assert carry == gm.Carry(scene.tasks(1)[0].output.pack(), PARENT, NUMBER, EPOCH, 1)
    assert scene.handle(gm.CarryEnded(carry.key, "", 900)) == []
    assert scene.runner(1).branch.carried
    assert not scene.engine.busy()
    assert scene.arena.of(Kind.PARTIAL) == [Key.unpack(carry.key)]
    assert scene.agent.partials.next_timer() == math.inf


def test_one_that_could_not_be_brought_is_brought_again_after_a_while() -> None:
    scene, carry = carrying()
    assert scene.handle(gm.CarryEnded(carry.key, "broken", 0), at=10.0) == []
    assert scene.agent.partials.next_timer() == 10.0 + CARRY_RETRY_S
    assert scene.handle(ev.Tick(), at=10.5) == [fx.LookAtChildren()]
    assert scene.handle(ev.Tick(), at=11.0) == [carry]
    assert scene.agent.partials.next_timer() == math.inf


def test_after_the_gateway_ended_it_is_brought_again_at_once() -> None:
    scene, carry = carrying()
    assert scene.handle(gm.GatewayLost(), at=10.0) == [gm.GatewayLost()]
    assert scene.agent.partials.next_timer() == 10.0
    assert scene.handle(ev.Tick()) == [fx.LookAtChildren(), carry]


def test_the_end_of_a_transfer_that_is_of_no_branch_changes_nothing() -> None:
    scene, _ = carrying()
    assert scene.handle(gm.CarryEnded(Key(9, 9, 9).pack(), "broken", 0)) == []
    assert scene.agent.partials.next_timer() == math.inf


def test_the_last_partial_starts_a_top_that_knows_how_many_come() -> None:
    scene = top_of(updates=0, others=(1,))
    assert scene.handle(o.ExpectPartials(NUMBER, EPOCH, 1)) == []
    key = coming(scene)
    scene.arena.seal(key, "c5")
    led = scene.handle(gm.Sealed(CONN, key.pack(), 900))
    assert led == [o.PartialArrived(NUMBER, EPOCH, 1, members("c5"), 900), fx.ForkWorker(1), ACCEPTED]
    assert isinstance(scene.ready(1)[0].message, wm.TaskStart)


def test_a_top_is_promised_what_its_tree_needs_while_it_takes_partials_of_others() -> None:
    """Else another job begins in that, and both wait for room that neither gives."""
    scene = Scene(elements=LARGE)
    scene.has_model()
    replica, quota = scene.replica, scene.engine.agent.quota
    section = replica.spec.aggregation
    least = replica.least_bytes = replica.promised_bytes = round_bytes_min(scene.layout, section, 4, 0)
    assert quota.reserve(NUMBER, least)
    scene.handle(o.OpenBranch(NUMBER, EPOCH, 0, 4, tuple(range(1, 20))))
    members = replica.spec.clients_per_round
    assert quota._reserved[NUMBER] == round_bytes_min(scene.layout, section, 4, 0, 19, members) > least
    scene.handle(o.DropBranch(NUMBER, EPOCH, 0))
    assert quota._reserved[NUMBER] == least


def test_branches_beside_each_other_are_promised_what_all_of_them_need() -> None:
    scene = Scene(elements=LARGE)
    scene.has_model()
    replica, quota = scene.replica, scene.engine.agent.quota
    section, members = replica.spec.aggregation, replica.spec.clients_per_round
    scene.handle(o.OpenBranch(NUMBER, EPOCH, 0, 0, (1,), 4))
    top = quota._reserved[NUMBER]
    assert top == round_bytes_min(scene.layout, section, 0, 0, 5, members)
    scene.handle(o.OpenBranch(NUMBER, EPOCH, 2, 4))
    assert quota._reserved[NUMBER] == top + beside_bytes_min(scene.layout, section, 4, members)

"""A node starts on what an earlier life has left in its arena."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, LARGE, NUMBER, Scene, aborted, inventory, members, orphan, too_late

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.quota import NO_JOB
from lifl.core.agent.uploads import DIRECT_GRACE_S
from lifl.core.ids import Key, Kind, epoch_of
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution

OPEN, PLANNED, PLACING = TaskState.OPEN, TaskState.PLANNED, TaskState.PLACING


class Left:
    """A node that starts, and what is in its arena."""

    def __init__(self, **more: object) -> None:
        self.scene = Scene(elements=LARGE, connected=False, **more)
        self.orphans: list[ev.Orphan] = []

    def has(self, kind: Kind, *clients: str, epoch: int = EPOCH) -> Key:
        """Something that is sealed."""
        size = self.scene.update_bytes if kind is Kind.UPDATE else self.scene.partial_bytes(len(clients))
        key = self.scene.arena.alloc(kind, NUMBER, epoch, size)
        self.scene.arena.seal(key, *clients)
        self.orphans.append(orphan(key, kind, *clients, epoch=epoch))
        return key

    def opened(self, adopt: bool = True) -> Scene:
        """The job is open again, with its model."""
        scene = self.scene
        scene.handle(ev.ArenaAdopted({NUMBER: tuple(self.orphans)}, ()))
        assert scene.handle(ev.CoordinatorUp(stranger=False)) == [inventory(orphans=[NUMBER])]
        scene.has_model(adopt=adopt)
        return scene

    def branch(self, updates: int, **more: object) -> list[object]:
        """What opening the branch led to."""
        return self.scene.handle(o.OpenBranch(NUMBER, EPOCH, more.pop("branch", 0), updates, adopt=True, **more))


def adopted(*clients: str, branch: int = 0, epoch: int = EPOCH) -> o.BranchAdopted:
    return o.BranchAdopted(NUMBER, epoch, branch, members(*clients))


def test_what_was_left_is_nobody_s_until_its_job_is_opened() -> None:
    left = Left()
    key = left.has(Kind.UPDATE, "c1")
    scene = left.scene
    assert scene.handle(ev.ArenaAdopted({NUMBER: tuple(left.orphans)}, ())) == []
    assert scene.agent.quota.job_used_bytes(NO_JOB) == scene.arena.extent_bytes(key)
    scene.has_job(adopt=True)
    assert scene.agent.quota.job_used_bytes(NO_JOB) == 0
    assert scene.agent.quota.job_used_bytes(NUMBER) == scene.arena.extent_bytes(key)


@pytest.mark.parametrize("how", ["opened anew", "closed"])
def test_what_is_not_wanted_is_freed(how: str) -> None:
    left = Left()
    left.has(Kind.UPDATE, "c1")
    left.scene.handle(ev.ArenaAdopted({NUMBER: tuple(left.orphans)}, ()))
    if how == "closed":
        left.scene.handle(o.CloseJob(NUMBER))
    else:
        left.scene.has_job(adopt=False)
    assert left.scene.arena.objects == {}


def test_what_no_branch_has_taken_is_freed_with_the_job() -> None:
    left = Left()
    left.has(Kind.UPDATE, "c1", epoch=epoch_of(2, 1))
    scene = left.opened()
    left.branch(2)
    scene.handle(o.CloseJob(NUMBER))
    assert scene.arena.objects == {}


def test_what_a_client_may_still_write_to_rests() -> None:
    left = Left()
    key = left.scene.arena.alloc(Kind.UPDATE, NUMBER, EPOCH, 100)
    left.scene.handle(ev.ArenaAdopted({}, (key,)), at=2.0)
    assert left.scene.engine.next_timer() == 2.0 + DIRECT_GRACE_S
    left.scene.handle(ev.Tick(), at=7.0)
    assert left.scene.arena.objects == {}


def test_a_branch_goes_on_from_the_updates_that_are_there() -> None:
    left = Left()
    keys = [left.has(Kind.UPDATE, f"c{number}") for number in (1, 2, 3)]
    scene = left.opened()
    led = left.branch(8)
    assert led == [adopted("c1", "c2", "c3"), fx.ForkWorker(1), fx.ForkWorker(2)]
    branch = scene.runner().branch
    assert list(branch.accepted) == ["c1", "c2", "c3"]
    one, two, top = scene.tasks()
    assert (one.inputs, two.inputs, branch.given) == (keys[:2], keys[2:], 3)
    assert scene.tell() == [PLACING, PLACING, OPEN]
    assert top.expect == 6
    assert isinstance(scene.grant("c4")[0], gm.Granted)


def test_what_an_earlier_life_has_noted_of_their_bytes_is_told_again() -> None:
    left = Left()
    key = left.has(Kind.UPDATE, "c1")
    left.orphans[0] = (key, Kind.UPDATE, EPOCH, [Contribution("c1", 1.0, digest=77)])
    left.has(Kind.UPDATE, "c2")  # of an earlier release
    left.opened()
    led = left.branch(2)
    assert led[:2] == [adopted("c1", "c2"), o.UpdateSealed(NUMBER, EPOCH, 0, "c1", 0, digest=77)]
    assert not [each for each in led[2:] if isinstance(each, o.UpdateSealed)]


def test_and_from_partials_which_take_the_first_places() -> None:
    left = Left()
    partial = left.has(Kind.PARTIAL, "c1", "c2")
    update = left.has(Kind.UPDATE, "c3")
    scene = left.opened()
    led = left.branch(8)
    assert led == [adopted("c1", "c2", "c3"), fx.ForkWorker(1), fx.ForkWorker(2)]
    branch = scene.runner().branch
    assert (branch.adopted, branch.tree._updates) == (1, 6)
    taker = branch.tree.adopting[0]
    assert taker.inputs == [partial]
    assert scene.tasks()[0].inputs == [update]


def test_of_partials_within_each_other_the_largest_counts_and_frees_what_is_in_it() -> None:
    left = Left()
    small = left.has(Kind.PARTIAL, "c1", "c2")
    inside = left.has(Kind.UPDATE, "c3")
    large = left.has(Kind.PARTIAL, "c1", "c2", "c3", "c4")
    empty = left.has(Kind.PARTIAL)
    beside = left.has(Kind.UPDATE, "c5")
    scene = left.opened()
    assert left.branch(8)[0] == adopted("c1", "c2", "c3", "c4", "c5")
    assert not {small, inside, empty} & scene.arena.objects.keys()
    assert {large, beside} <= scene.arena.objects.keys()


def test_of_an_earlier_attempt_nothing_counts_and_of_a_later_one_it_stays() -> None:
    left = Left()
    earlier, later = (
        left.has(Kind.UPDATE, "c1", epoch=epoch_of(1, 0)),
        left.has(Kind.UPDATE, "c2", epoch=epoch_of(1, 2)),
    )
    scene = left.opened()
    assert left.branch(8, others=(1,)) == [adopted()]
    assert earlier not in scene.arena.objects and later in scene.arena.objects
    again = scene.handle(o.OpenBranch(NUMBER, epoch_of(1, 2), 0, 8, adopt=True))
    assert again[0] == adopted("c2", epoch=epoch_of(1, 2))


@pytest.mark.parametrize(("branch", "others", "opens"), [(0, (), False), (0, (1,), True), (1, (), True)])
def test_where_nothing_is_left_a_top_alone_is_not_begun(branch: int, others: tuple[int, ...], opens: bool) -> None:
    left = Left()
    scene = left.opened()
    led = left.branch(4, branch=branch, others=others, parent="home:1" if branch else "")
    assert led == [adopted(branch=branch)]
    assert bool(scene.replica.runners) is opens


def test_more_updates_than_the_branch_was_to_take_are_all_taken() -> None:
    left = Left()
    for number in range(1, 6):
        left.has(Kind.UPDATE, f"c{number}")
    scene = left.opened()
    left.branch(2)
    assert scene.runner().branch.tree._updates == 5
    assert len(scene.runner().branch.accepted) == 5


def short_of_room(updates: int, objects: int) -> tuple[Left, list[object]]:
    """A branch that goes on from its updates, with room for so many outputs."""
    left = Left(middle_fan_in=8)
    for number in range(1, 1 + updates):
        left.has(Kind.UPDATE, f"c{number}")
    scene = left.opened()
    scene.arena.allows = objects
    scene.anew()
    return left, left.branch(updates)


def test_where_there_is_no_room_for_all_outputs_it_goes_step_by_step() -> None:
    left, led = short_of_room(8, 2)
    scene = left.scene
    one, two, top = scene.tasks()
    assert led == [adopted(*(f"c{number}" for number in range(1, 9))), fx.ForkWorker(1)]
    assert scene.tell() == [PLACING, PLANNED, OPEN]
    assert len(scene.runner().branch.unfed) == 6
    scene.all_ready()
    scene.arena.allows = 1
    scene.anew()
    led = scene.done(one, "c1", "c2")
    assert led[0] == fx.Route(one.address, None)
    assert led[-5] == fx.ForkWorker(2) and {type(each) for each in led[-4:]} == {fx.SendKeys}
    assert two.state is PLACING
    assert not scene.runner().branch.unfed
    assert (top.inputs[0], len(top.inputs)) == (one.output, 5)


def test_what_waits_for_room_is_freed_with_its_branch() -> None:
    left, _ = short_of_room(8, 0)
    scene = left.scene
    assert len(scene.runner().branch.unfed) == 8
    scene.handle(o.DropBranch(NUMBER, EPOCH))
    assert scene.arena.of(Kind.UPDATE) == []


def test_where_nothing_can_make_room_the_round_fails() -> None:
    _, led = short_of_room(8, 0)
    text = "the arena has no room to go on with what is here: the arena is full"
    assert led[1] == o.BranchFailed(NUMBER, EPOCH, text, retry=True)


@pytest.mark.parametrize("what", ["an update is on its way", "a task has all that it needs", "it is given up"])
def test_where_a_branch_beside_it_may_make_room_it_is_waited_for(what: str) -> None:
    left = Left()
    left.has(Kind.UPDATE, "c1")
    scene = left.opened()
    scene.has_branch(1, branch=3)
    if what == "an update is on its way":
        scene.grant("c7", branch=3)
    else:
        scene.upload("c7", branch=3)
        scene.all_ready()
    if what == "it is given up":
        scene.handle(o.DropBranch(NUMBER, EPOCH, 3))
    scene.arena.allows = 0
    scene.anew()
    assert left.branch(2) == [adopted("c1")]
    assert len(scene.runner().branch.unfed) == 1


def test_where_another_job_may_make_room_it_is_waited_for() -> None:
    left = Left()
    left.has(Kind.UPDATE, "c1")
    scene = left.opened()
    scene.has_model(2, "k")
    scene.arena.allows = 0
    scene.anew()
    assert left.branch(2) == [adopted("c1")]
    assert len(scene.runner().branch.unfed) == 1
    scene.arena.allows = None
    scene.has_room()
    assert scene.handle(ev.Tick()) == [fx.ForkWorker(1)]


def test_a_partial_that_comes_while_updates_wait_for_room_waits_behind_them() -> None:
    left = Left(middle_fan_in=8)
    for number in range(1, 9):
        left.has(Kind.UPDATE, f"c{number}")
    scene = left.opened()
    scene.has_model(2, "k")
    scene.arena.allows = 0
    scene.anew()
    left.branch(8, others=(1,))
    scene.arena.allows = 2  # its slot, and the output of the top that takes it
    scene.anew()
    (grant,) = scene.handle(gm.Offered(7, NUMBER, EPOCH, 1, 1, scene.layout.accumulator_bytes, 50))
    key = Key.unpack(grant.key)
    scene.arena.seal(key, "c9")
    scene.handle(gm.Sealed(7, grant.key, 10))
    unfed = scene.runner().branch.unfed
    assert [task is None for _, task in unfed] == [True] * 8 + [False]
    scene.anew()
    scene.check_replay()
    scene.arena.allows = None
    scene.has_room()
    scene.handle(ev.Tick())
    assert not unfed
    assert key in scene.tasks()[-1].inputs


def test_an_update_of_a_branch_that_is_not_there_any_more_is_given_up() -> None:
    left = Left()
    left.opened()
    assert left.scene.grant("c1") == [aborted("c1"), too_late(1)]


def test_what_was_taken_up_stays_when_the_coordinator_asks_for_it_twice() -> None:
    """It had heard of it twice, over two connections, before it first asked."""
    left = Left()
    left.has(Kind.UPDATE, "c1")
    left.has(Kind.UPDATE, "c2")
    scene = left.opened()
    assert adopted("c1", "c2", branch=3) in left.branch(2, branch=3)
    runner = scene.agent.replicas[NUMBER].runners[EPOCH, 3]
    assert left.branch(2, branch=3) == [adopted("c1", "c2", branch=3)]
    assert scene.agent.replicas[NUMBER].runners[EPOCH, 3] is runner

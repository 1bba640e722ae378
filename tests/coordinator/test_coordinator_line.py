"""The line of waiting jobs looks at the arenas of all nodes: a job that other nodes fold for has little at home."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from coordinator_scene import ARENA_BYTES, HOME, LAYOUT, NUMBER, B, Led, Scene

from lifl.core import effects as fx
from lifl.core.config.job import JobConfig
from lifl.core.coordinator.coordinator import note_load
from lifl.core.coordinator.job_queue import QUEUED, SPREAD, Place
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.round import Phase
from lifl.core.planning.arena_need import branch_bytes_min, round_bytes_min
from lifl.core.protocol import commands as o

GOAL = 16
WHOLE = Scene(goal=GOAL).spec.bytes_min()
SECTION = Scene().spec.config.aggregation
TOP = round_bytes_min(LAYOUT, SECTION, 0, 0, 1, GOAL)
BRANCH = branch_bytes_min(LAYOUT, SECTION, GOAL, GOAL)


FIRST = 9
"""The job that has begun with all that it wants; job j comes behind it."""


def cluster(home_bytes: int, there_bytes: int = ARENA_BYTES) -> Scene:
    """The first job has a whole round's room at home; another node is there, too."""
    scene = Scene(goal=GOAL, nodes=(HOME, B), arena_bytes={HOME: home_bytes, B: there_bytes})
    add(scene, FIRST)
    assert promised(scene) == {FIRST: {HOME: WHOLE}}
    assert [order.room_bytes for order in loads(scene)] == [msgspec.UNSET]
    return scene


def add(scene: Scene, number: int) -> None:
    scene.coordinator.submit(JobSpec(number, named(scene, number), LAYOUT, (), f"/f{number}"), ARENA_BYTES)


def named(scene: Scene, number: int) -> JobConfig:
    """The config of the job of this number."""
    config = scene.spec.config
    if number == NUMBER:
        return config
    return msgspec.structs.replace(config, job=msgspec.structs.replace(config.job, name=f"j{number}"))


def loads(scene: Scene) -> list[o.OpenJob]:
    """The loads at home that were ordered since the last look."""
    scene.coordinator.validate()
    found = [order for order in scene.turn.queue if isinstance(order, o.OpenJob)]
    scene.turn.queue.clear()
    scene.turn.effects.clear()
    return found


def promised(scene: Scene) -> dict[int, dict[int, int]]:
    return {job: dict(rooms) for job, rooms in scene.coordinator.nodes.promised.items()}


def place(scene: Scene, number: int) -> Place | None:
    return scene.coordinator.queue.place_of(scene.coordinator.running[number])


def has_clients(scene: Scene) -> None:
    """The model of job j is there, and so are its clients."""
    scene.job.status, scene.job.rounds.committed = "running", 0
    scene.here(*(f"c{number}" for number in range(1, GOAL + 1)))
    scene.job._begin_round()


def test_a_job_begins_whose_updates_another_node_folds_and_has_room_for_a_top_alone() -> None:
    assert TOP < WHOLE / 2
    scene = cluster(WHOLE + TOP)
    add(scene, NUMBER)
    (load,) = loads(scene)
    assert (load.number, load.room_bytes) == (NUMBER, TOP)
    assert promised(scene)[NUMBER] == {HOME: TOP, B: BRANCH}
    add(scene, 3)
    assert not loads(scene)
    found = place(scene, 3)
    assert found is not None and found[:4] == (1, 1, WHOLE, 0)
    assert "has 0 for this job; start it with a larger arena (lifl up --arena-bytes)" in found.elsewhere
    scene.coordinator.cancel("j")
    assert [order.room_bytes for order in loads(scene)] == [TOP], "the next one has what it had"
    scene.coordinator.cancel("j9")
    assert promised(scene) == {3: {HOME: TOP, B: BRANCH}}


def test_one_byte_less_at_home_or_there_and_it_waits() -> None:
    for home_bytes, there_bytes, begins in (
        (WHOLE + TOP, 2 * BRANCH, [NUMBER]),
        (WHOLE + TOP - 1, 2 * BRANCH, []),
        (WHOLE + 2 * TOP, 2 * BRANCH, [NUMBER, 3]),
        (WHOLE + 2 * TOP, 2 * BRANCH - 1, [NUMBER]),
    ):
        scene = cluster(home_bytes, there_bytes)
        add(scene, NUMBER)
        add(scene, 3)
        assert [order.number for order in loads(scene)] == begins
        if not begins:
            found = place(scene, NUMBER)
            assert found is not None and found.free_bytes == home_bytes - WHOLE and found.elsewhere


def test_its_round_is_planned_on_the_other_node_alone() -> None:
    scene = cluster(WHOLE + TOP)
    add(scene, NUMBER)
    loads(scene)
    led = scene.do(has_clients, scene)
    opened = dict(led.ordered(o.OpenBranch))
    assert (opened[HOME].updates, opened[B].updates, opened[HOME].spare) == (0, GOAL, 0)
    assert scene.round.phase is Phase.COLLECTING
    scene.do(scene.coordinator.node_gone, B)
    assert promised(scene)[NUMBER] == {HOME: TOP, B: BRANCH}, "it may come again"


def test_a_round_that_waits_opens_at_home_when_the_other_job_is_over() -> None:
    scene = cluster(WHOLE + TOP)
    add(scene, NUMBER)
    loads(scene)
    scene.do(scene.coordinator.node_gone, B)
    scene.do(has_clients, scene)
    assert scene.round.phase is Phase.WAITING and "bytes of an arena" in scene.round.reason
    scene.coordinator.cancel("j9")
    orders = [order for order in scene.turn.queue if isinstance(order, o.OpenBranch)]
    assert [(order.branch, order.updates) for order in orders] == [(0, GOAL)]
    assert promised(scene) == {NUMBER: {HOME: WHOLE}}, "and nobody begins in that"


def test_a_job_in_line_begins_when_a_node_comes() -> None:
    scene = cluster(WHOLE + TOP)
    node = scene.coordinator.nodes.get(B)
    assert node is not None
    scene.do(scene.coordinator.node_gone, B)
    add(scene, NUMBER)
    assert not loads(scene) and place(scene, NUMBER) == (1, 1, WHOLE, TOP, "")
    scene.coordinator.nodes.put(node)
    led = scene.do(scene.coordinator.node_suspect, B, False)
    assert [order.room_bytes for _, order in led.ordered(o.OpenJob)] == [TOP]
    assert fx.SaveJob("j", "running", SPREAD) in led.rows


def has_folds(scene: Scene, number: int, hosted_bytes: int) -> Led:
    """A node tells what its own folds have of its arena; what that led to."""
    node = scene.coordinator.nodes.get(number)
    assert node is not None
    return scene.do(note_load, scene.coordinator, number, node.load, hosted_bytes)


def test_what_a_nodes_own_folds_have_no_job_is_promised_and_what_they_give_back_the_next_one_has() -> None:
    for number, room in ((B, ARENA_BYTES - BRANCH), (HOME, 0)):
        scene = cluster(WHOLE + TOP)
        has_folds(scene, number, room + 1)
        add(scene, NUMBER)
        assert not loads(scene)
        found = place(scene, NUMBER)
        assert found is not None and found.free_bytes == TOP - (number == HOME) and found.elsewhere
        led = has_folds(scene, number, room)
        assert [order.room_bytes for _, order in led.ordered(o.OpenJob)] == [TOP]
        assert promised(scene)[NUMBER] == {HOME: TOP, B: BRANCH}
        assert not has_folds(scene, number, room + 1).orders, "who has begun is not turned out"


def test_a_round_that_waits_for_a_nodes_own_folds_opens_when_they_give_room_back() -> None:
    scene = cluster(WHOLE + TOP)
    add(scene, NUMBER)
    loads(scene)
    has_folds(scene, B, ARENA_BYTES)
    scene.do(has_clients, scene)
    assert scene.round.phase is Phase.WAITING and "bytes of an arena" in scene.round.reason
    assert not has_folds(scene, B, ARENA_BYTES - 1).orders
    opened = dict(has_folds(scene, B, 0).ordered(o.OpenBranch))
    assert opened[B].updates == GOAL


def test_a_node_that_is_connected_again_has_its_folds_still() -> None:
    scene = cluster(WHOLE + TOP)
    has_folds(scene, B, ARENA_BYTES)
    scene.do(scene.coordinator.node_up, scene.node(B))
    again = scene.coordinator.nodes.get(B)
    assert again is not None and again.hosted_bytes == ARENA_BYTES
    scene.do(scene.coordinator.node_up, scene.node(B, incarnation=2))
    anew = scene.coordinator.nodes.get(B)
    assert anew is not None and not anew.hosted_bytes, "that life's are over, or it tells of them"


def test_one_for_which_nodes_are_away_holds_up_nobody() -> None:
    scene = Scene(goal=GOAL, nodes=(HOME, B), arena_bytes={HOME: TOP, B: ARENA_BYTES})
    scene.coordinator.submit(scene.spec, TOP)
    assert promised(scene) == {NUMBER: {HOME: TOP, B: BRANCH}}
    there = scene.coordinator.nodes.get(B)
    assert there is not None
    there.suspect = True
    scene.coordinator.cancel("j")
    job = scene.coordinator.make(scene.spec)
    scene.coordinator.start(job, queue=True)
    assert not job.queued and promised(scene) == {NUMBER: {HOME: TOP}}, "its rounds wait for the node"


def test_in_the_next_life_each_has_what_it_had_at_home_before_other_nodes_are_there() -> None:
    scene = cluster(WHOLE + TOP)
    add(scene, NUMBER)
    rows = [row for row in scene.turn.effects if isinstance(row, fx.SaveJob)]
    assert [row.reason for row in rows if row.job == "j"] == [SPREAD]
    later = Scene(goal=GOAL, arena_bytes={HOME: WHOLE + TOP})
    for spread, number in ((True, NUMBER), (False, 3)):
        job = later.coordinator.make(
            JobSpec(number, scene.coordinator.running[NUMBER if spread else FIRST].spec.config, LAYOUT, (), "/f")
        )
        job.spread = spread
        later.coordinator.start(job)
    assert promised(later) == {NUMBER: {HOME: TOP}, 3: {HOME: WHOLE}}
    assert [order.room_bytes for order in loads(later)] == [TOP, msgspec.UNSET]


def later_life(scene: Scene, number: int, tried: dict[int, Any], adopting: bool = False) -> None:
    """A job goes on that had begun with a whole round's room at home; `tried` are its rounds that are not committed."""
    job = scene.coordinator.make(JobSpec(number, named(scene, number), LAYOUT, (), f"/f{number}"))
    job.resume(0, {}, tried, adopting)
    scene.coordinator.start(job)


def test_in_an_arena_that_has_become_smaller_one_that_has_left_nothing_waits_in_line() -> None:
    later = Scene(goal=GOAL, arena_bytes={HOME: 2 * WHOLE - 1})
    later_life(later, FIRST, {})
    later_life(later, NUMBER, {1: (1, "open", {})})
    assert fx.SaveJob("j", "running", QUEUED) in later.turn.effects
    assert promised(later) == {FIRST: {HOME: WHOLE}} and place(later, NUMBER) == (1, 1, WHOLE, WHOLE - 1, "")
    loads(later)
    later.coordinator.cancel(f"j{FIRST}")
    assert promised(later) == {NUMBER: {HOME: WHOLE}}


@pytest.mark.parametrize(("fields", "adopting"), [({"parts": []}, False), ({}, True)])
def test_in_an_arena_that_has_become_smaller_one_with_accepted_updates_goes_on(
    fields: dict[str, Any], adopting: bool
) -> None:
    later = Scene(goal=GOAL, arena_bytes={HOME: 2 * WHOLE - 1})
    later_life(later, FIRST, {})
    later_life(later, NUMBER, {1: (1, "open", fields)}, adopting)
    assert place(later, NUMBER) is None and promised(later)[NUMBER] == {HOME: WHOLE}


def test_a_job_that_needs_more_than_the_arena_is_promised_no_more_than_all_of_it() -> None:
    later = Scene(goal=GOAL, arena_bytes={HOME: WHOLE - 1})
    later_life(later, NUMBER, {})
    assert promised(later) == {NUMBER: {HOME: WHOLE - 1}}

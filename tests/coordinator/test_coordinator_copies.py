"""Copies of committed models: a round waits for them, and a coordinator that has none of its own takes one of these."""

from __future__ import annotations

from typing import Any

import pytest
from coordinator_scene import HOME, NUMBER, B, C, Led, Scene

from lifl.core.config.job import CheckpointSection
from lifl.core.coordinator.round import Phase
from lifl.core.ids import epoch_of
from lifl.core.limits import COPY_BYTES_PER_S, COPY_RETRY_S, COPY_S
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o

EPOCH = epoch_of(1, 1)
SAVED = o.ModelSaved(NUMBER, EPOCH, ("d1",))
COPIED = o.ModelCopied(NUMBER, EPOCH, ("d1",))
FULL = o.CopyFailed(NUMBER, EPOCH, "no space")
SHORT = "round 1 waits for copies of its model on {} other nodes (checkpoint.replicas), {} are there: {}"
NAMES = {node: f"{node:016x}" for node in (HOME, B, C)}


def scene_of(copies: int = 1, nodes: tuple[int, ...] = (HOME, B, C), **more: Any) -> Scene:
    """A job whose models are copied."""
    scene = Scene(nodes=nodes, rounds=4, **more)
    for node in nodes:
        knows = scene.coordinator.nodes.get(node)
        assert knows is not None
        knows.knows = frozenset({p.QUOTAS, p.COPIES})
    config = scene.spec.config
    table = {name: getattr(config, name) for name in config.__struct_fields__}
    table["checkpoint"] = CheckpointSection(replicas=copies)
    object.__setattr__(scene.spec, "config", type(config)(**table))
    return scene


def saving(copies: int = 1, nodes: tuple[int, ...] = (HOME, B, C)) -> tuple[Scene, Led]:
    """The model of round 1 is sealed; what that led to."""
    scene = scene_of(copies, nodes)
    scene.running().copies._told = {*nodes}
    scene.has_round(Phase.AGGREGATING, accepted={"c1": 0, "c2": 0})
    return scene, scene.handle(o.ModelSealed(NUMBER, EPOCH, {}))


def asked(led: Led) -> list[int]:
    return [node for node, _ in led.ordered(o.CopyModel)]


def committed(led: Led) -> list[Any]:
    return [row.fields["holders"] for row in led.rows if getattr(row, "status", "") == "committed"]


# ---- made ------------------------------------------------------------------------------------------------------------


def test_a_round_is_committed_when_the_file_and_its_copies_are_there() -> None:
    scene, led = saving()
    assert led.ordered(o.CopyModel) == [(B, o.CopyModel(NUMBER, EPOCH, HOME, "home:1", "/f/round-00001.safetensors"))]
    assert [order.keep for _, order in led.ordered(o.SaveModel)] == [True]
    assert committed(scene.handle(SAVED)) == []
    led = scene.handle(COPIED, node=B)
    assert committed(led) == [[NAMES[HOME], NAMES[B]]]
    assert led.ordered(o.ReleaseModel) == [(HOME, o.ReleaseModel(NUMBER, EPOCH))]


def test_a_copy_may_come_first_and_only_who_was_asked_counts() -> None:
    scene, _ = saving()
    scene.handle(COPIED, node=C)
    scene.handle(COPIED, node=B)
    led = scene.handle(SAVED)
    assert committed(led) == [[NAMES[HOME], NAMES[B]]]


def test_a_node_that_has_no_room_is_replaced() -> None:
    scene, _ = saving()
    led = scene.handle(FULL, node=B)
    assert asked(led) == [C]
    scene.handle(SAVED)
    assert committed(scene.handle(COPIED, node=C)) == [[NAMES[HOME], NAMES[C]]]


def test_a_node_that_dies_or_takes_too_long_is_replaced() -> None:
    scene, _ = saving()
    assert asked(scene.do(scene.coordinator.node_gone, B)) == [C]
    late_s = COPY_S + scene.spec.layout.data_bytes / COPY_BYTES_PER_S
    assert scene.coordinator.next_timer() == late_s
    assert asked(scene.do(scene.coordinator.tick, at=late_s)) == []
    assert asked(scene.do(scene.coordinator.tick, at=late_s + COPY_RETRY_S)) == [C]


def test_a_copy_that_is_another_does_not_count() -> None:
    scene, _ = saving()
    scene.handle(SAVED)
    led = scene.handle(o.ModelCopied(NUMBER, EPOCH, ("other",)), node=B)
    assert (committed(led), asked(led)) == ([], [C])


def test_with_too_few_nodes_the_round_says_what_it_waits_for_and_goes_on_when_there_are() -> None:
    scene, led = saving(copies=2, nodes=(HOME, B))
    assert asked(led) == [B]
    scene.handle(COPIED, node=B)
    led = scene.handle(SAVED)
    text = SHORT.format(2, 1, "no other node can be asked")
    assert led.named("job.paused") == [{"reason": text}]
    assert (scene.job.commits.paused, committed(led)) == (text, [])
    node = scene.node(C)
    node.knows = frozenset({p.COPIES})
    led = scene.do(scene.coordinator.node_up, node)
    assert asked(led) == [], "it would drop what is ordered of a job that it does not know"
    led = scene.handle(p.Inventory((), ()), node=C)
    assert (asked(led), scene.job.commits.paused) == ([C], text)
    orders = [type(order) for node, order in led.orders if node == C]
    assert orders.index(o.OpenJob) < orders.index(o.CopyModel)
    led = scene.handle(COPIED, node=C)
    assert committed(led) == [[NAMES[HOME], NAMES[B], NAMES[C]]]
    assert (scene.job.commits.paused, led.named("job.goes_on")) == ("", [{"committed": 1}])


def test_why_a_node_could_not_is_said() -> None:
    scene, _ = saving(nodes=(HOME, B))
    scene.handle(SAVED)
    led = scene.handle(FULL, node=B)
    assert led.named("job.paused") == [{"reason": SHORT.format(1, 0, f"node {NAMES[B]}: no space")}]


def test_nodes_that_do_not_know_of_copies_or_go_are_not_asked() -> None:
    scene = scene_of()
    scene.running().copies._told = {B, C}
    scene.has_round(Phase.AGGREGATING, accepted={"c1": 0, "c2": 0})
    for node, change in ((B, "knows"), (C, "leaving")):
        setattr(scene.coordinator.nodes.get(node), change, frozenset() if change == "knows" else True)
    assert asked(scene.handle(o.ModelSealed(NUMBER, EPOCH, {}))) == []


def test_no_more_than_two_models_wait_for_their_copies() -> None:
    scene, _ = saving()
    scene.has_round(Phase.AGGREGATING, accepted={"c1": 0, "c2": 0}, number=2)
    scene.job.rounds.committed = 0
    scene.handle(o.ModelSealed(NUMBER, epoch_of(2, 1), {}))
    assert scene.job.round is None, "round 3 waits"
    scene.handle(SAVED)
    scene.handle(COPIED, node=B)
    assert scene.round.number == 3


# ---- what a coordinator goes on from ---------------------------------------------------------------------------------


def resumed(*holders: int, nodes: tuple[int, ...] = (HOME, B, C)) -> tuple[Scene, Led]:
    """Round 1 is committed, and these have its model."""
    scene = scene_of(nodes=nodes)
    job = scene.coordinator.make(scene.spec)
    job.resume(1, {1: frozenset()}, {}, False, {1: (1, ("d1",))}, {}, {1: holders})
    scene.coordinator.start(job)
    return scene, scene.led()


def test_home_reads_its_own_file_where_it_has_one() -> None:
    _, led = resumed(HOME, B)
    assert [node for node, _ in led.ordered(o.LoadJob)] == [HOME]


def test_home_without_one_takes_that_of_a_node_that_has() -> None:
    scene, led = resumed(B, C)
    serve = o.ServeCopy(NUMBER, epoch_of(1, 0), "/f/round-00001.safetensors", "", ("d1",))
    assert led.ordered(o.ServeCopy) == [(B, serve)]
    assert [node for node, _ in led.ordered(o.OpenJob)] == [B], "it knows of the job first"
    led = scene.handle(o.CopyServed(NUMBER, epoch_of(1, 0)), node=B)
    ((node, fetch),) = led.ordered(o.FetchJob)
    assert (node, fetch.source, fetch.round) == (HOME, "b:1", 1)
    scene.handle(o.JobOpened(NUMBER))
    assert (scene.job.status, scene.round.number) == ("running", 2)


@pytest.mark.parametrize("who", ["the holder", "home"])
def test_a_copy_that_cannot_be_had_is_followed_by_the_next(who: str) -> None:
    scene, _ = resumed(B, C)
    if who == "home":
        scene.handle(o.CopyServed(NUMBER, epoch_of(1, 0)), node=B)
        led = scene.handle(o.JobFailed(NUMBER, "it is gone there"))
    else:
        led = scene.handle(o.CopyFailed(NUMBER, epoch_of(1, 0), "damaged"), node=B)
    assert [node for node, _ in led.ordered(o.ServeCopy)] == [C]


def test_a_file_that_is_damaged_at_home_is_taken_from_a_copy_and_no_round_is_set_aside() -> None:
    scene, _ = resumed(HOME, B)
    led = scene.handle(o.JobFailed(NUMBER, "damaged"))
    assert ([node for node, _ in led.ordered(o.ServeCopy)], led.rows) == ([B], [])


def test_a_holder_that_is_not_there_is_waited_for_and_that_is_said() -> None:
    scene, led = resumed(C, nodes=(HOME, B))
    text = f"no node is here that has a copy of the model of round 1: {NAMES[C]}"
    assert (led.named("job.paused"), scene.job.commits.paused) == ([{"reason": text}], text)
    node = scene.node(C)
    node.knows = frozenset({p.COPIES})
    scene.do(scene.coordinator.node_up, node)
    led = scene.handle(p.Inventory((), ()), node=C)
    assert ([node for node, _ in led.ordered(o.ServeCopy)], scene.job.commits.paused) == ([C], "")


def test_a_holder_that_goes_while_it_serves_is_followed_by_the_next() -> None:
    scene, _ = resumed(B, C)
    led = scene.do(scene.coordinator.node_gone, B)
    assert [node for node, _ in led.ordered(o.ServeCopy)] == [C]

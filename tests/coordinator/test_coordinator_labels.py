"""A job's updates come to nodes with the labels that it asks for, and to no others; it waits while none is there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from coordinator_scene import ARENA_BYTES, HOME, NUMBER, B, C, Led, Scene, admit, joined

from lifl.core.config.job import parse_job
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.round import Phase
from lifl.core.errors import ConfigError, Refused
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o

EU = {"zone": "eu"}


def scene_of(labels: dict[int, dict[str, str]], wanted: dict[str, str] = EU) -> Scene:
    scene = Scene(nodes=(HOME, B, C))
    config = msgspec.to_builtins(scene.spec.config) | {"placement": {"nodes": wanted}}
    scene.spec = JobSpec(NUMBER, parse_job(config), scene.spec.layout, (), "/f")
    for number, some in labels.items():
        node = scene.coordinator.nodes.get(number)
        assert node is not None
        node.labels = some
    return scene


def opening(scene: Scene) -> Led:
    scene.loading()
    scene.job.status = "running"
    scene.job.rounds.committed = 0
    scene.do(scene.job._begin_round)
    scene.handle(joined("c1"))
    return scene.handle(joined("c2"))


def test_updates_go_to_the_nodes_with_the_labels_and_the_top_stays_at_home() -> None:
    scene = scene_of({B: {"zone": "us"}, C: {"zone": "eu", "rack": "3"}})
    led = opening(scene)
    assert [(node, order.branch, order.updates) for node, order in led.ordered(o.OpenBranch)] == [
        (HOME, 0, 0),
        (C, 1, 2),
    ]
    assert [message.gateway for _conn, message in led.said(cm.Selected)] == ["c:1", "c:1"]
    (refused,) = scene.handle(admit("c1")).said(cm.Refusal)
    assert refused[1].code == "use-gateway"
    (refused,) = scene.handle(admit("c1")).said(cm.Refusal)
    assert refused[1].code == "use-gateway", "who cannot reach it is not taken elsewhere instead"


def test_home_takes_updates_where_it_has_the_labels() -> None:
    scene = scene_of({HOME: EU})
    assert [node for node, _ in opening(scene).ordered(o.OpenBranch)] == [HOME]


def test_a_round_waits_until_such_a_node_is_there_and_says_for_what() -> None:
    scene = scene_of({C: EU})
    scene.coordinator.nodes.get(C).known = False
    led = opening(scene)
    assert "no node that takes updates now has the labels that placement.nodes asks for (zone=eu)" in scene.round.reason
    assert not led.ordered(o.OpenBranch) and scene.round.phase is Phase.WAITING
    assert scene.handle(p.Inventory(labels={"zone": "us"}), C).ordered(o.OpenBranch) == []
    led = scene.handle(p.Inventory(labels=EU), C)
    assert [node for node, _ in led.ordered(o.OpenBranch)] == [HOME, C] and not scene.round.reason


def test_when_the_only_one_dies_home_takes_nothing_in_its_place() -> None:
    scene = scene_of({C: EU})
    opening(scene)
    scene.do(scene.coordinator.node_gone, C)
    scene.handle(o.BranchForgotten(NUMBER, scene.round.epoch, 1))
    assert list(scene.round.branches) == [0]
    assert scene.handle(admit("c1")).said(cm.Busy)


def test_a_job_for_labels_that_no_node_has_is_refused_when_it_is_submitted() -> None:
    scene = scene_of({B: {"zone": "us"}, C: {"rack": "eu"}})
    with pytest.raises(Refused) as refused:
        scene.coordinator.submit(scene.spec, ARENA_BYTES)
    assert (refused.value.code, refused.value.field) == ("no-node", "placement.nodes")
    scene = scene_of({C: EU})
    scene.coordinator.nodes.get(C).suspect = True
    scene.coordinator.submit(scene.spec, ARENA_BYTES)  # it waits for that


def test_on_one_node_alone_it_is_that_nodes_labels() -> None:
    for labels, fits in (({}, False), (EU, True)):
        scene = Scene()
        config = msgspec.to_builtins(scene.spec.config) | {"placement": {"nodes": EU}}
        scene.spec = JobSpec(NUMBER, parse_job(config), scene.spec.layout, (), "/f")
        scene.coordinator.nodes.get(HOME).labels = labels
        if fits:
            assert opening(scene).ordered(o.OpenBranch)
        else:
            with pytest.raises(Refused, match=r"placement.nodes asks for \(zone=eu\)"):
                scene.coordinator.submit(scene.spec, ARENA_BYTES)


@pytest.mark.parametrize(
    "nodes", [{}, {"a b": "x"}, {"zone": 1}, {"zone": "x" * 65}, {"zone": "\n"}, {f"l{n}": "" for n in range(17)}, "eu"]
)
def test_what_are_no_labels_is_refused_by_its_key(nodes: Any) -> None:
    with pytest.raises(ConfigError, match=r"placement"):
        scene_of({}, nodes)

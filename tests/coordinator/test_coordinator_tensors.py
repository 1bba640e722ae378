"""What a model's schema costs: nothing for each client, once for each node; one that fits no frame is refused."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from coordinator_scene import ARENA_BYTES, Led, Scene, joined

from lifl.core.config.job import JobConfig
from lifl.core.coordinator.round import Phase
from lifl.core.errors import Refused
from lifl.core.limits import SCHEMA_BYTES_MAX, SCHEMAS_BYTES_MAX
from lifl.core.protocol import client as cm
from lifl.core.schema import Layout, TensorSpec


def model(tensors: int, name_chars: int = 20) -> Layout:
    return Layout([TensorSpec(f"{index:0{name_chars}d}", "float32", (1,)) for index in range(tensors)])


def scene_of(layout: Layout, goal: int = 2) -> Scene:
    scene = Scene(goal=goal)
    scene.spec = dataclasses.replace(scene.spec, layout=layout)
    return scene


def test_a_round_for_195_clients_and_10_000_tensors_says_little_to_each() -> None:
    scene = scene_of(model(10_000), goal=195)
    scene.has_round(Phase.WAITING, [])
    for index in range(1, 195):
        assert scene.handle(joined(f"c{index}")) == Led()
    led = scene.handle(joined("c195"))
    selections = led.said(cm.Selected)
    assert len(selections) == 195
    assert sum(len(msgspec.msgpack.encode(message)) for _conn, message in selections) < 195 * 256


def test_a_schema_that_fits_no_frame_is_refused_with_the_numbers() -> None:
    layout = model(45_000, 200)
    assert layout.packed_bytes > SCHEMA_BYTES_MAX
    scene = scene_of(layout)
    with pytest.raises(Refused) as error:
        scene.coordinator.submit(scene.spec, ARENA_BYTES << 8)
    assert (error.value.code, error.value.field) == ("schema-too-long", "tensors")
    assert str(layout.packed_bytes) in error.value.text
    assert str(SCHEMA_BYTES_MAX) in error.value.text
    assert "45000 tensors" in error.value.text
    assert (scene.led(), scene.coordinator.jobs) == (Led(), {})


def test_a_schema_at_the_limit_is_taken_and_of_many_only_what_fits_together() -> None:
    layout = model(SCHEMA_BYTES_MAX // 262, 249)
    scene = scene_of(layout)
    assert SCHEMA_BYTES_MAX - 262 < layout.packed_bytes <= SCHEMA_BYTES_MAX
    fit = SCHEMAS_BYTES_MAX // layout.packed_bytes
    jobs = [dataclasses.replace(scene.spec, config=named(scene, f"j{index}"), number=index) for index in range(fit + 1)]
    for job in jobs[:fit]:
        scene.coordinator.submit(job, ARENA_BYTES << 8)
    with pytest.raises(Refused) as error:
        scene.coordinator.submit(jobs[fit], ARENA_BYTES << 8)
    assert error.value.code == "too-many-tensors"
    assert str(fit * layout.packed_bytes) in error.value.text


def named(scene: Scene, name: str) -> JobConfig:
    config = scene.spec.config
    return msgspec.structs.replace(config, job=msgspec.structs.replace(config.job, name=name))

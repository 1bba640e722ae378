"""How many updates a leaf takes where a job does not say."""

from __future__ import annotations

import pytest

from lifl.core.config.aggregation import FAN_IN
from lifl.core.config.job import parse_job
from lifl.core.planning.arena_need import FAN_IN_SMALL, LEAF_BYTES, update_bytes, with_fan_in
from lifl.core.schema import Layout, TensorSpec

JOB = {"job": {"name": "j", "rounds": 1}, "model": {"path": "m.safetensors"}, "selection": {"clients_per_round": 100}}


def layout(elements: int) -> Layout:
    return Layout([TensorSpec("w", "float32", (elements,))])


@pytest.mark.parametrize("elements", [1, 2_500, 50_000, 300_000, 10**6, 10**8])
def test_small_updates_share_a_leaf(elements: int) -> None:
    """A leaf of tiny ones takes as many as may be; none takes more than two of which two are many bytes."""
    of = layout(elements)
    fan_in = with_fan_in(parse_job(JOB), of).aggregation.leaf_fan_in
    assert FAN_IN <= fan_in <= FAN_IN_SMALL
    assert fan_in * update_bytes(of) <= LEAF_BYTES or fan_in == FAN_IN
    assert (fan_in + 1) * update_bytes(of) > LEAF_BYTES or fan_in == FAN_IN_SMALL


@pytest.mark.parametrize("given", [1, 2, 64])
def test_what_a_job_says_is_kept(given: int) -> None:
    config = parse_job(JOB | {"aggregation": {"fan_in": given}})
    assert with_fan_in(config, layout(1)) == config
    assert config.aggregation.leaf_fan_in == given


def test_a_job_of_an_earlier_version_keeps_its_tree() -> None:
    """Its row says nothing: it was made with two to a leaf."""
    assert parse_job(JOB).aggregation.leaf_fan_in == FAN_IN

"""`lifl calibrate`: a node of its own takes real updates, and what is found is the node's capacity from then on."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner
from fleet import ask
from lifl_cli.calibrate import calibrate
from nodes import Node

from lifl.core.protocol import cli as om
from lifl.simulation import arrivals


def test_what_is_found_is_kept_over_a_restart_until_it_is_forgotten(
    start_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_node("--capacity", "0")
    monkeypatch.setattr(arrivals, "ROUNDS_OF_STEP", 1)
    monkeypatch.setattr(arrivals, "STEPS_MAX", 1)
    monkeypatch.setattr(arrivals, "UNLOADED", 1.0)
    done = CliRunner().invoke(calibrate, ["--update-bytes", "1MiB", "--json", "--state", str(node.state_dir)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (step,) = found["steps"]
    assert found["ended"] == "last-step" and found["kept"]
    assert step["load"] == step["rate_per_s"] * step["execution_s"] > 0
    assert found["capacity"] == max(1.0, round(step["load"], 2))
    ask(node, om.KeepCapacity(5.5))  # whatever the machine was at just now
    assert ask(node, om.Snapshot())["node"]["capacity"] == 5.5
    node.down()
    node.up()
    assert (node.info["capacity"], node.info["capacity_kept"]) == (5.5, True)
    node.lifl("calibrate", "--forget")
    assert not ask(node, om.Snapshot())["node"]["capacity_kept"]

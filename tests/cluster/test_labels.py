"""Where a job's updates go on real nodes: to the one with the labels that it asks for; to where there is room."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fleet import OneHot, ask, fleet, submit, until, write_job
from nodes import FOLDERS, Node, run_lifl

from lifl.core.protocol import cli as om

FLAGS = ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--redirector", "unix", "--insecure")
PLACEMENT = {"placement__nodes": {"zone": "eu"}}


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Node, Node]]:
    """A coordinator without labels, and another node in zone eu."""
    folder = Path(tempfile.mkdtemp(prefix="lt-", dir=FOLDERS))
    home = Node(folder / "a", (*FLAGS, "--control", "127.0.0.1:0"))
    other = Node(folder / "b", FLAGS)
    home.up()
    other.up("--join", home.info["control"], "--label", "zone=eu", "--label", "rack=3")
    yield home, other
    other.lifl("down")
    home.lifl("down")
    shutil.rmtree(folder, ignore_errors=True)


def test_updates_come_to_the_labelled_node_alone(two: tuple[Node, Node]) -> None:
    home, other = two
    name = other.info["node"]

    def labels() -> dict[str, dict[str, str]]:
        return {line["node"]: line["labels"] for line in home.json("nodes")["nodes"]}

    until("both are there", lambda: labels() == {home.info["node"]: {}, name: {"rack": "3", "zone": "eu"}})
    assert "zone=eu" in home.lifl("nodes")
    zeros = {"w": np.zeros(2, np.float32)}
    refused = run_lifl(
        "submit",
        str(write_job(home.state_dir / "configs", "us", zeros, placement__nodes={"zone": "us"})),
        "--state",
        str(home.state_dir),
    )
    assert refused.returncode == 1 and "placement.nodes" in refused.stderr and "(zone=us)" in refused.stderr
    path = write_job(home.state_dir / "configs", "eu", zeros, job__rounds=2, **PLACEMENT)
    planned = json.loads(home.lifl("plan", str(path), "--json"))
    assert planned["used"] == [name] or set(planned["used"]) == {name, home.info["node"]}
    assert {node["node"]: node["updates"] for node in planned["plan"]["nodes"]} == {home.info["node"]: 0, name: 2}
    submit(home, "eu", zeros, job__rounds=2, **PLACEMENT)
    with fleet(home.address, "eu", 2, lambda *_: ({"w": np.ones(2, np.float32)}, 1.0, {})) as team:
        team.join()
    status = home.json("status", "eu")
    assert status["job"]["status"] == "finished"
    for line in status["rounds"]:
        assert {task["node"] for task in line["receipt"]["tree"] if task["role"] == "leaf"} == {name}
    home.lifl("drain", name)
    submit(home, "later", zeros, **PLACEMENT)
    with fleet(home.address, "later", 2, lambda *_: ({"w": np.ones(2, np.float32)}, 1.0, {})) as team:
        said = lambda: home.json("status", "later")["job"]  # noqa: E731
        until("it waits", lambda: "placement.nodes asks for (zone=eu)" in said()["reason"])
        assert said()["status"] == "waiting" and "placement.nodes" in home.lifl("status", "later")
        home.lifl("drain", name, "--undo")
        team.join()


def test_a_job_for_which_home_has_room_for_a_top_alone_runs_on_the_other_node(two: tuple[Node, Node]) -> None:
    home, other = two
    oracle = OneHot(8, ballast_bytes=5 << 19)
    assert submit(home, "whole", oracle.model())["queue"] is None
    path = write_job(home.state_dir / "configs", "spread", oracle.model())
    assert submit(home, "spread", oracle.model(), job__rounds=2)["status"] != "queued"
    third = submit(home, "third", oracle.model())
    assert third["status"] == "queued" and "bytes of an arena" in third["queue"]["elsewhere"]
    assert "2 of 2 in line; over the nodes: " in home.lifl("plan", str(path))
    with fleet(home.address, "spread", 8, oracle.update) as team:
        team.join()
    for line in oracle.check(home, "spread", team):
        assert {task["node"] for task in line["receipt"]["tree"] if task["role"] == "leaf"} == {other.info["node"]}
    with fleet(home.address, "third", 8, oracle.update) as team:
        team.join()
    assert len(oracle.check(home, "third", team)) == 1
    ask(home, om.CancelJob("whole"))

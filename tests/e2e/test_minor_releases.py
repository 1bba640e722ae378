"""Nodes and clients of two minor releases: one apart they work together, two apart each is told which release to take.

The others are builds of this tree with another release number (`builds.py`), in processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builds import build, release
from fleet import STEPS, OneHot, fleet, submit, until
from nodes import COMMAND_TIMEOUT_S, Node, environment, run_lifl

from lifl.core.formats import STATE_FORMAT
from lifl.core.protocol.versions import MINOR
from lifl.node.state_format import FORMAT_FILE

N = 4
INSECURE = ("--control", "127.0.0.1:0", "--insecure")
TRAINER = """
import sys
import numpy as np
from lifl import Client
from lifl.core.errors import LiflError
try:
    with Client(sys.argv[1], job=sys.argv[2], client="other", give_up_after_s=60) as client:
        for round_ in client.rounds():
            update = {name: np.zeros_like(value) for name, value in round_.model.items()}
            for name, value in update.items():  # the last one of the oracle's
                value[-1] = round_.number * (STEPS if name == "steps" else 1)
            round_.submit(update, weight=1.0)
except LiflError as error:
    sys.exit(str(error))
""".replace("STEPS", str(STEPS))


@pytest.fixture(scope="module")
def builds() -> Iterator[Callable[[int], Path | None]]:
    """A build of the release that is so many minor ones later; None: this tree."""
    with tempfile.TemporaryDirectory(prefix="lifl-builds-") as folder:
        made: dict[int, Path | None] = {0: None}

        def of(later: int) -> Path | None:
            if later not in made:
                made[later] = build(Path(folder) / str(later), later, STATE_FORMAT + 1)
            return made[later]

        yield of


@pytest.fixture
def other_dir() -> Iterator[Path]:
    """The state folder of a second node, with a short path."""
    with tempfile.TemporaryDirectory(prefix="lt-", dir="/tmp") as folder:
        yield Path(folder)


def train(node: Node, job: str, folder: Path | None) -> subprocess.Popen[str]:
    """A client of another build."""
    command = [sys.executable, "-c", TRAINER, node.address, job]
    return subprocess.Popen(command, env=environment(build=folder), stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=COMMAND_TIMEOUT_S)
    return process.returncode, said


@pytest.mark.parametrize("later", [0, 1])
def test_clients_of_two_releases_run_a_job_at_a_node_of_either(
    start_node: Callable[..., Node], builds: Callable[[int], Path | None], later: int
) -> None:
    node = start_node(build=builds(later))
    assert json.loads((node.state_dir / FORMAT_FILE).read_text())["release"] == release(later), "it is that build"
    oracle = OneHot(N + 1)
    submit(node, "job", oracle.model(), job__rounds=2)
    other = train(node, "job", builds(1 - later))
    with fleet([node.address], "job", N, oracle.update) as team:
        team.join()
    assert ended(other) == (0, "")
    assert [line["receipt"]["counted"] for line in oracle.check(node, "job")] == [N + 1] * 2


def test_a_client_two_releases_apart_and_its_node_name_the_release_to_take(
    other_dir: Path, start_node: Callable[..., Node], builds: Callable[[int], Path | None]
) -> None:
    take = f"or run LIFL 0.{MINOR + 1} at most on"
    node = start_node()
    status, said = ended(train(node, "job", builds(2)))
    assert status == 1 and f"upgrade this node to LIFL 0.{MINOR + 1} or a later one, {take} the client" in said
    later = start_node(folder=other_dir, build=builds(2))
    status, said = ended(train(later, "job", None))
    assert status == 1 and f"upgrade the client to LIFL 0.{MINOR + 1} or a later one, {take} this node" in said


@pytest.mark.parametrize(("home", "joining"), [(0, 2), (2, 0)])
def test_a_node_two_releases_apart_and_its_cluster_name_the_release_to_take(
    other_dir: Path, start_node: Callable[..., Node], builds: Callable[[int], Path | None], home: int, joining: int
) -> None:
    first = start_node(*INSECURE, build=builds(home))
    second = start_node(*INSECURE, "--join", first.info["control"], folder=other_dir, build=builds(joining))
    older = "this node" if home == 0 else "the peer"
    remedy = f"upgrade {older} to LIFL 0.{MINOR + 1} or a later one, or run LIFL 0.{MINOR + 1} at most on "
    until("it is told", lambda: remedy in (second.state_dir / "lifld.log").read_text())
    assert [line["node"] for line in first.json("nodes")["nodes"]] == [first.info["node"]]


def test_a_state_folder_is_taken_over_by_the_next_release_and_not_by_the_one_before(
    start_node: Callable[..., Node], builds: Callable[[int], Path | None]
) -> None:
    node = start_node()
    oracle = OneHot(N)
    submit(node, "job", oracle.model(), job__rounds=2)
    with fleet([node.address], "job", N, oracle.update, held=[(0, 2)]) as team:
        until("a round", lambda: node.json("status", "job")["job"]["committed"] == 1)
        node.down()
        node.build = builds(1)
        node.up("--listen", node.address)
        team.release()
        team.join()
    oracle.check(node, "job", team)
    node.down()
    done = run_lifl("up", "-d", "--state", str(node.state_dir), "--arena-bytes", "64MiB")
    assert done.returncode == 1 and f"take another release, LIFL {release(1)} or a later one" in done.stderr
    node.up()
    assert node.json("status", "job")["job"]["status"] == "finished"

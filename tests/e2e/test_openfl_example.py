"""The example for OpenFL's users: its first workspace's network and split, with two collaborators, over a real node."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nodes import Node

pytest.importorskip("sklearn", reason="needs scikit-learn")
EXAMPLE = Path(__file__).parents[2] / "examples/openfl"
ROUNDS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, tmp_path / "openfl"))


def run(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True)


def test_two_collaborators_learn(start_node: Callable[..., Node], folder: Path) -> None:
    node = start_node()
    assert run(folder, "initialize.py").wait(120) == 0
    node.lifl(
        "submit", str(folder / "mnist.toml"), "--set", f"job.rounds={ROUNDS}", "--set", "client.options.batch_size=32"
    )
    names = ("collaborator1", "collaborator2")
    both = [run(folder, "collaborator.py", name, str(shard), node.address) for shard, name in enumerate(names)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
    assert [code for _text, code in ended] == [0, 0], ended
    rounds = node.json("status", "mnist")["rounds"]
    accuracies = [each["metrics"]["aggregated_accuracy"] for each in rounds]
    assert len(rounds) == ROUNDS and accuracies[0] < 0.4 < 0.8 < accuracies[-1], accuracies


def test_its_gradients_are_those_of_its_loss() -> None:
    """Against differences of the loss, in float64, by the largest entries of each tensor."""
    spec = importlib.util.spec_from_file_location("openfl_network", EXAMPLE / "network.py")
    assert spec is not None and spec.loader is not None
    network = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(network)
    rng = np.random.default_rng(3)
    model = {name: value.astype(np.float64) for name, value in network.first_model(1).items()}
    images, labels = rng.random((5, 28, 28, 1)), rng.integers(0, 10, 5)
    _, gradients = network._gradients(model, images, labels)
    for name, gradient in gradients.items():
        at = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
        losses = []
        for step in (1e-6, -1e-6):
            moved = model | {name: model[name].copy()}
            moved[name][at] += step
            losses.append(network._gradients(moved, images, labels)[0])
        assert gradient[at] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4), name

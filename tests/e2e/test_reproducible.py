"""`aggregation.reproducible` on a real node: the same updates give the same bits, however they are summed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fleet import Trainer, Watch, ask, fleet, submit, until
from http_clients import HttpClient
from nodes import Node, run_lifl, running
from safetensors import safe_open

import lifl
from lifl.aggregator import UpdateRefused
from lifl.client import Round
from lifl.core.config.job import FOLD_FAN_IN_SMALL
from lifl.core.errors import ConfigError, Refused
from lifl.core.protocol import cli as om

CLIENTS = 7
MODEL = {
    "w": np.zeros((CLIENTS, 301), np.float32),
    "half": np.zeros(77, np.float16),
    "brain": np.zeros(5, ml_dtypes.bfloat16),
    "double": np.zeros(9, np.float64),
    "bn.running_var": np.ones(3, np.float32),
    "count": np.zeros(4, np.int32),
}
TREES: list[dict[str, Any]] = [
    {"fan_in": 1, "middle_fan_in": 2},
    {"fan_in": 1, "middle_fan_in": 2},
    {"fan_in": 3, "middle_fan_in": 2, "timing": "lazy"},
    {"fan_in": CLIENTS},
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(tmp_path_factory.mktemp("node")) as made:
        yield made


def update_of(index: int, _number: int) -> Any:
    rng = np.random.default_rng(index)
    made = {name: (rng.standard_normal(array.shape) * 2.0 ** rng.integers(-9, 9)) for name, array in MODEL.items()}
    return {name: made[name].astype(array.dtype) for name, array in MODEL.items()}, float(3 * index + 1), {}


def bytes_of(path: str) -> bytes:
    with safe_open(path, "np") as file:
        return b"".join(file.get_tensor(name).tobytes() for name in sorted(MODEL))


@pytest.mark.parametrize(("rule", "trees"), [("fedavg", TREES), ("fedadam", TREES[1:3])])
def test_any_order_and_any_tree_gives_the_same_model(node: Node, rule: str, trees: list[dict[str, Any]]) -> None:
    models, order = set(), random.Random(rule)
    for number, tree in enumerate(trees):
        job = f"{rule}{number}"
        keys = {f"aggregation__{key}": value for key, value in tree.items()}
        submit(node, job, MODEL, aggregation__rule=rule, aggregation__reproducible=True, **keys)
        turns = order.sample(range(CLIENTS), CLIENTS)
        with fleet(node.address, job, CLIENTS, update_of, held=[(index, 1) for index in turns]) as team:
            for index in turns:
                team.release(index)
                if order.random() < 0.5:  # this one is there before the next comes
                    until("its update is accepted", lambda each=team.trainers[index]: each.submissions)
            team.join()
        (line,) = node.json("status", job)["rounds"]
        models.add(bytes_of(line["path"]))
    assert len(models) == 1


def killed(node: Node) -> None:
    """The node dies by kill -9, and is started again where it was."""
    node.kill()
    node.up("--listen", node.address)


def folded(aggregator: lifl.Aggregator, order: list[int], die: Callable[[], None] = lambda: None) -> bytes:
    """The bytes of a fold's result; `die` is called behind all updates of the chain's first link but one more."""
    with aggregator.open(MODEL, expected=len(order)) as fold:
        for place, index in enumerate(order):
            if place == FOLD_FAN_IN_SMALL + 1:
                die()
            tensors, weight, _ = update_of(index, 1)
            fold.add(tensors, weight=weight, client=f"c{index}")
        result = fold.result()
        return b"".join(result[name].tobytes() for name in sorted(MODEL))


def test_a_fold_gives_the_same_in_any_order_and_when_its_node_is_killed_in_the_middle(node: Node) -> None:
    order = list(range(FOLD_FAN_IN_SMALL + 8))
    with lifl.Aggregator(node.address, reproducible=True) as aggregator:
        whole = folded(aggregator, order)
        random.Random("killed").shuffle(order)
        assert folded(aggregator, order, lambda: killed(node)) == whole
    with lifl.Aggregator(node.address) as aggregator:
        assert folded(aggregator, order) != whole, "so it shows nothing"


def test_a_job_gives_the_same_as_a_fold_when_its_node_is_killed_in_the_middle(node: Node) -> None:
    with lifl.Aggregator(node.state_dir, reproducible=True) as aggregator:
        whole = folded(aggregator, list(reversed(range(CLIENTS))))
    submit(node, "killed", MODEL, aggregation__reproducible=True, aggregation__fan_in=1, aggregation__middle_fan_in=2)
    late = range(4, CLIENTS)
    with fleet(node.address, "killed", CLIENTS, update_of, held=[(index, 1) for index in late]) as team:
        until("four are accepted", lambda: all(team.trainers[index].submissions for index in range(4)))
        killed(node)
        team.release()
        team.join()
    (line,) = node.json("status", "killed")["rounds"]
    assert bytes_of(line["path"]) == whole
    assert line["receipt"]["updates_digest"]  # what was there before is in the arena alone


def test_a_fold_takes_whole_weights_alone_and_rules_that_sum_as_others_do(node: Node, tmp_path: Path) -> None:
    with lifl.Aggregator(node.state_dir, reproducible=True) as aggregator, aggregator.open(MODEL, 2) as fold:
        tensors, _, _ = update_of(0, 1)
        with lifl.take_part(fold.ticket("by-ticket")) as part:
            for add in (fold.add, part.submit):
                for weight in (0.5, 2.0**39 + 1):
                    with pytest.raises(UpdateRefused) as refused:
                        add(tensors, weight)
                    assert (refused.value.code, refused.value.field) == ("bad-weight", "weight")
            part.submit(tensors, 2.0**39)
        assert fold.result().clients == ("by-ticket",)
    (tmp_path / "sums.py").write_text(
        "from lifl.rules import Rule\n\n\nclass Own(Rule):\n"
        "    def merge(self, acc, others, weights, keep):\n        super().merge(acc, others, weights, keep)\n"
    )
    with pytest.raises(ConfigError, match="depend on the order"):
        lifl.Aggregator(node.state_dir, "sums:Own", rule_folder=str(tmp_path), reproducible=True)


def test_who_has_the_updates_can_make_the_model_again_elsewhere(node: Node, tmp_path: Path) -> None:
    updates, saved = tmp_path / "updates", tmp_path / "saved"
    submit(node, "kept", MODEL, job__rounds=2, aggregation__rule="fedadam", aggregation__reproducible=True)
    with fleet(node.address, "kept", CLIENTS, update_of, access=lambda _: {"keep_updates": updates}) as team:
        team.join()
    assert len(list(updates.iterdir())) == 2 * CLIENTS
    found = {"job": "kept", "round": 2, "updates": CLIENTS, "compared": "bits"}
    told = node.json("verify", "kept", "2", "--updates", str(updates), "--save", str(saved))
    assert told == found | {"saved": str(saved)}
    (line,) = ask(node, om.JobStatus("kept", round=2))["rounds"]
    receipt = json.loads((saved / "receipt.json").read_text())
    assert (receipt["updates_digest"], receipt["model"]) == (line["receipt"]["updates_digest"], line["digest"])
    # Elsewhere: no node is asked.
    done = run_lifl("verify", "--receipt", str(saved / "receipt.json"), "--updates", str(updates), "--json")
    assert json.loads(done.stdout) == found, done.stderr
    next(updates.glob("c03.kept.2.*")).unlink()
    done = run_lifl("verify", "--receipt", str(saved / "receipt.json"), "--updates", str(updates))
    assert done.returncode == 1 and "the update of c03 is missing (1 of 7)" in done.stderr


def test_a_weight_that_is_not_whole_is_refused_by_name(node: Node) -> None:
    submit(node, "whole", MODEL, aggregation__reproducible=True, selection__clients_per_round=1)
    told: list[Refused] = []

    def play(trainer: Trainer, round_: Round) -> None:
        tensors, _, _ = update_of(0, 1)
        for weight in (0.5, 2.0**39 + 1, 2.0**39):
            try:
                round_.submit(tensors, weight=weight)
            except Refused as refused:
                told.append(refused)

    with fleet(node.address, "whole", 1, update_of, play) as team:
        team.join()
    assert [(each.code, each.field) for each in told] == [("bad-weight", "weight")] * 2
    assert "whole numbers" in str(told[0])


def test_what_depends_on_the_order_is_refused(node: Node, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from lifl.rules import Rule\n\n\nclass Own(Rule):\n"
        "    def fold(self, acc, updates, weights, keep):\n        super().fold(acc, updates, weights, keep)\n"
    )
    keys = {"aggregation__rule": "own:Own", "aggregation__rule_folder": str(tmp_path)}
    submit(node, "own", MODEL, aggregation__reproducible=True, **keys)
    watch = Watch(node, "own")
    with fleet(node.address, "own", CLIENTS, update_of):
        assert "aggregation.reproducible" in watch.over()["reason"]
    watch.join()


def test_the_http_door_refuses_the_same_weights(start_node: Callable[..., Node]) -> None:
    node = start_node("--http", "127.0.0.1:0")
    submit(node, "j", MODEL, aggregation__reproducible=True, selection__clients_per_round=1)
    client = HttpClient(node, "c00")
    assert client.selected() == 1
    tensors, _, _ = update_of(0, 1)
    for weight in (0.5, float("nan"), -1.0, 2.0**39 + 1, 2.0**53):
        assert client.put(1, tensors, weight=weight).status in (400, 422), weight
    assert client.put(1, tensors, weight=2.0**39).status in (200, 201, 202)


def test_infinities_in_what_is_not_averaged_do_no_harm(node: Node) -> None:
    keys = {"aggregation__fixed": ["half"], "aggregation__reproducible": True, "aggregation__fan_in": 2}
    submit(node, "fixed", MODEL, **keys)

    def update(index: int, number: int) -> Any:
        tensors, weight, metrics = update_of(index, number)
        return tensors | {"half": np.full(77, (np.inf, -np.inf)[index % 2], np.float16)}, weight, metrics

    with fleet(node.address, "fixed", CLIENTS, update) as team:
        team.join()
    (line,) = node.json("status", "fixed")["rounds"]
    with safe_open(line["path"], "np") as file:
        assert not file.get_tensor("half").any()
        assert np.isfinite(file.get_tensor("w")).all()

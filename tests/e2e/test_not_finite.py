"""One number that is beyond what a rule can compute: the attempt fails with its tensor and client, not the job."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from fleet import Update, Watch, fleet, submit
from nodes import Node
from safetensors.numpy import load_file

MODEL = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}


def test_an_update_that_overflows_fails_the_attempt_by_its_name(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    sent: list[int] = []

    def update_of(index: int, _number: int) -> Update:
        tensors = {name: np.full_like(array, 0.5) for name, array in MODEL.items()}
        if index == 1 and not sent:
            sent.append(index)
            tensors["b"][2] = 1e25  # its square is no float32
        return tensors, 1.0, {}

    rule = {"aggregation__rule": "fedadam", "aggregation__options": {"eta": 0.25}}
    submit(node, "j", MODEL, job__rounds=2, selection__clients_per_round=2, **rule)
    watch = Watch(node, "j")
    with fleet(node.address, "j", 2, update_of) as team:
        team.join()
    (failed,) = watch.wait("round.failed")
    reason = failed.fields["reason"]
    assert "tensor 'b'" in reason and "FedAdam" in reason
    assert reason.endswith("the largest number there, 1e+25, is of c01")
    lines = [line for line in node.json("status", "j")["rounds"] if line["status"] == "committed"]
    assert len(lines) == 2
    assert all(np.isfinite(array).all() for array in load_file(lines[-1]["path"]).values())


def test_who_sends_it_again_and_again_is_left_out(start_node: Callable[..., Node]) -> None:
    """One of three clients, of whom two are asked, never sends anything else: each round is made without it."""
    node = start_node("--redirector", "unix")

    def update_of(index: int, _number: int) -> Update:
        tensors = {name: np.full_like(array, 0.5) for name, array in MODEL.items()}
        if index == 1:
            tensors["b"][2] = 1e25
        return tensors, 1.0, {}

    rule = {"aggregation__rule": "fedadam", "aggregation__options": {"eta": 0.25}}
    submit(node, "j", MODEL, job__rounds=4, selection__clients_per_round=2, **rule)
    with fleet(node.address, "j", 3, update_of) as team:
        team.join()
    rounds = node.json("status", "j")["rounds"]
    assert [line["round"] for line in rounds if line["status"] == "committed"] == [1, 2, 3, 4]
    assert all("c01" in line["reason"] for line in rounds if line["status"] == "failed")

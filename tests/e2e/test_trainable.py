"""Jobs of some of a model's tensors, whose updates may lack some of these, through real nodes and their failures."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

import numpy as np
import psutil
import pytest
from fleet import Fleet, Trainer, Update, Watch, fleet, name_of, restart, submit, until, write_job
from nodes import Node
from safetensors.numpy import load_file

import lifl
from lifl import Client
from lifl.aggregator import UpdateRefused
from lifl.client import Round
from lifl.core.errors import Refused
from lifl.core.limits import TRAINABLE_TENSORS_MAX

CLIENTS = 8
ADAPTERS = [f"block.{index}.lora_{side}" for index in range(3) for side in "AB"]
MODEL = {
    **{name: np.full((4, 50), 0.5, np.float32) for name in ADAPTERS},
    "head.w": np.zeros(CLIENTS, np.float32),
    "head.steps": np.zeros(CLIENTS, np.int64),
    "head.gate": np.array([True, False]),
    "base.weight": np.full((300, 100), 2.0, np.float32),
    "base.odd": np.zeros(3, np.complex64).view(np.float32),
}
BASE = ("base.weight", "base.odd")
KEYS = {"job__trainable": ["*lora_*", "head.*"], "selection__clients_per_round": CLIENTS, "job__rounds": 2}


def there(index: int, number: int) -> set[str]:
    """What a client has: always its head, and some of the adapters; the last adapter nobody has in round 1."""
    draw = random.Random(f"{index}/{number}")
    adapters = ADAPTERS[:-1] if number == 1 else ADAPTERS
    return {"head.w", "head.steps", "head.gate", *(name for name in adapters if draw.random() < 0.5)}


def update_of(index: int, number: int) -> Update:
    """One-hot in the head (`fleet.OneHot`), numbers of its own in what it has; with the base, which stays here."""
    rng = np.random.default_rng(1000 * number + index)
    one: dict[str, np.ndarray] = {name: rng.normal(0, 1, (4, 50)).astype(np.float32) for name in ADAPTERS}
    one |= {"head.w": np.zeros(CLIENTS, np.float32), "head.steps": np.zeros(CLIENTS, np.int64)}
    one["head.w"][index] = number
    one["head.steps"][index] = number * 720_720
    one["head.gate"] = np.array([False, False])
    mine = {name: one[name] for name in one if name in there(index, number)}
    return mine | {name: np.full(3, np.nan, np.float32) for name in BASE}, 1.0, {"index": float(index)}


def check(node: Node, fleet_: Fleet) -> None:
    """Each committed model has each counted client once, and each adapter is the mean of those who sent it."""
    lines = [line for line in node.json("status", "j")["rounds"] if line["status"] == "committed"]
    assert [line["round"] for line in lines] == [1, 2]
    before = MODEL
    for line in lines:
        number, model = line["round"], load_file(line["path"])
        assert set(model) == set(MODEL) - set(BASE)
        counted = [index for index in range(CLIENTS) if fleet_.fate(index, number)]
        assert len(counted) == line["receipt"]["counted"]
        hot = np.zeros(CLIENTS)
        hot[counted] = number / len(counted)
        np.testing.assert_allclose(model["head.w"], hot, rtol=1e-6)
        np.testing.assert_array_equal(model["head.steps"], np.rint(hot * 720_720))
        np.testing.assert_array_equal(model["head.gate"], MODEL["head.gate"])
        for name in ADAPTERS:
            rows = [update_of(index, number)[0][name] for index in counted if name in there(index, number)]
            if rows:
                wanted = np.mean([row.astype(np.float64) for row in rows], axis=0)
                np.testing.assert_allclose(model[name], wanted, rtol=1e-6, atol=1e-9, err_msg=name)
            else:
                np.testing.assert_array_equal(model[name], before[name], err_msg=name)
        before = model


@pytest.mark.parametrize(("fan_in", "direct"), [(1, True), (8, False)])
def test_each_tensor_is_averaged_over_those_who_sent_it(
    start_node: Callable[..., Node], fan_in: int, direct: bool
) -> None:
    node = start_node()
    told = submit(node, "j", MODEL, **KEYS, aggregation__fan_in=fan_in, aggregation__middle_fan_in=2)
    assert told["model_bytes"] < MODEL["base.weight"].nbytes, "the base model is not in the arena"
    address = str(node.state_dir) if direct else node.address
    with fleet(address, "j", CLIENTS, update_of) as team:
        team.join()
        check(node, team)
        for trainer in team.trainers:
            assert all(set(round_.model) == set(MODEL) - set(BASE) for round_ in trainer.rounds)


@pytest.mark.parametrize("durability", ["memory", "disk"])
def test_what_was_accepted_keeps_what_it_lacks_when_processes_die(
    start_node: Callable[..., Node], durability: str
) -> None:
    """Half of round 1 is accepted when lifld dies, or the machine: what each update lacks comes from arena or disk."""
    node = start_node()
    tree = {"aggregation__fan_in": 1, "aggregation__middle_fan_in": 2}
    submit(node, "j", MODEL, **KEYS, **tree, job__durability=durability)
    watch = Watch(node, "j")
    with fleet(node.address, "j", CLIENTS, update_of, held=[(i, 1) for i in range(CLIENTS // 2, CLIENTS)]) as team:
        watch.wait("update.accepted", CLIENTS // 2)
        if durability == "disk":
            children = psutil.Process(node.pid).children(recursive=True)
            node.kill()
            psutil.wait_procs(children)
            node.remove_arena()
            node.up("--listen", node.address)
        else:
            restart(node)
        assert node.info["adopted"]["updates"] == CLIENTS // 2
        team.release()
        team.join()
        check(node, team)


def test_what_a_worker_had_folded_is_folded_again(start_node: Callable[..., Node]) -> None:
    """All workers die when some updates of the round are folded."""
    node = start_node()
    submit(node, "j", MODEL, **KEYS, aggregation__fan_in=8, aggregation__timing="eager")
    watch = Watch(node, "j")
    with fleet(node.address, "j", CLIENTS, update_of, held=[(CLIENTS - 1, 1)]) as team:
        watch.wait("update.accepted", CLIENTS - 1)
        workers = until("a worker", lambda: node.snapshot()["workers"])
        for worker in workers:
            os.kill(worker["pid"], signal.SIGKILL)
        team.release()
        team.join()
        check(node, team)


def test_what_is_refused_is_refused_by_its_name(start_node: Callable[..., Node]) -> None:
    node = start_node()
    submit(node, "j", MODEL, **(KEYS | {"selection__clients_per_round": 1, "job__rounds": 1}))
    ranks = {"block.0.lora_A": np.zeros((8, 50), np.float32)}
    unknown = {"block.9.lora_A": np.zeros((4, 50), np.float32)}
    with Client(node.address, job="j", client="c1") as client:
        for round_ in client.rounds():
            for tensors, code, field in (
                (ranks, "wrong-shape", "tensors.block.0.lora_A"),
                (unknown, "unknown-tensor", "tensors.block.9.lora_A"),
                ({"head.w": np.full(CLIENTS, np.nan, np.float32)}, "not-finite", "tensors.head.w"),
                ({"base.weight": MODEL["base.weight"]}, "missing-tensor", "tensors"),
                ({}, "missing-tensor", "tensors"),
            ):
                with pytest.raises(Refused) as refused:
                    round_.submit(tensors, weight=1)
                assert (refused.value.code, refused.value.field) == (code, field)
            assert round_.submit({"head.w": np.ones(CLIENTS, np.float32)}, weight=2).accepted


def test_a_job_without_the_key_takes_whole_updates_alone(start_node: Callable[..., Node]) -> None:
    node = start_node()
    submit(node, "j", MODEL, job__rounds=1, selection__clients_per_round=1)

    def play(trainer: Trainer, round_: Round) -> None:
        part = {name: array for name, array in MODEL.items() if name != "head.w"}
        with pytest.raises(Refused, match=r"lacks the model's tensor 'head.w'"):
            round_.submit(part, weight=1)
        round_.submit(MODEL, weight=1)

    with fleet(node.address, "j", 1, update_of, play) as team:
        team.join()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"job__trainable": ["*lora_*", "heads.*"]}, r"job\.trainable: the model has no tensor 'heads\.\*'"),
        ({"job__trainable": []}, r"job\.trainable: names no tensor"),
        ({"job__trainable": ["head.*"], "aggregation__first": ["head.gate"]}, r"aggregation\.first: one update's"),
        ({"job__trainable": ["many.*"]}, rf"names {TRAINABLE_TENSORS_MAX + 1} of the model's tensors, at most"),
    ],
)
def test_a_job_that_cannot_be_is_refused_by_its_key(
    start_node: Callable[..., Node], keys: dict[str, object], said: str
) -> None:
    node = start_node()
    many = {f"many.{index}": np.zeros(1, np.float32) for index in range(TRAINABLE_TENSORS_MAX + 1)}
    job = write_job(node.state_dir / "configs", "j", MODEL | many, **keys)
    with pytest.raises(AssertionError, match=said):
        node.json("submit", str(job))


def test_folds_of_a_program_whose_updates_lack_tensors() -> None:
    model = {name: MODEL[name] for name in MODEL}
    with lifl.Aggregator() as aggregator:
        with aggregator.open(model, expected=3, trainable=["*lora_*", "head.*"]) as fold:
            for index in range(2):
                fold.add(update_of(index, 1)[0], weight=1.0, client=name_of(index))
            ticket = fold.ticket("far")
            with lifl.take_part(ticket) as part:
                assert set(part.model) == set(MODEL) - set(BASE)
                with pytest.raises(UpdateRefused, match=r"has shape \(1,\), the model's has"):
                    part.submit({ADAPTERS[-1]: np.ones(1, np.float32)}, weight=1)
                part.submit({ADAPTERS[-1]: np.full((4, 50), 7.0, np.float32)}, weight=5)
            result = fold.result()
        assert list(result) == [name for name in MODEL if name not in BASE]
        np.testing.assert_array_equal(result[ADAPTERS[-1]], 7.0)
        np.testing.assert_allclose(result["head.w"][:2], 0.5)
        for name in ADAPTERS[:-1]:
            rows = [update_of(index, 1)[0][name] for index in range(2) if name in there(index, 1)]
            np.testing.assert_allclose(result[name], np.mean(rows, axis=0) if rows else MODEL[name], rtol=1e-6)
        with pytest.raises(Refused, match=r"trainable: .*no tensor 'none'"):
            aggregator.open(model, expected=1, trainable=["none"])
        with aggregator.open(model, expected=1) as whole, pytest.raises(UpdateRefused, match="lacks the model's"):
            whole.add({"head.w": MODEL["head.w"]}, weight=1.0)

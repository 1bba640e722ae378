"""A job on a real node that evaluates its models, selects by what clients say, and stops when it has learned enough."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet import WAIT_S, Trainer, fleet, submit, until
from nodes import FOLDERS, Node

from lifl import Client
from lifl.client import Round
from lifl.core.errors import LocalFault, Refused

N = 4
"""Clients c00 and c01 train and evaluate, c02 only trains, c03 is one that is not selected."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="lt-", dir=FOLDERS))
    node = Node(folder, ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--redirector", "unix"))
    node.up()
    yield node
    node.lifl("down")
    shutil.rmtree(folder, ignore_errors=True)


def says(name: str) -> dict[str, Any]:
    labels = {"region": "us" if name == "c03" else "eu"}
    return {"labels": labels, "examples": 10, "device": "gpu", "evaluate": name != "c02"}


def test_models_are_evaluated_until_the_job_has_learned_enough(shared: Node) -> None:
    node = shared
    keys = {
        "job__rounds": 9,
        "job__stop": "w >= 2",
        "selection__clients_per_round": 3,
        "selection__where": "region == 'eu' and examples >= 10",
        "client__options": {"lr": {"linear": [9.0, 1.0]}, "epochs": 1},
        "evaluation__every": 2,
        "evaluation__deadline_s": 100.0,
    }
    submit(node, "j", {"w": np.zeros(3, np.float32)}, **keys)
    seen: list[tuple[str, str, int, Any, float]] = []

    def play(trainer: Trainer, round_: Round) -> None:
        mean = float(round_.model["w"].mean())
        seen.append((trainer.client.client, round_.kind, round_.number, round_.options, mean))
        if round_.kind == "train":
            with pytest.raises(LocalFault, match="is to be trained"):
                round_.report({"w": mean}, 1.0)
            round_.submit({"w": np.full(3, round_.number, np.float32)}, 1.0, {"w": 0.0})
            return
        with pytest.raises(Refused) as refused:
            round_.submit(round_.model, 1.0)
        assert refused.value.field == "tensors"
        with pytest.raises(Refused) as refused:
            round_.report({"w": float("nan")}, 1.0)
        assert refused.value.field == "metrics.w"
        index = trainer.index
        assert round_.report({"w": mean + index}, weight=3.0 - 2 * index).accepted

    with fleet(node.address, "j", N, lambda *_: ({}, 1.0, {}), play=play, access=says) as team:
        team.join()
    trained = sorted((name, number, options["lr"]) for name, kind, number, options, _ in seen if kind == "train")
    assert trained == [(f"c0{i}", number, 10.0 - number) for i in range(3) for number in (1, 2)]
    # The model of round 2 is what both of them had to look at.
    assert sorted(each[:3] + each[4:] for each in seen if each[1] == "evaluate") == [
        (name, "evaluate", 2, 2.0) for name in ("c00", "c01")
    ]
    status = node.json("status", "j")
    assert (status["job"]["status"], status["job"]["committed"]) == ("finished", 2)
    assert status["job"]["reason"] == "w >= 2: w is 2.25"
    first, second = status["rounds"]
    figures = {"mean": 2.25, "min": 2.0, "max": 3.0, "std": pytest.approx(np.sqrt(0.1875)), "clients": 2}
    assert second["evaluation"] == {"clients": 2, "selected": 2, "metrics": {"w": figures}}
    assert "evaluation" not in first
    text = node.lifl("status", "j")
    assert "evaluation of round 2" in text and "2 of 2 selected" in text


def test_what_a_client_says_of_itself_is_shown_and_bounded(shared: Node) -> None:
    node = shared
    submit(node, "zones", {"w": np.zeros(1, np.float32)}, selection__where="zone == 'nowhere'")
    with Client(str(node.state_dir), job="zones", client="c1", labels={"zone": "ä"}, examples=np.int64(3)) as client:
        client._home.retrying(lambda stream: None)  # it joins
        (line,) = until("it has joined", lambda: node.json("status", "zones", "--clients")["clients"])
        assert line["properties"] == {"labels": {"zone": "ä"}, "examples": 3}
        assert "zone=ä" in node.lifl("status", "zones", "--clients")  # a table wraps, where it is narrow
    for bad in (
        {"labels": {"a b": "x"}},
        {"labels": {"examples": "x"}},
        {"labels": {"a": "x" * 65}},
        {"labels": {"a": "\n"}},
        {"labels": {f"a{n}": "" for n in range(17)}},
        {"labels": {"a": 1}},
        {"examples": -1},
        {"examples": 1.5},
        {"examples": 1 << 63},
        {"device": "\x1b[31m"},
    ):
        with pytest.raises(LocalFault, match="a label's name is letters"):
            Client(str(node.state_dir), job="j", client="c1", **bad)


FUNCTIONS = """
import os

import numpy as np


def look(model):
    assert not model["w"].flags.writeable
    try:
        open("STATE/mine", "w")
    except OSError:
        held = 1.0
    else:
        held = 0.0
    return {"w": model["w"].mean(), "held": held}


def raises(model):
    model["w"][0] = 1.0


def ends(model):
    os._exit(3)


def hangs(model):
    while True:
        pass


def pick(clients, wanted, round):
    return [client["name"] for client in clients if client["examples"] == 1][:wanted]


def enough(history):
    if history[-1]["w"] >= 1.0:
        return "w has risen"


def bad_raises(clients, wanted, round):
    raise ValueError(len(clients))


def bad_exits(clients, wanted, round):
    raise SystemExit(3)


def bad_ends(clients, wanted, round):
    os._exit(3)


def bad_floods(clients, wanted, round):
    for stream in (1, 2):
        for _ in range(1_000):
            os.write(stream, b"x" * 100_000)
    return (str(number) for number in range(10**12))


def bad_recurses(clients, wanted, round):
    return bad_recurses(clients, wanted, round)
"""


@pytest.mark.parametrize("name", ["look", "raises", "ends", "hangs"])
def test_a_users_function_looks_at_the_model_and_harms_nobody(shared: Node, name: str) -> None:
    node = shared
    folder = node.state_dir / "configs"
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(FUNCTIONS.replace("STATE", str(node.state_dir)))
    keys = {"evaluation__server": f"mine:{name}", "evaluation__deadline_s": 0.5 if name == "hangs" else 60.0}
    submit(node, name, {"w": np.zeros(1, np.float32)}, job__rounds=2, **keys)
    update = ({"w": np.ones(1, np.float32)}, 1.0, {})
    with fleet(node.address, name, 1, lambda *_: update) as team:
        team.join()
    status = node.json("status", name)
    assert (status["job"]["status"], status["job"]["committed"]) == ("finished", 2)
    says = [line["evaluation"]["server"] for line in status["rounds"]]
    expected = {
        "raises": "function mine:raises raised ValueError",
        "ends": "exit",
        "hangs": "did not end within 0.5 s",
    }
    if name == "look":
        assert says == [{"metrics": {"w": 1.0, "held": 1.0}}] * 2
        assert "w (server)" in node.lifl("status", name)
    else:
        assert all(expected[name] in said["fault"] for said in says), says


def mine(node: Node) -> None:
    """The functions are beside the jobs' files."""
    folder = node.state_dir / "configs"
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(FUNCTIONS.replace("STATE", str(node.state_dir)))


def test_functions_select_the_clients_and_end_the_job(shared: Node) -> None:
    node = shared
    mine(node)
    keys = {"selection__strategy": "mine:pick", "selection__clients_per_round": 2, "job__stop": "mine:enough"}
    submit(node, "chosen", {"w": np.zeros(1, np.float32)}, job__rounds=10_000, **keys)
    update = ({"w": np.ones(1, np.float32)}, 1.0, {"w": 1.0, "loss": 0.5})

    def says_which(name: str) -> dict[str, Any]:
        return {"examples": 1 if name in ("c01", "c03") else 0}

    node.lifl(
        "pause", "chosen"
    )  # until all are there: the function needs two of them that it may not have been given yet
    with fleet(node.address, "chosen", 4, lambda *_: update, access=says_which) as team:
        until("all are there", lambda: node.json("status", "chosen")["job"]["clients"] == 4)
        node.lifl("resume", "chosen")
        team.join()
    status = node.json("status", "chosen")["job"]
    assert (status["status"], status["reason"]) == ("finished", "mine:enough: w has risen")
    trained = {trainer.client.client for trainer in team.trainers if trainer.submissions}
    assert trained == {"c01", "c03"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bad_raises", "function mine:bad_raises raised ValueError: 1 (mine.py:"),
        ("bad_exits", "function mine:bad_exits raised SystemExit: 3"),
        ("bad_ends", "workers died in turn while they ran it with function mine:bad_ends (selection.strategy)"),
        ("bad_floods", "mine:bad_floods named '0', which is none of the 1 clients it was given"),
        ("bad_recurses", "function mine:bad_recurses raised RecursionError"),
    ],
)
def test_a_function_that_does_harm_fails_its_own_job_alone(shared: Node, name: str, said: str) -> None:
    node = shared
    mine(node)
    submit(node, name, {"w": np.zeros(1, np.float32)}, selection__strategy=f"mine:{name}", selection__attempts=1)
    with fleet(node.address, name, 1, lambda *_: ({"w": np.ones(1, np.float32)}, 1.0, {})) as team:
        team.join(well=False)
    status = node.json("status", name)["job"]
    assert status["status"] == "failed" and said in status["reason"], status["reason"]


def test_an_evaluation_that_a_kill_has_broken_off_is_made_by_the_next_life(shared: Node) -> None:
    node = shared
    keys = {"selection__strategy": "power_of_choice", "checkpoint__keep": {"last": 9, "best": "evaluation.w"}}
    submit(node, "killed", {"w": np.zeros(2, np.float32)}, evaluation__every=1, evaluation__deadline_s=600.0, **keys)
    asked, killed = threading.Barrier(3), threading.Event()

    def play(trainer: Trainer, round_: Round) -> None:
        if round_.kind == "train":
            round_.submit({"w": np.ones(2, np.float32)}, 1.0, {"w": 9.0, "loss": 0.5 + trainer.index})
            return
        if not killed.is_set():
            asked.wait(WAIT_S)
            killed.wait(WAIT_S)
        round_.report({"w": 0.25}, 1.0)

    def evaluates(_name: str) -> dict[str, Any]:
        return {"evaluate": True}

    with fleet(str(node.state_dir), "killed", 2, lambda *_: ({}, 1.0, {}), play=play, access=evaluates) as team:
        asked.wait(WAIT_S)
        node.kill()
        node.up()
        killed.set()
        team.join()
    status = node.json("status", "killed")
    (line,) = status["rounds"]
    assert status["job"]["status"] == "finished"
    assert line["evaluation"]["clients"] == 2 and line["evaluation"]["metrics"]["w"]["mean"] == 0.25
    assert status["models"]["best"] == {"round": 1, "metric": "evaluation.w", "value": 0.25}

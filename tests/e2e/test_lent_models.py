"""A trainer on the node's own machine has the model where the node has it: no copy, and nobody takes it away."""

from __future__ import annotations

import gc
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet import arena_use, restart, submit, until
from leaks import mapped_file
from nodes import FOLDERS, Node, running

from lifl import Client
from lifl.client.round import Round
from lifl.client.tensors import Array

COUNT = 400_000
ONES = {"w": np.ones(COUNT, np.float32), "steps": np.zeros(3, np.int64)}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory(dir=FOLDERS, prefix="lt-") as folder, running(Path(folder) / "state") as node:
        yield node


def is_lent(array: Array) -> bool:
    return "lifl-" in mapped_file(array)


def submitted(node: Node, job: str, rounds: int = 1) -> None:
    submit(node, job, ONES, job__rounds=rounds, selection__clients_per_round=1)


def rounds_of(node: Node, job: str, train: Callable[[Round], Any]) -> list[Any]:
    """What `train` makes of the rounds of a job, of which one client submits the model plus one."""
    with Client(str(node.state_dir), job=job, client="c0") as client:
        found = []
        for round_ in client.rounds():
            update = {name: array + 1 for name, array in round_.model.items()}
            found.append(train(round_))
            round_.submit(update, 1.0)
        return found


def fill(node: Node, job: str) -> None:
    """Another job has most of the arena that is free."""
    values = {"w": np.full(7 << 18, 9, np.float32)}  # what is kept, and twice as much beside it, no new job has
    submit(node, job, values, selection__clients_per_round=1)
    with Client(node.address, job=job, client="f") as client:
        for round_ in client.rounds():
            round_.submit(values, 1.0)


def free_again(node: Node) -> None:
    gc.collect()
    until("an empty arena", lambda: arena_use(node) == (0, 0))


def test_a_model_is_read_where_it_is_and_is_the_trainers_to_write_to_and_to_keep(node: Node) -> None:
    submitted(node, "j", 4)

    def train(round_: Round) -> tuple[bool, Array]:
        lent, w = is_lent(round_.model["w"]), round_.model["w"]
        w[:10] += 100  # of a page or two
        return lent, w

    found = rounds_of(node, "j", train)
    assert [lent for lent, _ in found] == [True, True, False, False], "two at a time, if all are kept"
    for number, (_, w) in enumerate(found, 1):
        assert (w[:10] == number + 100).all() and (w[10:] == number).all()
    assert arena_use(node)[0] == 2, "the job is over, and two are kept"
    fill(node, "other")
    assert all((w[10:] == number).all() for number, (_, w) in enumerate(found, 1))
    kept = found[1][1][20:30]
    del found
    gc.collect()
    until("one object", lambda: arena_use(node)[0] == 1)
    assert (kept == 2).all()
    del kept
    free_again(node)


def test_a_trainer_that_writes_to_its_models_has_them_in_memory_of_its_own_from_then_on(node: Node) -> None:
    submitted(node, "writes", 4)

    def train(round_: Round) -> bool:
        lent = is_lent(round_.model["w"])
        round_.model["w"] += 1
        return lent

    assert rounds_of(node, "writes", train) == [True, False, False, False]
    free_again(node)


def kill_gateway(node: Node) -> None:
    pid = node.snapshot()["node"]["gateway"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until("a new gateway", lambda: node.snapshot()["node"]["gateway"]["pid"] not in (0, None, pid))


@pytest.mark.parametrize("death", [kill_gateway, restart])
def test_what_a_trainer_has_stays_as_it_is_whatever_dies(
    node: Node, death: Callable[[Node], None], caplog: pytest.LogCaptureFixture
) -> None:
    job = f"of-{death.__name__}"
    submitted(node, job, 2)
    caplog.set_level(logging.ERROR, "lifl.client")  # a record that pytest keeps has the frames of an error, and models
    kept: list[Array] = []

    def train(round_: Round) -> bool:
        kept.append(round_.model["w"])
        if round_.number == 1:
            death(node)
        return is_lent(round_.model["w"])

    assert all(rounds_of(node, job, train))
    fill(node, f"{job}-then")
    assert all((w == number).all() for number, w in enumerate(kept, 1))
    kept.clear()
    free_again(node)


def test_a_trainer_that_is_killed_leaves_nothing_and_a_node_that_goes_takes_nothing(node: Node) -> None:
    submitted(node, "last", 2)
    ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with Client(str(node.state_dir), job="last", client="c0") as client:
                model = next(client.rounds()).model
                os.write(ready[1], b"1" if is_lent(model["w"]) else b"0")
                signal.pause()
        finally:
            os._exit(1)
    assert os.read(ready[0], 1) == b"1"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    until("one object", lambda: arena_use(node)[0] == 1)
    with Client(str(node.state_dir), job="last", client="c0") as client:
        model = next(client.rounds()).model
        assert is_lent(model["w"])
        node.lifl("cancel", "last")
        node.down()
        assert (model["w"] == 1).all()
        model["w"][:] = 2
    assert not node.segments, "its memory goes when the model does"
    for fd in ready:
        os.close(fd)

"""Large models and updates over several connections, on a real node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from fleet import OneHot, Trainer, fleet, submit
from nodes import Node

import lifl
from lifl.client import Round
from lifl.client.split import Split
from lifl.core.protocol.body_ranges import SPLIT_BYTES_MIN

N, ROUNDS = 2, 3


def gateway_of(node: Node) -> psutil.Process:
    (found,) = [each for each in psutil.Process(node.pid).children() if "lifl.node.gateway.main" in each.cmdline()]
    return found


def test_rounds_whose_bodies_are_split_count_each_client_once_also_when_the_gateway_dies(
    start_node: Callable[..., Node],
) -> None:
    """Side connections show the cookie as first ones do; the second round's updates are cut off by kill -9."""
    node = start_node("--redirector", "unix", "--streams", "3", "--arena-bytes", "128MiB")
    oracle = OneHot(N, ballast_bytes=SPLIT_BYTES_MIN)
    submit(node, "j", oracle.model(), job__rounds=ROUNDS)
    gateway = gateway_of(node)
    killed: list[int] = []

    def play(trainer: Trainer, round_: Round) -> None:
        def cut_off(_sent_bytes: int, _all: int) -> None:
            if round_.number == 2 and not killed:
                killed.append(gateway.pid)
                gateway.kill()

        assert round_.submit(*oracle.update(trainer.index, round_.number), progress=cut_off).accepted

    with fleet(node.address, "j", N, oracle.update, play, access=lambda _name: {"streams": 3}) as team:
        team.join()
    assert len(killed) == 1 and len(oracle.check(node, "j", team)) == ROUNDS


def test_a_folds_bodies_are_split_both_ways_also_those_of_tickets(
    start_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway dies as the host's update is sent by ranges: it is sent again, over one connection."""
    node = start_node("--redirector", "unix", "--streams", "3", "--arena-bytes", "160MiB")
    model = {"w": np.arange(SPLIT_BYTES_MIN // 4, dtype=np.float32)}
    split: list[int | None] = []
    move = Split._all

    def moved(self: Split, transfer: str, carry: Any) -> None:
        split.append(self.asked if isinstance(self.asked, int) else None)
        if len(split) == 2:
            gateway_of(node).kill()
        move(self, transfer, carry)

    monkeypatch.setattr(Split, "_all", moved)
    with (
        lifl.Aggregator(node.address, "fedavgm", streams=3) as aggregator,
        aggregator.open(model, expected=2) as fold,
    ):
        fold.add({"w": model["w"] + 1}, 1)
        with lifl.take_part(fold.ticket("site"), streams=3) as part:
            np.testing.assert_array_equal(part.model["w"], model["w"])
            part.submit({"w": model["w"] + 3}, 1)
        result = fold.result()
    np.testing.assert_allclose(result["w"], model["w"] + 2)
    assert split == [3] * 5, "the model, the first update, the model, the second update, the result"

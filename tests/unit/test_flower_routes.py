"""The Flower adapter where Flower is not installed: who is sent what, and how it is told what is missing."""

from __future__ import annotations

import builtins
import logging
import sys
from typing import Any

import pytest

import lifl.integrations.flower as adapter
from lifl.integrations.flower.routes import BLOCKED_ROUNDS, Routes


@pytest.mark.parametrize("name", ["LiflStrategy", "lifl_mod"])
def test_without_flower_it_is_said_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_flower(module: str, *more: Any) -> Any:
        if module.split(".", maxsplit=1)[0] == "flwr":
            raise ModuleNotFoundError("No module named 'flwr'")
        return real(module, *more)

    monkeypatch.setattr(builtins, "__import__", no_flower)
    for module in [each for each in sys.modules if each.split(".")[0] == "flwr"]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=r"pip install 'lifl\[flower\]'"):
        getattr(adapter, name)
    with pytest.raises(AttributeError):
        _ = adapter.nothing


def test_the_first_messages_have_both_and_one_answer_tells_of_all() -> None:
    routes = Routes()
    assert routes.by_lifl("train", 1, 1) and routes.with_arrays("train", 1, 1)
    routes.heard("train", 1, marked=True)
    assert routes.by_lifl("train", 2, 1) and not routes.with_arrays("train", 2, 1)
    assert routes.knows("train", 1) and not routes.knows("train", 2) and not routes.knows("evaluate", 1)
    assert routes.with_arrays("evaluate", 2, 1), "a mod of the training alone says nothing of evaluation"


def test_without_a_mod_only_arrays_are_sent() -> None:
    routes = Routes()
    routes.heard("train", 1, marked=False)
    assert not routes.by_lifl("train", 1, 2) and routes.with_arrays("train", 1, 2)
    routes.heard("train", 1, marked=True)  # an answer without it came first, of a node that is not up to date
    assert routes.by_lifl("train", 1, 2)
    routes.heard("train", 1, marked=False)
    assert routes.by_lifl("train", 1, 2), "one node without it does not take it from the others"


def test_a_node_that_is_cut_off_is_tried_again_later_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    routes = Routes()
    routes.heard("train", 1, marked=True)
    with caplog.at_level(logging.WARNING, "flwr"):
        routes.block(7, 3, "no route to host")
        routes.block(8, 3, "no route to host")
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert "node 7" in caplog.text and "no route to host" in caplog.text
    last = 3 + BLOCKED_ROUNDS - 1
    assert not routes.by_lifl("train", 7, last) and routes.with_arrays("train", 7, last)
    assert routes.by_lifl("train", 7, last + 1) and routes.by_lifl("train", 9, 3)

"""The model of a session of folds, for which many ask at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lifl.aggregator.session import RuleSpec, Session
from lifl.client.tensors import Update
from lifl.core.schema import Layout, TensorSpec

LAYOUT = Layout((TensorSpec("w", "float32", (1000,)),))


class Read(Update):
    """An update that counts how often its bytes are gone through."""

    times = 0

    @property
    def views(self) -> list[memoryview]:
        self.times += 1
        return super().views


def session_of(brought: list[Any], monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(Session, "_put", lambda _self, model: brought.append(model))
    line: Any = SimpleNamespace(retrying=lambda act: act())
    return Session(line, "s", LAYOUT, RuleSpec("fedavg", {}, "", ()), 16, ())


def test_for_many_tickets_a_model_is_read_and_brought_once(monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[Any] = []
    session = session_of(brought, monkeypatch)
    model = Read(LAYOUT, {"w": np.ones(1000, np.float32)})
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _client: session.put(model, wanted=True), range(64)))
    assert brought == [model]
    assert model.times == 1


def test_another_model_is_brought_and_the_same_numbers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[Any] = []
    session = session_of(brought, monkeypatch)
    models = [Update(LAYOUT, {"w": np.full(1000, value, np.float32)}) for value in (1, 1, 2)]
    for model in models:
        session.put(model, wanted=True)
    assert brought == [models[0], models[2]]
    session.put(models[2])
    assert len(brought) == 2, "the rule does not read it, and nobody asks for it"

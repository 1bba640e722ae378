"""Notes what the tests of this folder take of the agent's and the engine's tables; has what they recorded replayed."""

from __future__ import annotations

from collections.abc import Iterator

import agent_scene
import arrows
import pytest

from lifl.core.agent import task_table
from lifl.core.agent.agent import Agent
from lifl.core.agent.job_replica import JobReplica
from lifl.core.agent.model_slot import ModelSlot
from lifl.core.agent.pool import Worker
from lifl.core.engine import Engine
from lifl.core.planning.tree import Task


@pytest.fixture(autouse=True)
def _notes(monkeypatch: pytest.MonkeyPatch) -> None:
    for table, owner in (("task", Task), ("worker", Worker), ("model", ModelSlot)):
        arrows.note(monkeypatch, table, owner, "move", lambda machine, to: (machine.state, to))
    arrows.note(monkeypatch, "agent's events", Agent, "handle", lambda _agent, event: type(event))
    arrows.note(monkeypatch, "orders", JobReplica, "obey", lambda _replica, order: type(order))
    arrows.note(monkeypatch, "engine's events", Engine, "_handled", lambda _engine, event, _now: type(event))


@pytest.fixture(autouse=True)
def _few_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log is written out after each test; the list of free addresses would be most of it."""
    monkeypatch.setattr(task_table, "ADDRESSES_MAX", 101)
    monkeypatch.setattr(task_table, "FILE_ADDRESSES", 10)


@pytest.fixture(autouse=True)
def _replays() -> Iterator[None]:
    """What a test's engines did is done once more from their logs, to the same effects."""
    agent_scene.SCENES.clear()
    yield
    for scene in agent_scene.SCENES:
        scene.check_replay()

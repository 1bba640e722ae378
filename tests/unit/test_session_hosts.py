"""Who asks for a session of folds, and leaves before it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from lifl.core import events as ev
from lifl.core.config.node import NodeConfig
from lifl.core.protocol import gateway as gm
from lifl.core.schema import TensorSpec
from lifl.node.callers import Callers
from lifl.node.sessions import Sessions
from lifl.node.store import NodeStore

CONN = 7
ASKED = gm.SessionAsked(CONN, "s", 2, (TensorSpec("w", "float32", (4,)),), "fedavg", {}, "", (), "")


class Audit:
    def note(self, *_what: object, **_more: object) -> None:
        """Nothing is written."""


class Engine:
    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}


class Driver:
    """Is busy with what came before until it is let on; keeps the events."""

    fault: str | None = None

    def __init__(self) -> None:
        self.engine = Engine()
        self.rest = asyncio.Event()
        self.waits = asyncio.Event()
        self.events: list[object] = []

    async def idle(self) -> None:
        self.waits.set()
        await self.rest.wait()

    def handle(self, event: object) -> None:
        self.events.append(event)


class Gateway:
    def __init__(self) -> None:
        self.told: list[object] = []

    def send(self, message: object) -> None:
        self.told.append(message)


class Scene:
    """A node at which a program asks for a session."""

    def __init__(self, folder: Path) -> None:
        self.driver, self.gateway, self.callers = Driver(), Gateway(), Callers(cast(Any, Audit()))
        self.store = NodeStore(folder / "lifl.db")
        parts = (self.driver, self.store, self.gateway, self.callers, Audit(), NodeConfig())
        self._sessions = Sessions(*cast(Any, parts))
        self.callers.heard(gm.Greeted(CONN, "who"))

    async def asked(self, leaves: str = "") -> None:
        """Ask; have the client leave before the node has done what came before."""
        self._sessions.ask(ASKED)
        (task,) = self._sessions._tasks
        await self.driver.waits.wait()
        if leaves == "client":
            self.callers.heard(gm.ClientLeft(CONN, ""))
        elif leaves:
            self.callers.gone()
            self.callers.heard(gm.Greeted(CONN, "another"))
        self.driver.rest.set()
        await task


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr("lifl.node.sessions.check_submitted", lambda *_: None)
    made = Scene(tmp_path)
    yield made
    made.store.close()


def test_who_asks_hosts_the_session(scene: Scene) -> None:
    asyncio.run(scene.asked())
    assert [type(event) for event in scene.driver.events] == [ev.JobSubmitted, ev.SessionHosted]


@pytest.mark.parametrize("leaves", ["client", "gateway"])
def test_who_has_left_hosts_nothing(scene: Scene, leaves: str) -> None:
    """The session would have a host for ever that is not there, or is another client of the next gateway."""
    asyncio.run(scene.asked(leaves))
    assert [type(event) for event in scene.driver.events] == [ev.JobSubmitted]


@pytest.mark.parametrize("leaves", ["", "client", "gateway"])
def test_who_has_left_is_told_nothing(scene: Scene, leaves: str) -> None:
    """Another client of the next gateway may have the connection's number."""
    scene.driver.fault = "its disk is full"
    asyncio.run(scene.asked(leaves))
    assert scene.driver.events == []
    assert len(scene.gateway.told) == (0 if leaves else 1)

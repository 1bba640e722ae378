"""A row that the database does not take: what is behind it waits, events too, and all goes on in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.errors import Impossible
from lifl.node import driver as driver_module
from lifl.node.database import DatabaseFault
from lifl.node.driver import Driver


class Engine:
    """Wants a row for each text that it is given, then a word once that is written."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.writing = False
        self._last = ""

    def handle(self, event: Any, _now: float) -> list[Any]:
        self.seen.append(event)
        if isinstance(event, ev.RowsWritten):
            self.writing = False
            return [f"{self._last} is told"]
        self.writing, self._last = True, event
        return [f"before {event}", fx.SaveJob(event, "running", ""), f"after {event}"]

    def next_timer(self) -> None:
        return None

    def busy(self) -> bool:
        return False


class Hands:
    """Performs effects, but for rows while the disk is `full`; `fails` is set at each of these."""

    def __init__(self) -> None:
        self.full = False
        self.done: list[Any] = []
        self.tried = 0
        self.fails = asyncio.Event()

    def perform(self, effects: Sequence[Any]) -> None:
        for index, effect in enumerate(effects):
            if isinstance(effect, fx.SaveJob) and self.full:
                self.tried += 1
                self.fails.set()
                fault = DatabaseFault("full")
                fault.rest = effects[index:]
                raise fault
            self.done.append(effect.job if isinstance(effect, fx.SaveJob) else effect)


def all_of(name: str) -> list[str]:
    return [f"before {name}", name, f"after {name}", f"{name} is told"]


def test_a_pause_ends_by_itself_and_nothing_is_lost_doubled_or_out_of_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "DATABASE_RETRY_S", 0.001)

    async def run() -> None:
        engine, hands = Engine(), Hands()
        driver = Driver(engine, tmp_path, hands.perform)  # type: ignore[arg-type]
        pauses: list[bool] = []
        ended = asyncio.Event()
        driver.on_pause = lambda paused: (pauses.append(paused), None if paused else ended.set())[1]
        driver.handle("a")
        assert hands.done == all_of("a")
        hands.full = True
        driver.handle("b")
        driver.handle("c")
        driver.handle("d")
        assert (hands.done[4:], engine.seen[-1]) == (["before b"], "b"), "what follows the row waits"
        assert driver.fault is not None and pauses == [True]
        async with asyncio.timeout(60):
            for _ in range(3):
                hands.fails.clear()
                await hands.fails.wait()
        assert hands.done[4:] == ["before b"]
        hands.full = False
        async with asyncio.timeout(60):
            await ended.wait()
        assert hands.done == [word for name in "abcd" for word in all_of(name)]
        assert (driver.fault, pauses, hands.tried >= 4) == (None, [True, False], True)
        hands.full = True
        driver.handle("e")
        driver.close()
        hands.full = False

    asyncio.run(run())


def test_a_pause_in_which_too_much_comes_stops_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "PAUSE_EVENTS_MAX", 3)

    async def run() -> None:
        hands = Hands()
        driver = Driver(Engine(), tmp_path, hands.perform)  # type: ignore[arg-type]
        hands.full = True
        for event in "abcd":  # the first makes the pause, three wait
            driver.handle(event)
        with pytest.raises(Impossible, match="3 events wait, for full"):
            driver.handle("e")
        driver.close()

    asyncio.run(run())

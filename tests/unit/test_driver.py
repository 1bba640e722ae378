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
from lifl.node.durable_rows import RowPending


class Engine:
    """Wants a row for each text that it is given, then a word once that is written."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.writing = False
        self._last = ""

    def handle(self, event: Any, _now: float) -> list[Any]:
        self.seen.append(event)
        if isinstance(event, ev.Demoted):
            self.writing = False
            return ["demoted"]
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


class Remote(Hands):
    """Rows are on their way for a while: `answer` ends that, with what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.away: tuple[Any, asyncio.Future[DatabaseFault | None]] | None = None

    def perform(self, effects: Sequence[Any]) -> None:
        for index, effect in enumerate(effects):
            if isinstance(effect, fx.SaveJob):
                if self.away is None or self.away[0] is not effect:
                    self.away = (effect, asyncio.get_running_loop().create_future())
                written = self.away[1]
                if not written.done() or written.result() is not None:
                    if written.done():
                        self.away = (effect, asyncio.get_running_loop().create_future())
                    pending = RowPending(self.away[1])
                    pending.rest = effects[index:]
                    raise pending
                self.away = None
            self.done.append(effect.job if isinstance(effect, fx.SaveJob) else effect)

    async def answer(self, fault: DatabaseFault | None = None) -> None:
        assert self.away is not None
        self.away[1].set_result(fault)
        await asyncio.sleep(0)


def remote(test: Any) -> Any:
    """Runs a test with a driver whose rows are on their way for a while."""

    def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(driver_module, "DATABASE_RETRY_S", 0.001)

        async def running() -> None:
            engine, hands = Engine(), Remote()
            driver = Driver(engine, tmp_path, hands.perform)  # type: ignore[arg-type]
            try:
                async with asyncio.timeout(60):
                    await test(driver, engine, hands)
            finally:
                driver.close()

        asyncio.run(running())

    run.__name__ = test.__name__
    return run


@remote
async def test_what_follows_a_row_waits_until_it_is_there_and_so_does_all_that_comes(
    driver: Driver, engine: Engine, hands: Remote
) -> None:
    for event in "abc":
        driver.handle(event)
    assert (hands.done, engine.seen) == (["before a"], ["a"])
    idle = asyncio.create_task(driver.idle())
    for _event in "abc":
        await asyncio.sleep(0)
        assert not idle.done()
        await hands.answer()
    await idle
    assert hands.done == [word for name in "abc" for word in all_of(name)]
    assert driver.fault is None, "that is no pause"


@remote
async def test_who_waits_for_what_an_event_brings_is_woken_by_events_alone(
    driver: Driver, engine: Engine, hands: Remote
) -> None:
    looks: list[int] = []

    def holds() -> bool:
        looks.append(len(engine.seen))
        return "b" in engine.seen

    waiting = asyncio.create_task(driver.until(holds))
    for event in "ab":
        driver.handle(event)
        await hands.answer()
    await waiting
    assert len(looks) <= 3, "at first, and after each event"
    await driver.until(lambda: True)


@remote
async def test_thousands_of_events_may_wait_for_a_row(driver: Driver, engine: Engine, hands: Remote) -> None:
    driver.handle("a")
    for _ in range(5_000):
        driver.handle(ev.RowsWritten())
    await hands.answer()
    assert len(engine.seen) == 5_002


@remote
async def test_a_row_that_the_store_refuses_makes_a_pause(driver: Driver, engine: Engine, hands: Remote) -> None:
    pauses: list[bool] = []
    driver.on_pause = pauses.append
    driver.handle("a")
    driver.handle("b")
    await hands.answer(DatabaseFault("no space"))
    assert str(driver.fault) == "no space" and pauses == [True]
    while hands.away is None or hands.away[1].done():
        await asyncio.sleep(0.001)
    await hands.answer()
    await hands.answer()
    assert hands.done == [*all_of("a"), *all_of("b")]
    assert (driver.fault, pauses) == (None, [True, False])


@remote
async def test_who_coordinates_no_longer_does_what_is_its_own_and_forgets_the_rest(
    driver: Driver, engine: Engine, hands: Remote
) -> None:
    driver.handle("a")
    driver.handle("b")
    driver.demote()
    assert hands.done[:3] == ["before a", "after a", "demoted"], "the row is not written, and nothing told"
    assert ev.RowsWritten() not in engine.seen
    assert hands.done[3:] == ["before b"], "what came meanwhile goes on"
    driver._pending = None


@remote
async def test_before_each_event_the_clock_is_looked_at(driver: Driver, engine: Engine, hands: Remote) -> None:
    driver.lapsed = lambda: True
    driver.on_lapsed = driver.demote
    driver.handle("a")
    assert isinstance(engine.seen[0], ev.Demoted)
    driver._pending = None


PROMOTED = ev.Promoted(7, b"seed", ())


@remote
async def test_nobody_is_promoted_whose_time_is_over(driver: Driver, engine: Engine, hands: Remote) -> None:
    """Else the engine would coordinate while the node does not, and the next promotion would be impossible."""
    driver.lapsed = lambda: True
    driver.on_lapsed = driver.demote
    driver.handle(PROMOTED)
    assert engine.seen == [ev.Demoted()]


OF_NODES = (
    ev.NodeUp(2, "b:1", 8.0, 1 << 30, 4, 1, ()),
    ev.NodeSuspect(2, True),
    ev.NodeGone(2),
    ev.NodeLoadTold(2, 8.0, 1.0, 0.1),
    ev.FromNode(2, "a report"),
)


@remote
async def test_what_a_node_says_in_the_moment_in_which_the_time_is_over_is_the_next_coordinators(
    driver: Driver, engine: Engine, hands: Remote
) -> None:
    """Else the engine, which coordinates no longer, would refuse it to nobody, and `lifld` would end."""
    driver.lapsed = lambda: True
    driver.on_lapsed = driver.demote
    for event in OF_NODES:
        driver.handle(event)
        assert engine.seen.pop() == ev.Demoted(), event


@remote
async def test_a_promotion_that_waits_behind_a_row_goes_with_its_time(
    driver: Driver, engine: Engine, hands: Remote
) -> None:
    driver.handle("a")
    driver.handle(PROMOTED)
    driver.handle("b")
    driver.demote()
    assert engine.seen == ["a", ev.Demoted(), "b"]
    driver._pending = None


def test_the_timer_is_looked_at_once_for_all_events_of_a_turn(tmp_path: Path) -> None:
    class Due(Engine):
        looks = 0

        def handle(self, event: Any, _now: float) -> list[Any]:
            self.seen.append((event, self.looks))
            return []

        def next_timer(self) -> Any:
            self.looks += 1
            return 0.0 if len(self.seen) == 3 else None

    async def run() -> None:
        engine = Due()
        driver = Driver(engine, tmp_path, lambda _effects: None)  # type: ignore[arg-type]
        for event in "abc":
            driver.handle(event)
        async with asyncio.timeout(60):
            await driver.until(lambda: len(engine.seen) == 4)
        assert engine.seen == [("a", 0), ("b", 0), ("c", 0), (ev.Tick(), 1)]
        driver.handle("d")
        looks = engine.looks
        driver.close()
        await asyncio.sleep(0)
        assert engine.looks == looks, "of a driver that is closed"

    asyncio.run(run())

"""What the log says of strangers is bounded, whatever they do; what is left out is counted."""

from __future__ import annotations

import asyncio
import logging

import pytest

from lifl.core.limits import AUDIT_REFUSALS_MAX
from lifl.node import door_log
from lifl.node.door_log import DoorLog


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(door_log.log, "log", lambda _level, line, *given: said.append(line % given))
    return said


def test_one_line_for_a_host_and_a_reason_and_a_count_of_the_others(lines: list[str]) -> None:
    async def run() -> None:
        door = DoorLog()
        for _ in range(1_000):
            door.say("peer.refused", "10.0.0.9", "it speaks HTTP")
        door.say("peer.refused", "10.0.0.8", "it speaks HTTP")
        door.say("peer.refused", "10.0.0.9", "it is too old")
        door.flush()
        door.flush()
        door.say("peer.refused", "10.0.0.9", "it speaks HTTP")

    asyncio.run(run())
    assert lines == [
        "peer.refused host=10.0.0.9 it speaks HTTP",
        "peer.refused host=10.0.0.8 it speaks HTTP",
        "peer.refused host=10.0.0.9 it is too old",
        "peer.refused host=10.0.0.9 it speaks HTTP (999 times more within 300 s)",
        "peer.refused host=10.0.0.9 it speaks HTTP",
    ]


def test_a_stranger_that_is_never_the_same_is_no_more_lines(lines: list[str]) -> None:
    async def run() -> None:
        door = DoorLog()
        for number in range(5_000):
            door.say("client.disconnected", f"10.0.{number}", f"reason {number}", client=f"c{number}")
        door.flush()

    asyncio.run(run())
    assert len(lines) == AUDIT_REFUSALS_MAX + 1
    assert lines[0] == "client.disconnected host=10.0.0 client=c0 reason 0"
    assert (
        lines[-1].startswith("client.disconnected host=others ") and f"{5_000 - AUDIT_REFUSALS_MAX} times" in lines[-1]
    )


def test_what_was_left_out_is_said_by_itself_at_the_windows_end(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_log, "AUDIT_WINDOW_S", 0.01)

    async def run() -> None:
        door = DoorLog()
        for _ in range(3):
            door.say("peer.gone", "10.0.0.9", "it does not read")
        while len(lines) < 2:
            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert "(2 times more" in lines[-1]


def test_each_event_has_a_level_that_the_log_knows() -> None:
    assert set(door_log.LEVELS.values()) <= {logging.INFO, logging.WARNING}

"""What a node has decided can be read afterwards: on request, and when it meets what it holds impossible."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop
from nodes import Node, run_lifl

from lifl.core import events as ev
from lifl.core.agent.quota import NO_JOB
from lifl.core.coordinator.nodes import Node as ClusterNode
from lifl.core.engine import Engine
from lifl.core.errors import Impossible, RemoteFault
from lifl.core.event_log import Recording
from lifl.core.ids import Key
from lifl.core.protocol import gateway as gm
from lifl.node.driver import Driver
from lifl.node.machine import ArenaStore
from lifl.node.recordings import RECORDINGS_MAX, SUFFIX, write_recording
from lifl.shm.owned_arena import OwnedArena

NODE = 7
# The first loop opens a pipe that libuv keeps for as long as the process lives: not a leak of any test's.
uvloop.new_event_loop().close()


@pytest.fixture
def arena():
    arena = OwnedArena.create(f"/lifl-test-{os.getpid()}-recordings", 1 << 24, NODE, 64)
    yield arena
    arena.close(unlink=True)


def drive(arena: OwnedArena, folder: Path, *events: Any, wrong: Key | None = None) -> None:
    """`wrong`: the books say that this object is a partial on its way, and the arena does not have it."""

    async def run() -> None:
        engine = Engine(ArenaStore(arena), ClusterNode(NODE, "a:1", 4.0, arena.arena_bytes, 2), 1.0, 4)
        if wrong is not None:
            engine.agent.quota._sizes[wrong] = (NO_JOB, 64)
            engine.agent.quota._used[NO_JOB] = 64
            engine.agent.partials._coming[wrong] = None  # type: ignore[assignment]
        done: list[Sequence[Any]] = []
        driver = Driver(engine, folder, done.append)
        try:
            for event in events:
                driver.handle(event)
        except Impossible:
            performed = len(done)
            driver.handle(ev.Tick())  # a driver that has met the impossible handles nothing more
            assert len(done) == performed
            raise
        finally:
            driver.close()

    uvloop.run(run())


def test_the_impossible_leaves_a_recording_and_the_story_of_the_keys(
    arena: OwnedArena, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it a book that is wrong in the field can be explained by nobody."""
    key = Key(3, 1, NODE)
    caplog.set_level(logging.ERROR, logger="lifl.driver")
    with pytest.raises(Impossible, match=str(key)) as impossible:
        drive(arena, tmp_path, ev.Tick(), gm.Progress(key.pack(), 10), gm.Aborted(1, key.pack(), "gone"), wrong=key)
    story = str(impossible.value)
    assert "Progress" in story and "Aborted" in story and "Tick" not in story
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    assert str(path) in caplog.text
    recording = Recording.unpack(path.read_bytes())
    assert [type(entry.event) for entry in recording.entries] == [ev.Tick, gm.Progress, gm.Aborted]
    assert recording.replay() == 3


def test_a_word_of_the_gateway_that_cannot_be_true_is_its_own_fault(arena: OwnedArena, tmp_path: Path) -> None:
    """Nothing has changed, the engine goes on; who ends is the gateway."""
    key = Key(3, 1, NODE).pack()
    for word in (gm.Sealed(1, key, 10), gm.Aborted(1, key, "gone"), gm.FetchEnded(key, "", 10)):
        with pytest.raises(RemoteFault, match="gateway"):
            drive(arena, tmp_path, word)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_performed_ends_the_driver(arena: OwnedArena, tmp_path: Path) -> None:
    async def run() -> None:
        def perform(_effects: Sequence[Any]) -> None:
            raise OSError("no")

        engine = Engine(ArenaStore(arena), ClusterNode(NODE, "a:1", 4.0, arena.arena_bytes, 2), 1.0, 4)
        with pytest.raises(Impossible, match="could not be done"):
            Driver(engine, tmp_path, perform).handle(ev.Tick())

    uvloop.run(run())


def test_only_the_newest_recordings_are_kept(arena: OwnedArena, tmp_path: Path) -> None:
    """An unbounded number of them fills the state folder's disk."""
    engine = Engine(ArenaStore(arena), ClusterNode(NODE, "a:1", 4.0, arena.arena_bytes, 2), 1.0, 4)
    written = [write_recording(tmp_path, engine.recording()) for _ in range(RECORDINGS_MAX + 2)]
    assert sorted(tmp_path.iterdir()) == sorted(written[2:])
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


def test_a_node_writes_its_last_events_on_request(start_node: Callable[..., Node]) -> None:
    node = start_node()
    first = node.json("debug", "record")
    recording = Recording.unpack(Path(first["path"]).read_bytes())
    assert Path(first["path"]).parent == node.state_dir
    assert recording.replay() == first["events"] == len(recording.entries) > 0
    assert str(first["events"]) in node.lifl("debug", "record")


def test_where_no_node_runs_nothing_is_recorded(tmp_path: Path) -> None:
    done = run_lifl("debug", "record", "--state", str(tmp_path))
    assert done.returncode == 1
    assert "no lifld runs" in done.stderr

"""Limits on how many, how long and how much that stand in no message: each at it, and one beyond."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lifl.core import limits
from lifl.core.config.node import parse_node
from lifl.core.errors import ResourceFault
from lifl.core.protocol.cli import Answer
from lifl.core.protocol.cluster import DEAD_S
from lifl.node import machine
from lifl.node.cluster.transport import Peers
from lifl.node.requests import Requests


@pytest.mark.parametrize("others", [limits.GATEWAYS_TOLD_MAX, limits.GATEWAYS_TOLD_MAX + 1])
def test_so_many_gateways_are_told_those_that_follow_first(others: int) -> None:
    living = {number: f"host-{number}:1" for number in range(others + 1) if number != 3}
    side = SimpleNamespace(own=3, living=lambda: living)
    told = Peers.gateways(SimpleNamespace(_side=side))  # type: ignore[arg-type]
    followers = [*range(4, others + 1), 0, 1, 2]
    assert told == tuple(living[number] for number in followers[: limits.GATEWAYS_TOLD_MAX])


def test_a_greeting_is_given_up_before_the_node_would_count_as_dead() -> None:
    assert limits.GREETING_S < DEAD_S


def test_the_sockets_of_a_state_folder_of_the_longest_path_can_be_bound() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        folder = Path(root) / ("x" * (limits.STATE_DIR_BYTES_MAX - len(root) - 1))
        assert machine.state_folder(parse_node({"state_dir": str(folder)})) == folder
        for name in ("lifld.sock", "gateway.sock"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(folder / name))
        assert len(os.fsencode(folder)) + len("/gateway.sock") <= limits.SOCKET_PATH_BYTES_MAX


def test_a_state_folder_whose_path_is_longer_once_it_is_whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the configuration has it, below a home or a working folder, it is short enough."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        monkeypatch.setenv("HOME", home)
        longest = "x" * (limits.STATE_DIR_BYTES_MAX - len(home) - 1)
        assert machine.state_folder(parse_node({"state_dir": f"~/{longest}"})) == Path(home, longest)
        with pytest.raises(ResourceFault, match=f"a path of {limits.STATE_DIR_BYTES_MAX + 1} bytes"):
            machine.state_folder(parse_node({"state_dir": f"~/{longest}x"}))
        assert [path.name for path in Path(home).iterdir()] == [longest]


def snapshot(jobs: int, line_bytes: int) -> list[dict[str, Any]]:
    """The jobs of a snapshot, when there are so many whose lines are so long."""
    store = SimpleNamespace(job=lambda name: name)
    requests = SimpleNamespace(
        _engine=SimpleNamespace(jobs={str(number): None for number in range(jobs)}),
        changes=SimpleNamespace(unreadable={}, _store=store, _rows=SimpleNamespace(beside=None)),
        _store=store,
        _line=lambda row: {"name": row, "reason": "x" * line_bytes},
        _now=lambda job, trees: None,
        _status=SimpleNamespace(now=dict, nodes=list, workers=list),
    )
    found = Requests.snapshot(requests)  # type: ignore[arg-type]
    assert len(msgspec.msgpack.encode(Answer(found))) <= limits.FRAME_BYTES_MAX
    lines: list[dict[str, Any]] = found["jobs"]
    return lines


def test_a_snapshot_has_as_many_jobs_as_fit() -> None:
    """1,024 lines of 4 KiB are a page."""
    name_bytes = len(msgspec.msgpack.encode({"name": "1000", "reason": "x" * 4000, "now": None})) - 4000
    each = limits.PAGE_BYTES_MAX // 1024 - name_bytes  # of the longest names, those of four digits
    assert len(snapshot(1024, each)) == 1024
    found = snapshot(2048, each)
    assert 1024 <= len(found) < 1030  # shorter names leave room for few more
    assert [line["name"] for line in found] == [str(number) for number in range(len(found))]

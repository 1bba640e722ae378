"""`lifl top`: what its keys do, its view on a narrow terminal, and how far a round is."""

from __future__ import annotations

import io
import os
import pty
import select
from typing import Any

import click
import pytest
from lifl_cli.render.top import ALL, BAR_CELLS, KEYS, Look, pressed, progress_text, view
from lifl_cli.top import _key, _live
from rich.console import Console


def job(name: str, status: str = "running", committed: int = 0, clients: int = 1, accepted: int = 2) -> dict[str, Any]:
    now = {
        "round": committed + 1,
        "phase": "collecting",
        "selected": 8,
        "accepted": accepted,
        "counted": 0,
        "goal": 8,
        "quorum": 4,
        "open_s": 10.0,
        "time_left_s": 50.0,
        "tree": [
            {"role": "leaf", "number": 0, "parent_number": None, "state": "running", "inputs": 1, "expect": 2}
            | {"address": 1, "pid": 7, "node": "", "branch": 0, "updates": 1, "updates_expect": 2, "attempt": 1}
        ],
        "tasks": 1,
    }
    found = {"name": name, "status": status, "committed": committed, "rounds": 10, "clients": clients, "metrics": {}}
    return found | {"now": now if status == "running" else None, "last_round": {"duration_s": 12.5}}


def sample(*jobs: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = {"node": "0123456789abcdef", "listen": ["127.0.0.1:7433"], "pid": 1, "uptime_s": 5000.0}
    node |= {
        "capacity": 2.0,
        "redirector": {"kind": "unix"},
        "gateway": {},
        "warnings": ["the disk is full: " + "x" * 60],
    }
    node |= {"arena": {"used_bytes": 1 << 29, "bytes": 1 << 30, "peak_bytes": 1 << 30, "objects": 3}}
    host = {"cpu_percent": 50.0, "cpus": 2, "memory_used_bytes": 1 << 30, "memory_bytes": 1 << 31}
    rates = {"received_bytes_s": 1e6, "sent_bytes_s": 2e6}
    return {"node": node, "nodes": [], "workers": [], "jobs": list(jobs), "host": host, "rates": rates, "processes": {}}


def shown(width: int, look: Look, *jobs: dict[str, Any]) -> list[str]:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(view(sample(*jobs), look, width, KEYS))
        return console.export_text().splitlines()


def test_keys_go_from_job_to_job_and_back_to_all() -> None:
    seen = sample(job("b"), job("a"), job("c", "finished"))
    looks = [ALL]
    for key in ("j", "j", "j", "k", "a"):
        after = pressed(looks[-1], key, seen)
        assert after is not None
        looks.append(after)
    assert [look.job for look in looks] == [None, "b", "a", "c", "a", None]
    assert pressed(Look(job="gone"), "j", seen) == Look(job="b"), "a job that is not there any more"


def test_keys_sort_hide_trees_and_hold_the_view_and_others_do_nothing() -> None:
    seen = sample(job("b", committed=1), job("a", committed=5, clients=9))
    assert pressed(ALL, "s", seen) == Look(sort="name")
    assert pressed(Look(sort="clients"), "s", seen) == ALL
    assert pressed(ALL, "t", seen) == Look(tree=False)
    held = pressed(ALL, " ", seen)
    assert held == Look(paused=True) and pressed(held, "p", seen) == ALL
    for key in ("x", "\x1b", "[", "ü", "\n"):
        assert pressed(ALL, key, seen) == ALL
    for key in ("q", ""):
        assert pressed(ALL, key, seen) is None
    assert pressed(ALL, "j", sample()) == ALL, "there is no job"


@pytest.mark.parametrize(("sort", "first"), [("activity", "b"), ("name", "a"), ("progress", "a"), ("clients", "b")])
def test_jobs_are_in_the_order_that_is_chosen(sort: str, first: str) -> None:
    jobs = (job("a", "finished", committed=9, clients=0), job("b", clients=3))
    text = "\n".join(shown(100, Look(sort=sort), *jobs))
    other = "b" if first == "a" else "a"
    assert text.index(f"job {first} ") < text.index(f"job {other} ")
    assert f"by {sort}" in text


def test_one_job_alone_is_shown_and_its_tree_can_be_hidden() -> None:
    text = "\n".join(shown(100, Look(job="a"), job("a"), job("b")))
    assert "job a " in text and "job b " not in text and "leaf" in text
    assert "leaf" not in "\n".join(shown(100, Look(tree=False), job("a")))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_longer_than_the_terminal_and_each_says_what_matters(width: int) -> None:
    lines = shown(width, ALL, job("hospitals-of-the-north"), job("b", "failed"))
    assert max(map(len, lines)) <= width
    text = "".join(line.strip(" │╭╮╰╯─") for line in lines)
    assert "2/8" in text
    if width >= 40:
        assert "hospitals-of-the-north" in text
        assert len(lines) < 40


def test_at_40_columns_it_tells_of_nodes_that_are_gone_and_of_a_store_without_a_coordinator() -> None:
    there = sample(job("a"))
    there["nodes"] = [{"state": "alive", "drain": ""}] * 3 + [{"state": "alive", "drain": "draining"}]
    there["nodes"] += [{"state": "dead", "drain": "draining"}, {"state": "suspect", "drain": ""}]
    there["node"]["arena"]["waiting"] = 7
    there["node"]["store"] = {"trouble": "etcd is out of reach"}
    console = Console(width=40, record=True, file=io.StringIO())
    console.print(view(there, ALL, 40))
    lines = [line.strip(" │") for line in console.export_text().splitlines()]
    assert "6 nodes: 3 alive, 1 draining, 1 dead, 1" in lines
    assert {"7 updates wait for room", "etcd is out of reach", "[##......] 2/8  10.0 s, 30.0 s to go"} <= set(lines)


def test_a_rounds_progress_says_how_long_it_takes() -> None:
    now = job("a")["now"]
    assert progress_text(now, None) == f"[{'#' * 5}{'.' * 15}] 2/8  10.0 s, 30.0 s to go"
    assert (
        progress_text(now | {"accepted": 8}, {"duration_s": 12.5}) == f"[{'#' * BAR_CELLS}] 8/8  10.0 s (last: 12.5 s)"
    )
    assert progress_text(now | {"accepted": 0}, None).endswith("0/8  10.0 s")
    assert progress_text(now | {"accepted": 9, "open_s": None}, {"duration_s": None}) == f"[{'#' * BAR_CELLS}] 9/8"


def test_a_key_is_read_at_once_and_an_end_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "rb", buffering=0) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        assert _key(0.0) is None
        os.write(ours, b"s\n")
        select.select([terminal], [], [])
        assert _key(None) == ("s",)
        os.close(ours)


def test_a_terminal_that_cannot_be_drawn_on_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich would draw nothing there, and the view would seem to hang."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(Console, "is_terminal", True)
    with pytest.raises(click.UsageError, match="TERM=dumb is not; use --once"):
        _live(None)  # type: ignore[arg-type]

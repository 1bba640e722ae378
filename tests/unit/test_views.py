"""What is shown of a running round fits an answer, however many tasks and nodes it has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lifl_cli.render.trees import round_text, tree_view
from rich.console import Console

from lifl.core.coordinator.round import Phase
from lifl.core.limits import FRAME_BYTES_MAX, NODES_MAX, NOW_TASKS_MAX, TREE_LINES_MAX
from lifl.core.protocol.cli import Answer
from lifl.core.protocol.frames import encode
from lifl.node.views import job_line, round_now

HERE = 0xFFFF
EPOCH = 257


def line(number: int, branch: int, role: str = "leaf") -> dict[str, Any]:
    """A task as its node tells of it, with numbers as long as they get."""
    return {
        "address": 1 << 62,
        "role": role,
        "parent": 1 << 62,
        "branch": branch,
        "number": number,
        "parent_number": None,
        "state": "sealed",
        "inputs": 64,
        "expect": 2,
        "updates": 64,
        "updates_expect": 64,
        "pid": 1 << 22,
        "attempt": 1,
        "cpu_s": 0.123456789,
        "job": 1,
        "epoch": EPOCH,
    }


def now_of(
    here: int, nodes: int, each: int, *, selectable: int = 3, phase: Phase = Phase.COLLECTING, reason: str = ""
) -> dict[str, Any]:
    """A round with so many tasks here, and on other nodes."""
    branch = SimpleNamespace(
        epoch=EPOCH,
        lines=lambda: [line(n, 0, "top" if not n else "leaf") for n in range(here)],
        tree=SimpleNamespace(takers=[]),
        accepted={},
        in_flight={},
        given=0,
        stored=(),
        loading={},
        to_take=0,
    )
    replica = SimpleNamespace(runners={0: SimpleNamespace(branch=branch)})
    engine = SimpleNamespace(node=HERE, agent=SimpleNamespace(replicas={1: replica}))
    records = {n: SimpleNamespace(node=n, number=n) for n in range(1, nodes + 1)}
    round_ = SimpleNamespace(
        number=1,
        attempt=1,
        epoch=EPOCH,
        phase=phase,
        reason=reason,
        selected={},
        granted={},
        accepted={},
        goal=2,
        quorum=1,
        deadline_at_s=1.0,
        opened_at_s=0.0,
        between_bytes=0,
        nodes=[],
        branches=records,
    )
    selection = SimpleNamespace(selectable=selectable)
    job = SimpleNamespace(round=round_, spec=SimpleNamespace(number=1), present="abc", selection=selection)
    trees = {n: tuple(line(number, n) for number in range(each)) for n in records}
    found = round_now(engine, job, 0.0, trees)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(("here", "nodes", "each"), [(20_000, 0, 0), (3, NODES_MAX, TREE_LINES_MAX)])
def test_a_round_of_any_size_fits_an_answer_and_says_how_many_tasks_it_has(here: int, nodes: int, each: int) -> None:
    now = now_of(here, nodes, each)
    assert (len(now["tree"]), now["tasks"]) == (NOW_TASKS_MAX, here + nodes * each)
    assert now["counted"] == 2 * nodes * each, "also of the tasks that have no line"
    assert now["tree"][0]["role"] == "top", "those with the top come first"
    assert len(encode(Answer({"now": now}))) < FRAME_BYTES_MAX // 4


def test_up_to_the_limit_each_task_has_its_line() -> None:
    assert len(now_of(NOW_TASKS_MAX, 0, 0)["tree"]) == NOW_TASKS_MAX == now_of(NOW_TASKS_MAX, 0, 0)["tasks"]
    one_more = now_of(NOW_TASKS_MAX + 1, 0, 0)
    assert (len(one_more["tree"]), one_more["tasks"]) == (NOW_TASKS_MAX, NOW_TASKS_MAX + 1)


def test_the_view_tells_of_all_tasks_that_it_does_not_show() -> None:
    now = now_of(20_000, 0, 0)
    console = Console(width=100)
    with console.capture() as shown:
        console.print(tree_view(now["tree"], now["tasks"]))
    assert "... 19960 more tasks" in shown.get()


def test_a_round_that_waits_though_clients_are_here_says_whom_the_condition_leaves() -> None:
    def reason(selectable: int, phase: Phase = Phase.WAITING, own: str = "") -> str:
        rounds = now_of(1, 0, 0, selectable=selectable, phase=phase, reason=own)
        assert (": selection.where" in round_text(rounds)) == rounds["reason"].startswith("selection.where")
        return str(rounds["reason"])

    assert reason(1) == "selection.where is true of 1 of the 3 clients that are here; it begins with 2"
    assert [reason(2), reason(3), reason(1, Phase.COLLECTING)] == [""] * 3
    assert reason(1, own="no node is here") == "no node is here"


@pytest.mark.parametrize(("durability", "reason"), [("disk", "no room: make some"), ("memory", "")])
def test_a_job_whose_updates_the_disk_does_not_take_says_so(durability: str, reason: str) -> None:
    config = SimpleNamespace(
        is_fold=False,
        priority=50,
        job=SimpleNamespace(rounds=3, durability=durability),
        aggregation=SimpleNamespace(rule="fedavg"),
    )
    job = SimpleNamespace(
        status="running",
        reason="",
        over=False,
        present={},
        round=SimpleNamespace(number=1, opened_at_s=1.0, reason=""),
        rounds=SimpleNamespace(held=False),
        commits=SimpleNamespace(paused=""),
        evaluation=SimpleNamespace(current=None, is_left=False),
        selection=SimpleNamespace(choosing=SimpleNamespace(waits=False), lack=lambda _round: ""),
        stopping=SimpleNamespace(fault=""),
        edits=SimpleNamespace(pending={}),
        spec=SimpleNamespace(config=config),
    )
    row = SimpleNamespace(name="j", status="running", reason="", config=config, submitted_unix_s=0.0, folder="")
    found = job_line(row, None, job, "", "", unstored="no room: make some")  # type: ignore[arg-type]
    assert (found["status"], found["reason"]) == ("running", reason)

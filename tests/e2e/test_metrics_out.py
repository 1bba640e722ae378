"""A job's metrics on their way out of a real node: the commands that tell them, and what those who watch a node get."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import OneHot, fleet, submit
from http_clients import HttpClient
from nodes import Node, run_lifl

CLIENTS, ROUNDS = 3, 2


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with a job that is over, and told each client's metrics."""
    flags = ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--http", "127.0.0.1:0", "--redirector", "unix")
    node, oracle = Node(tmp_path_factory.mktemp("s"), (*flags, "--log-format", "json")), OneHot(CLIENTS)
    node.up()
    try:
        keys = {"job__rounds": ROUNDS, "selection__clients_per_round": CLIENTS, "metrics__per_client": True}
        submit(node, "j", oracle.model(), **keys)
        with fleet(node.address, "j", CLIENTS, oracle.update) as team:
            team.join()
        yield node
    finally:
        node.down()


def test_history_has_each_round_with_its_metrics_and_those_of_each_client(node: Node) -> None:
    rows = node.json("history", "j")["rounds"]
    assert [(row["round"], row["status"], row["counted"]) for row in rows] == [(1, "committed", 3), (2, "committed", 3)]
    assert rows[0]["metrics"] == {"index": 1.0}
    assert sorted(client["index"] for client in rows[1]["clients"].values()) == [0.0, 1.0, 2.0]
    told = list(csv.DictReader(io.StringIO(node.lifl("history", "j", "--csv", "--last", "1"))))
    assert [(row["round"], row["metrics.index"], row["counted"]) for row in told] == [("2", "1.0", "3")]
    assert len(node.lifl("history", "j", "--clients", "--csv").splitlines()) == 1 + CLIENTS * ROUNDS
    assert "index  1" in node.lifl("plot", "j")


def test_a_trace_has_the_rounds_phases_updates_and_folds(node: Node, tmp_path: Path) -> None:
    node.lifl("trace", "j", "2", "-o", str(tmp_path / "t.json"))
    trace = json.loads((tmp_path / "t.json").read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    took = {event["name"]: (event["ts"], event["ts"] + event["dur"]) for event in events}
    assert {"round 2", "selection", "collecting", "finish", "checkpoint", "commit"} <= took.keys()
    assert sum(event["cat"] == "updates" for event in events) == CLIENTS
    folds = [event for event in events if event["cat"] == "node"]
    assert any(event["name"].startswith("top") for event in folds)
    begin, end = took["round 2"]
    assert all(begin <= event["ts"] and event["ts"] + event["dur"] <= end + 1 for event in events), "all in the round"


def test_prometheus_and_orchestrators_are_answered(node: Node) -> None:
    client = HttpClient(node)
    text = client.ask("GET", "/metrics").body.decode()
    assert f'lifl_job_rounds_committed_total{{job_name="j"}} {ROUNDS}\n' in text
    assert 'lifl_job_status{job_name="j",status="finished"} 1\n' in text
    assert 'lifl_job_metric{job_name="j",metric="index"} 1.0\n' in text
    if shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
    stranger = HttpClient(node, headers={})
    for path, state in (("/healthz", "alive"), ("/readyz", "ready")):
        said = stranger.ask("GET", path)
        assert (said.status, said.json) == (200, {"state": state})


def test_the_log_is_lines_of_json(node: Node) -> None:
    lines = [json.loads(line) for line in (node.state_dir / "lifld.log").read_text().splitlines()]
    committed = [line for line in lines if line.get("event") == "round.committed"]
    assert [(line["job"], line["round"]) for line in committed] == [("j", number) for number in range(1, ROUNDS + 1)]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "k"], "unknown-job"),
        (["history", "k"], "unknown-job"),
        (["trace", "j", "9"], "unknown-round"),
        (["plot", "j", "none"], "unknown-metric"),
        (["export", "j"], "no-tracker"),
        (["export", "j", "--to", "nothing"], "usage"),
    ],
)
def test_an_error_is_told_as_json_too(arguments: list[str], code: str, node: Node) -> None:
    json_too = [] if arguments[0] in ("plot", "trace") else ["--json"]
    done = run_lifl(*arguments, *json_too, "--state", str(node.state_dir))
    assert done.returncode == (2 if code == "usage" else 1)
    if json_too:
        told: dict[str, Any] = json.loads(done.stdout)["error"]
        assert told["code"] == code
        assert told["text"].splitlines()[0] in done.stderr
    else:
        assert (done.stdout, f"[{code}]" in done.stderr) == ("", True)


PAGE = Path(__file__).parents[2] / "docs/json.md"
SHOWN = {"jobs": (), "status": ("j",), "history": ("j",), "plot": ("j",), "top": (), "nodes": ()}


def promised() -> Iterator[tuple[str, str, set[str], set[str]]]:
    """Of docs/json.md: the command, where in what it prints, the keys that are there, and those that may be."""
    command = ""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 3 and "`" in cells[2]:
            command = cells[0].strip("`").split()[1] if cells[0] else command
            names = {name.removesuffix("[]") for name in re.findall(r"`([^`]+)`", cells[2])}
            if not cells[2].startswith("as of"):
                always = {name for name in names if not name.endswith("?")}
                yield command, cells[1].strip("`"), always, {name.rstrip("?") for name in names}


def at(told: Any, path: str) -> Any:
    """A place in what was printed; of a list the last one's."""
    for name in filter(None, path.split(".")):
        told = told[name.removesuffix("[]")]
        told = told[-1] if name.endswith("[]") else told
    return told


def test_what_json_prints_is_what_the_page_says(node: Node) -> None:
    printed = {command: node.json(command, *arguments) for command, arguments in SHOWN.items()}
    looked_at = set()
    for command, path, always, may in promised():
        if command in printed:
            keys = set(at(printed[command], path))
            assert always <= keys <= may, (command, path, always - keys, keys - may)
            looked_at.add(command)
    assert looked_at == SHOWN.keys()

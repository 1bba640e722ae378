"""A job's metrics on their way out of a real node: the commands that tell them, and what those who watch a node get."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from fleet import OneHot, fleet, submit
from http_clients import HttpClient
from json_page import places, promises, unknown_keys
from lifl_cli.main import cli
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


JOB = "[job]\nname = 'k'\nrounds = 1\n[model]\nexample = 'digits-mlp'\n[selection]\nclients_per_round = 2\n"
PRINTED = {
    **{("jobs",): (), ("status",): ("j",), ("history",): ("j",), ("plot",): ("j",), ("top",): (), ("nodes",): ()},
    **{("plan",): ("job.toml",), ("plan", "--round"): ("j", "2")},
}
"""Commands, and what else they are given."""


def test_what_json_prints_is_what_the_page_says(node: Node, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    for command, more in PRINTED.items():
        told = node.json(*command, *(str(tmp_path / each) if each.endswith(".toml") else each for each in more))
        for promise in promises()[command]:
            for at in filter(None, places(told, promise.at)):
                assert promise.always <= at.keys() <= promise.may, (command, promise.at)


def test_a_key_that_the_page_does_not_tell_is_noticed() -> None:
    assert unknown_keys(["jobs"], '{"jobs": [{"name": "j", "odd": 1}]}') == ["jobs, jobs[]: odd"]
    assert unknown_keys(["--node", "h:1", "plan", "--round", "j", "1"], '{"job": "j", "odd": 1}')[0].endswith(": odd")
    assert unknown_keys(["submit", "--watch", "f"], '{"job": "j"}\n{"event": "e", "odd": 1}') == []
    assert unknown_keys(["audit"], '[{"seq": 1}]') == [] and unknown_keys(["nothing"], "{}") != []


def test_each_command_that_prints_json_is_on_the_page() -> None:
    def walk(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), name)
                assert found is not None
                yield from walk(found, (*words, name))
        if any("--json" in each.opts for each in command.params):
            yield words

    told = {tuple(word for word in command if word[0] != "-") for command in promises()}
    aliases = {("model", "get"): ("model",)}
    assert {words for words in walk(cli, ()) if aliases.get(words, words) not in told} <= {("simulate",)}

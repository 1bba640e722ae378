"""The command line against a real node: start, refusals, jobs, and an end that leaves nothing."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nodes import LIFL, Node, run_lifl
from safetensors.numpy import load_file

from lifl import Client
from lifl.confine import signals

CONFIG = Path(__file__).parents[2] / "configs" / "digits.toml"
SMALL = ["--set", "selection.clients_per_round=2", "--set", "selection.quorum=2", "--set", "job.rounds=2"]
START_TIMEOUT_S = 120.0


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    return start_node()


def test_up_reports_and_down_removes_everything(start_node: Callable[..., Node], state_dir: Path) -> None:
    node = start_node()
    assert node.info["state_dir"] == str(state_dir)
    assert node.info["arena_bytes"] == 64 << 20
    assert node.info["redirector"] in ("sockmap", "unix")
    assert node.info["why"]
    segment = node.segment
    assert {path.stat().st_size for path in node.segments.values()} == {64 << 20}
    assert oct(segment.stat().st_mode)[-3:] == "600"
    host, _, port = node.address.partition(":")
    socket.create_connection((host, int(port)), timeout=START_TIMEOUT_S).close()
    node.down()
    assert not node.is_up()
    assert not segment.exists()
    assert not list(state_dir.glob("*.sock"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=START_TIMEOUT_S)


def test_a_second_node_on_the_folder_is_refused_with_the_pid_of_the_first(node: Node) -> None:
    for detached in ([], ["-d"]):
        done = run_lifl("up", *detached, "--state", str(node.state_dir), "--listen", "127.0.0.1:0")
        assert done.returncode == 1
        assert f"pid {node.pid}" in done.stderr
        assert "Traceback" not in done.stderr
    assert node.snapshot()["node"]["pid"] == node.pid


def test_a_port_in_use_is_refused_and_nothing_is_left(state_dir: Path) -> None:
    before = set(Path("/dev/shm").glob("lifl-*"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_lifl("up", "-d", "--state", str(state_dir), "--listen", address, "--arena-bytes", "64MiB")
    assert done.returncode == 1
    assert address in done.stderr
    assert "Traceback" not in done.stderr
    database = state_dir / "lifl.db"
    new = {path for path in Path("/dev/shm").glob("lifl-*") if path not in before}
    assert not [path for path in new if database.exists() and path.name.encode()[5:] in database.read_bytes()]


@pytest.mark.parametrize("number", signals.ENDS)
def test_in_the_foreground_a_signal_ends_it_with_exit_0(number: int, state_dir: Path) -> None:
    child = subprocess.Popen(
        [*LIFL, "up", "--state", str(state_dir), "--listen", "127.0.0.1:0", "--arena-bytes", "64MiB"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        ready, _, _ = select.select([child.stdout], [], [], START_TIMEOUT_S)
        assert ready
        assert child.stdout.readline() == "lifld is up\n"
        child.send_signal(number)
        assert child.wait(timeout=START_TIMEOUT_S) == 0
        assert child.stderr.read() == ""


def test_a_job_is_listed_shown_cancelled_and_refused_twice(node: Node) -> None:
    answer = json.loads(node.lifl("submit", str(CONFIG), "--json", *SMALL))
    assert answer["job"] == "digits"
    (line,) = node.json("jobs")["jobs"]
    assert (line["name"], line["committed"], line["rounds"]) == ("digits", 0, 2)
    again = run_lifl("submit", str(CONFIG), "--state", str(node.state_dir))
    assert again.returncode == 1
    assert "job.name" in again.stderr
    assert node.json("status", "digits")["config"]["selection"]["clients_per_round"] == 2
    assert node.json("cancel", "digits")["status"] == "cancelled"
    assert node.json("status", "digits")["job"]["status"] == "cancelled"


@pytest.mark.parametrize("arguments", [["status", "digit"], ["cancel", "digit"], ["model", "digit", "-o", "none"]])
def test_an_unknown_job_is_refused_with_those_there_are(arguments: list[str], node: Node) -> None:
    node.lifl("submit", str(CONFIG))
    done = run_lifl(*arguments, "--state", str(node.state_dir))
    assert done.returncode == 1
    assert "no job 'digit'; it has: digits" in done.stderr


def take_part(node: Node, name: str, value: float) -> None:
    with Client(node.address, job="digits", client=name) as client:
        for selected in client.rounds():
            update = {key: np.full_like(array, value) for key, array in selected.model.items()}
            selected.submit(update, weight=1.0, metrics={"loss": value})


def test_watch_follows_a_job_to_its_end_and_models_can_be_copied(node: Node, tmp_path: Path) -> None:
    command = [*LIFL, "submit", str(CONFIG), "--watch", *SMALL, "--state", str(node.state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "job digits: 2 rounds of 2 clients\n"
        trainers = [threading.Thread(target=take_part, args=(node, f"c{i}", float(i))) for i in (1, 3)]
        for trainer in trainers:
            trainer.start()
        printed = watch.stdout.read()
        for trainer in trainers:
            trainer.join()
    assert watch.returncode == 0
    assert "round   1/2  loss 2" in printed
    assert "round   2/2  loss 2" in printed
    assert "job digits finished" in printed
    for label in ("bytes in", "CPU", "arena peak", "last accepted to commit", "redirector", "workers"):
        assert label in printed
    for number in (0, 1, 2):
        target = tmp_path / f"{number}.safetensors"
        node.lifl("model", "digits", "-o", str(target), "--round", str(number))
        tensors = load_file(target)
        assert set(tensors) == {"hidden.weight", "hidden.bias", "output.weight", "output.bias"}
        if number:
            assert all((array == 2.0).all() for array in tensors.values())
    missing = run_lifl("model", "digits", "-o", "x", "--round", "7", "--state", str(node.state_dir))
    assert missing.returncode == 1
    assert "it has: 0-2" in missing.stderr
    assert not os.path.exists("x")
    text = node.lifl("status", "digits")
    assert "job digits is finished" in text
    assert "receipt of round 2" in text


def test_top_shows_the_node_its_processes_and_jobs(node: Node) -> None:
    assert node.snapshot()["workers"] == []
    assert "no aggregator runs" in node.lifl("top", "--once")
    node.lifl("submit", str(CONFIG))
    sample = node.snapshot()
    assert sample["node"]["arena"]["bytes"] == 64 << 20
    assert {str(node.pid), str(sample["node"]["gateway"]["pid"]), str(sample["node"]["zygote_pid"])} <= set(
        sample["processes"]
    )
    assert [job["name"] for job in sample["jobs"]] == ["digits"]
    shown = node.lifl("top", "--once")
    for word in ("machine", "arena", "redirector", "gateway", "job digits"):
        assert word in shown


def test_the_live_view_needs_a_terminal(node: Node) -> None:
    done = run_lifl("top", "--state", str(node.state_dir))
    assert done.returncode == 2
    assert "--once" in done.stderr


def test_doctor_tries_the_redirector_and_sees_the_node(node: Node) -> None:
    findings = {finding["what"]: finding for finding in json.loads(node.lifl("doctor", "--json"))}
    assert findings["port"]["text"] == "lifld runs with this state folder"
    redirector = findings["redirector"]
    assert (redirector["level"] == "ok") == (node.info["redirector"] == "sockmap")
    assert all(finding["fix"] for finding in findings.values() if finding["level"] == "fail")

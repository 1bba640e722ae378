"""`lifl simulate`: virtual clients at a real node, and nothing left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest
from nodes import COMMAND_TIMEOUT_S, LIFL, environment
from safetensors.numpy import load_file

CLIENTS = 6
TRAINER = """
    import os

    def train(tensors, *, client, round, options):
        print("this is no JSON")
        if client == 4:
            raise ValueError("no data here")
        if client == 5:
            os._exit(9)
        tensors["output.bias"][client] = round * options["step"]
        return tensors, 1 + client, {"client": client}

    def evaluate(tensors, *, client, round, options):
        return {"bias": float(tensors["output.bias"].sum())}, 1

    def properties(client):
        return {"labels": {"side": "left" if client < 3 else "right"}}

    def wait(tensors, *, client, round, options):
        open(f"{os.getpid()}.waits", "w").close()
        os.read(os.open("fifo", os.O_RDONLY), 1)
"""
JOB = """
    [job]
    name = "j"
    rounds = 2

    [model]
    example = "digits-mlp"

    [selection]
    clients_per_round = 4
    clients = ["site-*"]

    [client.options]
    step = 10

    [checkpoint]
    folder = "mine"
"""


@pytest.fixture
def folder(state_dir: Path) -> Path:
    """A working folder with a short path, where temporary files go, too."""
    (state_dir / "tmp").mkdir()
    (state_dir / "trainers.py").write_text(textwrap.dedent(TRAINER))
    (state_dir / "job.toml").write_text(textwrap.dedent(JOB))
    return state_dir


def simulate(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LIFL, "simulate", "--clients", str(CLIENTS), "--json", *arguments],
        cwd=folder,
        env=environment() | {"TMPDIR": str(folder / "tmp")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_trainers_that_fail_count_as_declined_and_two_configs_are_compared(folder: Path) -> None:
    (folder / "other.toml").write_text((folder / "job.toml").read_text().replace("step = 10", "step = 20"))
    files = ("job.toml", "other.toml", "-o", "a.safetensors", "-o", "b.safetensors")
    process = simulate(folder, *files, "--trainer", "trainers:train")
    output, errors = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert process.returncode == 0, errors
    events: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    assert "this is no JSON" in errors
    failed = {each["client"]: each["reason"] for each in events if each["event"] == "trainer.failed"}
    assert "site-4" in failed or "site-5" in failed, "four of six are drawn, twice"
    assert failed.keys() <= {"site-4", "site-5"}
    assert errors.count("Traceback (most recent call last):") == ("site-4" in failed), "the same mistake twice"
    assert "ValueError: no data here" in failed.get("site-4", "ValueError: no data here")
    assert "its process ended" in failed.get("site-5", "its process ended")
    for index, (step, name) in enumerate(((10, "a"), (20, "b"))):
        found = events[-1]["simulations"][index]
        assert (found["status"], [each["counted"] for each in found["rounds"]]) == ("finished", [4, 4])
        assert found["rounds"][1]["metrics"]["client"] == pytest.approx((0 * 1 + 1 * 2 + 2 * 3 + 3 * 4) / 10)
        assert found["rounds"][1]["receipt"]["weight"] == 10
        bias = load_file(folder / f"{name}.safetensors")["output.bias"]
        # In each round the others start from the last one's model.
        last = [step * (1 + client) / 10 for client in range(4)]
        wanted = [2 * last[client] + last[client] * (1 - (1 + client) / 10) for client in range(4)]
        assert bias[:4] == pytest.approx(wanted) and not bias[4:].any()
    assert not list((folder / "tmp").iterdir()) and not (folder / "mine").exists()


def test_clients_evaluate_and_are_selected_by_what_they_say(folder: Path) -> None:
    own = ("--trainer", "trainers:train", "--evaluator", "trainers:evaluate", "--properties", "trainers:properties")
    keys = ("selection.where=\"side == 'left'\"", "selection.clients_per_round=3", "evaluation.every=1")
    process = simulate(folder, "job.toml", *own, *(each for key in keys for each in ("--set", key)))
    output, errors = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert process.returncode == 0, errors
    events = [json.loads(line) for line in output.splitlines()]
    rounds = events[-1]["simulations"][0]["rounds"]
    assert [each["metrics"]["client"] for each in rounds] == [pytest.approx(8 / 6)] * 2
    found = [each["evaluation"] for each in rounds]
    # Each is asked of the model that the round has committed: 0, 1 and 2 have moved one number each.
    assert [(each["clients"], each["metrics"]["bias"]["mean"]) for each in found] == [
        (3, pytest.approx(10.0)),
        (3, pytest.approx(20 + 10 * (1 - 14 / 36))),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_an_end_before_its_time_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    os.mkfifo(folder / "fifo")
    process = simulate(folder, "job.toml", "--trainer", "trainers:wait")
    assert process.stdout is not None
    fifo = os.open(folder / "fifo", os.O_WRONLY)  # opens when one trains
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 3
    process.send_signal(number)
    process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    _gone, alive = psutil.wait_procs(children, COMMAND_TIMEOUT_S)
    os.close(fifo)
    assert not alive and not list((folder / "tmp").iterdir())

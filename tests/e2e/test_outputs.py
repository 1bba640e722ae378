"""Outputs that are closed, full, or pipes without readers: what did its work says 0, what was to show one does not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from nodes import COMMAND_TIMEOUT_S, LIFL, Node

from lifl import failpoints
from lifl.node.locks import holder

CONFIG = Path(__file__).parents[2] / "configs" / "digits.toml"
DOES = {
    f"submit {CONFIG} --set job.name=other": "job other is submitted",
    f"submit {CONFIG} --set job.name=third --json": "job third is submitted",
    "model j --round 0 --output OUTPUT": "model of job j after round 0",
    "cancel j": "job j is cancelled",
    "cancel other --json": "job other is cancelled",
    "debug record": "events are written to",
    "backup BACKUP": "files of node",
    "down": "is down",
    "doctor --repair": "nothing to repair",
}
"""Each with what standard error says when standard output cannot."""
SHOWS = (
    "--help",
    "--version",
    "submit --help",
    "status j",
    "status j --json",
    "jobs",
    "top --once",
    "top --json",
    "nodes",
    f"plan {CONFIG}",
    "audit",
    "audit verify",
    "doctor",
)
AT_NO_NODE = ("--help", "--version", "submit --help")
OUTPUTS = {
    "closed": ">&-",
    "full": ">/dev/full",
    "ended": ">&$PIPE",
    "all closed": "<&- >&- 2>&-",
    "all full": ">/dev/full 2>/dev/full",
    "no error closed": "2>&-",
}
"""What a shell makes of the outputs, PIPE being a pipe whose reader has gone; `no error`: standard output is there."""


def lifl(command: str, outputs: str) -> subprocess.CompletedProcess[str]:
    """`lifl` with outputs as the shell makes them."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            ["bash", "-c", f'exec "$@" {outputs}', "bash", *LIFL, *command.split()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
            env={**os.environ, "PIPE": str(write), failpoints.VARIABLE: ""},
            pass_fds=[write],
        )
    finally:
        os.close(write)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_every_command_says_the_truth(outputs: str, start_node: Callable[..., Node], tmp_path: Path) -> None:
    node = start_node()
    node.lifl("submit", str(CONFIG), "--set", "job.name=j")
    names = {"OUTPUT": str(tmp_path / "model"), "BACKUP": str(tmp_path / "backup")}
    told = not outputs.startswith("all")
    for command in SHOWS:
        done = said(command, OUTPUTS[outputs], node, names)
        if outputs.startswith("no error"):
            assert done.returncode == 0 and done.stdout, (command, done)
        else:
            assert done.returncode == 1, (command, done)
            assert done.stderr.startswith("Error: standard output cannot be written: ") == told, (command, done)
    for command, what in DOES.items():
        done = said(command, OUTPUTS[outputs], node, names)
        assert done.returncode == 0, (command, done)
        if told and not outputs.startswith("no error"):
            assert "warning: standard output cannot be written: " in done.stderr and what in done.stderr, (
                command,
                done,
            )
    assert not node.is_up()
    assert Path(names["OUTPUT"]).is_file()
    assert holder(node.state_dir) is None


def said(command: str, outputs: str, node: Node, names: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What a command of the tables ended with: never a traceback."""
    has_state = command not in AT_NO_NODE
    words = [names.get(word, word) for word in command.split()] + has_state * ["--state", str(node.state_dir)]
    done = lifl(" ".join(words), outputs)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, (command, done.stderr)
    return done


@pytest.mark.parametrize("reader_sees", [0, 1])
def test_a_watch_that_nobody_sees_ends_and_its_job_goes_on(start_node: Callable[..., Node], reader_sees: int) -> None:
    node = start_node()
    read, write = os.pipe()
    command = [*LIFL, "submit", str(CONFIG), "--watch", "--state", str(node.state_dir), "--set", "job.name=j"]
    if not reader_sees:
        os.close(read)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, text=True) as watch:
        os.close(write)
        if reader_sees:
            assert os.read(read, 1)  # the job is submitted, and the watch waits
            os.close(read)
            node.lifl("cancel", "j")  # the event that it cannot show
        _, told = watch.communicate(timeout=COMMAND_TIMEOUT_S)
    assert watch.returncode == 1
    assert "standard output cannot be written: Broken pipe" in told and "Traceback" not in told
    if not reader_sees:
        assert "The job goes on without this watch; see `lifl status j`" in told
        assert node.json("status", "j")["job"]["status"] == "waiting"

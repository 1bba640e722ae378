"""The client alone, as on macOS and Windows: without what those systems lack, and without LIFL's packages for Linux."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import WAIT_S, OneHot, submit
from nodes import Node

ELSEWHERE = Path(__file__).parents[1] / "elsewhere.py"
TRAINER = """
import sys
from lifl import Client
with Client(sys.argv[1], job="j", client="c", identity=sys.argv[2] or None) as client:
    for round_ in client.rounds():
        model = round_.model
        model["w"][:] = round_.number
        model["half"][:] = round_.number
        model["steps"][:] = round_.number * 720_720
        assert round_.submit(model, weight=2, metrics={"index": 0.0}).accepted
assert not {"posix_ipc", "uvloop", "lifl.shm.mapping"} & {name for name, found in sys.modules.items() if found}
"""
ENROLL = "from lifl_cli.main import main\nmain()\n"


def run(system: str, file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ELSEWHERE), system, str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_a_client_enrolls_and_trains_from_there(start_node: Callable[..., Node], tmp_path: Path, system: str) -> None:
    node, oracle = start_node("--control", "127.0.0.1:0"), OneHot(1)
    trainer, enroll, token = tmp_path / "trainer.py", tmp_path / "enroll.py", tmp_path / "token"
    trainer.write_text(TRAINER)
    enroll.write_text(ENROLL)
    token.touch(0o600)
    token.write_text(node.lifl("token", "create", "--role", "client", "--name", "c"))
    where, identity = node.info["control"], str(tmp_path / "identity")
    enrolled = run(system, enroll, "enroll", where, "--token-file", str(token), "--identity", identity)
    assert enrolled.returncode == 0, enrolled.stderr
    submit(node, "j", oracle.model(), job__rounds=2)
    trained = run(system, trainer, node.address, identity)
    assert trained.returncode == 0, trained.stderr
    oracle.check(node, "j")


def test_a_path_is_refused_where_there_are_no_such_sockets(tmp_path: Path) -> None:
    trainer = tmp_path / "trainer.py"
    trainer.write_text(TRAINER)
    told = run("windows", trainer, "unix:/x/gateway.sock", "").stderr
    assert "this system has no AF_UNIX sockets" in told.splitlines()[-1]

"""A process that has no descriptor left takes connections again when it has some, at every door; limits are raised."""

from __future__ import annotations

import json
import resource
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from gateway_standin import Peer, StandIn
from lifl_cli.daemon_client import DaemonClient
from nodes import LIFL, Node, run_lifl

from lifl.core.config.node import NodeConfig
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import encode
from lifl.node import descriptors, machine

WAIT_S = 60.0
"""Only a failing test waits so long."""


@contextmanager
def no_descriptor_for(pid: int) -> Iterator[None]:
    """Leaves the process none beyond those that it has."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # Lower than any that is in use: every new one is beyond it, and those that are open stay.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_the_gateway_takes_connections_again(unix: bool) -> None:
    node = StandIn()
    with ExitStack() as peers:
        inside = Peer(node, unix)
        peers.callback(inside.close)
        inside.hello()
        with no_descriptor_for(node.process.pid):
            outside = Peer(node, unix)
            peers.callback(outside.close)
            outside.send(cm.Hello(cm.PROTOCOL_VERSION, "c2"))
            for _ in range(2):  # the loop has come to the listener in between; those inside are served
                inside.send(cm.GetModel("none", 1))
                assert isinstance(inside.receive(), cm.Refusal)
            assert outside.is_quiet()
        assert isinstance(outside.receive(), cm.Welcome)
        late = Peer(node, unix)
        peers.callback(late.close)
        late.hello("c3")
    assert "no descriptor" in node.close()


def test_lifld_answers_the_command_line_again(start_node: Callable[..., Node]) -> None:
    node = start_node()
    with DaemonClient(node.state_dir) as inside, socket.socket(socket.AF_UNIX) as outside:
        inside.ask(om.ListJobs())  # it was taken in
        with no_descriptor_for(node.pid):
            outside.connect(str(node.state_dir / "lifld.sock"))
            outside.sendall(encode(om.ListJobs()))
            for _ in range(2):
                assert inside.ask(om.ListJobs()) == {"jobs": [], "more": None}
            assert not select.select([outside], [], [], 0)[0]
        outside.settimeout(WAIT_S)
        assert outside.recv(4096)
    assert node.is_up()


def soft_and_hard(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)


def test_a_small_soft_limit_is_raised_in_all_processes(state_dir: Path) -> None:
    node = Node(state_dir, ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        node.up()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    try:
        now = node.snapshot()["node"]
        for pid in (node.pid, now["gateway"]["pid"], now["zygote_pid"]):
            soft, hard = soft_and_hard(pid)
            assert soft == hard >= descriptors.gateway_needs(1024)
        host, _, port = node.address.partition(":")
        with ExitStack() as clients:
            for _ in range(200):
                sock = clients.enter_context(socket.create_connection((host, int(port)), timeout=WAIT_S))
            sock.sendall(encode(cm.Hello(cm.PROTOCOL_VERSION, "c1")))
            assert sock.recv(4096)
            assert node.is_up()
    finally:
        node.down()


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("detach", [[], ["-d"]], ids=["foreground", "detached"])
def test_too_small_a_hard_limit_is_told_with_both_numbers(state_dir: Path, detach: list[str]) -> None:
    done = subprocess.run(
        [*LIFL, "up", *detach, "--state", str(state_dir), "--listen", "127.0.0.1:0", "--arena-bytes", "64MiB"],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        preexec_fn=limited(64, 256),
    )
    assert done.returncode == 1
    assert f"need {descriptors.lifld_needs(machine.workers_max(NodeConfig()), clustered=False)} desc" in done.stderr
    assert "may have 256" in done.stderr
    assert "ulimit -Hn" in done.stderr
    assert "connections_max" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(state_dir.glob("*.sock"))
    assert run_lifl("down", "--state", str(state_dir)).returncode == 1


def test_doctor_says_whether_the_hard_limit_is_enough(state_dir: Path) -> None:
    def findings(hard: int) -> dict[str, str]:
        done = subprocess.run(
            [*LIFL, "doctor", "--json", "--state", str(state_dir)],
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
            preexec_fn=limited(64, hard),
        )
        (found,) = [line for line in json.loads(done.stdout) if line["what"] == "open files"]
        return dict(found)

    whole = descriptors.gateway_needs(descriptors.CONNECTIONS)
    small, fewer, enough = findings(256), findings(1024), findings(whole)
    assert small["level"] == "fail"
    assert "at most 256" in small["text"]
    assert "ulimit -Hn" in small["fix"]
    assert fewer["level"] == "warn"
    assert f"a node with {1024 - descriptors.gateway_needs(0)} connections" in fewer["text"]
    assert f"ulimit -Hn {whole}" in fewer["fix"]
    assert enough["level"] == "ok"


@pytest.mark.parametrize(
    ("hard", "configured", "connections"),
    [
        (None, 0, descriptors.CONNECTIONS),
        (descriptors.gateway_needs(descriptors.CONNECTIONS), 0, descriptors.CONNECTIONS),
        (descriptors.gateway_needs(descriptors.CONNECTIONS) - 1, 0, descriptors.CONNECTIONS - 1),
        (10, 0, 1),
        (10, 60_000, 60_000),
    ],
)
def test_connections_are_as_many_as_descriptors_allow_unless_they_are_configured(
    monkeypatch: pytest.MonkeyPatch, hard: int | None, configured: int, connections: int
) -> None:
    monkeypatch.setattr(descriptors, "hard_limit", lambda: hard)
    assert descriptors.connections_max(NodeConfig(connections_max=configured)) == connections


def test_what_is_needed_grows_with_what_is_configured() -> None:
    small = NodeConfig(connections_max=1)
    assert descriptors.node_needs(small, 2) < descriptors.node_needs(small, 100)
    assert descriptors.node_needs(small, 2) < descriptors.node_needs(NodeConfig(control="127.0.0.1:1"), 2)
    assert descriptors.node_needs(NodeConfig(connections_max=60_000), 2) > 60_000

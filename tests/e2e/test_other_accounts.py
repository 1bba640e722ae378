"""Another account of a node's machine: it reaches 127.0.0.1, and gets nothing there nor by any other door."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from accounts import NOBODY, common_python
from fleet import OneHot, Watch, fleet, submit
from nodes import Node, run_lifl

WAIT_S = 120.0
needs_accounts = pytest.mark.skipif(common_python() is None, reason="no interpreter that other accounts can run")

CLIENT = """
import sys
from lifl import Client
from lifl.core.errors import LiflError
try:
    with Client(sys.argv[1], job="j", client="c00", give_up_after_s=0.0) as client:
        print("selected for", next(client.rounds()).number)
except LiflError as error:
    print(type(error).__name__, getattr(error, "code", "-"), error)
"""
BYTES = """
import socket, sys
from lifl.core.protocol import client as cm, cluster as p
from lifl.core.protocol.frames import encode
host, port = sys.argv[1].rsplit(":", 1)
first = {
    "client": cm.Hello(1, "c00", knows=cm.KNOWS),
    "earlier": cm.Hello(1, "c00"),
    "node": p.PeerHello(p.PEER_VERSION, 9, 1, "127.0.0.1:9", "127.0.0.1:9", 1.0, 1 << 30, 1),
    "command": p.CommandHello(p.PEER_VERSION),
}[sys.argv[2]]
with socket.create_connection((host, int(port)), timeout=60) as sock:
    sock.sendall(encode(first) + encode(cm.Join("j")) + encode(cm.GetModel("j", 1)))
    heard = b""
    try:
        while data := sock.recv(65536):
            heard += data
    except ConnectionResetError:
        pass
    print(len(heard), heard[:4000])
"""


def as_nobody(script: str, *arguments: str) -> str:
    """What a script of another account prints."""
    done = subprocess.run(
        [str(common_python()), "-P", "-c", script, *arguments],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={},
        check=False,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_accounts
def test_on_loopback_it_is_in_no_round_and_reads_no_model(start_node: Callable[..., Node]) -> None:
    node = start_node()
    oracle = OneHot(1)
    submit(node, "j", oracle.model(), job__rounds=2, selection__clients_per_round=1)
    watch = Watch(node, "j")
    told = as_nobody(CLIENT, node.address)
    assert told.startswith("Refused no-cookie") and "Permission denied" in told
    assert "Challenge" in as_nobody(BYTES, node.address, "client")
    assert "no-cookie" in as_nobody(BYTES, node.address, "earlier")
    for place in (f"unix:{node.state_dir}/gateway.sock", str(node.state_dir)):
        assert as_nobody(CLIENT, place).startswith("NodeUnreachable")
    # The account's own clients and commands need nothing but the address.
    with fleet([node.address], "j", 1, oracle.update) as team:
        watch.over()
        team.join()
    oracle.check(node, "j", team)
    assert node.snapshot()["node"]["gateway"]["connections"] == 0


@needs_accounts
def test_a_control_port_on_loopback_is_no_way_in(start_node: Callable[..., Node]) -> None:
    node = start_node("--control", "127.0.0.1:0")
    for who in ("node", "command"):
        assert "TLS port" in as_nobody(BYTES, node.info["control"], who)
    assert "asks for a certificate" in as_nobody(BYTES, node.address, "client")
    assert len(node.json("nodes")["nodes"]) == 1


@needs_accounts
def test_insecure_lets_anybody_in_and_says_so(start_node: Callable[..., Node]) -> None:
    node = start_node("--insecure")
    oracle = OneHot(1)
    submit(node, "j", oracle.model(), job__rounds=2, selection__clients_per_round=1)
    assert as_nobody(CLIENT, node.address).strip() == "selected for 1"
    node.lifl("cancel", "j")
    assert node.info["insecure"] is True


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another account")
def test_the_nodes_files_are_closed_to_it(start_node: Callable[..., Node], state_dir: Path) -> None:
    node = start_node()
    assert (state_dir / "cookie").stat().st_mode & 0o777 == 0o600
    done = run_lifl("jobs", "--state", str(state_dir))
    assert done.returncode == 0
    assert node.info["identity"] == ""

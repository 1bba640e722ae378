"""A node as systemd starts it: it says when it is ready and when it ends, and listens at what it was handed over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import Foreground

from lifl.core.errors import ResourceFault
from lifl.node import service_manager

WAIT_S = 120.0
"""Only a failing test waits so long."""
HAND_OVER = (
    "import os, socket; door = socket.create_server(('127.0.0.1', 0)); os.dup2(door.fileno(), 3); "
    "door.fileno() == 3 or door.close(); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
    "sys.argv += ['--listen', '127.0.0.1:%d' % socket.socket(fileno=os.dup(3)).getsockname()[1]]"
)


@pytest.fixture
def told(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where a service manager hears."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(state_dir / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(state_dir / "notify"))
        sock.settimeout(WAIT_S)
        yield sock


def test_a_node_tells_when_it_is_ready_and_listens_at_the_socket_that_was_handed_over(
    state_dir: Path, told: socket.socket
) -> None:
    node = Foreground(state_dir / "node", ("--arena-bytes", "64MiB"), HAND_OVER)
    node.up()  # its port is taken: it could not listen there by itself
    try:
        ready = told.recv(4096).decode().splitlines()
        assert ready[0] == "READY=1" and node.address in ready[1]
        with socket.create_connection((node.address.split(":")[0], int(node.address.split(":")[1])), WAIT_S):
            pass
    finally:
        node.end()
    assert told.recv(4096).decode().startswith("STOPPING=1")


def test_nothing_that_listens_nowhere_ends_a_node(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    for address in ("", str(state_dir / "nobody"), "@nobody-of-this-name", "x" * 200, "@" + "x" * 200):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        service_manager.tell("READY=1")


def handed(numbers: str, doors: str) -> str:
    """What a process says of itself that has `doors` from descriptor 3 on."""
    code = (
        "import os, socket, sys\n"
        f"{doors}\n"
        f"os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS={numbers!r})\n"
        "from lifl.core.errors import ResourceFault\n"
        "from lifl.node import service_manager as m\n"
        "try:\n    m.check_all_taken(m.handed_over())\n"
        "except ResourceFault as fault:\n    print(fault)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT_S)
    return done.stdout


@pytest.mark.parametrize(
    ("numbers", "doors", "text"),
    [
        ("1", "door = socket.create_server(('127.0.0.1', 0)); os.dup2(door.fileno(), 3)", "no address of the node's"),
        ("1", "os.dup2(os.open('/dev/null', 0), 3)", "descriptor 3 of LISTEN_FDS=1 is no socket"),
        ("1", "a = socket.socket(); os.dup2(a.fileno(), 3)", "no listening TCP socket"),
        (
            "1",
            "a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); os.dup2(a.fileno(), 3)",
            "no listening TCP socket",
        ),
        ("-1", "", "LISTEN_FDS='-1'"),
        ("²", "", "LISTEN_FDS='²'"),
        ("17", "", "at most 16 sockets"),
    ],
)
def test_what_cannot_be_a_door_is_refused(numbers: str, doors: str, text: str) -> None:
    assert text in handed(numbers, doors)


def test_what_was_meant_for_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert service_manager.handed_over() == {}


def test_a_node_does_not_start_with_a_socket_at_which_it_does_not_listen() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, pytest.raises(ResourceFault, match=r"ListenStream= of the unit"):
        service_manager.check_all_taken({listener.getsockname(): listener})

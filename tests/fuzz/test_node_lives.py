"""Every message of every channel, each field at its extremes, sent to a real node: it lives, and so do all others.

What is sent is a whole message of the channel, but for one field, which has a value at (or beyond) an end of its type:
so it gets as far into the node as a message can.  Beside it an honest job commits its rounds.  Then several
fields at a time are drawn at random, for some seconds: LIFL_FUZZ_S=600 for ten minutes; LIFL_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import socket
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from extremes import FUZZ_S, WAIT_S, at_random, at_the_ends, commits, decodes, honest, log_of, target, wait_selected
from fleet import seeded
from nodes import Foreground, Node

from lifl.core.config.values import split_address
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol.frames import encode
from lifl.node.machine import listen_tcp

STRANGER = 0x77
AT_ONCE = "from lifl.core.coordinator import membership as m; m.BACKOFF_MAX_S = 0.1"
# ---- doors -----------------------------------------------------------------------------------------------------------


def say(
    address: Any, *frames: bytes, family: int = socket.AF_INET, meanwhile: Callable[[], None] | None = None
) -> bytes | None:
    """Says all this on a connection of its own, and waits until the other end has closed it.

    Returns what that has said; None when it would not hear all.
    """
    heard = b""
    with socket.socket(family) as sock, contextlib.suppress(ConnectionError):
        sock.settimeout(WAIT_S)
        sock.connect(address)
        for each in frames:
            sock.sendall(each)
        if meanwhile is not None:
            meanwhile()
        with contextlib.suppress(OSError):  # the other end was faster
            sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(65_536):
            heard += data
        return heard
    return None


class Doors:
    """A node's doors for strangers: by name the kinds that come in there, and how one says something."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._control = split_address(node.info["control"])
        self._gateway = split_address(node.address)
        hello = cm.Hello(cm.PROTOCOL_VERSION, "t1")
        self._hello = encode(hello)
        self._life = 0
        self.kinds: dict[str, tuple[type, ...]] = {
            "client": typing.get_args(cm.FromClient),
            "local client": typing.get_args(cm.FromClient),
            "hello": (p.PeerHello,),
            "agent": typing.get_args(p.ToCoordinator),
            "cli": tuple(kind for kind in typing.get_args(om.FromCli) if kind is not om.Shutdown),
        }

    def _peer(self) -> list[bytes]:
        """A node that nothing can be given to, in its next life: this one may be over when its connection ends."""
        self._life += 1
        where = ("127.0.0.1:9", "127.0.0.1:9")
        hello = p.PeerHello(p.PEER_VERSION, STRANGER, self._life, *where, 0.0, 0, 0)
        return [encode(hello), encode(p.Inventory((2,)))]

    def knock(self, door: str, frames: list[bytes], meanwhile: Callable[[], None] | None = None) -> None:
        """Say this at a door; `meanwhile` is called before the connection is closed."""
        match door:
            case "client":
                say(self._gateway, self._hello, *frames)
            case "local client":
                say(str(self.node.state_dir / "gateway.sock"), self._hello, *frames, family=socket.AF_UNIX)
            case "hello":
                say(self._control, *frames)
            case "agent":
                heard = say(self._control, *self._peer(), *frames, meanwhile=meanwhile)
                assert heard is None or b"PeerWelcome" in heard
            case "cli":
                say(str(self.node.state_dir / "lifld.sock"), *frames, family=socket.AF_UNIX)


def test_a_selection_that_comes_together_with_the_welcome_is_seen() -> None:
    ours, node = socket.socketpair()
    with ours, node:
        ours.settimeout(WAIT_S)
        node.sendall(encode(cm.Welcome(cm.PROTOCOL_VERSION, "n", False)) + encode(cm.Selected("j", 1, 1.0, (), 0)))
        wait_selected(ours)


@pytest.mark.parametrize("door", ["client", "local client", "hello", "agent", "cli"])
def test_every_field_at_its_extremes(start_node: Callable[..., Node], door: str) -> None:
    node = start_node("--insecure", "--control", "127.0.0.1:0")
    pid, gateway = node.pid, node.snapshot()["node"]["gateway"]["pid"]
    doors = Doors(node)
    with honest(node) as committed, target(node):
        for kind in doors.kinds[door]:
            together = []
            for data in at_the_ends(kind):
                if door != "hello" and decodes(kind, data):
                    together.append(data)  # it does not end the connection by itself
                else:
                    doors.knock(door, [data])
            # While it is there what it has said counts.
            doors.knock(door, together, lambda: commits(committed))
            assert node.is_up(), f"lifld ended at {kind.__name__}: {log_of(node)}"
        commits(committed)
        now = node.snapshot()["node"]
        assert (now["pid"], now["gateway"]["pid"]) == (pid, gateway), log_of(node)
        assert "Traceback" not in log_of(node)


def test_fields_at_random(start_node: Callable[..., Node], request: pytest.FixtureRequest) -> None:
    node = start_node("--insecure", "--control", "127.0.0.1:0")
    doors, draw = Doors(node), seeded(request.node.name)
    with honest(node) as committed, target(node):
        until = time.monotonic() + FUZZ_S
        while time.monotonic() < until:
            for _ in range(100):
                door = draw.choice(sorted(doors.kinds))
                doors.knock(door, [at_random(draw.choice(doors.kinds[door]), draw) for _ in range(draw.randint(1, 4))])
            assert node.is_up(), log_of(node)
            commits(committed)
        assert "Traceback" not in log_of(node)


# ---- an agent, and a coordinator that says anything --------------------------------------------------------------


@pytest.fixture
def agent(state_dir: Path) -> Iterator[Callable[[str], Foreground]]:
    """`agent(control)` is a node that joins there, and dials again at once when its connection has ended."""
    with contextlib.ExitStack() as stack:

        def start(control: str) -> Foreground:
            flags = ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--insecure", "--join", control)
            node = Foreground(
                state_dir, flags, "from lifl.core.coordinator import membership as m; m.BACKOFF_MAX_S = 0.1"
            )
            node.up()
            stack.callback(node.end)
            return node

        yield start


def test_an_agent_lives_whatever_its_coordinator_says(agent: Callable[[str], Foreground]) -> None:
    """Each connection ends with the first order that is none; the agent dials again."""
    with listen_tcp("127.0.0.1:0") as listener:
        listener.settimeout(WAIT_S)
        listener.setblocking(True)
        control = "{}:{}".format(*listener.getsockname())
        node = agent(control)
        welcome = encode(p.PeerWelcome(p.PEER_VERSION, STRANGER, control, "127.0.0.1:9"))
        for kind in typing.get_args(p.ToAgent):
            frames = list(at_the_ends(kind))
            good = [data for data in frames if decodes(p.ToAgent, data)]
            bad = next(data for data in frames if not decodes(p.ToAgent, data))
            sock, _ = listener.accept()
            with sock, contextlib.suppress(ConnectionError):
                sock.settimeout(WAIT_S)
                sock.sendall(b"".join([welcome, *good, bad]))
                while sock.recv(65_536):
                    pass
            assert node.is_up(), f"lifld ended at {kind.__name__}: {log_of(node)}"
        assert "Traceback" not in log_of(node)
        assert node.json("jobs") is not None

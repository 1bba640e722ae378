"""Every message of every channel, each field at its extremes, sent to a real node: it lives, and so do all others.

What is sent is a whole message of the channel, but for one field, which has a value at (or beyond) an end of its type:
so it gets as far into the node as a message can.  Beside it an honest job commits its rounds.  Then several
fields at a time are drawn at random, for some seconds: LIFL_FUZZ_S=600 for ten minutes; LIFL_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import socket
import struct
import threading
import time
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fleet import OneHot, Trainer, Watch, ask, fleet, seeded, submit
from nodes import Node

from lifl.client import Round
from lifl.core.config.values import split_address
from lifl.core.ids import epoch_of
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.node.machine import listen_tcp

WAIT_S = 60.0
"""Only a failing test waits so long."""
FUZZ_S = float(os.environ.get("LIFL_FUZZ_S", "5"))
PAUSE_S = 0.05
"""Between the honest job's rounds: it is to take part, not to take all the time."""
STRANGER = 0x77
EXTREMES: tuple[Any, ...] = (
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    -1,
    0,
    1,
    (1 << 53) + 1,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    "",
    "x",
    "\x1b[31m\n",
    "ä" * 64,
    "x" * 5_000,
    b"",
    b"\0" * 16,
    [],
    [[]],
    [1 << 63],
    {},
    {"a": math.nan},
    {"x" * 32: 1.0},
    None,
    True,
)
KNOWN: dict[str, Any] = {
    "number": 2,
    "epoch": epoch_of(1, 1),
    "job": "target",
    "client": "t1",
    "version": 1,
    "weight": 1.0,
    "round": 1,
    "branch": 0,
    "conn": 1,
}
"""Values by which a message is about something that is there."""


def value(kind: Any) -> Any:
    """An ordinary value of a field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return b"\0" * 16 if arguments[0] is bytes else value(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return value(arguments[0])
    if origin is typing.Literal:
        return arguments[0]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return fields_of(kind)
    simple = {int: 1, float: 1.0, str: "127.0.0.1:9", bool: False, bytes: b"", Any: {}, msgspec.Raw: {}}
    return simple.get(kind, {} if origin is dict else [])


def fields_of(kind: type) -> dict[str, Any]:
    """A message of this kind as it travels."""
    hints = typing.get_type_hints(kind, include_extras=True)
    tag = {} if kind.__struct_config__.tag is None else {"type": kind.__struct_config__.tag}  # type: ignore[attr-defined]
    required = {field.name: field for field in msgspec.structs.fields(kind)}
    return tag | {
        name: KNOWN[name] if name in KNOWN else value(hints[name]) for name, field in required.items() if field.required
    }


def frame(fields: Any) -> bytes:
    body = msgspec.msgpack.encode(fields)
    return struct.pack("<I", len(body)) + body


def at_the_ends(kind: type) -> Iterator[bytes]:
    """The message, and each of its fields at its extremes; without it; and with a field that there is not."""
    whole = fields_of(kind)
    yield frame(whole)
    yield frame(whole | {"no_such_field": 1})
    for field in msgspec.structs.fields(kind):
        yield frame({name: each for name, each in whole.items() if name != field.name})
        for extreme in EXTREMES:
            yield frame(whole | {field.name: extreme})


def at_random(kind: type, draw: random.Random) -> bytes:
    fields = fields_of(kind)
    for field in msgspec.structs.fields(kind):
        if draw.random() < 0.4:
            fields[field.name] = draw.choice(EXTREMES)
    return frame(fields)


def decodes(kinds: Any, data: bytes) -> bool:
    try:
        msgspec.msgpack.decode(data[4:], type=kinds)
    except (msgspec.DecodeError, ValueError):
        return False
    return True


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


@contextlib.contextmanager
def honest(node: Node) -> Iterator[Callable[[], int]]:
    """A job of two honest clients whose rounds go on; gives how many are committed by now."""
    oracle = OneHot(2)
    submit(node, "honest", oracle.model(), job__rounds=100_000)

    def play(trainer: Trainer, round_: Round) -> None:
        trainer.fleet.submit(trainer, round_)
        threading.Event().wait(PAUSE_S)

    watch = Watch(node, "honest")
    with fleet(node.address, "honest", 2, oracle.update, play) as team:
        watch.wait("round.committed")
        yield lambda: sum(event.name == "round.committed" for event in watch.events)
        ask(node, om.CancelJob("honest"))
        team.join(well=False)
    watch.join()
    oracle.check(node, "honest")


def commits(watched: Callable[[], int], more: int = 3) -> None:
    """The honest job goes on."""
    goal, deadline = watched() + more, time.monotonic() + WAIT_S
    while watched() < goal:
        assert time.monotonic() < deadline, "the honest job stands still"
        threading.Event().wait(PAUSE_S)


def wait_selected(sock: socket.socket) -> None:
    """Return when the node has selected who is at this connection; what else it says comes with it, or before."""
    decoder: FrameDecoder[Any] = FrameDecoder(cm.ToClient)
    while not isinstance(message := decoder.next_message(), cm.Selected):
        if message is None:  # else more may have come with it
            data = sock.recv(65_536)
            assert data, "the node closed the connection"
            decoder.feed(data)


def test_a_selection_that_comes_together_with_the_welcome_is_seen() -> None:
    ours, node = socket.socketpair()
    with ours, node:
        ours.settimeout(WAIT_S)
        node.sendall(encode(cm.Welcome(cm.PROTOCOL_VERSION, "n", False)) + encode(cm.Selected("j", 1, 1.0, (), 0)))
        wait_selected(ours)


@contextlib.contextmanager
def target(node: Node) -> Iterator[None]:
    """A job whose round collects: two clients are selected, and wait."""
    submit(node, "target", OneHot(2).model(), job__rounds=5, selection__deadline_s=86_400.0)
    with contextlib.ExitStack() as clients:
        for name in ("t1", "t2"):
            sock = clients.enter_context(socket.create_connection(split_address(node.address), timeout=WAIT_S))
            for message in (cm.Hello(cm.PROTOCOL_VERSION, name), cm.Join("target")):
                sock.sendall(encode(message))
        wait_selected(sock)
        yield


@pytest.mark.parametrize("door", ["client", "local client", "hello", "agent", "cli"])
def test_every_field_at_its_extremes(start_node: Callable[..., Node], door: str) -> None:
    node = start_node("--control", "127.0.0.1:0")
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
    node = start_node("--control", "127.0.0.1:0")
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


def log_of(node: Node) -> str:
    return (Path(node.state_dir) / "lifld.log").read_text(errors="replace")[-8_000:]


# ---- an agent, and a coordinator that says anything --------------------------------------------------------------


def test_an_agent_lives_whatever_its_coordinator_says(start_node: Callable[..., Node]) -> None:
    """Each connection ends with the first order that is none; the agent dials again."""
    with listen_tcp("127.0.0.1:0") as listener:
        listener.settimeout(WAIT_S)
        listener.setblocking(True)
        control = "{}:{}".format(*listener.getsockname())
        node = start_node("--join", control)
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

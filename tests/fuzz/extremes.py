"""Messages whose fields are at, or beyond, the ends of their types; and what they must not harm.

What is made is a whole message of its channel, but for one field (or some), which has a value at an end of its type: so
it gets as far into a process as a message can.  `KNOWN` fields are about what is there: the job of `target`.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from fleet import OneHot, Trainer, Watch, ask, fleet, submit
from nodes import Node

from lifl.client import Round
from lifl.core.config.values import split_address
from lifl.core.ids import epoch_of
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import FrameDecoder, encode

WAIT_S = 60.0
"""Only a failing test waits so long."""
FUZZ_S = float(os.environ.get("LIFL_FUZZ_S", "2"))
"""How long a test draws at random."""
PAUSE_S = 0.05
"""Between the honest job's rounds: it is to take part, not to take all the time."""
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


def fields_of(kind: type, known: Mapping[str, Any] = KNOWN) -> dict[str, Any]:
    """A message of this kind as it travels."""
    hints = typing.get_type_hints(kind, include_extras=True)
    tag = {} if kind.__struct_config__.tag is None else {"type": kind.__struct_config__.tag}  # type: ignore[attr-defined]
    required = {field.name: field for field in msgspec.structs.fields(kind)}
    return tag | {
        name: known[name] if name in known else value(hints[name]) for name, field in required.items() if field.required
    }


def frame(fields: Any) -> bytes:
    body = msgspec.msgpack.encode(fields)
    return struct.pack("<I", len(body)) + body


def at_the_ends(kind: type, known: Mapping[str, Any] = KNOWN) -> Iterator[bytes]:
    """The message, and each of its fields at its extremes; without it; and with a field that there is not."""
    whole = fields_of(kind, known)
    yield frame(whole)
    yield frame(whole | {"no_such_field": 1})
    for field in msgspec.structs.fields(kind):
        yield frame({name: each for name, each in whole.items() if name != field.name})
        for extreme in EXTREMES:
            yield frame(whole | {field.name: extreme})


def at_random(kind: type, draw: random.Random, known: Mapping[str, Any] = KNOWN) -> bytes:
    fields = fields_of(kind, known)
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


def log_of(node: Node) -> str:
    return (Path(node.state_dir) / "lifld.log").read_text(errors="replace")[-8_000:]

"""Whatever a node says to a client, and when: what a trainer sees is an error of ours, or nothing.

A stand-in for a node leads a client honestly up to a question, answers it by a message with one field at an extreme,
and goes.  The client gives up at once, so each ends.
"""

from __future__ import annotations

import socket
import threading
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_node_lives import at_the_ends, decodes

import lifl
from lifl.core.errors import LiflError
from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.schema import Layout, TensorSpec

JOB, CLIENT = "target", "t1"
LAYOUT = Layout((TensorSpec("w", "float32", (4,)),))
SELECTED = cm.Selected(JOB, 1, 60.0, LAYOUT.tensors, LAYOUT.data_bytes)
ANSWERS: dict[type, bytes] = {
    cm.Hello: encode(cm.Welcome(cm.PROTOCOL_VERSION, "n1", knows=cm.KNOWS)),
    cm.Join: encode(SELECTED),
    cm.GetModel: encode(cm.Model(JOB, 1, (), LAYOUT.data_bytes, LAYOUT.digest)) + bytes(LAYOUT.data_bytes),
    cm.Submit: encode(cm.Go(JOB, 1)),
}
"""What an honest node answers; after the last of them the update's bytes come."""


class OddNode:
    """Leads one client, answers `odd` to the question of the kind `at`, and is gone; then it hangs up at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.at, self.odd = path, cm.Hello, b""
        self.is_gone = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # the test is over
                return
            with sock:
                try:
                    if not self.is_gone:
                        self._lead(sock)
                except OSError:  # the client was faster
                    pass

    def _lead(self, sock: socket.socket) -> None:
        decoder: FrameDecoder[Any] = FrameDecoder(cm.FromClient)
        while data := sock.recv(65_536):
            decoder.feed(data)
            while (message := decoder.next_message()) is not None:
                if type(message) is self.at:
                    self.is_gone = True
                    sock.sendall(self.odd)
                    return
                sock.sendall(ANSWERS.get(type(message), b""))
                if self.at is bytes and isinstance(message, cm.Submit):
                    sock.recv(LAYOUT.data_bytes, socket.MSG_WAITALL)
                    self.is_gone = True
                    sock.sendall(self.odd)
                    return

    def says(self, odd: bytes) -> None:
        self.odd, self.is_gone = odd, False

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[OddNode]:
    made = OddNode(tmp_path / "n.sock")
    yield made
    made.close()


def train(node: OddNode) -> None:
    """Do what a trainer does, until it cannot go on."""
    with lifl.Client(f"unix:{node.path}", job=JOB, client=CLIENT, give_up_after_s=0.001) as client:
        for round_ in client.rounds():
            round_.submit({"w": np.ones(4, np.float32)}, weight=1.0, metrics={"loss": 0.5})


def odd_messages(kind: type) -> list[bytes]:
    """What is a message for the client, and one that is none."""
    frames = list(at_the_ends(kind))
    good = [data for data in frames if decodes(cm.ToClient, data)]
    return [*good, next(data for data in frames if not decodes(cm.ToClient, data))]


@pytest.mark.parametrize("at", [cm.Hello, cm.Join, cm.GetModel, cm.Submit, bytes], ids=lambda kind: kind.__name__)
def test_only_errors_of_ours_reach_a_trainer(node: OddNode, at: type) -> None:
    node.at = at
    for kind in typing.get_args(cm.ToClient):
        for odd in odd_messages(kind):
            node.says(odd)
            ended: LiflError | None = None
            try:
                train(node)
            except LiflError as error:
                ended = error
            assert node.is_gone, f"the client did not come so far: {ended}"

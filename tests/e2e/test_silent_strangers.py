"""A crowd that connects to every door of a node and says nothing: whoever comes from elsewhere gets in at once."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet import OneHot, fleet, submit, until
from nodes import Node

from lifl.core.config.values import split_address

SILENT = 1_100
"""At each door, more than it takes connections by default."""
AGAIN_S = 0.05
SOURCES = tuple(f"127.0.0.{number}" for number in range(2, 8))
"""With the share of each, more than a control port greets at a time."""


class Crowd(threading.Thread):
    """Keeps so many silent connections open to an address, from `SOURCES`; who is shut out comes again."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = split_address(address)
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self.over = threading.Event()
        self.whole = threading.Event()
        self.shut_out = 0

    def run(self) -> None:
        while not self.over.is_set():
            while len(self._sockets) < SILENT:
                self._connect()
            self.whole.set()
            for fd, _events in self._poll.poll(1.0):
                self._poll.unregister(fd)
                self._sockets.pop(fd).close()
                self.shut_out += 1
            self.over.wait(AGAIN_S)
        for sock in self._sockets.values():
            sock.close()
        self._poll.close()

    def _connect(self) -> None:
        sock = socket.socket()
        sock.bind((SOURCES[len(self._sockets) % len(SOURCES)], 0))
        sock.setblocking(False)
        sock.connect_ex(self._address)
        self._sockets[sock.fileno()] = sock
        self._poll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)


@contextmanager
def crowds(*addresses: str) -> Iterator[list[Crowd]]:
    """A crowd at each door; given up at the end."""
    found = [Crowd(address) for address in addresses]
    for crowd in found:
        crowd.start()
    try:
        for crowd in found:
            assert crowd.whole.wait(60.0)
        yield found
    finally:
        for crowd in found:
            crowd.over.set()
        for crowd in found:
            crowd.join()


def test_clients_and_nodes_of_elsewhere_get_in_at_once(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node, oracle = start_node("--redirector", "unix", "--insecure", "--control", "127.0.0.1:0"), OneHot(4)
    submit(node, "j", oracle.model(), job__rounds=2)
    with crowds(node.address, node.info["control"]) as found:
        with fleet(node.address, "j", 4, oracle.update) as team:
            team.join()
        other = start_node("--insecure", "--redirector", "unix", "--join", node.info["control"], folder=tmp_path / "o")
        until("the other node", lambda: [line["state"] for line in node.json("nodes")["nodes"]] == ["alive", "alive"])
        until("who is in others' way to be shut out", lambda: all(crowd.shut_out for crowd in found))
        other.down()
    oracle.check(node, "j")

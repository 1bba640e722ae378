"""An HTTP proxy that knows one method, CONNECT, on a port of the test's own."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


class ConnectProxy:
    """Takes connections to `routes`, by HOST:PORT; others hear 403.  `answer` is said in the place of its own.

    `heads` are what was asked, in order.
    """

    def __init__(self, routes: dict[str, str], answer: bytes | None = None, password: str = "") -> None:
        self.routes = routes
        self.heads: list[str] = []
        self._answer = answer
        self._password = password
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> ConnectProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join()

    def cut(self) -> None:
        """Cuts all tunnels."""
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _address = self._listener.accept()
                self._sockets.append(near)
                threading.Thread(target=self._tunnel, args=(near,), daemon=True).start()

    def _tunnel(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (piece := near.recv(4096)):
                    return
                head += piece
            self.heads.append(head.decode())
            where = self.routes.get(head.split()[1].decode())
            if self._answer is not None:
                near.sendall(self._answer)
                near.recv(1)
            elif self._password not in self.heads[-1]:
                near.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            elif where is None:
                near.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            else:
                host, _, port = where.rpartition(":")
                with socket.create_connection((host, int(port))) as far:
                    self._sockets.append(far)
                    near.sendall(OK)
                    _join(near, far)


def _join(near: socket.socket, far: socket.socket) -> None:
    """Hands bytes on, both ways, until one side has ended."""
    with selectors.DefaultSelector() as selector:
        selector.register(near, selectors.EVENT_READ, far)
        selector.register(far, selectors.EVENT_READ, near)
        while True:
            for key, _events in selector.select():
                data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                if not data:
                    return
                key.data.sendall(data)

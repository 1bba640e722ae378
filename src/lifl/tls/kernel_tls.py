"""Whether the kernel offers to encrypt and decrypt a TCP connection's TLS records (tls(7), `TCP_ULP`)."""

from __future__ import annotations

import socket

_TCP_ULP = 31


def refusal() -> str:
    """Return why the kernel does not take TLS for a connection of this machine with itself; empty when it does."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname()) as sock,
        ):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
    except OSError as error:
        return error.strerror or str(error)
    return ""

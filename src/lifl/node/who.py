"""Who is at the other end of a connection, for those who note it: the account of this machine, or the address."""

from __future__ import annotations

import os
import socket
import struct

from lifl.tls.tls_socket import Stream

_CREDENTIALS = struct.Struct("3i")


def peer_uid(sock: socket.socket) -> int:
    """Return the account that made an AF_UNIX connection, as the kernel says."""
    _pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def is_same_user(sock: Stream) -> bool:
    """Return whether the peer is a process of this machine that may do what this one may: its account's, or root's."""
    return isinstance(sock, socket.socket) and sock.family == socket.AF_UNIX and peer_uid(sock) in (0, os.geteuid())


def who_is(sock: Stream) -> str:
    """Return ``local uid=N``, or the peer's address without its port; ``gone`` for a connection that has ended."""
    try:
        if isinstance(sock, socket.socket) and sock.family == socket.AF_UNIX:
            return f"local uid={peer_uid(sock)}"
        return str(sock.getpeername()[0])
    except OSError:
        return "gone"

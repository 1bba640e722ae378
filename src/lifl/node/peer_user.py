"""Which account the process at the other end of an AF_UNIX socket has, as the kernel says."""

from __future__ import annotations

import os
import socket
import struct

_CREDENTIALS = struct.Struct("3i")


def is_same_user(sock: socket.socket) -> bool:
    """Return whether the peer is a process of this machine that may do what this one may: its account's, or root's."""
    if sock.family != socket.AF_UNIX:
        return False
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(credentials)
    return uid in (0, os.geteuid())

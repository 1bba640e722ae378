"""Bytes of an update handed to a gateway of the same machine as pages of memory, not as copies.

`vmsplice` puts the pages of an array into a pipe, `splice` moves them on into the AF_UNIX socket, and the gateway's
`recv` makes the one copy that there is: into the arena, which no client sees any more than that.  What it checks and
seals is that copy, so an array that is changed while it is sent is a wrong update, and nobody else's.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
from collections.abc import Sequence

import numpy as np

PIPE_BYTES = 1 << 20
"""What is under way at a time; the most that the system allows to anyone, by default."""
PAGES_BYTES_MIN = 256 * 1024
"""Less is copied: it is over before the pipe is made."""
_SET_PIPE_SIZE = 1031  # fcntl.F_SETPIPE_SZ
_NONBLOCK = 2
_libc = ctypes.CDLL(None, use_errno=True)


class _Piece(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


class PageSender:
    """Sends over one AF_UNIX socket.  Raises `OSError` where the kernel does not do that."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_CLOEXEC)
        self._loaded_bytes = 0
        try:
            fcntl.fcntl(self._in, _SET_PIPE_SIZE, PIPE_BYTES)
        except OSError:  # this user has many of them: a smaller one does it, too
            pass

    def load(self, views: Sequence[memoryview]) -> int:
        """Put the front of `views` into the pipe, which must be empty; return how many bytes."""
        pieces = (_Piece * len(views))()
        arrays = [np.frombuffer(view, np.uint8) for view in views]
        for piece, each in zip(pieces, arrays, strict=True):
            piece.address, piece.nbytes = each.ctypes.data, each.nbytes
        loaded = int(_libc.vmsplice(self._in, pieces, ctypes.c_size_t(len(views)), _NONBLOCK))
        if loaded <= 0:
            code = ctypes.get_errno()
            raise OSError(code, f"vmsplice: {os.strerror(code)}")
        self._loaded_bytes = loaded
        return loaded

    def unload(self, sock: socket.socket) -> bool:
        """Send some of what is in the pipe, waiting as long as the socket's timeout; return whether all is sent.

        Raise `TimeoutError` without a number, as the socket does, and `OSError`.
        """
        try:
            self._loaded_bytes -= os.splice(self._out, sock.fileno(), self._loaded_bytes)
        except BlockingIOError:
            timeout_s = sock.gettimeout()
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            if not poll.poll(None if timeout_s is None else timeout_s * 1000):
                raise TimeoutError("timed out") from None
        return not self._loaded_bytes

    def close(self) -> None:
        """Let the pipe go, with what is in it."""
        os.close(self._out)
        os.close(self._in)

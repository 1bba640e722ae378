"""A listening socket in the loop: takes connections in for as long as the node lives, whatever `accept` raises.

A process that has no descriptor left cannot take a connection in, and its listener stays readable: it looks away for
`PAUSE_S` and tries again, so that it neither spins nor goes deaf.  What goes wrong with one connection ends that one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

log = logging.getLogger("lifl.listening")

PAUSE_S = 1.0
"""How long a listener looks away when a connection cannot be taken in: nobody tells when there is a descriptor."""
AT_A_TIME = 64
"""Connections that are taken in before the loop has its turn for others."""
OUT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listening:
    """Owns `listener`; `taken(sock, where)` gets each connection, non-blocking, and owns it unless it raises.

    `name` is how the log calls this door.  Must be made in the running loop's thread.
    """

    def __init__(self, name: str, listener: socket.socket, taken: Callable[[socket.socket, Any], None]) -> None:
        listener.setblocking(False)
        self._name = name
        self._listener = listener
        self._taken = taken
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._look()

    def _look(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(AT_A_TIME):
            try:
                sock, where = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in OUT_OF:
                    self._look_away(error)
                    return
                continue  # accept tells of the connection's own errors, too: it was gone before we came to it
            try:
                sock.setblocking(False)
                self._taken(sock, where)
            except Exception:
                log.exception("%s.accept a connection of %s failed", self._name, where or "this machine")
                sock.close()

    def _look_away(self, error: OSError) -> None:
        what = "no descriptor is left" if error.errno in (errno.EMFILE, errno.ENFILE) else "the kernel has no room"
        log.warning("%s.accept %s (%s); next try in %g s", self._name, what, error.strerror, PAUSE_S)
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(PAUSE_S, self._look)

    def close(self) -> None:
        """Take no more connections in."""
        if self._pause is not None:
            self._pause.cancel()
        elif self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

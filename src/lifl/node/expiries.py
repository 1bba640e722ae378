"""Connections end with the certificates that they were made with: one timer, for the one that ends first.

Who is honest has renewed long before (at half of a certificate's time), and comes again with the new one; what was
under way is sent again, as after any other end of a connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

from lifl.tls.peer import Peer
from lifl.tls.tls_socket import Stream

log = logging.getLogger("lifl.tls")

LATER_S = 1.0
"""A second after its end nobody's clock takes a certificate for valid that ours does not."""


class Expiries:
    """The connections of a process to others whose certificates it has checked; a closed one is forgotten by itself."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._peers: weakref.WeakKeyDictionary[Stream, Peer] = weakref.WeakKeyDictionary()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_unix_s = 0.0

    def add(self, sock: Stream, peer: Peer) -> None:
        """Have a connection end with its peer's certificate.  Within the loop's thread."""
        self._peers[sock] = peer
        if self._timer is None or peer.expires_unix_s < self._armed_unix_s:
            self._arm(peer.expires_unix_s)

    def _arm(self, unix_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_unix_s = unix_s
        delay_s = max(0.0, unix_s - self._clock()) + LATER_S
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer, now = None, self._clock()
        left = []
        for sock, peer in list(self._peers.items()):
            if peer.expires_unix_s <= now:
                del self._peers[sock]
                log.warning("identity.expired %s serial=%s: its connection ends", peer.identity, peer.serial)
                with suppress(OSError):  # it has ended by itself
                    sock.shutdown(socket.SHUT_RDWR)
            elif sock.fileno() >= 0:
                left.append(peer.expires_unix_s)
        if left:
            self._arm(min(left))

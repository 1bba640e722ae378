"""Tells when the machine gets or loses an address: the kernel says so (rtnetlink), nobody has to look."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger("lifl.authority")

_IPV4_ADDRESSES, _IPV6_ADDRESSES = 0x10, 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
SETTLE_S = 1.0
"""How long is waited after a change for those that come with it."""


class AddressWatch:
    """Calls `changed` some time after addresses have changed.  Must be made in the running loop's thread."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self._socket.setblocking(False)
            self._socket.bind((0, _IPV4_ADDRESSES | _IPV6_ADDRESSES))
        except OSError as error:  # in a box that does not allow it
            log.info("addresses.unwatched %s; an address that is new is certified at the next renewal", error.strerror)
            self.close()
        else:
            self._loop.add_reader(self._socket.fileno(), self._readable)

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            while self._socket.recv(65_536):
                pass
        except BlockingIOError:
            pass
        except OSError:  # ENOBUFS: more has changed than the kernel could tell
            pass
        if self._timer is None:
            self._timer = self._loop.call_later(SETTLE_S, self._settled)

    def _settled(self) -> None:
        self._timer = None
        self._changed()

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

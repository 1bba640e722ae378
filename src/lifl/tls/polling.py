"""Waiting for sockets on any system: by poll, or by select where there is none (Windows)."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Protocol


class HasDescriptor(Protocol):
    """A socket, secured or not."""

    def fileno(self) -> int:
        """Return its descriptor."""


def readable(sockets: Sequence[HasDescriptor], timeout_s: float | None = None) -> list[int]:
    """Return the places of those that have bytes, their end or an error, as soon as one has; none when time is over."""
    return _ready(sockets, write=False, timeout_s=timeout_s)


def writable(sock: HasDescriptor, timeout_s: float | None = None) -> bool:
    """Return whether it can be written to, or has an error, within the time."""
    return bool(_ready([sock], write=True, timeout_s=timeout_s))


def _ready(sockets: Sequence[HasDescriptor], write: bool, timeout_s: float | None) -> list[int]:
    if not hasattr(select, "poll"):
        there = list(sockets)
        found, able, failed = select.select([] if write else there, there if write else [], there, timeout_s)
        return [place for place, sock in enumerate(there) if sock in found or sock in able or sock in failed]
    descriptors = [sock.fileno() for sock in sockets]  # another thread may close one meanwhile
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLOUT if write else select.POLLIN)
    ready = {fd for fd, _events in poll.poll(None if timeout_s is None else timeout_s * 1000)}
    return [place for place, fd in enumerate(descriptors) if fd in ready]

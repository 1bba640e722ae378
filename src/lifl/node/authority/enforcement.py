"""What follows from a revocation, at once: the gateway hears of it, and connections of whose certificate it was end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lifl.core.protocol import gateway as gm
from lifl.core.trust.revocation import Revocation, RevokedList
from lifl.node.authority.bearers import BearerTokens
from lifl.node.authority.revocations import Revocations
from lifl.node.children import Child


class Door(Protocol):
    """What has connections of whose certificates may be revoked."""

    def revoke(self, entries: tuple[Revocation, ...], revoked: RevokedList) -> None:
        """Take no more connections of theirs, and end those that there are."""
        ...


class Enforcement:
    """Applies each change of the list to the gateway (and the HTTP door) and to the doors of the daemon itself."""

    def __init__(self, revocations: Revocations, bearers: BearerTokens, gateway: Child) -> None:
        self._revocations = revocations
        self._bearers = bearers
        self.children = [gateway]
        """The processes that have doors: they are told both lists."""
        self._doors: list[Door] = []
        self.tell_bearers: Callable[[], None] = lambda: None
        """Told when the bearer tokens have changed, for other nodes."""
        revocations.on_change = self._apply
        bearers.on_change = self._tell_bearers

    def add(self, door: Door) -> None:
        """Apply the list to a door, now and from now on."""
        self._doors.append(door)
        door.revoke(self._revocations.entries, self._revocations.list)

    def tell_children(self) -> None:
        """Tell the lists to the processes with doors: one has just begun, or a list has changed."""
        for child in self.children:
            child.send(gm.Revoked(self._revocations.entries), gm.BearersTold(self._bearers.entries))

    def _tell_bearers(self) -> None:
        self.tell_children()
        self.tell_bearers()

    def _apply(self) -> None:
        self.tell_children()
        for door in self._doors:
            door.revoke(self._revocations.entries, self._revocations.list)

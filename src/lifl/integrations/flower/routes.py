"""By which way the tensors of each node go: by LIFL, or by Flower's own messages.

It is found out: the first messages of a run carry the arrays and a reference; who answers as the mod does is sent the
reference alone from then on.  All nodes of a run have the same ClientApp: one answer tells of all.  Where the user says
that it has the mod, no message carries arrays but to a node that turns out to need them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

BLOCKED_ROUNDS = 10
"""So many rounds long a node that could not reach the gateway is sent arrays; then it is tried again."""
log = logging.getLogger("flwr")


class Routes:
    """What is known of the nodes; `kind` is what a message is for: ``train`` or ``evaluate``.

    Of the kinds `with_mod` it is said that the ClientApp has the mod.
    """

    def __init__(self, with_mod: Iterable[str] = ()) -> None:
        self._has_mod = dict.fromkeys(with_mod, True)
        self._until: dict[int, float] = {}
        self._told: set[str] = set()
        self._answered: set[tuple[str, int]] = set()
        self._bring: set[int] = set()

    def knows_mod(self, kind: str) -> bool | None:
        """Return whether the ClientApp has the mod; None: not known yet."""
        return self._has_mod.get(kind)

    def by_lifl(self, kind: str, node: int, server_round: int) -> bool:
        """Return whether a node's tensors may go by LIFL."""
        return self._has_mod.get(kind) is not False and self._until.get(node, 0) <= server_round

    def with_arrays(self, kind: str, node: int, server_round: int) -> bool:
        """Return whether a node is sent the arrays."""
        return not self._has_mod.get(kind) or not self.by_lifl(kind, node, server_round)

    def knows(self, kind: str, node: int) -> bool:
        """Return whether this node has answered as the mod does."""
        return (kind, node) in self._answered

    def heard(self, kind: str, node: int, marked: bool) -> None:
        """Note that a node's reply was, or was not, that of the mod."""
        if marked:
            self._has_mod[kind] = True
            self._answered.add((kind, node))
        else:
            self._has_mod.setdefault(kind, False)

    def brought(self, node: int) -> None:
        """Note that a node has brought its update by LIFL."""
        self._bring.add(node)

    def brings(self, node: int, server_round: int) -> bool:
        """Return whether a node's last update came by LIFL, and the next may."""
        return node in self._bring and self.by_lifl("train", node, server_round)

    @property
    def any_brings(self) -> bool:
        """Whether some node does."""
        return bool(self._bring)

    def block(self, node: int, server_round: int, why: str) -> None:
        """Note that a node's tensors cannot go by LIFL for some rounds; say it the first time."""
        self._until[node] = server_round + BLOCKED_ROUNDS
        self._bring.discard(node)
        self._say("blocked", f"node {node} does not get its tensors by LIFL: they go by Flower's messages ({why})")

    def carried(self, node: int, why: str) -> None:
        """Note that an update came by Flower's message, which was to go by LIFL; say it the first time."""
        self._bring.discard(node)
        self._say("carried", f"the update of node {node} came by Flower's message, not by LIFL ({why})")

    def _say(self, about: str, text: str) -> None:
        log.log(logging.DEBUG if about in self._told else logging.WARNING, "LIFL: %s", text)
        self._told.add(about)

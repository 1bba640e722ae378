"""What nodes tell each other of bearer tokens: the coordinator tells all that know of them.

It is the authority's node, or hears of them from that one: no other node's word lets anybody in.
"""

from __future__ import annotations

from lifl.core.engine import Engine
from lifl.core.protocol import cluster as p
from lifl.core.trust.bearers import Bearer
from lifl.node.authority.bearers import BearerTokens
from lifl.node.cluster.transport import Peers, Send


class BearerNews:
    """One node's part in it.

    `moves`: the coordinator may be another one day, and each may know what others do not.  `makes`: this node has the
    authority, and makes them.
    """

    def __init__(self, tokens: BearerTokens, peers: Peers, engine: Engine, moves: bool, makes: bool) -> None:
        self._tokens = tokens
        self._peers = peers
        self._engine = engine
        self._moves = moves
        self._makes = makes
        self._is_known = False  # to the coordinator: it says so by its first word

    def joined(self, hello: p.PeerHello, send: Send) -> None:
        """Tell a node that has come."""
        if p.BEARERS in hello.knows:
            send(p.BearersTold(self._tokens.entries))

    def heard(self, entries: tuple[Bearer, ...], from_authority: bool) -> None:
        """Take an agent's, as the coordinator, if that has the authority."""
        if self._moves and from_authority:
            self._tokens.merge(entries)

    def coordinator_up(self) -> None:
        """Note that a coordinator is connected, of whatever release."""
        self._is_known = False

    def told(self, entries: tuple[Bearer, ...]) -> None:
        """Take the coordinator's, or tell it what it does not know of those that were made here."""
        self._is_known = True
        if self._makes:
            if self._tokens.entries != entries:
                self._report()
        elif self._moves:
            self._tokens.merge(entries)
        else:
            self._tokens.replace(entries)

    def changed(self) -> None:
        """Tell other nodes what has changed here."""
        coordinator = self._engine.coordinator
        if coordinator is None:
            self._report()
            return
        for node in self._peers.living():
            if coordinator.nodes.knows(node, p.BEARERS):
                self._peers.send(node, p.BearersTold(self._tokens.entries))

    def _report(self) -> None:
        if self._makes and self._is_known:
            self._peers.report(p.BearersTold(self._tokens.entries))

"""Who is invited to a round, and what an invited client is told."""

from __future__ import annotations

import random

from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.presence import Presence
from lifl.core.coordinator.round import Round
from lifl.core.protocol import client as cm
from lifl.core.turn import Turn


class Selection:
    """Selects the clients of one job's rounds, among those that are present."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable, presence: Presence) -> None:
        self._spec = spec
        self._turn = turn
        self._nodes = nodes
        self._presence = presence

    def fill(self, round_: Round) -> None:
        """Invite as many more as the round lacks: those who have left with nothing accepted are made up for."""
        present = self._presence.of(self._spec.name)
        active = sum(client in present or client in round_.accepted for client in round_.selected)
        wanted = round_.target - active
        idle = [client for client in present if client not in round_.selected]
        if wanted <= 0 or not idle:
            return
        if len(idle) > wanted:
            # The draw depends on the seed and the round alone, so that a run can be repeated.
            seed = f"{self._spec.config.selection.seed}/{round_.number}/{round_.attempt}/{len(round_.selected)}"
            idle = random.Random(seed).sample(sorted(idle), wanted)
        for client in idle:
            self.invite(round_, client)

    def invite(self, round_: Round, client: str) -> None:
        """Tell a client that is here to take part: the seconds that are left, and at which node it is expected."""
        spec, here = self._spec, self._presence.of(self._spec.name)[client]
        left_s = max(round_.deadline_at_s - self._turn.now, 0.0)
        round_.selected[client] = None
        if client not in round_.places:
            round_.assign(client, here.node)
        node = round_.assigned.get(client, here.node)
        gateway = self._nodes.gateway_of(node) if node != here.node else ""
        self._presence.select(
            here, cm.Selected(spec.name, round_.number, left_s, (), spec.layout.data_bytes, gateway=gateway)
        )

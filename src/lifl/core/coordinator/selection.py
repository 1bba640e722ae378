"""Who is invited to a round, and what an invited client is told."""

from __future__ import annotations

import random

from lifl.core import effects as fx
from lifl.core.coordinator.client_list import ClientList
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.presence import Presence
from lifl.core.coordinator.reliability import Reliability
from lifl.core.coordinator.round import Phase, Round
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.turn import Turn

DECLINED_CHARS_MAX = 60
"""Of the reason why a client declined: what is kept until the round's end."""


def may_be_late(round_: Round, client: str) -> bool:
    """Return whether an update of a client that is not selected counts: of an earlier attempt, from the same model."""
    collects = round_.phase is Phase.COLLECTING and len(round_.granted) + len(round_.accepted) < round_.target
    return collects and client not in round_.selected and (client in round_.trained or client in round_.training)


class Selection:
    """Selects the clients of one job's rounds, among those that are present."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable, presence: Presence) -> None:
        self._spec = spec
        self._turn = turn
        self._nodes = nodes
        self._presence = presence
        self.list = ClientList(spec.config.selection)
        self.reliability = Reliability()

    def fill(self, round_: Round) -> None:
        """Invite as many more as the round lacks: for those who have left with nothing accepted, or declined.

        When a round is tried again, those come first whose update was accepted before, since they still have it; those
        who may still be training are asked late, since what they send is taken in any case; those whose update made an
        attempt fail are asked last, and train anew.  Among the others those are asked late who did not keep their word.
        """
        present = self._presence.of(self._spec.name)
        taking_part = round_.selected.keys() - round_.declined
        wanted = round_.target - sum(client in present or client in round_.accepted for client in taking_part)
        idle = [client for client in present if client not in round_.selected]
        if wanted <= 0 or not idle:
            return
        seed = f"{self._spec.config.selection.seed}/{round_.number}/{round_.attempt}/{len(round_.selected)}"
        for some in self._by_turn(round_, idle):
            chosen = some
            if len(some) > wanted:
                # The draw depends on the seed and the round alone, so that a run can be repeated.
                chosen = random.Random(seed).sample(sorted(some), wanted)
            for client in chosen:
                self.invite(round_, client)
            wanted -= len(chosen)

    def _by_turn(self, round_: Round, idle: list[str]) -> list[list[str]]:
        """Return the idle clients in the order in which they are asked."""
        trained = [client for client in idle if client in round_.trained]
        training = [client for client in idle if client in round_.training]
        spoilt = [client for client in idle if client in round_.spoilt]
        others = {*trained, *training, *spoilt}
        rest = [client for client in idle if client not in others]
        return [trained, *self.reliability.by_turn(rest, again=round_.attempt > 1), training, spoilt]

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

    def decline(self, round_: Round | None, event: gm.ClientDeclined) -> bool:
        """Note that a client takes no part in the round, though it stays; return whether that changes something."""
        client = event.client
        if round_ is None or round_.number != event.round or round_.phase is not Phase.COLLECTING:
            return False
        if client not in round_.selected or client in round_.places or client in round_.declined:
            return False
        round_.declined[client] = event.reason[:DECLINED_CHARS_MAX]
        round_.unassign(client)
        fields = {"round": round_.number, "client": client, "reason": event.reason}
        self._turn.emit(fx.Publish("client.declined", self._spec.name, fields))
        return True

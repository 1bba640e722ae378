"""Who is invited to a round, and what an invited client is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifl.core import effects as fx
from lifl.core.config.condition import holds, parse_condition, values_of
from lifl.core.config.job import options_changed
from lifl.core.coordinator.choosing import Choosing
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.presence import Presence
from lifl.core.coordinator.reliability import Reliability
from lifl.core.coordinator.round import Phase, Round
from lifl.core.fields import Properties
from lifl.core.limits import RELIABILITY_CLIENTS_MAX
from lifl.core.planning.client_list import ClientList, listed
from lifl.core.planning.draw import NOTHING_SAID, drawn, seed_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.user_calls import FunctionReturned
from lifl.core.turn import Turn

TOO_FEW_NAMED = (
    "{function} (selection.strategy) has named {named} clients, and the round needs {quorum} (selection.quorum)"
)
LOSS = "loss"
"""The metric by which power of choice goes."""
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
        self.list = ClientList(listed(spec.config.selection))
        self.reliability = Reliability()
        self.choosing = Choosing(spec, turn, nodes)
        self._losses: dict[str, float] = {}  # by client: the last that it has told; the newest one stands last

    def admits(self, client: str, said: Properties) -> bool:
        """Return whether the condition of the job is true of the client."""
        where = self._spec.config.selection.where
        return not isinstance(where, str) or holds(parse_condition(where, ""), values_of(client, said))

    @property
    def said(self) -> Mapping[str, Properties]:
        """What those who are here say of themselves, as far as they do."""
        return self._presence.said(self._spec.name)

    @property
    def selectable(self) -> int:
        """How many are here who may be selected."""
        return len(self._presence.of(self._spec.name)) - len(self._presence.apart(self._spec.name))

    def ended(self, round_: Round) -> None:
        """Note what became of those who were selected: the attempt at the round has ended, well or not."""
        self.reliability.ended(round_)
        for client, contribution in round_.accepted.items():
            self.note_loss(client, contribution.metrics)

    def resume(self, losses: Mapping[str, float]) -> None:
        """Take up the last losses that an earlier life has counted."""
        self._losses.update(losses)

    def note_loss(self, client: str, metrics: Mapping[str, float]) -> None:
        """Note the loss that a client has told, if it has told one."""
        if LOSS in metrics:
            self._losses.pop(client, None)
            self._losses[client] = metrics[LOSS]
            if len(self._losses) > RELIABILITY_CLIENTS_MAX:
                del self._losses[next(iter(self._losses))]

    def fill(self, round_: Round) -> None:
        """Invite as many more as the round lacks: for those who have left with nothing accepted, or declined.

        When a round is tried again, those come first whose update was accepted before, since they still have it; those
        who may still be training are asked late, since what they send is taken in any case; those whose update made an
        attempt fail are asked last, and train anew.  Among the others those are asked late who did not keep their word.
        """
        present = self._presence.of(self._spec.name)
        wanted = round_.target - self._taking_part(round_)
        apart = self._presence.apart(self._spec.name)
        idle = [client for client in present if client not in round_.selected and client not in apart]
        if wanted <= 0 or not idle:
            return
        if self._spec.config.selection.function:
            self._have_chosen(round_, self._by_turn(round_, idle), wanted)
            return
        said = self._presence.said(self._spec.name)
        seed = seed_of(self._spec.config.selection, round_.number, round_.attempt, len(round_.selected))
        for some in self._by_turn(round_, idle):
            # The draw depends on the seed and the round alone, so that a run can be repeated.
            chosen = drawn(some, wanted, seed, self._spec.config.selection, said, self._losses)
            for client in chosen:
                self.invite(round_, client)
            wanted -= len(chosen)

    def _have_chosen(self, round_: Round, turns: list[list[str]], wanted: int) -> None:
        """Invite who has an update of the round already, and have the user's function choose the others.

        It is offered those who are asked first, and of who is asked late as many as the places need.
        """
        trained, *others = turns
        for client in trained[:wanted]:
            self.invite(round_, client)
        wanted -= min(wanted, len(trained))
        offered: list[str] = []
        for some in others:
            offered += some if len(offered) < wanted else []
        if wanted and offered:
            self.choosing.ask(round_, offered, wanted, self.said, self._losses)

    def lack(self, round_: Round) -> str:
        """Return that the user's function has named too few for the round's quorum, or nothing."""
        function, named = self._spec.config.selection.function, len(round_.selected)
        if not function or self.choosing.waits or round_.phase is not Phase.COLLECTING or named >= round_.quorum:
            return ""
        return TOO_FEW_NAMED.format(function=function, named=named, quorum=round_.quorum)

    def _taking_part(self, round_: Round) -> int:
        """Return how many of the selected are here and have not declined, or have an update accepted."""
        present = self._presence.of(self._spec.name)
        taking_part = round_.selected.keys() - round_.declined
        return sum(client in present or client in round_.accepted for client in taking_part)

    def chosen(self, round_: Round | None, report: FunctionReturned) -> str:
        """Invite whom the user's function has chosen; return why the attempt at the round fails, or nothing."""
        clients, fault = self.choosing.answered(round_, report)
        if round_ is None:
            return ""
        present, apart = self._presence.of(self._spec.name), self._presence.apart(self._spec.name)
        room = round_.target - self._taking_part(round_)  # a late one may have come meanwhile
        here = [each for each in clients if each in present and each not in apart and each not in round_.selected]
        for client in here[: max(0, room)]:
            self.invite(round_, client)
        if fault and self._taking_part(round_) >= round_.quorum:
            self._turn.emit(fx.Publish("selection.fault", self._spec.name, {"round": round_.number, "reason": fault}))
            return ""
        return fault

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
        options = self.changed_options(round_.number, client)
        about = (spec.name, round_.number, left_s, (), spec.layout.data_bytes, options)
        self._presence.select(here, cm.Selected(*about, gateway=gateway))

    def changed_options(self, number: int, client: str) -> dict[str, Any]:
        """Return those of the client's options that are others in this round than the job's first ones."""
        spec = self._spec.config
        said = self._presence.said(spec.job.name).get(client, NOTHING_SAID)
        values, groups = values_of(client, said), spec.client.groups
        own = (index for index, group in enumerate(groups) if holds(parse_condition(group.where, ""), values))
        options = spec.client.options_of(number, spec.job.rounds, next(own, -1))
        return options_changed(spec.client.options_of(1, spec.job.rounds), options)

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

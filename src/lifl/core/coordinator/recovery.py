"""After a restart, of the coordinator or of a node: who has what of the running round?

* A node that says what it has (Inventory) is believed about its branches; a branch that it has not is given up.
  A node whose `lifld` has started again adopts what is sealed in its arena, and says who is in that.
* After its own start the coordinator knows from its database which branches a round had.  It begins with what is
  sealed in its own arena and waits `NODE_RETURN_S` for the other nodes; nothing is granted until then, for an
  update that a node already has must not be taken a second time elsewhere.
* Where another node coordinated before, the top was there.  What that node has of the round becomes a branch as any
  other, under a number of its own: its agent begins anew with what is sealed in its arena, as after a restart.  It has
  the word before all others, for its top may have taken their partials: they are not to count twice, and what it has
  merged them with is nowhere else.  It was silent for a lease already, so it is waited for no longer than
  `LAST_HOME_S`.  The others keep their partials until the commit; those that are wanted go to the new top when all is
  known.

What is done is a table of what the books say of a branch and what is learnt of it: `REACTIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from lifl.core import effects as fx
from lifl.core.coordinator.branch_record import BranchRecord, BranchState
from lifl.core.coordinator.branches import BranchTracker
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.round import Believed, Phase, Round
from lifl.core.coordinator.round_planner import RoundPlanner
from lifl.core.fields import Message
from lifl.core.protocol import commands as o
from lifl.core.protocol.cluster import BranchHeld
from lifl.core.protocol.contribution import Contribution
from lifl.core.turn import Turn

NODE_RETURN_S = 10.0
"""How long a coordinator that has started again waits for the nodes that had a branch of the round: longer than an
agent takes to notice, and to dial."""


LAST_HOME_S = 2.0
"""How long, once the round is to go on, the node is waited for that coordinated before: if it lives it dials at once,
but has to be told whom, and what it has it says only when it is connected and has the job."""


class News(Enum):
    """What is learnt of a branch."""

    HELD = "its node lists it"
    ABSENT = "its node, in the same life, does not list it"
    FRESH = "its node, in a new life, does not list it"
    ADOPTED = "its node has opened it with what its earlier life had sealed"
    RENEWED = "its node's lifld has started again"
    GONE = "its node is declared dead, or has left"
    LATE = "its node was waited for long enough"


_S, _N = BranchState, News
REACTIONS: dict[BranchState, dict[News, str]] = {
    _S.OPEN: {
        _N.HELD: "_match",
        _N.ABSENT: "_give_up",
        _N.FRESH: "_give_up",
        _N.RENEWED: "_recover",
        _N.GONE: "_give_up",
    },
    _S.CLOSED: {
        _N.HELD: "_match",
        _N.ABSENT: "_give_up",
        _N.FRESH: "_give_up",
        _N.RENEWED: "_recover",
        _N.GONE: "_give_up",
    },
    _S.RECOVERING: {
        _N.HELD: "_match",
        _N.ABSENT: "_give_up",
        _N.FRESH: "_reopen",
        _N.ADOPTED: "_adopt",
        _N.GONE: "_give_up",
        _N.LATE: "_give_up",
    },
    _S.FORGETTING: {},  # the top has the word
    _S.ARRIVED: {},  # the top has the partial
    _S.DROPPED: {},
}


class Recovered(NamedTuple):
    """All is known: the round goes on, or begins anew; `closing`: it was being closed, with what it had."""

    closing: bool


class Inventory(NamedTuple):
    """The branches of a job that a node says it has; `fresh`: its agent does not know the job yet."""

    branches: list[BranchHeld]
    fresh: bool


NOTHING = Believed([], [])


class Recovery:
    """Compares the books of one job's running round with what its nodes have."""

    def __init__(
        self, spec: JobSpec, turn: Turn, nodes: NodeTable, planner: RoundPlanner, branches: BranchTracker
    ) -> None:
        self._spec = spec
        self._turn = turn
        self._nodes = nodes
        self._planner = planner
        self._branches = branches
        self._kept: dict[int, Inventory] = {}  # by node: those that came before the round could be compared
        self._first: int | None = None  # the node that has the word before home: it coordinated before

    # ---- the coordinator has started again -------------------------------------------------------------------------

    def begin(self, round_: Round, fields: dict[str, Any]) -> None:
        """Find out what the branches that an earlier coordinator had opened have; `fields` is the round's row."""
        round_.move(Phase.RECOVERING)  # WAITING -> RECOVERING
        round_.deadline_at_s = self._turn.now + NODE_RETURN_S
        round_.next_branch = fields.get("next_part", 1)
        self._first = None
        home = self._nodes.home
        round_.add(BranchRecord(0, home, round_.goal, BranchState.RECOVERING))
        for number, name, updates in fields.get("parts", ()):
            node = int(name, 16)
            if node == home:  # what is here is all adopted into branch 0
                continue
            if not number:
                self._first = node
                round_.next_branch += 1
            its = number or round_.next_branch - 1
            round_.add(BranchRecord(its, node, updates, BranchState.RECOVERING))
        round_.others_max = len(round_.branches) - 1
        if self._first is None:
            self._open_home(round_)
        else:
            round_.deadline_at_s = self._turn.now + LAST_HOME_S

    def _open_home(self, round_: Round) -> None:
        """Have home take up what is sealed in its arena, but for what another branch has."""
        others = tuple(number for number in round_.branches if number)
        spare = self._planner.spare(round_.goal, len(others)) if others else 0
        round_.others_max = len(others) + spare
        at = (self._spec.number, round_.epoch, 0)
        without = tuple(round_.places)
        order = o.OpenBranch(*at, round_.goal, others, spare, adopt=True, without=without)
        self._turn.order(self._nodes.home, order)

    def _note_first(self, round_: Round) -> None:
        """Go on with home when the node that has the word before it has said what it has, or will not."""
        if any(record.state is BranchState.RECOVERING for record in self._others_at(round_, self._first)):
            return
        self._first = None
        round_.deadline_at_s = self._turn.now + NODE_RETURN_S
        self._open_home(round_)

    def home_adopted(self, round_: Round, members: o.Contributions) -> Believed:
        """Note what is sealed in the coordinator's own arena; it comes first."""
        home = round_.branches[0]
        home.move(BranchState.OPEN)  # RECOVERING -> OPEN
        believed = round_.believe(home, members, (), self._turn.now)
        home.updates = home.updates_max = max(home.updates, round_.placed(home))
        for record in round_.branches.values():
            if record.state is BranchState.FORGETTING:
                self._branches.order_forget(round_, record)
        return believed

    def late(self, round_: Round) -> None:
        """Give up the nodes that did not come back in time."""
        round_.deadline_at_s = math.inf  # until another one is set
        for record in list(round_.branches.values()):
            if record.number and self._first in (None, record.node):
                self._react(round_, record, News.LATE)
        if self._first is not None:
            self._note_first(round_)

    def finish(self, round_: Round) -> Recovered | None:
        """Let a recovering round go on when of all its branches is known what they have."""
        if round_.phase is not Phase.RECOVERING:
            return None
        records = list(round_.branches.values())
        if any(record.state in (BranchState.RECOVERING, BranchState.FORGETTING) for record in records):
            return None
        if not round_.accepted and not round_.others_max:
            for record in records:
                round_.discard(record)
            round_.move(Phase.WAITING)  # RECOVERING -> WAITING
            round_.deadline_at_s = self._turn.now + round_.deadline_s
            return Recovered(closing=False)
        # More than the goal may have been sealed; which of them were told ACCEPTED is not known, so all count.
        round_.goal = max(round_.goal, len(round_.accepted))
        others = sum(record.updates for record in records if record.number)
        records[0].updates = max(round_.goal - others, round_.placed(records[0]))
        records[0].updates_max = records[0].updates
        self._branches.renew_later(round_)
        round_.open(self._turn.now)  # RECOVERING -> COLLECTING
        round_.last_accepted_s = self._turn.now
        if (round_.others_max or self._nodes.moves) and not self._spec.is_fold:
            self._branches.save(round_)
        for record in records:
            if record.number and record.state is not BranchState.ARRIVED:
                self._move(round_, record)
        fields = {"round": round_.number, "accepted": len(round_.accepted)}
        self._turn.emit(fx.Publish("round.adopted", self._spec.name, fields))
        return Recovered(any(record.closed for record in records) and len(round_.accepted) >= round_.quorum)

    def _move(self, round_: Round, record: BranchRecord) -> None:
        """Have a node bring its partial here.

        It may have brought it before: to another coordinator's gateway, or into an arena that went with the node.
        """
        parent = self._nodes.gateway_of(self._nodes.home)
        self._turn.order(record.node, o.MovePartial(self._spec.number, round_.epoch, record.number, parent))

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def keep(self, node: int, inventory: Inventory) -> None:
        """Keep what a node says for when the books are there to compare it with."""
        self._kept[node] = inventory

    def heard(self, node: int, report: Message) -> None:
        """Note what a node says of its updates behind an inventory that waits yet: the books know nothing of them."""
        kept = self._kept.get(node)
        if kept is not None and isinstance(report, o.UpdateSealed | o.UpdateAborted | o.BranchClosed):
            kept.branches[:] = [_since(held, report) for held in kept.branches]

    def comparable(self, round_: Round | None) -> list[int]:
        """Return the nodes whose inventory can be compared with the books now."""
        if round_ is None or not round_.home_unknown:
            return list(self._kept)
        return [node for node in self._kept if node == self._first]

    def take_stock(self, round_: Round | None, node: int, saving: Iterable[int]) -> Believed:
        """Compare what a node said it has with the books; the epochs that are being `saving` need nothing more."""
        held, fresh = self._kept.pop(node)
        listed: set[int] = set()
        accepted: list[Contribution] = []
        gone: list[str] = []
        for branch in held:
            record = round_.branches.get(branch.branch) if round_ is not None else None
            if round_ is not None and record is not None and branch.epoch == round_.epoch and record.node == node:
                listed.add(record.number)
                believed = self._react(round_, record, News.HELD, branch)
                accepted += believed.accepted
                gone += believed.gone
            elif branch.epoch not in saving:
                self._branches.order_drop(node, branch.epoch, branch.branch)
        if round_ is not None:
            for record in self._others_at(round_, node):
                if record.number not in listed:
                    self._react(round_, record, News.FRESH if fresh else News.ABSENT)
            if node == self._first:
                self._note_first(round_)
        return Believed(accepted, gone)

    def adopted(self, round_: Round, record: BranchRecord, members: o.Contributions) -> Believed | None:
        """Note what a node that has started again has sealed; None: it does not matter, or does not count."""
        awaited = record.state is BranchState.RECOVERING
        believed = self._react(round_, record, News.ADOPTED, members)
        if awaited and record.node == self._first:
            self._note_first(round_)
        return believed if awaited and record.open else None

    def node_gone(self, round_: Round | None, node: int) -> None:
        """Give up the branches of a node that is dead: the top may have its partials, else they are lost."""
        self._kept.pop(node, None)
        self._at_node(round_, node, News.GONE)
        if round_ is not None and node == self._first:
            self._note_first(round_)

    def node_renewed(self, round_: Round | None, node: int) -> None:
        """Wait for what a node has whose `lifld` started again before it was declared dead."""
        self._kept.pop(node, None)
        self._at_node(round_, node, News.RENEWED)

    def recovers_at(self, round_: Round | None, row: dict[str, Any], node: int) -> bool:
        """Return True when the node is to keep what an earlier life of it has sealed; `row` is of the round to come."""
        if round_ is not None:
            return any(record.state is BranchState.RECOVERING for record in self._others_at(round_, node))
        return any(int(name, 16) == node for _number, name, _updates in row.get("parts", ()))

    def _at_node(self, round_: Round | None, node: int, news: News) -> None:
        if round_ is not None:
            for record in self._others_at(round_, node):
                self._react(round_, record, news)

    @staticmethod
    def _others_at(round_: Round, node: int | None) -> list[BranchRecord]:
        return [record for record in round_.branches.values() if record.node == node and record.number]

    # ---- the table's actions -----------------------------------------------------------------------------------------

    def _react(self, round_: Round, record: BranchRecord, news: News, what: Any = None) -> Believed:
        action = REACTIONS[record.state].get(news)
        believed: Believed = getattr(self, action)(round_, record, what) if action else NOTHING
        return believed

    def _give_up(self, round_: Round, record: BranchRecord, _what: None) -> Believed:
        self._branches.give_up(round_, record)
        return NOTHING

    def arrives(self, round_: Round, record: BranchRecord, members: o.Contributions) -> None:
        """Give up the branches that have, too, what the top has now in the partial of this one."""
        for other in _elsewhere(round_, record, (client for client, *_ in members)):
            self._branches.order_drop(other.node, round_.epoch, other.number)
            if other.state is not BranchState.FORGETTING:
                self._branches.give_up(round_, other)

    def _recover(self, _round: Round, record: BranchRecord, _what: None) -> Believed:
        record.move(BranchState.RECOVERING)  # OPEN, CLOSED -> RECOVERING
        return NOTHING

    def _reopen(self, round_: Round, record: BranchRecord, _what: None) -> Believed:
        if record.updates:
            self._branches.order_open(round_, record, adopt=True)
        else:
            self._branches.give_up(round_, record)
        return NOTHING

    def _match(self, round_: Round, record: BranchRecord, held: BranchHeld) -> Believed:
        coming = (client for client, *_ in held.granted if client in round_.accepted)
        if _elsewhere(round_, record, (*(client for client, *_ in held.members), *coming)):
            # Its partial is in the coordinator's arena already, or in that of the last one; no top takes it twice.
            # (What it had when it said so may have come to that since.)  Or a client has sent its update to another
            # node, too.  The top has the word: the partial may be on its way to it, and would be in the model.
            self._branches.order_drop(record.node, round_.epoch, record.number)
            self._branches.give_up(round_, record)
            return NOTHING
        believed = round_.believe(record, held.members, held.granted if not held.closed else (), self._turn.now)
        if self._nodes.moves and round_.phase is not Phase.RECOVERING:  # else when all is known
            self._move(round_, record)
        if held.closed:
            if not record.closed:
                record.move(BranchState.CLOSED)  # OPEN, RECOVERING -> CLOSED
            record.updates = len(held.members)
            return believed
        if record.state is BranchState.RECOVERING:
            record.move(BranchState.OPEN)  # RECOVERING -> OPEN
        # What an earlier coordinator moved here by the books alone is not in its row.
        record.updates = max(record.updates, round_.placed(record))
        record.updates_max = max(record.updates_max, record.updates)
        if round_.phase is Phase.AGGREGATING:
            self._branches.order_close(round_, record)
        return believed

    def _adopt(self, round_: Round, record: BranchRecord, members: o.Contributions) -> Believed:
        here = {client for client, *_ in members}
        was = {client for client in round_.clients_of(record) if client in round_.accepted}
        if _elsewhere(round_, record, here) or not here or not was <= here:
            # A top has a partial with these already, from an earlier life of either node; or the arena is not what it
            # was, and the earlier life's partial, with what is missing, may still be on its way to the top.
            self._branches.order_drop(record.node, round_.epoch, record.number)
            self._branches.give_up(round_, record)
            return NOTHING
        record.move(BranchState.OPEN)  # RECOVERING -> OPEN
        record.updates = max(record.updates, len(members))
        record.updates_max = max(record.updates_max, record.updates)
        believed = round_.believe(record, members, (), self._turn.now)
        if round_.phase is Phase.AGGREGATING:
            self._branches.order_close(round_, record)
        return believed


def _since(held: BranchHeld, report: o.UpdateSealed | o.UpdateAborted | o.BranchClosed) -> BranchHeld:
    """Return what a node has of a branch after its report."""
    if (held.epoch, held.branch) != (report.epoch, report.branch):
        return held
    if isinstance(report, o.BranchClosed):
        return msgspec.structs.replace(held, closed=True)
    its = tuple(each for each in held.granted if each[0] == report.client)
    granted = tuple(each for each in held.granted if each[0] != report.client)
    members = (*held.members, *its) if isinstance(report, o.UpdateSealed) else held.members
    return msgspec.structs.replace(held, members=members, granted=granted)


def _elsewhere(round_: Round, record: BranchRecord, clients: Iterable[str]) -> list[BranchRecord]:
    """Return the other branches that have, or get, an update of these clients."""
    numbers = {round_.places.get(client, record.number) for client in clients} - {record.number}
    return [round_.branches[number] for number in sorted(numbers)]

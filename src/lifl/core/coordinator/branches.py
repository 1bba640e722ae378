"""A round's branches on the nodes: opened, closed, given up and replaced.

The books can differ from what the nodes have when a node dies, a connection breaks, or the coordinator itself starts
again (`recovery.py`).  Who is right about a branch that is given up: a partial that the top has counts, whatever became
of the node that made it; its members are in it.  So a branch is given up in two steps: the top is asked to forget it,
and only when it says that it will never take that partial are the branch's updates asked for again, from their
clients, into another branch.

The plan is renewed while a round collects: every `aggregation.replan_interval_s`, and when a node dies or is about to
leave.  Only what is not granted yet moves, by the books or into another branch; what is sealed stays.  The top is
opened with `SPARE_PARTIALS` places beyond those that are planned (if its arena has the room), and never takes more.

What happens at a branch is told here; what follows for the round's clients and for the round is returned.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from lifl.core import effects as fx
from lifl.core.coordinator.branch_record import BranchRecord, BranchState
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.round import Believed, Phase, Round
from lifl.core.coordinator.round_planner import Planned, RoundPlanner
from lifl.core.errors import Refused
from lifl.core.protocol import commands as o
from lifl.core.turn import Turn

MOVING_S = 30.0
"""What a closed round has beside the time for its tasks: to notice that one has taken too long, to move partials."""


class AskAgain(NamedTuple):
    """The updates of these clients were in the round, or on their way, and are not; so many were accepted."""

    clients: list[str]
    accepted: int


class BranchTracker:
    """The branches of one job's running round."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable, planner: RoundPlanner) -> None:
        self._spec = spec
        self._turn = turn
        self._nodes = nodes
        self._planner = planner

    # ---- open and close --------------------------------------------------------------------------------------------

    def open(self, round_: Round, plan: Planned) -> None:
        """Open the branches of a plan."""
        others = {node: updates for node, updates in plan.updates.items() if node != plan.top}
        round_.add(BranchRecord(0, plan.top, plan.updates.get(plan.top, 0)))
        for node, updates in others.items():
            self._add(round_, node, updates)
        spare = self._planner.spare(plan.updates.get(plan.top, 0), len(others)) if len(self._nodes) > 1 else 0
        round_.others_max = len(others) + spare
        self.renew_later(round_)
        if (others or self._nodes.moves) and not self._spec.is_fold:
            self.save(round_)
        numbers = tuple(number for number in round_.branches if number)
        own = round_.branches[0].updates
        self._turn.order(plan.top, o.OpenBranch(self._spec.number, round_.epoch, 0, own, numbers, spare))
        for number in numbers:
            self.order_open(round_, round_.branches[number])

    def order_open(self, round_: Round, record: BranchRecord, adopt: bool = False) -> None:
        """Have the node open the branch; `adopt`: with what an earlier life of the node has sealed for it.

        What another branch has, too, is not adopted: else the branch would be given up for it, with all that it has.

        It gets all its leaves, also when it was closed with fewer: the round's row says how many it takes, and
        whoever coordinates next grants as many.
        """
        home = self._nodes.home
        parent = self._nodes.gateway_of(home) if record.node != home else ""
        at = (self._spec.number, round_.epoch, record.number)
        secret = self._nodes.secret_for(record.node, *at)
        order = o.OpenBranch(*at, record.updates_max, parent=parent, adopt=adopt, secret=secret)
        if adopt:
            others = (client for client, number in round_.places.items() if number != record.number)
            order = msgspec.structs.replace(order, without=tuple(others))
        self._turn.order(record.node, order)

    def order_close(self, round_: Round, record: BranchRecord) -> None:
        """Have the node take no more updates into the branch."""
        self._turn.order(record.node, o.CloseBranch(self._spec.number, round_.epoch, record.number))

    def order_drop(self, node: int, epoch: int, number: int) -> None:
        """Have the node free a branch that the round goes on without."""
        self._turn.order(node, o.DropBranch(self._spec.number, epoch, number))

    def save(self, round_: Round) -> None:
        """Make durable what a coordinator that starts again must know."""
        rows = [[record.number, f"{record.node:016x}", record.updates] for record in round_.branches.values()]
        fields = {"parts": rows, "next_part": round_.next_branch}
        self._turn.emit(fx.SaveRound(self._spec.name, round_.number, round_.attempt, "open", fields))

    def close(self, round_: Round) -> None:
        """Take no more updates anywhere."""
        self._give_more_time(round_)
        for record in list(round_.branches.values()):
            if record.state in (BranchState.OPEN, BranchState.RECOVERING):
                self.order_close(round_, record)
        self.expect(round_)

    def drop(self, round_: Round) -> None:
        """Have everything of the round freed: it ends without a model."""
        for node in {self._nodes.home, *round_.nodes}:
            self._turn.order(node, o.DropBranch(self._spec.number, round_.epoch))

    def closed(self, round_: Round, record: BranchRecord, updates: int) -> None:
        """Note that a branch is closed: of each update in it was told before."""
        if record.open:
            record.move(BranchState.CLOSED)  # OPEN -> CLOSED
        elif not record.closed:
            return
        if record.state is BranchState.CLOSED:
            record.updates = updates
        self._give_more_time(round_)
        if round_.phase is Phase.COLLECTING:
            self.fill(round_)
            if round_.expected is not None and _is_shut(round_):  # no more can come, and the top makes the model
                round_.deadline_at_s = min(round_.deadline_at_s, self._turn.now)
        self.expect(round_)

    def sealed(self, round_: Round, record: BranchRecord, report: o.BranchSealed) -> None:
        """Note what a branch's partial, which is complete, has cost."""
        record.cost = report.cost
        self._give_more_time(round_)

    def arrived(self, round_: Round, record: BranchRecord, report: o.PartialArrived) -> Believed:
        """Note that the top has a branch's partial: what is in it counts, and nothing else of that branch."""
        record.move(BranchState.ARRIVED)  # OPEN, CLOSED, RECOVERING, FORGETTING -> ARRIVED
        self._give_more_time(round_)
        round_.between_bytes += report.moved_bytes
        record.updates = len(report.members)
        return round_.believe(record, report.members, (), self._turn.now)

    def expect(self, round_: Round) -> None:
        """Tell the top how many partials come, once that is known."""
        records = round_.branches.values()
        if round_.phase is not Phase.AGGREGATING or not round_.others_max:
            return
        if all(record.closed for record in records):
            partials = sum(record.number > 0 and record.updates > 0 for record in records)
            if partials != round_.expected:
                round_.expected = round_.others_max = partials
                self._turn.order(self._nodes.home, o.ExpectPartials(self._spec.number, round_.epoch, partials))

    # ---- given up ----------------------------------------------------------------------------------------------------

    def give_up(self, round_: Round, record: BranchRecord) -> None:
        """Ask the top to forget the branch; a top that has started again itself is asked when it has said so."""
        record.move(BranchState.FORGETTING)  # OPEN, CLOSED, RECOVERING -> FORGETTING
        if not round_.home_unknown:
            self.order_forget(round_, record)

    def late(self, round_: Round) -> str:
        """Give up the branches whose partials do not come, though their nodes live.

        Return why the round fails, if there are none: then it is the model that does not come.
        """
        self._give_more_time(round_)
        late = [record for record in round_.branches.values() if record.number and _is_awaited(record)]
        for record in late:
            self.give_up(round_, record)
            self.order_drop(record.node, round_.epoch, record.number)
        within = (
            f"within {self._aggregate_s:g} s of what had come (twice aggregation.task_deadline_s, and {MOVING_S:g} s)"
        )
        return "" if late else f"no model was made {within}"

    @property
    def _aggregate_s(self) -> float:
        """How long nothing may come of a round that is closed: the tasks of a branch wait for each other."""
        return 2 * self._spec.config.aggregation.task_limit_s + MOVING_S

    def _give_more_time(self, round_: Round) -> None:
        """Note that there is something new of the round, if it is closed."""
        if round_.phase is Phase.AGGREGATING:
            round_.aggregate_until_s = self._turn.now + self._aggregate_s

    def order_forget(self, round_: Round, record: BranchRecord) -> None:
        """Have the top say whether it has the branch's partial, and take it no more if not."""
        self._turn.order(self._nodes.home, o.ForgetBranch(self._spec.number, round_.epoch, record.number))

    def forgotten(self, round_: Round, record: BranchRecord) -> AskAgain | None:
        """Note that the branch is lost for good, if it was given up.

        The round's row is to say so (`save`) before its updates are asked for again: whoever coordinates next would
        count what its node may still have.
        """
        if record.state is not BranchState.FORGETTING:
            return None
        lost = AskAgain(*round_.take_out(record))
        fields = {"round": round_.number, "node": f"{record.node:016x}", "updates": lost.accepted}
        self._turn.emit(fx.Publish("branch.lost", self._spec.name, fields))
        return lost

    def node_leaves(self, round_: Round, node: int) -> None:
        """Let what a node that is about to go was still to be granted go elsewhere, and close its branches.

        One that is drained takes what has no place elsewhere, and what is under way; its branches close behind that.
        Nothing is done before it is known what they have (`all_leave` follows).
        """
        if round_.phase is Phase.RECOVERING:
            return
        drains = self._nodes.drains(node)
        records = [record for record in round_.branches.values() if record.node == node and record.open]
        for record in filter(lambda record: record.number, records):
            record.updates -= max(0, round_.room(record))
            if not drains:
                self.order_close(round_, record)
        if round_.phase is Phase.COLLECTING:
            self.fill(round_)
        for record in records if drains else ():
            close_drained(self, round_, record)

    # ---- the plan is renewed -----------------------------------------------------------------------------------------

    def renew_later(self, round_: Round) -> None:
        """Set the time at which the plan is to be renewed."""
        if self._spec.is_fold:
            return  # its updates come here
        round_.replan_at_s = self._turn.now + self._spec.config.aggregation.replan_interval_s

    def replan(self, round_: Round) -> None:
        """Let what is not granted yet go where the nodes' load of now says."""
        self.renew_later(round_)
        before = {record.number: record.updates for record in round_.branches.values()}
        if len(self._nodes) < 2 or not _places_left(round_):
            return
        for record in round_.branches.values():
            record.updates -= max(0, round_.room(record))
        self.fill(round_, may_wait=False)
        after = {record.number: record.updates for record in round_.branches.values()}
        if after != before:
            self._replanned(round_)

    def take_over(self, round_: Round, node: int, to: int) -> bool:
        """Let another node take what one can still be granted, of which a client there cannot reach it.

        One place is enough where a branch there has a leaf for it.  Return False when nothing can move.
        """
        room = round_.room_at(node) if self._nodes.fits(to, self._spec.config.node_labels) else 0
        if room > 0 and _widen(round_, 1, to):
            _narrow(round_, node, 1)
            return True
        if room <= 0 or not _places_left(round_):
            return False
        _narrow(round_, node, room)
        record = self._add(round_, to, room)
        self.save(round_)
        self._turn.order(self._nodes.home, o.AwaitBranch(self._spec.number, round_.epoch, record.number))
        self.order_open(round_, record)
        self._replanned(round_)
        return True

    def _replanned(self, round_: Round) -> None:
        for client in [client for client in round_.assigned if client not in round_.places]:
            round_.unassign(client)
        fields = {"round": round_.number, "parts": len(round_.nodes)}
        self._turn.emit(fx.Publish("round.replanned", self._spec.name, fields))

    def fill(self, round_: Round, may_wait: bool = True) -> bool:
        """Find branches for what the others do not take, by a plan of the nodes as they are now.

        They `may_wait` where there is no room for them yet: they have no place.
        Return whether that opened some; then the round's row is written.
        """
        missing = _missing(round_)
        if missing <= 0:
            return False
        try:
            wanted = self._planner.plan_more(round_, missing, may_wait).updates
        except Refused as refused:
            wanted = {}
            fields = {"round": round_.number, "missing": missing, "reason": refused.text}
            self._turn.emit(fx.Publish("round.short", self._spec.name, fields))
        opened = []
        for node, updates in sorted(wanted.items(), key=lambda item: -item[1]):
            left = updates - _widen(round_, updates, node)
            if left and _places_left(round_):
                opened.append(self._add(round_, node, left))
        missing = _missing(round_)
        if opened:
            opened[0].updates += missing  # there were more nodes than places
            opened[0].updates_max += missing
            self.save(round_)
        else:
            _widen(round_, missing, None)
        for record in opened:
            self._turn.order(self._nodes.home, o.AwaitBranch(self._spec.number, round_.epoch, record.number))
            self.order_open(round_, record)
        return bool(opened)

    def _add(self, round_: Round, node: int, updates: int) -> BranchRecord:
        record = BranchRecord(round_.next_branch, node, updates)
        record.opened_at_s = self._turn.now
        round_.add(record)
        round_.next_branch += 1
        return record


def all_leave(branches: BranchTracker, round_: Round) -> None:
    """Close the branches of all nodes that are about to go: what they have is known by now."""
    for node in [node for node in round_.nodes if branches._nodes.goes(node)]:
        branches.node_leaves(round_, node)


def close_drained(branches: BranchTracker, round_: Round, record: BranchRecord) -> None:
    """Close a branch of a drained node when nothing more comes there."""
    if record.open and record.number and branches._nodes.drains(record.node):
        coming = any(round_.places[client] == record.number for client in round_.granted)
        if not coming and round_.room(record) <= 0:
            branches.order_close(round_, record)


def drained_again(branches: BranchTracker, round_: Round, record: BranchRecord) -> None:
    """Let what a branch of a drained node was granted in vain go elsewhere."""
    if record.open and branches._nodes.drains(record.node):
        branches.node_leaves(round_, record.node)


def _is_awaited(record: BranchRecord) -> bool:
    """Return whether the branch sends a partial that is not at the top, as far as is known."""
    done = record.state in (BranchState.ARRIVED, BranchState.FORGETTING)
    return not done and not (record.closed and record.updates == 0)


def _missing(round_: Round) -> int:
    """Return how many of the goal's updates no branch takes."""
    return round_.goal - sum(record.updates for record in round_.branches.values())


def _widen(round_: Round, updates: int, node: int | None) -> int:
    """Give open branches (of the node) as many of the updates as their trees have leaves for; return how many."""
    given = 0
    for record in round_.branches.values():
        if record.open and node in (None, record.node):
            more = min(updates - given, record.updates_max - record.updates)
            record.updates, given = record.updates + more, given + more
    return given


def _narrow(round_: Round, node: int, updates: int) -> None:
    """Take so many of the updates that a node's branches can still be granted off them."""
    for record in round_.branches.values():
        if record.node == node:
            less = min(updates, max(0, round_.room(record)))
            record.updates, updates = record.updates - less, updates - less


def _is_shut(round_: Round) -> bool:
    """Return whether no branch takes updates, and none may be there: a round that was open again, after a loss."""
    may_take = (BranchState.OPEN, BranchState.RECOVERING, BranchState.FORGETTING)
    return not _places_left(round_) and not any(record.state in may_take for record in round_.branches.values())


def _places_left(round_: Round) -> int:
    """Return how many more branches the top can take partials of; one that is closed with nothing in it sends none."""
    others = [record for record in round_.branches.values() if record.number]
    return round_.others_max - sum(record.sends for record in others)

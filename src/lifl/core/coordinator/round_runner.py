"""Runs the round of a job from its beginning until its updates are all in, or its deadline has passed.

It decides when the round opens, whose update is in it, and when it closes; what becomes of it then is the job's
(`job.py`).  The ways back are here too: updates that are lost with a node are asked for again, and a round that was
closed may collect once more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lifl.core import effects as fx
from lifl.core.coordinator.branch_record import BranchRecord, BranchState
from lifl.core.coordinator.branches import AskAgain, BranchTracker, all_leave, close_drained, drained_again
from lifl.core.coordinator.brought import Brought
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.presence import Presence
from lifl.core.coordinator.recovery import Inventory, Recovery
from lifl.core.coordinator.round import Phase, Round, note_digest
from lifl.core.coordinator.round_planner import RoundPlanner
from lifl.core.coordinator.rounds import Rounds
from lifl.core.coordinator.selection import Selection, may_be_late
from lifl.core.errors import Refused
from lifl.core.fields import Message
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol.contribution import Contribution, with_digest
from lifl.core.turn import Turn

TOO_LATE = "the round closed before this update was complete"
TOO_FEW = (
    "deadline of {deadline_s:g} s passed with {got} updates accepted; the quorum is {quorum}: raise"
    " selection.deadline_s above the time that training takes, or lower selection.quorum"
)

DECLINED = (
    "{declined} of {selected} selected clients declined ({why}), and {got} updates were accepted within the deadline of"
    " {deadline_s:g} s; the quorum is {quorum}: see to what they say, have more clients join, or lower selection.quorum"
)
NOT_CHOSEN = "{function} (selection.strategy) had not chosen its clients by the deadline of {deadline_s:g} s"
BY_DEADLINE = "{lack}: no more by the deadline of {deadline_s:g} s"
REASONS_TOLD = 3


def _too_few(round_: Round) -> str:
    """Return why a round failed whose deadline has passed: most often who declined had a reason."""
    facts = {"got": len(round_.accepted), "quorum": round_.quorum, "deadline_s": round_.deadline_s}
    if not round_.declined:
        return TOO_FEW.format(**facts)
    reasons = Counter(reason or "no reason given" for reason in round_.declined.values()).most_common()
    told = [f"{count}: {reason}" for reason, count in reasons[:REASONS_TOLD]]
    others = sum(count for _, count in reasons[REASONS_TOLD:])
    why = "; ".join([*told, f"{others}: other reasons"] if others else told)
    return DECLINED.format(**facts, declined=len(round_.declined), selected=len(round_.selected), why=why)


class RoundRunner:
    """Acts on the running round of one job, by the reports on its branches and by its clients."""

    def __init__(
        self,
        spec: JobSpec,
        turn: Turn,
        presence: Presence,
        rounds: Rounds,
        planner: RoundPlanner,
        selection: Selection,
        branches: BranchTracker,
        recovery: Recovery,
    ) -> None:
        self._spec = spec
        self._turn = turn
        self._presence = presence
        self._rounds = rounds
        self._planner = planner
        self._selection = selection
        self._branches = branches
        self._recovery = recovery
        self.brought: Brought | None = None  # of a session of folds

    # ---- it opens and closes ---------------------------------------------------------------------------------------

    def begin(self, row: dict[str, Any] | None) -> None:
        """Begin the current round: it waits for its clients, or goes on where an earlier coordinator left its `row`."""
        if row is not None and self._rounds.current is not None:
            self._recovery.begin(self._rounds.current, row)
            self._take_stock()
            return
        self._take_stock()
        self.try_open()

    def try_open(self) -> None:
        """Open the waiting round when enough clients are there, if it may; select late ones while it collects."""
        round_ = self._rounds.current
        if round_ is None:
            return
        if round_.phase is Phase.COLLECTING:
            self._selection.fill(round_)
        if round_.phase is not Phase.WAITING or self._rounds.held:
            return
        enough = round_.quorum if self._turn.now >= round_.deadline_at_s or self._spec.is_fold else round_.goal
        if self._selection.selectable < enough:
            return
        try:
            plan = self._planner.plan(round_, round_.goal)
        except Refused as refused:  # nodes have left: it waits for them
            if round_.reason != refused.text:
                round_.reason = refused.text
                self._publish("round.waiting", round=round_.number, reason=refused.text)
            return
        round_.reason = ""
        round_.open(self._turn.now)  # WAITING -> COLLECTING
        self._branches.open(round_, plan)
        self._selection.fill(round_)
        self._publish("round.opened", round=round_.number, selected=len(round_.selected), goal=round_.goal)

    def tick(self) -> str:
        """Do what is due; return why the round failed, or nothing."""
        round_, now = self._rounds.current, self._turn.now
        if round_ is None:
            return ""
        if round_.phase is Phase.COLLECTING and now >= round_.replan_at_s:
            self._branches.replan(round_)
        if round_.phase is Phase.AGGREGATING and now >= round_.aggregate_until_s:
            return self._branches.late(round_)
        if now < round_.deadline_at_s:
            return ""
        if round_.phase is Phase.WAITING:
            round_.waited = True
            self.try_open()
        elif round_.phase is Phase.RECOVERING:
            self._recovery.late(round_)
        elif round_.phase is Phase.COLLECTING:
            got, round_.overdue = len(round_.accepted), True
            if got < round_.quorum and self._selection.choosing.waits:
                return NOT_CHOSEN.format(function=self._spec.config.selection.function, deadline_s=round_.deadline_s)
            if got < round_.quorum:
                lack = self._selection.lack(round_)
                return BY_DEADLINE.format(lack=lack, deadline_s=round_.deadline_s) if lack else _too_few(round_)
            self._publish("round.deadline", round=round_.number, accepted=got)
            self.close(round_)
        return ""

    def next_timer(self) -> float:
        """Return when `tick` must be called at the latest; infinity: not at all."""
        round_ = self._rounds.current
        if round_ is None:
            return math.inf
        if round_.phase is Phase.COLLECTING:
            return min(round_.deadline_at_s, round_.replan_at_s)
        if round_.phase is Phase.AGGREGATING:
            return round_.aggregate_until_s
        # One that has come is due until `tick` has seen it, whatever event comes between.
        few_do = round_.phase is Phase.WAITING and round_.quorum < round_.goal and not round_.waited
        return round_.deadline_at_s if few_do or round_.phase is Phase.RECOVERING else math.inf

    def _close_if_complete(self, round_: Round) -> None:
        if round_.phase is Phase.COLLECTING and len(round_.accepted) >= round_.goal and not self._spec.is_fold:
            self.close(round_)

    def close(self, round_: Round) -> None:
        """Let no more updates count."""
        round_.move(Phase.AGGREGATING)  # COLLECTING -> AGGREGATING
        self._branches.close(round_)

    # ---- clients ---------------------------------------------------------------------------------------------------

    def joined(self, client: str, holding: int | None) -> None:
        """Note that a client takes part (again); `holding` is the oldest round whose update it still holds."""
        round_ = self._rounds.current
        if round_ is not None:
            round_.left.discard(client)
        if round_ is not None and round_.phase is Phase.COLLECTING and client not in round_.accepted:
            # One who holds an update of this round sent it before; it was lost with the machine, so it is asked again.
            again = holding == round_.number and (len(round_.selected) < round_.target or may_be_late(round_, client))
            if client in round_.declined:
                return
            if client in round_.selected or again:
                self._selection.invite(round_, client)
                return  # no other client is selected for that
        self.try_open()

    def left(self, clients: Sequence[str], by_themselves: bool = False) -> None:
        """Note that clients are gone; others may be selected in their place."""
        round_ = self._rounds.current
        missed = [c for c in clients if round_ is not None and c in round_.selected and c not in round_.accepted]
        if round_ is not None and missed:
            if by_themselves and round_.phase is Phase.COLLECTING:
                round_.left.update(missed)
            self.try_open()

    def update_sealed(self, report: o.UpdateSealed) -> None:
        """Accept an update that is sealed in its branch.  Only now is its client told ACCEPTED."""
        round_ = self._rounds.at(report.epoch)
        if round_ is None or round_.places.get(report.client) != report.branch:
            return  # it was given up there, and is on its way into another branch
        if report.client in round_.accepted:
            note_digest(round_, report.client, report.digest)
            return
        round_.received_bytes += report.received_bytes
        contribution, over = round_.granted[report.client], round_.granted_over.get(report.client)
        contribution = with_digest(contribution, report.digest)
        round_.accept(contribution, self._turn.now)
        if self._spec.is_fold and over is not None:
            self._presence.send(over, cm.Accepted(self._spec.name, round_.number))
            if self.brought is not None:
                self.brought.tell_host(round_, contribution, over)
        self._tell_accepted(round_, contribution)
        close_drained(self._branches, round_, round_.branches[report.branch])
        self._close_if_complete(round_)

    def update_aborted(self, report: o.UpdateAborted) -> None:
        """Note that a granted update will not come."""
        round_ = self._rounds.at(report.epoch)
        if round_ is None or report.client not in round_.granted or round_.places[report.client] != report.branch:
            return
        del round_.granted[report.client]
        round_.unplace(report.client)
        over = round_.granted_over.pop(report.client, None)
        drained_again(self._branches, round_, round_.branches[report.branch])
        if round_.phase is not Phase.COLLECTING:
            late = cm.RoundOver(self._spec.name, round_.number, TOO_LATE)
            self._presence.tell(self._spec.name, report.client, late)
            if self._spec.is_fold and over is not None:
                self._presence.send(over, late)

    def _tell_accepted(self, round_: Round, *accepted: Contribution) -> None:
        """Tell clients ACCEPTED, whether they wait for that or not."""
        for contribution in accepted:
            self._presence.tell(self._spec.name, contribution.client, cm.Accepted(self._spec.name, round_.number))
            self._publish("update.accepted", round=round_.number, client=contribution.client)

    def _ask_again(self, round_: Round, lost: AskAgain, dropped: bool = False) -> None:
        """Ask for updates that the round has lost; `dropped`: with their branch, which its row is to say first.

        A round that was closed is open again, unless it is complete without them, or none was accepted: then the
        top may have made the model already.
        """
        if round_.phase is Phase.RECOVERING:
            self._finish_recovery(round_)
            return
        late = self._turn.now >= round_.deadline_at_s
        enough = late and len(round_.accepted) >= round_.quorum
        if round_.phase is Phase.AGGREGATING and lost.accepted and not enough:
            round_.move(Phase.COLLECTING)  # AGGREGATING -> COLLECTING
            if late:
                round_.deadline_at_s = self._turn.now + round_.deadline_s
        written = self._branches.fill(round_) if round_.phase is Phase.COLLECTING else False
        if dropped and not written:
            self._branches.save(round_)
        if round_.phase is Phase.COLLECTING:
            present = self._presence.of(self._spec.name)
            for client in lost.clients:
                if client in present:
                    self._selection.invite(round_, client)
        self._close_if_complete(round_)
        self.try_open()
        self._branches.expect(round_)

    # ---- branches --------------------------------------------------------------------------------------------------

    def branch_closed(self, report: o.BranchClosed) -> None:
        """Note that a branch takes no more updates."""
        if (found := self._find(report.epoch, report.branch)) is not None:
            self._branches.closed(*found, report.updates)

    def branch_sealed(self, report: o.BranchSealed) -> None:
        """Note what a branch's partial, which is complete, has cost."""
        round_ = self._rounds.at(report.epoch)
        if round_ is not None and report.branch in round_.branches:
            self._branches.sealed(round_, round_.branches[report.branch], report)

    def partial_arrived(self, report: o.PartialArrived) -> None:
        """Note that the top has the partial of a branch."""
        found = self._find(report.epoch, report.branch)
        if found is None or found[1].state is BranchState.ARRIVED:
            return
        round_, record = found
        self._recovery.arrives(round_, record, report.members)
        self._tell_accepted(round_, *self._branches.arrived(round_, record, report).accepted)
        for (client, *_), digest in zip(report.members, report.digests, strict=False):
            note_digest(round_, client, digest)
        self._settle(round_)

    def branch_forgotten(self, report: o.BranchForgotten) -> None:
        """Ask for the updates of a branch again that is lost for good."""
        if (found := self._find(report.epoch, report.branch)) is not None:
            lost = self._branches.forgotten(*found)
            if lost is not None:
                self._ask_again(found[0], lost, dropped=True)

    def branch_adopted(self, report: o.BranchAdopted) -> None:
        """Note what is sealed in the arena of a node that has started again."""
        found = self._find(report.epoch, report.branch)
        if found is None:
            return
        round_, record = found
        if record.number:
            believed = self._recovery.adopted(round_, record, report.members)
            if believed is not None:
                self._tell_accepted(round_, *believed.accepted)
                self._ask_again(round_, AskAgain(believed.gone, accepted=0))
                all_leave(self._branches, round_)
        elif round_.home_unknown:
            believed = self._recovery.home_adopted(round_, report.members)
            self._tell_accepted(round_, *believed.accepted)
            self._take_stock()
            self._finish_recovery(round_)

    def _find(self, epoch: int, number: int) -> tuple[Round, BranchRecord] | None:
        round_ = self._rounds.current
        record = round_.branches.get(number) if round_ is not None and round_.epoch == epoch else None
        return (round_, record) if round_ is not None and record is not None else None

    def _settle(self, round_: Round) -> None:
        """Do what follows when more of the round's branches is known."""
        self._close_if_complete(round_)
        self._finish_recovery(round_)
        self._branches.expect(round_)

    # ---- nodes -----------------------------------------------------------------------------------------------------

    def inventory(self, node: int, inventory: Inventory) -> None:
        """Compare what a node has, as it says, with the books; while they are not complete at home, later."""
        self._recovery.keep(node, inventory)
        self._take_stock()

    def node_gone(self, node: int) -> None:
        """Give up the branches of a node that is dead, or has left."""
        self._recovery.node_gone(self._rounds.current, node)
        self.try_open()

    def _take_stock(self) -> None:
        """Compare with the books what nodes said they have, those that said so before there were books included."""
        for node in self._recovery.comparable(self._rounds.current):
            round_ = self._rounds.current
            believed = self._recovery.take_stock(round_, node, [saving.epoch for saving in self._rounds.saving])
            if round_ is not None:
                self._tell_accepted(round_, *believed.accepted)
                self._settle(round_)

    def _finish_recovery(self, round_: Round) -> None:
        recovered = self._recovery.finish(round_)
        if recovered is None:
            return
        if recovered.closing:
            self.close(round_)
        all_leave(self._branches, round_)
        self._close_if_complete(round_)
        self.try_open()

    def _publish(self, name: str, **fields: Any) -> None:
        self._turn.emit(fx.Publish(name, self._spec.name, fields))


def heard(runner: RoundRunner, node: int, report: Message) -> None:
    """Note what a node says of its branches before what it has is compared with the books."""
    runner._recovery.heard(node, report)

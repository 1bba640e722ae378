"""A round's branches on the nodes, as its job keeps them: opened, closed, lost and replaced, found again.

The books can differ from what the nodes have when a node dies, a connection breaks, or the coordinator itself starts
again.  Who is right:

* A partial that the top has counts, whatever became of the node that made it; its members are in it.  So a branch is
  given up in two steps: the top is asked to forget it, and only when it says that it will never take that partial are
  the branch's updates asked for again, from their clients, into another branch.
* A node that says what it has (Inventory) is believed about its branches; a branch that it has not is given up.
  A node whose `lifld` has started again adopts what is sealed in its arena, and says who is in that.
* After its own start the coordinator knows from its database which branches a round had.  It begins with what is
  sealed in its own arena and waits `NODE_RETURN_S` for the other nodes; nothing is granted until then, for an
  update that a node already has must not be taken a second time elsewhere.

The plan is renewed while a round collects: every `aggregation.replan_interval_s`, and when a node dies or is about to
leave.  Only what is not granted yet moves, by the books or into another branch; what is sealed stays.  The top is
opened with `SPARE_PARTIALS` places beyond those that are planned (if its arena has the room), and never takes more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lifl.core import effects as fx
from lifl.core.coordinator.round import Part, Phase, Round
from lifl.core.errors import Refused
from lifl.core.protocol import commands as o
from lifl.core.protocol.cluster import BranchHeld
from lifl.core.protocol.contribution import Contribution

if TYPE_CHECKING:
    from lifl.core.coordinator.job import Job, Planned

NODE_RETURN_S = 10.0
"""How long a coordinator that has started again waits for the nodes that had a part of the round: longer than an
agent takes to notice, and to dial."""

SPARE_PARTIALS = 4
"""Branches that a round on several nodes can have beyond those it began with, a lost one's place not counted."""


class Parts:
    """The branches of one job's running round."""

    def __init__(self, job: Job) -> None:
        self.job = job
        # By node: inventories that come before the round is recovered, and whether the node has started again.
        self._held: dict[int, tuple[list[BranchHeld], bool]] = {}

    def _order(self, node: int, order: o.Order) -> None:
        self.job.services.order(node, order)

    @property
    def _home(self) -> int:
        return self.job.services.home

    # ---- open and close --------------------------------------------------------------------------------------------

    def open(self, round_: Round, plan: Planned) -> None:
        """Opens the branches of a plan."""
        others = {node: updates for node, updates in plan.updates.items() if node != plan.top}
        round_.add(Part(0, plan.top, plan.updates.get(plan.top, 0)))
        for node, updates in others.items():
            self._add(round_, node, updates)
        spare = self._spare(len(others)) if len(self.job.services.nodes) > 1 else 0
        round_.others_max = len(others) + spare
        round_.replan_at_s = self.job.now + self.job.config.aggregation.replan_interval_s
        if others:
            self._save(round_)
        numbers = tuple(number for number in round_.parts if number)
        own = round_.parts[0].updates
        self._order(plan.top, o.OpenBranch(self.job.number, round_.epoch, 0, own, numbers, spare))
        for number in numbers:
            self._open(round_, round_.parts[number])

    def _spare(self, others: int) -> int:
        """Places for more partials make the tree of the top deeper: not at the price of a round that cannot end."""
        need = self.job.bytes_min(others + SPARE_PARTIALS)
        return SPARE_PARTIALS if self.job.services.has_room(need) else 0

    def _add(self, round_: Round, node: int, updates: int) -> Part:
        part = Part(round_.next_part, node, updates)
        round_.add(part)
        round_.next_part += 1
        return part

    def _open(self, round_: Round, part: Part, adopt: bool = False) -> None:
        parent = self.job.services.gateway_of(self._home) if part.node != self._home else ""
        at = (self.job.number, round_.epoch, part.number)
        self._order(part.node, o.OpenBranch(*at, part.updates, parent=parent, adopt=adopt))

    def _save(self, round_: Round) -> None:
        """What a coordinator that starts again must know."""
        rows = [[part.number, f"{part.node:016x}", part.updates] for part in round_.parts.values()]
        fields = {"parts": rows, "next_part": round_.next_part}
        self.job.services.emit(fx.SaveRound(self.job.name, round_.number, round_.attempt, "open", fields))

    def close(self, round_: Round) -> None:
        """No more updates count."""
        for part in list(round_.parts.values()):
            if not (part.closed or part.forgetting):
                self._order(part.node, o.CloseBranch(self.job.number, round_.epoch, part.number))
        self._expect(round_)

    def drop(self, round_: Round) -> None:
        """The round ends without a model."""
        for node in {self._home, *round_.nodes}:
            self._order(node, o.DropBranch(self.job.number, round_.epoch))

    def _find(self, epoch: int, number: int) -> tuple[Round, Part] | None:
        round_ = self.job.round
        part = round_.parts.get(number) if round_ is not None and round_.epoch == epoch else None
        return (round_, part) if round_ is not None and part is not None else None

    def branch_closed(self, report: o.BranchClosed) -> None:
        """A branch is closed: of each update in it was told before."""
        found = self._find(report.epoch, report.branch)
        if found is not None and not found[1].forgetting:
            round_, part = found
            part.closed, part.updates = True, report.updates
            if round_.phase is Phase.COLLECTING:
                self._fill(round_)
            self._expect(round_)

    def partial_arrived(self, report: o.PartialArrived) -> None:
        """The top has the partial of a branch: what is in it counts, and nothing else of that branch."""
        found = self._find(report.epoch, report.branch)
        if found is None or found[1].arrived:
            return
        round_, part = found
        round_.between_bytes += report.moved_bytes
        part.arrived = part.closed = True
        part.forgetting = part.recovering = False
        part.updates = len(report.members)
        self._believe(round_, part, report.members, ())
        self.job.close_if_complete(round_)
        self._recovered_if_all(round_)
        self._expect(round_)

    def _believe(self, round_: Round, part: Part, members: o.Contributions, granted: o.Contributions) -> list[str]:
        """These are in the part, or on their way into it; no others.  Returns who is not."""
        here = {client for client, *_ in (*members, *granted)}
        gone = [client for client in round_.clients_of(part) if client not in here]
        for client in gone:
            round_.remove(client)
        for client, weight, metrics in members:
            round_.granted.pop(client, None)
            round_.selected[client] = None
            round_.place(client, part)
            if client not in round_.accepted:
                self.job.accept(round_, Contribution(client, weight, metrics))
        for client, weight, metrics in granted:
            round_.selected[client] = None
            round_.place(client, part)
            round_.granted[client] = Contribution(client, weight, metrics)
        return gone

    def _expect(self, round_: Round) -> None:
        """Tells the top how many partials come, once that is known."""
        parts = round_.parts.values()
        if round_.phase is not Phase.AGGREGATING or not round_.others_max:
            return
        if all(part.closed and not part.forgetting for part in parts):
            partials = sum(part.number > 0 and part.updates > 0 for part in parts)
            if partials != round_.expected:
                round_.expected = round_.others_max = partials
                self._order(self._home, o.ExpectPartials(self.job.number, round_.epoch, partials))

    # ---- nodes that die --------------------------------------------------------------------------------------------

    def node_gone(self, round_: Round, node: int) -> None:
        """A node is dead: the top may have its partials, else they are lost."""
        self._held.pop(node, None)
        for part in list(round_.parts.values()):
            if part.node == node and part.number:
                self._give_up(round_, part)

    def node_renewed(self, node: int) -> None:
        """A node's `lifld` has started again before it was held dead: it may have what was sealed."""
        self._held.pop(node, None)
        round_ = self.job.round
        for part in list(round_.parts.values()) if round_ is not None else ():
            if part.node == node and part.number and not (part.arrived or part.forgetting):
                part.recovering, part.closed = True, False

    def recovers_at(self, node: int) -> bool:
        """Whether the node is to keep what an earlier life of it has sealed."""
        if self.job.round is not None:
            return any(part.node == node and part.recovering for part in self.job.round.parts.values())
        _attempt, _status, fields = self.job.rows.get(self.job.model_round + 1, (0, "", {}))
        return any(int(name, 16) == node for _number, name, _updates in fields.get("parts", ()))

    def _give_up(self, round_: Round, part: Part) -> None:
        if part.arrived or part.forgetting:
            return
        part.forgetting = True
        if round_.phase is not Phase.RECOVERING or round_.home_adopted:
            self._order(self._home, o.ForgetBranch(self.job.number, round_.epoch, part.number))

    def branch_forgotten(self, report: o.BranchForgotten) -> None:
        """The branch is lost for good: its updates are asked for again, unless the round is complete without them."""
        found = self._find(report.epoch, report.branch)
        if found is None or not found[1].forgetting:
            return
        round_, part = found
        lost, accepted = round_.take_out(part)
        self.job.publish("branch.lost", round=round_.number, node=f"{part.node:016x}", updates=accepted)
        self._ask_again(round_, lost, accepted)

    def _ask_again(self, round_: Round, lost: list[str], accepted: int) -> None:
        """Updates that were in the round, or on their way, are not; so many were accepted.

        A round that was closed is open again, unless it is complete without them, or none was accepted: then the
        top may have made the model already.
        """
        if round_.phase is Phase.RECOVERING:
            self._recovered_if_all(round_)
            return
        late = self.job.now >= round_.deadline_at_s
        enough = late and len(round_.accepted) >= round_.quorum
        if round_.phase is Phase.AGGREGATING and accepted and not enough:
            round_.move(Phase.COLLECTING)
            if late:
                round_.deadline_at_s = self.job.now + round_.deadline_s
        if round_.phase is Phase.COLLECTING:
            self._fill(round_)
        for client in lost:
            if client in self.job.present and round_.phase is Phase.COLLECTING:
                self.job.tell_selected(client, round_)
        self.job.close_if_complete(round_)
        self.job.try_open()
        self._expect(round_)

    # ---- the plan is renewed -----------------------------------------------------------------------------------------

    def _fill(self, round_: Round) -> None:
        """Branches for what the others do not take, by a plan of the nodes as they are now."""
        missing = self._missing(round_)
        if missing <= 0:
            return
        try:
            wanted = self.job.services.plan(self.job, missing).updates
        except Refused as refused:
            wanted = {}
            self.job.publish("round.short", round=round_.number, missing=missing, reason=refused.text)
        opened = []
        for node, updates in sorted(wanted.items(), key=lambda item: -item[1]):
            left = updates - self._widen(round_, updates, node)
            if left and self._places_left(round_):
                opened.append(self._add(round_, node, left))
        missing = self._missing(round_)
        if opened:
            opened[0].updates += missing  # there were more nodes than places
            opened[0].updates_max += missing
            self._save(round_)
        else:
            self._widen(round_, missing, None)
        for part in opened:
            self._order(self._home, o.AwaitBranch(self.job.number, round_.epoch, part.number))
            self._open(round_, part)

    @staticmethod
    def _missing(round_: Round) -> int:
        return round_.goal - sum(part.updates for part in round_.parts.values())

    @staticmethod
    def _widen(round_: Round, updates: int, node: int | None) -> int:
        """Gives open parts (of the node) as many of the updates as their trees have leaves for; returns how many."""
        given = 0
        for part in round_.parts.values():
            if part.open and node in (None, part.node):
                more = min(updates - given, part.updates_max - part.updates)
                part.updates, given = part.updates + more, given + more
        return given

    @staticmethod
    def _places_left(round_: Round) -> int:
        others = [part for part in round_.parts.values() if part.number]
        return round_.others_max - sum(not (part.closed and part.updates == 0) for part in others)

    def replan(self, round_: Round) -> None:
        """What is not granted yet goes where the nodes' load of now says."""
        round_.replan_at_s = self.job.now + self.job.config.aggregation.replan_interval_s
        before = {part.number: part.updates for part in round_.parts.values()}
        if len(self.job.services.nodes) < 2 or not self._places_left(round_):
            return
        for part in round_.parts.values():
            part.updates -= max(0, round_.room(part))
        self._fill(round_)
        after = {part.number: part.updates for part in round_.parts.values()}
        if after != before:
            for client in [client for client in round_.assigned if client not in round_.places]:
                round_.unassign(client)
            self.job.publish("round.replanned", round=round_.number, parts=len(round_.nodes))

    def node_leaves(self, round_: Round, node: int) -> None:
        """A node is about to go: its branches are closed with what they have, the rest goes elsewhere."""
        for part in round_.parts.values():
            if part.node == node and part.open and part.number:
                part.updates -= max(0, round_.room(part))
                self._order(node, o.CloseBranch(self.job.number, round_.epoch, part.number))
        if round_.phase is Phase.COLLECTING:
            self._fill(round_)

    # ---- the coordinator has started again ---------------------------------------------------------------------------

    def recover(self, round_: Round, fields: dict[str, Any]) -> None:
        """Finds out what the branches of an earlier coordinator have."""
        round_.move(Phase.RECOVERING)
        round_.deadline_at_s = self.job.now + NODE_RETURN_S
        round_.next_part = fields.get("next_part", 1)
        round_.add(Part(0, self._home, round_.goal))
        for number, name, updates in fields.get("parts", ()):
            node = int(name, 16)
            if node != self._home:  # what is here is all adopted into branch 0
                part = Part(number, node, updates)
                part.recovering = True
                round_.add(part)
        others = tuple(number for number in round_.parts if number)
        spare = self._spare(len(others)) if others else 0
        round_.others_max = len(others) + spare
        adopt = o.OpenBranch(self.job.number, round_.epoch, 0, round_.goal, others, spare, adopt=True)
        self._order(self._home, adopt)

    def adopted(self, report: o.BranchAdopted) -> None:
        """What is sealed in the arena of a node that has started again; the coordinator's own comes first."""
        found = self._find(report.epoch, report.branch)
        if found is None:
            return
        round_, part = found
        if part.number:
            self._adopted_at(round_, part, report.members)
            return
        round_.home_adopted = True
        self._believe(round_, part, report.members, ())
        for other in list(round_.parts.values()):
            if other.forgetting:
                self._order(self._home, o.ForgetBranch(self.job.number, round_.epoch, other.number))
        self.begun(round_)
        self._recovered_if_all(round_)

    def _adopted_at(self, round_: Round, part: Part, members: o.Contributions) -> None:
        if not part.recovering or part.forgetting:
            return
        here = {client for client, *_ in members}
        places = [round_.parts.get(round_.places.get(client, -1)) for client in here]
        elsewhere = any(place is not None and (place.arrived or not place.number) for place in places)
        was = {client for client in round_.clients_of(part) if client in round_.accepted}
        missing = not here or not was <= here
        if elsewhere or missing:
            # The top has a partial with these already, from an earlier life of either node; or the arena is not what it
            # was, and the earlier life's partial, with what is missing, may still be on its way to the top.
            self._order(part.node, o.DropBranch(self.job.number, round_.epoch, part.number))
            self._give_up(round_, part)
            return
        part.recovering = False
        part.updates = part.updates_max = max(part.updates, len(members))
        lost = self._believe(round_, part, members, ())
        if round_.phase is Phase.AGGREGATING:
            self._order(part.node, o.CloseBranch(self.job.number, round_.epoch, part.number))
        self._ask_again(round_, lost, accepted=0)

    def begun(self, round_: Round) -> None:
        """The round can be compared with what nodes said before it began."""
        for node in list(self._held):
            self._take_stock(round_, node)

    def inventory(self, node: int, held: list[BranchHeld], fresh: bool) -> None:
        """A node is connected (again) and says which branches of this job it has; `fresh`: it has started again."""
        self._held[node] = held, fresh
        round_ = self.job.round
        if self.job.status != "loading" and not (
            round_ is not None and round_.phase is Phase.RECOVERING and not round_.home_adopted
        ):
            self._take_stock(round_, node)

    def _take_stock(self, round_: Round | None, node: int) -> None:
        held, fresh = self._held.pop(node)
        found: set[int] = set()
        for branch in held:
            part = round_.parts.get(branch.branch) if round_ is not None else None
            if round_ is not None and part is not None and branch.epoch == round_.epoch and part.node == node:
                found.add(part.number)
                if not (part.forgetting or part.arrived):
                    self._match(round_, part, branch)
            elif branch.epoch not in [saving.epoch for saving in self.job.saving]:
                self._order(node, o.DropBranch(self.job.number, branch.epoch, branch.branch))
        if round_ is None:
            return
        for part in list(round_.parts.values()):
            if part.node == node and part.number and part.number not in found:
                if fresh and part.recovering and part.updates and not part.forgetting:
                    self._open(round_, part, adopt=True)
                else:
                    self._give_up(round_, part)
        self._recovered_if_all(round_)
        self._expect(round_)

    def _match(self, round_: Round, part: Part, held: BranchHeld) -> None:
        """The node has the branch."""
        if any(round_.places.get(client) == 0 for client, *_ in held.members):
            # Its partial is in the coordinator's arena already; the top refuses it a second time.
            round_.discard(part.number)
            self._order(part.node, o.DropBranch(self.job.number, round_.epoch, part.number))
            return
        part.recovering = False
        self._believe(round_, part, held.members, held.granted if not held.closed else ())
        # What an earlier coordinator moved here by the books alone is not in its row.
        part.updates = max(part.updates, round_.placed(part))
        if held.closed:
            part.closed, part.updates = True, len(held.members)
        elif round_.phase is Phase.AGGREGATING:
            self._order(part.node, o.CloseBranch(self.job.number, round_.epoch, part.number))
        self.job.close_if_complete(round_)

    def wait_over(self, round_: Round) -> None:
        """Nodes that did not come back in time are given up."""
        for part in list(round_.parts.values()):
            if part.recovering:
                self._give_up(round_, part)

    def _recovered_if_all(self, round_: Round) -> None:
        if round_.phase is not Phase.RECOVERING or not round_.home_adopted:
            return
        parts = list(round_.parts.values())
        if any(part.recovering or part.forgetting for part in parts):
            return
        if not round_.accepted and not round_.others_max:
            for part in parts:
                round_.discard(part.number)
            round_.home_adopted = False
            round_.move(Phase.WAITING)
            round_.deadline_at_s = self.job.now + round_.deadline_s
            self.job.try_open()
            return
        # More than the goal may have been sealed; which of them were told ACCEPTED is not known, so all count.
        round_.goal = max(round_.goal, len(round_.accepted))
        others = sum(part.updates for part in parts if part.number)
        parts[0].updates = max(round_.goal - others, round_.placed(parts[0]))
        parts[0].updates_max = parts[0].updates
        round_.replan_at_s = self.job.now + self.job.config.aggregation.replan_interval_s
        round_.open(self.job.now)
        round_.last_accepted_s = self.job.now
        if round_.others_max:
            self._save(round_)
        self.job.publish("round.adopted", round=round_.number, accepted=len(round_.accepted))
        if any(part.closed for part in parts) and len(round_.accepted) >= round_.quorum:
            self.job.close(round_)  # it was being closed
        self.job.close_if_complete(round_)
        self.job.try_open()

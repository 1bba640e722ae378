"""One attempt at one round, as the coordinator keeps it: who is selected, granted, accepted.

This is the ledger.  An update is *granted* from its admission, *accepted* when it is sealed, *counted* when the
round commits.  Its identity is (job, round, client): a client that submits again gets the first one's answer.

Nothing here acts: `round_runner.py`, `branches.py` and `recovery.py` do, and these are their books.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from lifl.core.config.job import SelectionSection
from lifl.core.coordinator.branch_record import BranchRecord, BranchState
from lifl.core.coordinator.presence import Connection
from lifl.core.errors import LocalFault
from lifl.core.ids import epoch_of
from lifl.core.protocol.commands import Contributions
from lifl.core.protocol.contribution import Contribution, with_digest


class Phase(Enum):
    """The life of a round; `TRANSITIONS` is the whole of it."""

    RECOVERING = "recovering"  # the coordinator has started again: who has what of this round?
    WAITING = "waiting"  # for clients
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"  # all updates are in, or the deadline has closed it
    SAVING = "saving"  # the model is sealed, its checkpoint is being written
    COMMITTED = "committed"
    FAILED = "failed"


_P = Phase
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    _P.RECOVERING: frozenset({_P.WAITING, _P.COLLECTING, _P.FAILED}),
    _P.WAITING: frozenset({_P.RECOVERING, _P.COLLECTING, _P.FAILED}),
    _P.COLLECTING: frozenset({_P.AGGREGATING, _P.FAILED}),
    _P.AGGREGATING: frozenset({_P.COLLECTING, _P.SAVING, _P.FAILED}),  # back when a node dies with what it had
    _P.SAVING: frozenset({_P.COMMITTED, _P.FAILED}),
    _P.COMMITTED: frozenset(),
    _P.FAILED: frozenset(),
}


class Believed(NamedTuple):
    """What a node's word about a branch changed: updates that are accepted now, clients whose update is not in it."""

    accepted: list[Contribution]
    gone: list[str]


class Round:
    """The books of one attempt at one round."""

    def __init__(
        self, number: int, attempt: int, selection: SelectionSection, now: float, phase: Phase = Phase.WAITING
    ) -> None:
        self.number = number
        self.attempt = attempt
        self.epoch = epoch_of(number, attempt)
        self.phase = phase
        self.goal = self.target = self.quorum = 0
        self.deadline_s, self.deadline_at_s = 0.0, now
        self.began_at_s = now
        self.changes: dict[str, Any] = {}  # of the job's config: it is the first to run with these
        self.opened_at_s: float | None = None
        self.selected: dict[str, None] = {}
        self.declined: dict[str, str] = {}  # those of them who said that they take no part, and why
        self.left: set[str] = set()  # those of them who went, before their update was accepted, and are not back
        self.overdue = False  # the deadline has passed while it collected
        self.waited = False  # the deadline has passed while it waited for clients
        self.suspects: frozenset[str] = frozenset()  # whose update made it fail, by name
        self.trained: frozenset[str] = frozenset()  # who had an update accepted in an earlier attempt
        self.training: frozenset[str] = frozenset()  # who was selected in one and had not: it may come late
        self.spoilt: frozenset[str] = frozenset()  # whose update made an attempt fail: it is to be trained anew
        self.branches: dict[int, BranchRecord] = {}  # by number; 0 has the top; `add` and `discard` change it
        self._at: dict[int, dict[int, BranchRecord]] = {}  # the same by node: a client costs no look at all nodes
        self.next_branch = 1
        self.top_only = False  # home, where branch 0 is, takes no updates: it has not the labels that its job asks for
        self.others_max = 0  # how many partials of others the top was opened for
        self.expected: int | None = None  # how many it was told will come
        self.replan_at_s = math.inf
        self.aggregate_until_s = math.inf  # while it aggregates: something more must have come by then
        self.assigned: dict[str, int] = {}  # by client: the node whose gateway it was told to use
        self.places: dict[str, int] = {}  # by client: the branch that has its update, or gets it
        self._placed: defaultdict[int, dict[str, None]] = defaultdict(dict)  # the same by branch
        self._awaited: Counter[int] = Counter()  # by node: who is assigned there and has no place yet
        self.sent: dict[str, int] = {}  # by client: the node that it was sent to when it came to another one
        self.granted: dict[str, Contribution] = {}
        self.granted_over: dict[str, Connection] = {}  # by client: over which connection it was granted, or asked last
        self.accepted: dict[str, Contribution] = {}
        self.saved = False
        self.digests: tuple[str, ...] = ()  # of its checkpoint's files
        self.reason = ""
        self.received_bytes = 0
        self.between_bytes = 0
        self.granted_at_s: dict[str, float] = {}  # by client, as the next: what the receipt tells when
        self.accepted_at_s: dict[str, float] = {}
        self.last_accepted_s: float | None = None
        self.sealed_s: float | None = None
        self.saved_s: float | None = None
        select_by(self, selection)

    def move(self, phase: Phase) -> None:
        """Raise `LocalFault`, and change nothing, when the table does not allow it."""
        if phase not in TRANSITIONS[self.phase]:
            raise LocalFault(f"round {self.number} cannot go from {self.phase.value} to {phase.value}")
        self.phase = phase

    def open(self, now: float) -> None:
        """Let updates come, until the deadline."""
        self.move(Phase.COLLECTING)
        self.opened_at_s = now
        self.deadline_at_s = now + self.deadline_s

    def follow(self, failed: Round) -> None:
        """Note that this round is tried again after an attempt that `failed`, from the same model."""
        self.changes = failed.changes
        self.spoilt = failed.spoilt
        self.trained = (failed.trained | failed.accepted.keys()) - self.spoilt
        self.training = (failed.training | (failed.selected.keys() - failed.declined)) - self.trained - self.spoilt

    # ---- branches --------------------------------------------------------------------------------------------------

    def add(self, record: BranchRecord) -> None:
        """Make the branch one of the round's."""
        if record.number in self.branches:
            raise LocalFault(f"round {self.number} has a branch {record.number} already")
        self.branches[record.number] = self._at.setdefault(record.node, {})[record.number] = record

    def discard(self, record: BranchRecord) -> None:
        """Forget the branch: it is none of the round's any more."""
        record.move(BranchState.DROPPED)
        del self.branches[record.number], self._at[record.node][record.number]
        if not self._at[record.node]:
            del self._at[record.node]

    def take_out(self, record: BranchRecord) -> tuple[list[str], int]:
        """Forget the branch, and who was in it; return the clients, and how many of them were accepted."""
        self.discard(record)
        lost = self.clients_of(record)
        accepted = sum(client in self.accepted for client in lost)
        for client in lost:
            self.remove(client)
        return lost, accepted

    @property
    def nodes(self) -> list[int]:
        """The nodes that have a branch of the round."""
        return list(self._at)

    @property
    def home_unknown(self) -> bool:
        """True until the coordinator's own node, after a restart, has said what of the round it has."""
        return 0 in self.branches and self.branches[0].state is BranchState.RECOVERING

    def room(self, record: BranchRecord) -> int:
        """Return how many more updates the branch can be granted."""
        return record.updates - len(self._placed[record.number]) if record.open else 0

    def placed(self, record: BranchRecord) -> int:
        """Return how many updates the branch has, or gets."""
        return len(self._placed[record.number])

    def clients_of(self, record: BranchRecord) -> list[str]:
        """Return whose updates the branch has, or gets."""
        return list(self._placed[record.number])

    def room_at(self, node: int) -> int:
        """Return how many more updates can be granted at the node."""
        return sum(self.room(record) for record in self._at.get(node, {}).values())

    def branch_for(self, node: int) -> BranchRecord | None:
        """Return the branch at the node that takes another update: with room, or the only one of the round."""
        here = [record for record in self._at.get(node, {}).values() if record.open]
        # Those selected beyond the goal may come, too, and the first ones count; not where others' branches are lost,
        # and the top has no leaves for theirs.
        if len(self.branches) == 1 and not self.top_only and (not here or here[0].updates_max >= self.goal):
            return here[0] if here else None
        return next((record for record in here if self.room(record) > 0), None)

    # ---- clients ---------------------------------------------------------------------------------------------------

    def assign(self, client: str, own: int) -> None:
        """Choose the node that a client without a place is told: `own` where that has room, else the one with most."""
        self.unassign(client)
        best = own
        if own not in self._at or self._unclaimed_at(own) <= 0:
            room = {node: self._unclaimed_at(node) for node in self._at}
            best = max(room, key=lambda node: (room[node] > 0, node == own, room[node]))
        self.assigned[client] = best
        self._awaited[best] += 1

    def unassign(self, client: str) -> None:
        """Forget which node the client was told."""
        node = self.assigned.pop(client, None)
        if node is not None and client not in self.places:
            self._awaited[node] -= 1

    def _unclaimed_at(self, node: int) -> int:
        """Return the room at a node beyond what those who were told it will take."""
        return self.room_at(node) - self._awaited[node]

    def place(self, client: str, record: BranchRecord) -> None:
        """Note that the client's update is in the branch, or on its way there."""
        self.unplace(client)
        if client in self.assigned:
            self._awaited[self.assigned[client]] -= 1
        self.places[client] = record.number
        self._placed[record.number][client] = None

    def unplace(self, client: str) -> None:
        """Note that the client's update is nowhere."""
        number = self.places.pop(client, None)
        if number is not None:
            del self._placed[number][client]
            if client in self.assigned:
                self._awaited[self.assigned[client]] += 1

    def grant(self, contribution: Contribution, record: BranchRecord, now: float) -> None:
        """Note that the client's update may come into the branch."""
        self.granted[contribution.client] = contribution
        self.granted_at_s[contribution.client] = now
        self.place(contribution.client, record)

    def accept(self, contribution: Contribution, now: float) -> None:
        """Note that the update is sealed in its branch."""
        self.granted.pop(contribution.client, None)
        self.granted_over.pop(contribution.client, None)
        self.accepted[contribution.client] = contribution
        self.last_accepted_s = self.accepted_at_s[contribution.client] = now

    def remove(self, client: str) -> None:
        """Note that the client's update is not in the round (any more)."""
        self.accepted.pop(client, None)
        self.granted.pop(client, None)
        self.unplace(client)
        self.unassign(client)

    def believe(self, record: BranchRecord, members: Contributions, granted: Contributions, now: float) -> Believed:
        """Note that `members` are in the branch and `granted` on their way into it, and no others."""
        here = {client for client, *_ in (*members, *granted)}
        gone = [client for client in self.clients_of(record) if client not in here]
        for client in gone:
            self.remove(client)
        accepted = []
        for member in members:
            client = member[0]
            self.selected[client] = None
            self.place(client, record)
            if client not in self.accepted:
                contribution = Contribution(*member)
                self.accept(contribution, now)
                accepted.append(contribution)
        for each in granted:
            self.selected[each[0]] = None
            self.grant(Contribution(*each), record, now)
        return Believed(accepted, gone)

    # ---- what must hold --------------------------------------------------------------------------------------------

    def faults(self) -> Iterator[str]:
        """Yield what cannot be."""
        yield from self._branch_faults()
        placed: defaultdict[int, set[str]] = defaultdict(set)
        for client, number in self.places.items():
            placed[number].add(client)
        for number in placed.keys() | self._placed.keys():
            if placed[number] != self._placed[number].keys():
                yield f"the clients of branch {number} are {sorted(placed[number])}, and {sorted(self._placed[number])}"
        awaited = Counter(node for client, node in self.assigned.items() if client not in self.places)
        if awaited != +self._awaited or min(self._awaited.values(), default=0) < 0:
            yield f"awaited at the nodes are {awaited}, and in the books {self._awaited}"
        if both := self.granted.keys() & self.accepted.keys():
            yield f"granted and accepted at once: {sorted(both)}"
        if self.places.keys() != self.granted.keys() | self.accepted.keys():
            apart = self.places.keys() ^ (self.granted.keys() | self.accepted.keys())
            yield f"placed but neither granted nor accepted, or the other way round: {sorted(apart)}"
        if strange := (self.places.keys() | self.assigned.keys()) - self.selected.keys():
            yield f"in the books and not selected: {sorted(strange)}"

    def _branch_faults(self) -> Iterator[str]:
        at: dict[int, dict[int, BranchRecord]] = {}
        for number, record in self.branches.items():
            at.setdefault(record.node, {})[number] = record
            if record.number != number or number >= self.next_branch or record.state is BranchState.DROPPED:
                yield f"branch {record.number} ({record.state.value}) stands under {number} of {self.next_branch}"
            placed = self.placed(record)
            if record.open and not placed <= record.updates <= record.updates_max and len(self.branches) > 1:
                yield f"branch {number}: {placed} placed, it takes {record.updates} of {record.updates_max}"
            if record.closed and sum(client in self.accepted for client in self._placed[number]) > record.updates:
                yield f"branch {number} is {record.state.value} with {record.updates}, and more are accepted in it"
        partials = sum(record.updates > 0 for number, record in self.branches.items() if number)
        if partials > self.others_max:
            yield f"{partials} branches may send a partial, and the top takes {self.others_max}"
        if at != self._at:
            yield f"the branches by node are {at}, and in the books {self._at}"
        if lost := set(self.places.values()) - self.branches.keys():
            yield f"clients have places in branches {sorted(lost)}, which are not there"


def select_by(round_: Round, selection: SelectionSection) -> None:
    """Note what a round that waits for its clients is to be selected, and closed, by."""
    round_.goal = selection.clients_per_round
    round_.target = math.ceil(selection.clients_per_round * selection.over_provision)
    round_.quorum = selection.quorum or selection.clients_per_round
    round_.deadline_at_s += selection.deadline_s - round_.deadline_s
    round_.deadline_s, round_.waited = selection.deadline_s, False


def note_digest(round_: Round, client: str, digest: int) -> None:
    """Note the digest of an update, if it is accepted and that is not known: an earlier life has accepted it."""
    member = round_.accepted.get(client)
    if member is not None and isinstance(member.digest, msgspec.UnsetType):
        round_.accepted[client] = with_digest(member, digest)

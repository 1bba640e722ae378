"""What an agent knows of a job for all the job's life."""

from __future__ import annotations

import msgspec

from lifl.core.config.job import QuotaSection
from lifl.core.errors import Refused, RemoteFault
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.arena_need import branch_bytes_min, fold_bytes_min, round_bytes_min
from lifl.core.planning.treatment import Patterns, reads_model, treated
from lifl.core.protocol.commands import FetchJob, LoadJob, OpenBranch, OpenJob
from lifl.core.schema import Layout

RECORDS_SHARE = 64
"""Of so many parts of a partial one may be room for records that it has not: it is reserved for it in any case."""


class ReplicaSpec:
    """A job's constants on this node, from the coordinator's `OpenJob`.  Raise `RemoteFault` when it has no model."""

    def __init__(self, order: OpenJob) -> None:
        self.number = order.number
        self.name = order.job
        self.aggregation = order.aggregation
        self.clients_per_round = order.clients_per_round
        self.durable = order.durability == "disk"
        self.fold = order.fold is True
        self.owner = "" if isinstance(order.owner, msgspec.UnsetType) else order.owner
        self.quota = QuotaSection() if isinstance(order.quota, msgspec.UnsetType) else order.quota
        try:
            self.layout = Layout(order.tensors, order.aggregation.is_reproducible)
        except Refused as refused:
            raise RemoteFault(f"the coordinator opens job {order.job!r} with no model: {refused}") from refused
        self.treated = treated(self.layout, order.aggregation)
        trainable = () if isinstance(order.trainable, msgspec.UnsetType) else order.trainable
        self.patterns = Patterns.of(order.aggregation, trainable)
        self.places = self.layout.places if trainable else ()
        self.reads_model = not self.fold or reads_model(self.layout, order.aggregation, trainable)
        self.listed = order.listed
        self.state_names = order.states
        self.room_bytes = 0 if isinstance(order.room_bytes, msgspec.UnsetType) else order.room_bytes  # 0: a round's
        self.evaluates = order.evaluates is True
        self.client_options = order.client_options
        self.path = order.path
        self.source = order.source if isinstance(order, FetchJob) else ""  # whose gateway the model is fetched from
        self.state_path = order.state_path
        self.own_round = order.round if isinstance(order, LoadJob) else None  # whose checkpoint is to be loaded
        self.digests = order.digests if isinstance(order, LoadJob) else ()

    @property
    def tie(self) -> int:
        """The job's number where its rule is the user's own code, to which its workers are tied; else 0."""
        return self.number if ":" in self.aggregation.rule else 0

    @property
    def has_code(self) -> bool:
        """Whether code of the user's own has part in it: what that has had of the arena is nobody else's."""
        return bool(self.tie) or self.evaluates

    @property
    def code(self) -> str:
        """What the rule is called where a worker's end is laid to it."""
        return f"rule {self.aggregation.rule} (aggregation.rule)"

    @property
    def round_bytes(self) -> int:
        """What a round needs of an arena at the least where all of it is on one node, which coordinates the job."""
        bytes_min = fold_bytes_min if self.fold else round_bytes_min
        return bytes_min(self.layout, self.aggregation, self.clients_per_round, len(self.state_names))

    @property
    def accumulator_bytes(self) -> int:
        """The bytes of a partial's tensors."""
        return self.layout.accumulator_bytes

    def records_bytes(self, members: int, most: int) -> int:
        """Return the bytes for the records of a partial's members, of which the branch has at most `most`.

        Where it costs little (`RECORDS_SHARE`) all partials of a job get those of the most: so what one has left is
        room for any other, and none lies between two that are too short by a page.
        """
        alike = most * CONTRIBUTION_BYTES_MAX
        return alike if RECORDS_SHARE * alike <= self.accumulator_bytes else members * CONTRIBUTION_BYTES_MAX

    @property
    def state_bytes(self) -> int:
        """The bytes of one of the rule's states."""
        return self.layout.state_bytes


def branch_need(spec: ReplicaSpec, order: OpenBranch, partials: int) -> int:
    """Return the bytes of the arena that a branch needs at the least; it begins with `partials` of an earlier life."""
    if spec.fold:
        return 0
    if order.branch:
        return branch_bytes_min(spec.layout, spec.aggregation, order.updates, spec.clients_per_round)
    places = len(order.others) + order.spare + partials
    states, members = len(spec.state_names), spec.clients_per_round
    return round_bytes_min(spec.layout, spec.aggregation, order.updates, states, places, members)

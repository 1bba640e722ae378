"""What an agent knows of a job for all the job's life."""

from __future__ import annotations

from lifl.core.protocol.commands import OpenJob
from lifl.core.schema import Layout


class ReplicaSpec:
    """A job's constants on this node, from the coordinator's `OpenJob`."""

    def __init__(self, order: OpenJob) -> None:
        self.number = order.number
        self.name = order.job
        self.aggregation = order.aggregation
        self.clients_per_round = order.clients_per_round
        self.layout = Layout(order.tensors)
        self.state_names = order.states
        self.client_options = order.client_options
        self.path = order.path
        self.state_path = order.state_path

    @property
    def accumulator_bytes(self) -> int:
        """The bytes of a partial's tensors."""
        return self.layout.accumulator_bytes

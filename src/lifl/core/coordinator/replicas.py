"""A job's copies on the nodes: opened, told where the current model is, saved, closed.

The model is loaded and saved at home; the agents of the other nodes fetch it from there when a client asks for it.
"""

from __future__ import annotations

from typing import Any

from lifl.core.config.job import QuotaSection
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.ids import epoch_of
from lifl.core.protocol import commands as o
from lifl.core.protocol.cluster import LISTED, OWNERS, QUOTAS, TRAINABLE
from lifl.core.turn import Turn


class Replicas:
    """The orders about one job as a whole; `model_round` is the last round whose model is sealed."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable) -> None:
        self.model_round = 0
        self._spec = spec
        self._turn = turn
        self._nodes = nodes

    def load(self, committed: int, adopt: bool, digests: tuple[str, ...] = (), term: int = 0) -> None:
        """Have the model of round `committed` (-1: the initial one) loaded; `adopt`: what is sealed there is kept.

        `term` is the one under which its files were written.
        """
        last = self.model_round = max(committed, 0)
        home, spec = self._nodes.home, self._spec
        if committed < 0:
            self._turn.order(home, self._facts(home, o.OpenJob, path=spec.config.model.path, adopt=adopt))
        else:
            paths = {"path": spec.path_of(last, term), "state_path": spec.state_path_of(last, term)}
            self._turn.order(home, self._facts(home, o.LoadJob, **paths, adopt=adopt, digests=digests))

    def load_session(self, adopt: bool) -> None:
        """Have a session of folds made ready at home; `adopt`: with what is sealed there."""
        home = self._nodes.home
        self._turn.order(home, self._facts(home, o.OpenJob, adopt=adopt, fold=True))

    def fetch(self, committed: int, adopt: bool, source: int) -> None:
        """Have the model of round `committed` fetched from a node that serves its copy."""
        home, gateway = self._nodes.home, self._nodes.gateway_of(source)
        self._turn.order(home, self._facts(home, o.FetchJob, source=gateway, adopt=adopt))

    def serve(self, node: int, committed: int, digests: tuple[str, ...], term: int) -> None:
        """Have a node read its copy of the model of round `committed`, and serve it."""
        paths = self._spec.path_of(committed, term), self._spec.state_path_of(committed, term)
        self._turn.order(node, o.ServeCopy(self._spec.number, epoch_of(committed, 0), *paths, digests))

    def unload(self) -> None:
        """Have what was being loaded freed."""
        self._turn.order(self._nodes.home, o.CloseJob(self._spec.number))

    def open_at(self, node: int, adopt: bool) -> None:
        """Let another node know of the job; `adopt`: it keeps what an earlier life of it has sealed."""
        self._turn.order(node, self._facts(node, o.OpenJob, adopt=adopt))
        self._tell_model(node)

    def _facts(self, node: int, order: type[o.OpenJob], **more: Any) -> o.OpenJob:
        """Return an order with what each copy is told of the job."""
        spec = self._spec
        if spec.config.quota != QuotaSection() and self._nodes.knows(node, QUOTAS):
            more["quota"] = spec.config.quota
        if spec.owner and self._nodes.knows(node, OWNERS):
            more["owner"] = spec.owner
        if spec.config.job.durability == "disk":
            more["durability"] = "disk"
        if spec.config.trainable and self._nodes.knows(node, TRAINABLE):
            more["trainable"] = spec.config.trainable
        if self._nodes.knows(node, LISTED):
            more["listed"] = spec.listed
        if node == self._nodes.home and 0 < (room := self._promised_at_home) < spec.bytes_min():
            more["room_bytes"] = room
        if spec.config.functions and node == self._nodes.home:
            more["evaluates"] = True
        clients, tensors = spec.config.selection.clients_per_round, spec.layout.tensors
        what = (spec.number, spec.name, spec.config.aggregation, clients, tensors, spec.states, self.model_round)
        options = spec.config.client.options_of(1, spec.config.job.rounds)
        return order(*what, client_options=options, **more)

    @property
    def _promised_at_home(self) -> int:
        return self._nodes.promised.get(self._spec.number, {}).get(self._nodes.home, 0)

    def tell_options(self) -> None:
        """Tell the nodes what is handed to trainers from now on; those of earlier versions heed it no more."""
        for node in self._nodes:
            self._turn.order(node, self._facts(node, o.OpenJob, adopt=True))

    def model_made(self, number: int) -> None:
        """Tell the other nodes that there is a new model, that of the round."""
        self.model_round = number
        for node in self._nodes.others():
            self._tell_model(node)

    def _tell_model(self, node: int) -> None:
        source = self._nodes.gateway_of(self._nodes.home)
        self._turn.order(node, o.ModelAt(self._spec.number, self.model_round, source))

    def save(self, number: int, epoch: int) -> None:
        """Have the current model, that of the round, written to its checkpoint."""
        term = self._turn.term
        paths = self._spec.path_of(number, term), self._spec.state_path_of(number, term)
        keep = bool(self._spec.config.checkpoint.copies)
        self._turn.order(self._nodes.home, o.SaveModel(self._spec.number, epoch, *paths, keep))

    def close(self) -> None:
        """Have everything of the job freed everywhere."""
        for node in self._nodes:
            self._turn.order(node, o.CloseJob(self._spec.number))

"""What a job is.  Each part of a job gets this, and not the job; of it `config` alone may change (`job_life.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from lifl.core.config.job import JobConfig
from lifl.core.planning.arena_need import fold_bytes_min, round_bytes_min
from lifl.core.planning.client_list import Told, listed, told_bytes
from lifl.core.planning.treatment import Patterns
from lifl.core.schema import Layout


@dataclass
class JobSpec:
    """One job: its `number` on the wire, its model's `layout`, its rule's `states`, the `folder` of its checkpoints.

    `owner` is who has submitted it, "" when that was in an earlier life of the coordinator.
    """

    number: int
    config: JobConfig
    layout: Layout
    states: tuple[str, ...]
    folder: str
    owner: str = ""

    @property
    def name(self) -> str:
        """The name that clients and users call it."""
        return self.config.job.name

    @property
    def schema_bytes(self) -> int:
        """The bytes that its tensors, the patterns of those that are not averaged, and the list of its clients take on
        the way to a gateway.
        """
        patterns = Patterns.of(self.config.aggregation, self.config.trainable)
        return self.layout.packed_bytes + patterns.packed_bytes + told_bytes(self.listed)

    @property
    def listed(self) -> Told:
        """The clients that it lists, as nodes are told of them."""
        return listed(self.config.selection)

    def path_of(self, number: int, term: int = 0) -> str:
        """Return the path of a committed round's checkpoint; 0 is the initial model.

        Each `term` of a coordinator that moves has files of its own: who coordinates no longer, and has not noticed
        yet, writes over none that counts.
        """
        return f"{self._stem(number, term)}.safetensors"

    def state_path_of(self, number: int, term: int = 0) -> str:
        """Return the path of the rule's state beside the checkpoint; empty where there is none."""
        return f"{self._stem(number, term)}.state.safetensors" if self.states and number > 0 else ""

    def _stem(self, number: int, term: int) -> str:
        return f"{self.folder}/round-{number:05d}" + (f".{term}" if term else "")

    @property
    def is_fold(self) -> bool:
        """Whether it is a session of folds."""
        return self.config.is_fold

    def bytes_min(self, partials: int = 0, goal: int = 0) -> int:
        """Return what a round needs of an arena at the least, with places for `partials` of other nodes.

        `goal` updates come to it; 0: as many as the config says.
        """
        goal = goal or self.config.selection.clients_per_round
        if self.is_fold:
            return fold_bytes_min(self.layout, self.config.aggregation, goal, len(self.states))
        return round_bytes_min(self.layout, self.config.aggregation, goal, len(self.states), partials)

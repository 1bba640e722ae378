"""Which of a job's committed models stay: told with each commit, once its row is durable.

What is told says which rounds stay, and not which go: whoever removes files looks at what is there, so what an earlier
life did not get to goes next time, and nothing is left for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifl.core import effects as fx
from lifl.core.config.keep import OF_EVALUATION
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.limits import TRIM_ROUNDS
from lifl.core.planning.keeping import Best, Kept, better
from lifl.core.protocol import commands as o
from lifl.core.protocol.cluster import KEEPS
from lifl.core.turn import Turn


class Keeping:
    """The books of one job about that; `best` is its best round by now."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable) -> None:
        self.best: Best | None = None
        self._spec = spec
        self._turn = turn
        self._nodes = nodes
        self._since = 0  # rounds before it were committed by an earlier version, which kept them all
        self._said: Mapping[int, Mapping[str, Any]] = {}

    def begin(self, committed: int, said: Mapping[int, Mapping[str, Any]]) -> None:
        """Take up what an earlier life has said with the last commits, the last of them being `committed`."""
        self._said = said
        self.settle(committed)

    def settle(self, committed: int) -> None:
        """Go on from this round, which may be one before the last that was committed."""
        said = self._said.get(committed)
        if said is None:
            self._since = committed + 1
            return
        self._since = said["since"]
        self.best = Best(*said["best"]) if said.get("best") else None

    def committed(self, number: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Note a commit; return what its row is to say."""
        self.best = better(self._spec.config.checkpoint.kept, self.best, number, metrics)
        return {"since": self._since} | ({"best": list(self.best)} if self.best is not None else {})

    def evaluated(self, number: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Note what was found of the last committed round; return what its row is to say, if that is another thing.

        Nothing goes by this: what is not the best any more stays until the next commit.
        """
        before = self.best
        said = self.committed(number, {f"{OF_EVALUATION}{name}": value for name, value in values.items()})
        return {"keep": said} if self.best != before else {}

    def tell(self, committed: int, fresh: int = -1) -> None:
        """Have the files go that do not stay, here and where copies are; `fresh` has just been committed (-1: none)."""
        spec, keep = self._spec, self._spec.config.checkpoint.kept
        if spec.is_fold or committed < 0:
            return
        best = self.best.round if self.best is not None else -1
        kept = Kept(committed, keep.last, keep.every, best, self._since)
        term = self._turn.term
        paths = (spec.path_of(fresh, term), spec.state_path_of(fresh, term)) if fresh >= 0 else ()
        files, upload = tuple(filter(None, paths)), spec.config.checkpoint.upload_url
        self._turn.emit(fx.KeepModels(spec.name, spec.number, spec.folder, kept, fresh, files, upload))
        rows = spec.config.remembered
        if fresh > 0 and fresh % TRIM_ROUNDS == 0 and fresh > min(rows.rounds, rows.receipts):
            before = committed + 1 - rows.rounds, committed + 1 - rows.receipts
            self._turn.emit(fx.TrimRounds(spec.name, *before, kept))
        for node in self._nodes.others() if spec.config.checkpoint.copies else ():
            if self._nodes.knows(node, KEEPS):
                self._turn.order(node, o.KeepCopies(spec.number, kept))

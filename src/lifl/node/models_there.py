"""What is asked of a job's committed models: where one is, which there are, what they take on the disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lifl.core.config.job import JobConfig
from lifl.core.errors import Refused
from lifl.core.modelfile import file_bytes_max, model_pieces, state_pieces
from lifl.core.planning.keeping import Kept, models_max, ranges
from lifl.core.schema import Layout
from lifl.node import folders
from lifl.node.keeper import Keeper, models_in
from lifl.node.rows import AnyJob, JobRow, RoundRow
from lifl.node.store import NodeStore


class ModelsThere:
    """Those of a node with the state folder `state`."""

    def __init__(self, state: Path, store: NodeStore, keeper: Keeper) -> None:
        self._state = state
        self._store = store
        self._keeper = keeper

    def to_read(self, row: AnyJob, number: int) -> Path:
        """Return where the model of a committed round is, which stays while it is read.

        Raise `Refused` when it is not there, and say whether it was not to stay.
        """
        found = next((each for each in self._store.round(row.name, number) if each.status == "committed"), None)
        if found is None or not found.fields.get("path"):
            raise Refused("unknown-round", "round", f"job {row.name!r} has no model of round {number}")
        path = folders.local(self._state, found.fields["path"])
        self._keeper.reads(row.name, number)
        kept = self._rule(row)
        if kept is not None and not kept.has(number) and not path.exists():
            raise Refused("not-kept", "round", not_kept_text(row.name, number, self._rounds(row)))
        return path

    def shown(self, row: AnyJob) -> dict[str, Any]:
        """Return which models there are: {"rounds": [[first, last], ...], "kept": the rule, "best": ...}.

        `kept` is None where nothing says which stay; `best` has the round, its metric and its mean, where there is one.
        """
        kept, last = self._rule(row), self._last(row)
        best = last.fields.get("keep", {}).get("best") if last is not None else None
        named = row.config.checkpoint.kept.best if isinstance(row, JobRow) else ""
        return {
            "rounds": self._rounds(row),
            "kept": msgspec.to_builtins(kept) if kept is not None else None,
            "best": {"round": best[0], "metric": named, "value": best[1]} if best else None,
        }

    def _last(self, row: AnyJob) -> RoundRow | None:
        return next(iter(self._store.committed(row.name, 1)), None)

    def _rule(self, row: AnyJob) -> Kept | None:
        last = self._last(row)
        if last is None or "keep" not in last.fields or not isinstance(row, JobRow):
            return None
        keep, said = row.config.checkpoint.kept, last.fields["keep"]
        best = said["best"][0] if said.get("best") else -1
        return Kept(last.round, keep.last, keep.every, best, said["since"])

    def _rounds(self, row: AnyJob) -> list[tuple[int, int]]:
        return ranges(models_in(folders.local(self._state, row.folder))) if row.folder else []


def not_kept_text(job: str, number: int, rounds: list[tuple[int, int]]) -> str:
    """Return what to say of a model that is asked for and did not stay."""
    there = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in rounds) or "none"
    return f"the model of round {number} of job {job!r} was not kept (checkpoint.keep); there are: {there}"


def disk_need(config: JobConfig, layout: Layout, states: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return what a new job's models will take at most, and what is free: {"models", "bytes", "free_bytes"}."""
    models = models_max(config.checkpoint.kept, config.job.rounds)
    state_bytes = file_bytes_max(state_pieces(layout, states)) if states else 0
    nbytes = models * file_bytes_max(model_pieces(layout)) + (models - 1) * state_bytes
    free = 0
    with suppress(OSError):
        disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
    return {"models": models, "bytes": nbytes, "free_bytes": free}

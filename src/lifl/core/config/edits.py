"""Which keys of a job's config may change after its submission, and why others may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lifl.core.config.job import JobConfig, parse_job
from lifl.core.config.parse import known_keys
from lifl.core.errors import ConfigError

EDITABLE = (
    "job.rounds",
    "job.priority",
    "client.options",
    "client.by_label",
    "checkpoint.keep.last",
    "checkpoint.keep.every",
    "history.keep",
    "selection.over_provision",
    "selection.quorum",
    "selection.deadline_s",
    "selection.attempts",
    "selection.seed",
)
"""The keys that may change, each with all below it."""
REASONS = {
    "job.name": "clients and commands call the job by it",
    "selection.clients_per_round": "the arena is reserved for so many updates",
    "aggregation": "the committed models, and the rule's state, were made by it",
    "model": "round 1 has started from it",
    "checkpoint.keep.best": "the best round was found by it",
    "checkpoint": "the committed models are there",
    "quota": "the nodes are told it once, when the job begins",
}
"""Why a key, or all of a section, may not; of others: the job was begun with it."""
INSTEAD = "submit another job instead, which may start from this one's model (model.from)"


class Edited(msgspec.Struct, frozen=True):
    """A config after an edit; `changes` has the dotted keys that were set, with what they are now."""

    config: JobConfig
    changes: dict[str, Any]


def edited(config: JobConfig, overrides: Sequence[str]) -> Edited:
    """Return `config` with `overrides` (``section.key=value``) laid over it.

    Raise `ConfigError` as `parse_job`, and for a key that may not change.
    """
    paths = [override.partition("=")[0].strip() for override in overrides]
    known = [key for key, is_section in known_keys(JobConfig).items() if not is_section]
    for path in paths:
        if _is_below(path, known) and not _is_below(path, EDITABLE):
            key = next((key for key in REASONS if _is_below(path, (key,))), "")
            why = REASONS.get(key, "the job was begun with it")
            raise ConfigError(path, f"cannot be changed any more: {why}; {INSTEAD}")
    after = parse_job(msgspec.to_builtins(config), overrides)
    for path in paths:
        if not _is_below(path, EDITABLE):
            raise ConfigError(path, "is a section: set its keys one by one")
    table = msgspec.to_builtins(after)
    changes = {path: _at(table, path) for path in paths}
    return Edited(after, changes)


def _is_below(path: str, keys: Sequence[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def _at(table: Mapping[str, Any], path: str) -> Any:
    """Return what stands at a dotted key of a table."""
    value: Any = table
    for key in path.split("."):
        value = value[key]
    return value

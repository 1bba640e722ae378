"""Which of a model's tensors are not treated as the others: by the patterns of a job's config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase, translate
from functools import lru_cache
from typing import Literal

import msgspec

from lifl.core.config.aggregation import AggregationSection
from lifl.core.errors import ConfigError
from lifl.core.fields import TensorPatterns, TrainablePatterns
from lifl.core.limits import TRAINABLE_TENSORS_MAX
from lifl.core.schema import (
    DTYPE_BYTES,
    KEPT,
    Layout,
    Segment,
    TensorSpec,
    Treated,
    averaged_parts,
    other_parts,
)

How = Literal["exclude", "fixed", "first"]
SHOWN_MAX = 6
"""Tensors that are named in one line; the others are counted."""


class Patterns(msgspec.Struct, frozen=True):
    """Of a job, the patterns of what is not averaged, and of its `trainable` tensors: short, whatever the model."""

    fixed: TensorPatterns = ()
    first: TensorPatterns = ()
    trainable: TrainablePatterns = ()

    @classmethod
    def of(cls, aggregation: AggregationSection, trainable: tuple[str, ...]) -> Patterns:
        """Return those of a job."""
        return cls(aggregation.fixed, aggregation.first, trainable)

    @property
    def packed_bytes(self) -> int:
        """The bytes that they take in a frame."""
        return len(msgspec.msgpack.encode(self)) - len(msgspec.msgpack.encode(Patterns()))

    def averaged(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the parts of the layout's segments whose numbers are averaged, and so have to be finite."""
        return averaged_parts(layout.segments, treated(layout, self._section))

    def others(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the parts whose numbers are kept as they are in the model or in one update."""
        return other_parts(layout.segments, treated(layout, self._section))

    @property
    def _section(self) -> AggregationSection:
        return AggregationSection(exclude=(), fixed=self.fixed, first=self.first)


def how_of(tensor: TensorSpec, aggregation: AggregationSection) -> How | None:
    """Return how a tensor is treated; None: as the rule says.  What cannot be averaged is fixed, if nothing is said."""
    if _matches(tensor.name, aggregation.first):
        return "first"
    if _matches(tensor.name, aggregation.fixed) or tensor.dtype in KEPT:
        return "fixed"
    return "exclude" if _matches(tensor.name, aggregation.exclude) else None


def treated(layout: Layout, aggregation: AggregationSection) -> tuple[Treated, ...]:
    """Return the runs of numbers that are treated otherwise, in the order of the layout."""
    indices = {segment.dtype: index for index, segment in enumerate(layout.segments)}
    found: list[Treated] = []
    for tensor, offset in sorted(zip(layout.tensors, layout.offsets, strict=True), key=lambda each: each[1]):
        how = how_of(tensor, aggregation)
        if how is None or not tensor.size:
            continue
        index = indices[tensor.dtype]
        begin = (offset - layout.segments[index].offset) // DTYPE_BYTES[tensor.dtype]
        last = found[-1] if found else None
        if last is not None and (last.segment, last.how, last.begin + last.count) == (index, how, begin):
            found[-1] = Treated(index, last.begin, last.count + tensor.size, how)
        else:
            found.append(Treated(index, begin, tensor.size, how))
    return tuple(found)


MEANS = ("fedavg",)
"""Built-in rules whose models are the mean itself."""


def reads_model(layout: Layout, aggregation: AggregationSection, trainable: tuple[str, ...]) -> bool:
    """Return whether a round's model depends on the one before: by its rule, or for tensors that are kept.

    Of `trainable` ones there may be some that no update has.
    """
    return (
        bool(trainable)
        or aggregation.rule not in MEANS
        or any(run.how == "fixed" for run in treated(layout, aggregation))
    )


def is_trainable(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a tensor is named by `job.trainable`."""
    return _matches(name, patterns)


def trainable_of(tensors: tuple[TensorSpec, ...], patterns: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    """Return the tensors that a job is about: all, or those that its `patterns` name.  Raise `ConfigError`."""
    if not patterns:
        return tensors
    for pattern in patterns:
        if not any(fnmatchcase(tensor.name, pattern) for tensor in tensors):
            raise ConfigError("job.trainable", f"the model has no tensor {pattern!r}")
    found = tuple(tensor for tensor in tensors if _matches(tensor.name, patterns))
    if len(found) > TRAINABLE_TENSORS_MAX:
        text = (
            f"names {len(found)} of the model's tensors, at most {TRAINABLE_TENSORS_MAX} can be sent or not one by one"
        )
        raise ConfigError("job.trainable", f"{text}; leave it out, and give a file with these tensors alone")
    if not any(tensor.size for tensor in found):
        raise ConfigError("job.trainable", "names tensors that hold no number at all")
    return found


def check_patterns(tensors: Sequence[TensorSpec], aggregation: AggregationSection) -> None:
    """Raise `ConfigError` for a pattern that names no tensor, or one that is fixed and first at once."""
    for key, patterns in (("fixed", aggregation.fixed), ("first", aggregation.first)):
        for pattern in patterns:
            if not any(fnmatchcase(tensor.name, pattern) for tensor in tensors):
                raise ConfigError(f"aggregation.{key}", f"the model has no tensor {pattern!r}")
    for tensor in tensors:
        if _matches(tensor.name, aggregation.fixed) and _matches(tensor.name, aggregation.first):
            raise ConfigError("aggregation.first", f"tensor {tensor.name!r} is in aggregation.fixed, too; take one out")


def treatment_lines(tensors: Sequence[TensorSpec], aggregation: AggregationSection, steps: bool) -> list[str]:
    """Return what to tell of it, a line for each way; `steps`: the rule does more than to average."""
    hows = [how_of(tensor, aggregation) for tensor in tensors]
    texts = {"exclude": "averaged only", "fixed": "kept as they are", "first": "taken from one update"}
    lines = []
    for how, text in texts.items():
        names = [tensor.name for tensor, its in zip(tensors, hows, strict=True) if its == how]
        if names and (steps or how != "exclude"):
            more = f" and {len(names) - SHOWN_MAX} more" if names[SHOWN_MAX:] else ""
            lines.append(f"{text}: {', '.join(names[:SHOWN_MAX])}{more}")
    return lines


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return bool(patterns) and _one_of(patterns).match(name) is not None


@lru_cache(maxsize=64)
def _one_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return all patterns as one: a model may have tens of thousands of tensors."""
    return re.compile("|".join(map(translate, patterns)))

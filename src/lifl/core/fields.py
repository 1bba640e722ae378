"""The types of the fields that messages and configurations are made of, each with its limits."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lifl.core.limits import (
    ARENA_BYTES_MAX,
    CAPACITY_MAX,
    COUNT_MAX,
    DEADLINE_S_MAX,
    INCARNATION_MAX,
    METRICS_MAX,
    NAME_CHARS_MAX,
    REAL_MAX,
    TEXT_CHARS_MAX,
    WORKERS_MAX,
)
from lifl.core.schema import TensorSpec

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
"""A job's or client's name."""
NAME_RULE = f"letters, digits and ._:- , a letter or digit first, at most {NAME_CHARS_MAX}"
MetricName = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
Real = Annotated[float, msgspec.Meta(ge=-REAL_MAX, le=REAL_MAX)]
"""Any finite number."""
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=REAL_MAX)]
Weight = Annotated[float, msgspec.Meta(gt=0, le=REAL_MAX)]
Capacity = Annotated[float, msgspec.Meta(ge=0, le=CAPACITY_MAX)]
Metrics = Annotated[dict[MetricName, Real], msgspec.Meta(max_length=METRICS_MAX)]
AnnouncedMetrics = Annotated[dict[MetricName, float], msgspec.Meta(max_length=METRICS_MAX)]
"""As a client announces them: `protocol/submit_check.py` looks at the values, and names the metric."""
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
Tensors = Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=65_536)]
Secret = Annotated[str, msgspec.Meta(max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Integer = Annotated[int, msgspec.Meta(ge=-COUNT_MAX, le=COUNT_MAX)]
Word = Annotated[int, msgspec.Meta(ge=0)]
"""64 bits, each value of which has a meaning: a node's number, a checksum.  The wire has no larger numbers."""
Incarnation = Annotated[int, msgspec.Meta(ge=0, le=INCARNATION_MAX)]
ArenaBytes = Annotated[int, msgspec.Meta(ge=0, le=ARENA_BYTES_MAX)]
WorkersMax = Annotated[int, msgspec.Meta(ge=0, le=WORKERS_MAX)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=DEADLINE_S_MAX)]
KeyBytes = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=True, forbid_unknown_fields=True):
    """The base of all messages; the tag is the class's name."""

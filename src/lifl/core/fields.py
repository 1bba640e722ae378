"""The types of the fields that messages and configurations are made of, each with its limits."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lifl.core.limits import (
    DEADLINE_S_MAX,
    FEATURE_CHARS_MAX,
    FEATURES_MAX,
    GATEWAY_CHARS_MAX,
    GATEWAYS_TOLD_MAX,
    METRICS_MAX,
    NAME_CHARS_MAX,
    TEXT_CHARS_MAX,
)
from lifl.core.schema import TensorSpec

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
"""A job's or client's name."""
NAME_RULE = f"letters, digits and ._:- , a letter or digit first, at most {NAME_CHARS_MAX}"
MetricName = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
Metrics = Annotated[dict[MetricName, float], msgspec.Meta(max_length=METRICS_MAX)]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
Tensors = Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=65_536)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Features = Annotated[
    tuple[Annotated[str, msgspec.Meta(max_length=FEATURE_CHARS_MAX)], ...], msgspec.Meta(max_length=FEATURES_MAX)
]
"""Names of what a peer can take beyond the messages that every peer can; names that one does not know mean nothing."""
Gateways = Annotated[
    tuple[Annotated[str, msgspec.Meta(max_length=GATEWAY_CHARS_MAX)], ...], msgspec.Meta(max_length=GATEWAYS_TOLD_MAX)
]
"""Addresses of gateways, HOST:PORT."""
Seconds = Annotated[float, msgspec.Meta(gt=0, le=DEADLINE_S_MAX)]
KeyBytes = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=True, forbid_unknown_fields=True):
    """The base of all messages; the tag is the class's name."""

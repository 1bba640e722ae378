"""The types of the fields that messages and configurations are made of, each with its limits."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lifl.core.limits import DEADLINE_S_MAX, METRICS_MAX, NAME_CHARS_MAX, TEXT_CHARS_MAX
from lifl.core.schema import TensorSpec

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
"""A job's or client's name."""
NAME_RULE = f"letters, digits and ._:- , a letter or digit first, at most {NAME_CHARS_MAX}"
MetricName = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
Metrics = Annotated[dict[MetricName, float], msgspec.Meta(max_length=METRICS_MAX)]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
Tensors = Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=65_536)]
Digests = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=8)]
"""Of a checkpoint's files, the model's and the states' as far as there are any: checksums as hexadecimal digits."""
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=DEADLINE_S_MAX)]
KeyBytes = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=True, forbid_unknown_fields=True):
    """The base of all messages; the tag is the class's name."""

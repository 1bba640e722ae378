"""On which nodes a job's updates may be: the section `placement`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from lifl.core.fields import NodeLabels


class PlacementSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Only nodes with all these labels (`lifl up --label zone=eu`) take updates of the job: ``nodes = {zone = "eu"}``.

    Model, checkpoints and the top of each round's tree are at the node that coordinates, whatever its labels.
    """

    nodes: Annotated[NodeLabels, msgspec.Meta(min_length=1)]


def fits(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Return whether a node with these labels has all that are `wanted`."""
    return wanted.items() <= labels.items()


def label_text(labels: Mapping[str, str]) -> str:
    """Return labels as people read them."""
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))

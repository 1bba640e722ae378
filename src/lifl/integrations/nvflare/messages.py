"""What NVFlare's messages carry where the tensors go by LIFL: dicts of texts and numbers in the place of params."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lifl.integrations.nvflare.params import Kinds
from lifl.integrations.references import TICKET, Reference

AGGREGATOR = "lifl.aggregator"
"""The property of a run under which the filters find the aggregator."""
MODEL_TOPIC = "lifl.model"
"""By it a client that cannot fetch the model asks for it."""
FACTOR, KINDS, REST, REFUSED = "lifl-factor", "lifl-kinds", "lifl-rest", "lifl-refused"


class Sent(NamedTuple):
    """Of a model, to a client: where to fetch it, and how much its update counts beside its steps.

    `kinds` are those of its params (`params.py`), `rest` those that are not aggregated and so are in the message.
    """

    reference: Reference
    factor: float
    kinds: Kinds
    rest: dict[str, Any]

    def data(self) -> dict[str, Any]:
        """Return what stands for the params."""
        return {**self.reference.texts(), FACTOR: self.factor, KINDS: self.kinds, REST: self.rest}

    @classmethod
    def read(cls, data: Any) -> Sent | None:
        """Return what a message says, if it has no params."""
        reference = _reference(data)
        if reference is None:
            return None
        return cls(reference, float(data.get(FACTOR, 1.0)), dict(data.get(KINDS) or {}), dict(data.get(REST) or {}))


class Brought(NamedTuple):
    """Of an update, from a client: it is brought, or (`refused` says why) it is not."""

    reference: Reference
    refused: str = ""

    def data(self) -> dict[str, Any]:
        """Return what stands for the params."""
        return {**self.reference.texts(), REFUSED: self.refused}

    @classmethod
    def read(cls, data: Any) -> Brought | None:
        """Return what a message says, if it has no params."""
        reference = _reference(data)
        return cls(reference, str(data.get(REFUSED) or "")) if reference is not None else None


def _reference(data: Any) -> Reference | None:
    """Return the reference in the place of params, if there is one and not a tensor that is called so."""
    return Reference.read(data) if isinstance(data, Mapping) and isinstance(data.get(TICKET), str) else None

"""What comes of a fold, and of an update that was added to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from lifl.client.tensors import Array
from lifl.core.errors import LiflError, Refused, ResourceFault


class UpdateRefused(Refused):
    """An update was not taken, and nobody else is harmed.

    `field` names what is at fault, `client` whose update it is, `tensor` the tensor, if it is for one.
    """

    def __init__(self, code: str, field: str, text: str, client: str) -> None:
        super().__init__(code, field, text)
        self.client = client
        self.tensor = field.removeprefix("tensors.") if field.startswith("tensors.") else ""


class FoldFailed(LiflError):
    """The fold has ended without a result: it was cancelled, or its updates cannot be aggregated; the text says why."""


class FoldResult(Mapping[str, Array]):
    """A fold's result: name → read-only array, in the order of the model that it was opened with.

    `clients` are those whose updates are in it, `weight` the sum of their weights, `metrics` the means of what they
    measured, by weight.
    """

    def __init__(
        self, tensors: dict[str, Array], clients: tuple[str, ...], weight: float, metrics: Mapping[str, float]
    ) -> None:
        self._tensors = tensors
        self.clients = clients
        self.weight = weight
        self.metrics = MappingProxyType(dict(metrics))

    def copy(self) -> FoldResult:
        """Return the same with arrays that may be changed.  Raise `ResourceFault` when there is no memory for them."""
        try:
            copied = {name: array.copy() for name, array in self._tensors.items()}
        except MemoryError as error:
            raise ResourceFault("there is no memory for a copy of the result") from error
        return FoldResult(copied, self.clients, self.weight, self.metrics)

    def __reduce__(self) -> tuple[type[FoldResult], tuple[object, ...]]:
        """Return what it is made of anew, elsewhere: with arrays of its own."""
        return FoldResult, (dict(self._tensors), self.clients, self.weight, dict(self.metrics))

    def __getitem__(self, name: str) -> Array:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<FoldResult of {len(self.clients)} clients: {len(self)} tensors>"

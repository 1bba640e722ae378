"""One round of an NVFlare job: updates come by tickets, or in its messages as their own arrays lie.

The fold is opened by the model that is about to be sent.  Updates may be laid out otherwise than it (a part of its
tensors, or wider numbers): then the first that comes in a message opens a fold of its own, and all that count are as
it is.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from lifl.aggregator import Aggregator, Fold, FoldResult, UpdateRefused
from lifl.client.tensors import Array
from lifl.core.errors import LocalFault, Refused
from lifl.core.fields import Name
from lifl.core.limits import DEADLINE_S_MAX
from lifl.core.schema import Layout
from lifl.integrations.nvflare.params import Kinds, as_params, as_tensors, layout_of
from lifl.integrations.references import Reference, digest_of, reference

FULL, DIFF = "FULL", "DIFF"
FREE_RULE = "fedavg"
"""The rule that takes no step from the model: updates may be laid out otherwise than it, or be differences."""


class Laid(NamedTuple):
    """A fold, and what its updates look like."""

    fold: Fold
    layout: Layout
    kinds: Kinds


class Round:
    """One round, of about `expected` updates; its result is of the first update's kinds and type."""

    def __init__(self, aggregator: Aggregator, rule: str, expected: int) -> None:
        self.clients: dict[str, tuple[str, ...]] = {}
        """Whose updates are taken, each with the names of its tensors."""
        self.params_type = ""
        self._aggregator = aggregator
        self._rule = rule
        self._expected = expected
        self._sent: Laid | None = None  # laid out as the model that is sent
        self._counts: Laid | None = None  # that of the first update that was taken
        self._model: dict[str, Array] = {}
        self._digest = ""  # of the model, once it is asked for
        self._references: dict[str, Reference] = {}
        self._spoiled = ""
        self._lock = threading.RLock()

    # ---- the model -------------------------------------------------------------------------------------------------

    @property
    def is_prepared(self) -> bool:
        """Whether the model is known."""
        return self._sent is not None

    @property
    def kinds(self) -> Kinds:
        """Of the model's params."""
        return self._sent.kinds if self._sent is not None else {}

    def prepare(self, params: Any) -> None:
        """Open the fold for updates to the model that is about to be sent.  Raise `LiflError` when it cannot be."""
        self._model, kinds = as_tensors(params)
        self._sent = self._open(self._model, kinds)

    def is_model(self, params: Any) -> bool:
        """Return whether params are the model to the last bit: another filter may have changed what it was given."""
        try:
            tensors, _kinds = as_tensors(params)
        except Refused:
            return False
        return tensors.keys() == self._model.keys() and all(_same(tensors[name], self._model[name]) for name in tensors)

    def refer(self, client: str) -> Reference:
        """Return the reference to the model, by which `client` brings its update, too.  Raise `LiflError`."""
        if self._sent is None:
            raise LocalFault("the round's model is not known: no event has told of it before it was sent")
        with self._lock:  # clients ask for their tasks at the same time: the model is read once
            if client not in self._references:
                self._digest = self._digest or digest_of(self._model)
                fold = self._sent.fold
                self._references[client] = reference(fold, name_of(client), DEADLINE_S_MAX, self._digest)
            return self._references[client]

    # ---- updates ---------------------------------------------------------------------------------------------------

    def add(self, client: str, params: Any, params_type: str, weight: float) -> None:
        """Add the update of `client`.  Raise `UpdateRefused`, naming what cannot be added; nobody else is harmed."""
        try:
            tensors, kinds = as_tensors(params)
            with self._lock:
                self._check_type(params_type)
                laid = self._counts
                if laid is None:  # the first one says how all are laid out: others wait for it
                    laid = self._first(client, tensors, kinds, weight)
                    self._take(client, laid, params_type, tuple(tensors))
                    return
        except UpdateRefused:
            raise
        except Refused as refused:
            raise UpdateRefused(refused.code, refused.field, refused.text, client) from refused
        laid.fold.add(tensors, weight, client=name_of(client))
        with self._lock:
            self._take(client, laid, params_type, tuple(tensors))

    def brought(self, client: str, said: Reference, params_type: str) -> None:
        """Note that `client` has brought its update by its reference.  Raise `UpdateRefused` if it cannot count."""
        with self._lock:
            self._brought(client, said, params_type)

    def _brought(self, client: str, said: Reference, params_type: str) -> None:
        if self._references.get(client) != said or self._sent is None:
            text = "it says that it has brought its update by a ticket that is not the one of its own in this round"
            raise UpdateRefused("wrong-ticket", "ticket", text, client)
        names = tuple(tensor.name for tensor in self._sent.layout.tensors)
        if self._counts is not None and self._counts.fold is not self._sent.fold:
            text = "its update is laid out as the model, and the round's first update is not: no mean is both"
            raise UpdateRefused("wrong-schema", "tensors", text, client)
        try:
            self._check_type(params_type)
        except Refused as refused:
            self._spoiled = f"client {client!r} has brought its update already, and {refused.text}"
            raise UpdateRefused(refused.code, refused.field, refused.text, client) from refused
        self._take(client, self._sent, params_type, names)

    def _take(self, client: str, laid: Laid, params_type: str, names: tuple[str, ...]) -> None:
        self._counts = laid
        self.params_type = params_type
        self.clients[client] = names

    def _first(self, client: str, tensors: dict[str, Array], kinds: Kinds, weight: float) -> Laid:
        """Add the round's first update, and return the fold that it is in."""
        sent = self._sent
        if sent is not None and (self._rule != FREE_RULE or sent.layout.digest == layout_of(tensors).digest):
            sent.fold.add(tensors, weight, client=name_of(client))
            return sent._replace(kinds=kinds)
        own = self._open(tensors, kinds)
        try:
            own.fold.add(tensors, weight, client=name_of(client))
        except BaseException:
            own.fold.cancel()
            raise
        if sent is not None and not self._references:
            sent.fold.cancel()  # nobody can have brought anything to it
        return own

    def _open(self, tensors: Mapping[str, Array], kinds: Kinds) -> Laid:
        return Laid(self._aggregator.open(tensors, self._expected), layout_of(tensors), kinds)

    def _check_type(self, params_type: str) -> None:
        if params_type not in (FULL, DIFF):
            raise Refused("bad-params", "params_type", f"params_type is {params_type!r}; an update is FULL or DIFF")
        if self.params_type and params_type != self.params_type:
            text = f"params_type is {params_type}, that of the round's first update {self.params_type}: no mean is both"
            raise Refused("bad-params", "params_type", text)
        if params_type == DIFF and self._rule != FREE_RULE:
            text = f"rule {self._rule} takes its step from the model, so updates are FULL, and this one is DIFF"
            raise Refused("bad-params", "params_type", text)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def result(self) -> tuple[dict[str, Any], FoldResult]:
        """Close the fold; return the mean as params, and the fold's result.  Raise `LiflError`."""
        if self._spoiled:
            raise Refused("bad-params", "params_type", self._spoiled)
        if self._counts is None:
            raise Refused("no-update", "fold", "the round has no update: no client's was taken, the log says why")
        result = self._counts.fold.result(copy=True)
        params = as_params(result, self._counts.kinds)
        self.cancel()
        return params, result

    def absent(self, result: FoldResult) -> list[str]:
        """Return who said that its update was brought, and it is not there."""
        there = set(result.clients)
        return sorted(client for client in self.clients if name_of(client) not in there)

    def cancel(self) -> None:
        """End what is open."""
        for laid in (self._sent, self._counts):
            if laid is not None:
                laid.fold.cancel()


def _same(one: Array, other: Array) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    ones, others = one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)
    whole = len(ones) // 8 * 8  # eight at a time
    words = np.array_equal(ones[:whole].view(np.uint64), others[:whole].view(np.uint64))
    return words and np.array_equal(ones[whole:], others[whole:])


def name_of(client: str) -> str:
    """Return the name of a client of NVFlare's in LIFL: its own, where that is one."""
    try:
        return str(msgspec.convert(client, Name))
    except msgspec.ValidationError:
        return f"client-{hashlib.sha256(client.encode(errors='surrogatepass')).hexdigest()[:32]}"


def weight_of(meta: Mapping[str, Any] | None, key: str, factor: float) -> float:
    """Return an update's weight as NVFlare takes it: the steps in its meta (1 where there are none), times `factor`."""
    value = (meta or {}).get(key)
    try:
        steps = 1.0 if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        steps = 1.0
    return factor * (steps if math.isfinite(steps) and steps > 0 else 1.0)


def checked_factors(factors: Mapping[str, Any]) -> dict[str, float]:
    """Return the factors of clients' weights.  Raise `LocalFault`, naming the client whose is no number above 0."""
    for client, factor in factors.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
            text = f"aggregation_weights[{client!r}] is {factor!r}; a factor is a number above 0"
            raise LocalFault(f"{text}: to leave a client out, do not sample it")
    return {client: float(factor) for client, factor in factors.items()}

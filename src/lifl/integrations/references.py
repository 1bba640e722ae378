"""References: a message of a framework carries a few words about the tensors, which come and go by LIFL.

The server makes a reference for one client's part in one fold (`reference`), as a flat dict of texts that any
framework's message can hold.  The client's side reads it (`Reference.read`), gets the model that it names and brings
the update (`Taking`).  The digest is of the model: a client does not train on any other.  Where LIFL cannot be reached,
`NotReached` says why, and the tensors go by the framework's own messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from lifl.aggregator import Fold, FoldFailed, Part, UpdateRefused, take_part
from lifl.client.tensors import Array, Tensors, as_arrays
from lifl.core.errors import LiflError
from lifl.core.limits import DEADLINE_S_MAX

REACH_S = 10.0
"""A client that does not reach the gateway within this time has its tensors go the other way."""
TICKET, DIGEST, BEHIND = "lifl-ticket", "lifl-digest", "lifl-behind"


class NotReached(LiflError):
    """The tensors cannot go by LIFL now; the text says why.  The framework's own way is open."""


class Reference(NamedTuple):
    """What a message carries: the ticket of one client in one fold, and its model's SHA-256 (empty: there is none).

    One that is sent before its fold is open has the number of the fold before, `behind`: that one is waited for.
    In a message these are the texts under the keys `TICKET`, `DIGEST` and `BEHIND`.
    """

    ticket: str
    digest: str = ""
    behind: int = 0

    def texts(self) -> dict[str, str]:
        """Return what a message carries."""
        return {TICKET: self.ticket, DIGEST: self.digest, **({BEHIND: str(self.behind)} if self.behind else {})}

    @classmethod
    def read(cls, texts: Mapping[str, Any]) -> Reference | None:
        """Return the reference that a message carries, if it has one."""
        ticket = str(texts.get(TICKET) or "")
        behind = str(texts.get(BEHIND) or "0")
        return cls(ticket, str(texts.get(DIGEST) or ""), int(behind) if behind.isdecimal() else 0) if ticket else None


def reference(fold: Fold, client: str, valid_s: float, digest: str = "", standing: bool = False) -> Reference:
    """Return the reference for the part of `client` in a fold (`standing`: in later ones too), for `valid_s` seconds.

    With `digest`, that of the tensors that the fold was opened with, they are brought to the node for it to fetch.
    Raise what `Fold.ticket` does.
    """
    return Reference(fold.ticket(client, min(valid_s, DEADLINE_S_MAX), bool(digest), standing), digest)


def digest_of(tensors: Tensors) -> str:
    """Return the SHA-256 of tensors, with their names, dtypes and shapes, in hexadecimal digits.

    It does not depend on their order.  Raise what `as_arrays` does.
    """
    found = hashlib.sha256()
    for name, array in sorted(as_arrays(tensors).items()):
        found.update(f"{name!r} {array.dtype.name} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def reference_ahead(fold: Fold, client: str, valid_s: float) -> Reference:
    """Return the reference for the part of `client` in the fold that is opened, `shared`, next after `fold`.

    Raise what `Fold.ticket` does.
    """
    return Reference(fold.ticket(client, min(valid_s, DEADLINE_S_MAX), False, standing=True), behind=fold.number)


class Taking:
    """One client's part in one fold, by a reference; use it in a ``with`` statement.

    Between `model` and `submit` training may take hours: a connection that broke meanwhile is made again.
    """

    def __init__(
        self, reference: Reference, *, identity: str | None = None, reach_within_s: float | None = None
    ) -> None:
        self._reference = reference
        self._identity = identity
        self._reach_within_s = REACH_S if reach_within_s is None else reach_within_s
        self._part: Part | None = None
        self._digest = reference.digest

    def __enter__(self) -> Taking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._part is not None:
            self._part.close()

    def model(self) -> dict[str, Array]:
        """Return the model that the reference names: name → writable array, in the server's order.

        Raise `NotReached`, also when what comes is another model, and `FoldFailed` when the fold is over.
        """
        part = self._taken()
        try:
            model = part.model
        except FoldFailed:
            raise
        except (LiflError, OSError) as error:
            raise NotReached(f"the model cannot be fetched: {error}") from error
        if self._digest and digest_of(model) != self._digest:
            raise NotReached("the node's model is another one than the server's message names (its digest differs)")
        return model

    def submit(self, tensors: Tensors, weight: float, metrics: Mapping[str, float] | None = None) -> None:
        """Bring the update, and return when the node has it.

        Raise `UpdateRefused`, naming the field, when it cannot count anyhow, `FoldFailed` when the fold is over, and
        `NotReached`: then it may ride in the framework's own message.
        """
        part = self._taken()
        try:
            part.submit(tensors, weight, metrics)
        except FoldFailed:
            raise
        except (LiflError, OSError) as error:
            if isinstance(error, UpdateRefused) and error.field != "ticket":
                raise
            raise NotReached(f"the update cannot be brought: {error}") from error

    def next(self) -> None:
        """Wait for the next fold, by a standing reference: its model is what the node says, no message names it.

        Raise `FoldFailed` when there are no more, and `NotReached`.
        """
        self._digest = ""
        try:
            self._taken().next()
        except FoldFailed:
            raise
        except (LiflError, OSError) as error:
            raise NotReached(f"the next fold cannot be waited for: {error}") from error

    def _taken(self) -> Part:
        if self._part is None:
            try:
                self._part = take_part(
                    self._reference.ticket,
                    identity=self._identity,
                    return_within_s=self._reach_within_s,
                    behind=self._reference.behind or None,
                )
            except FoldFailed:
                raise
            except (LiflError, OSError) as error:
                raise NotReached(str(error)) from error
        return self._part

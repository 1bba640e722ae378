"""Who may take part in a job: `selection.clients`, names and patterns of them, in which `*` is any text.

The coordinator asks the list before a client may join.  Nodes serve models without asking it, so they are told the
list, the names as digests: 16,384 of them fit a frame beside the longest schema.
"""

from __future__ import annotations

import hashlib
import re
from fnmatch import translate
from functools import lru_cache
from typing import Annotated

import msgspec

from lifl.core.config.job import SelectionSection
from lifl.core.errors import Refused
from lifl.core.fields import ClientPattern
from lifl.core.limits import CLIENTS_LISTED_MAX, PATTERNS_MAX

NOT_LISTED = "not-listed"
"""The code of a refusal: the job has a list of clients, and this one is not on it."""
DIGEST_BYTES = 16


class Listed(msgspec.Struct, frozen=True):
    """A job's list as it travels: the names' digests, one behind the other, and the patterns."""

    names: Annotated[bytes, msgspec.Meta(max_length=DIGEST_BYTES * CLIENTS_LISTED_MAX)] = b""
    patterns: Annotated[tuple[ClientPattern, ...], msgspec.Meta(max_length=PATTERNS_MAX)] = ()


Told = Listed | msgspec.UnsetType
"""A job's list, where it has one."""


def listed(selection: SelectionSection) -> Told:
    """Return the list of a job's config."""
    if isinstance(selection.clients, msgspec.UnsetType):
        return msgspec.UNSET
    names = b"".join(_digest(name) for name in selection.clients if "*" not in name)
    return Listed(names, tuple(name for name in selection.clients if "*" in name))


def told_bytes(told: Told) -> int:
    """Return the bytes that a list takes in a frame."""
    return 0 if isinstance(told, msgspec.UnsetType) else len(msgspec.msgpack.encode(told))


class ClientList:
    """The list of one job; without one everybody may take part."""

    def __init__(self, told: Told) -> None:
        self._open = isinstance(told, msgspec.UnsetType)
        names, self._patterns = (b"", ()) if isinstance(told, msgspec.UnsetType) else (told.names, told.patterns)
        self._names = frozenset(names[at : at + DIGEST_BYTES] for at in range(0, len(names), DIGEST_BYTES))

    def has(self, client: str) -> bool:
        """Return whether a client may take part."""
        if self._open or _digest(client) in self._names:
            return True
        return bool(self._patterns) and _one_of(self._patterns).match(client) is not None

    def check(self, job: str, client: str) -> None:
        """Raise `Refused` unless the client may take part."""
        if not self.has(client):
            raise Refused(
                NOT_LISTED,
                "client",
                f"client {client!r} may not take part in job {job!r}: it is not on the job's list (selection.clients, "
                "selection.clients_file); come under a name that is, or have this one put on the list of a new job",
            )


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=DIGEST_BYTES).digest()


@lru_cache(maxsize=64)
def _one_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))

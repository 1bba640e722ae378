"""Who may take part in a job: `selection.clients`, names and patterns of them, in which `*` is any text."""

from __future__ import annotations

import re
from fnmatch import translate
from functools import lru_cache

import msgspec

from lifl.core.config.job import SelectionSection
from lifl.core.errors import Refused

NOT_LISTED = "not-listed"
"""The code of a refusal: the job has a list of clients, and this one is not on it."""


class ClientList:
    """The list of one job; without one everybody may take part."""

    def __init__(self, selection: SelectionSection) -> None:
        listed = () if isinstance(selection.clients, msgspec.UnsetType) else selection.clients
        self._open = isinstance(selection.clients, msgspec.UnsetType)
        self._names = frozenset(name for name in listed if "*" not in name)
        self._patterns = tuple(name for name in listed if "*" in name)

    def has(self, client: str) -> bool:
        """Return whether a client may take part."""
        if self._open or client in self._names:
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


@lru_cache(maxsize=64)
def _one_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))

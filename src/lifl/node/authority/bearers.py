"""The bearer tokens of a cluster, on one node: made and revoked at the authority, told to all others.

The coordinator's list takes the place of a node's own; where the coordinator moves a node keeps what any of them has
told it (`cluster/bearer_news.py`).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec

from lifl.core.errors import Refused
from lifl.core.identity import Identity, moment
from lifl.core.limits import BEARERS_MAX
from lifl.core.trust.bearers import Bearer, BearerList, merged
from lifl.core.trust.tokens import NUMBER_BYTES, SECRET_BYTES, Token, digest_of
from lifl.node.authority.credential_store import CredentialStore
from lifl.node.database import DatabaseFault

log = logging.getLogger("lifl.authority")


class BearerTokens:
    """The list of one node; `on_change` is called after each change of it."""

    def __init__(self, store: CredentialStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self.on_change: Callable[[], None] = lambda: None
        self.entries: tuple[Bearer, ...] = tuple(store.bearers(clock()))

    @property
    def list(self) -> BearerList:
        """The tokens, to be asked."""
        return BearerList(self.entries)

    def create(self, authority: str, identity: Identity, job: str, ttl_s: float, after_unix_s: float) -> Token:
        """Make a token of the authority with this digest; its secret is in what is returned, and nowhere else.

        It counts as made after `after_unix_s`, until when all that is the identity's is revoked.
        """
        if identity.role != "client":
            raise Refused("bad-token", "role", f"a bearer token is for a client, not for a {identity.role}")
        now = self._clock()
        kept = [entry for entry in self.entries if now < entry.expires_unix_s]
        if len(kept) >= BEARERS_MAX:
            text = f"{BEARERS_MAX} bearer tokens have not expired: wait until some have (`lifl token list`)"
            raise Refused("too-many-tokens", "token", text)
        number, secret = secrets.token_hex(NUMBER_BYTES), secrets.token_urlsafe(SECRET_BYTES)
        made = moment(max(now, after_unix_s))
        entry = Bearer(number, digest_of(secret), identity.role, identity.name, job, made, now + ttl_s)
        self._put([*kept, entry])
        log.info("bearer.created token=%s name=%s job=%s ttl_s=%g", number, identity.name, job, ttl_s)
        return Token(authority, number, secret, bearer=True)

    def revoke(self, number: str) -> bool:
        """Let nobody take part by a token any more; return whether there is one of this number."""
        found = next((entry for entry in self.entries if entry.number == number), None)
        if found is None:
            return False
        others = [entry for entry in self.entries if entry.number != number]
        self._put([*others, msgspec.structs.replace(found, revoked=True)])
        return True

    def _put(self, entries: Sequence[Bearer]) -> None:
        """Keep a new list, durably, and tell of it."""
        self._store.replace_bearers(entries)
        self.entries = tuple(sorted(entries, key=lambda entry: entry.number))
        self.on_change()

    def merge(self, entries: Sequence[Bearer]) -> None:
        """Add another node's list to the own one."""
        self.replace(merged(self.entries, entries, self._clock()))

    def replace(self, entries: Sequence[Bearer]) -> None:
        """Take the coordinator's list in the place of the own one."""
        if tuple(entries) == self.entries:
            return
        try:
            self._store.replace_bearers(entries)
        except DatabaseFault as fault:  # it holds all the same; after a start the coordinator tells it again
            log.error("bearer.list %s", fault)
        self.entries = tuple(entries)
        self.on_change()

"""What one node has of identities: its own, what is revoked, and the cluster's authority if that is here.

The first node of a cluster has the authority, unless it was given an identity of the operator's own PKI (`ca.pem`,
`cert.pem`, `key.pem` in its identity folder, and no authority): then nobody is let in by a token, and nothing renewed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from lifl.confine import signals
from lifl.core.config.node import NodeConfig, secured
from lifl.core.errors import LiflError, Refused, ResourceFault
from lifl.core.trust.tokens import Token
from lifl.node.authority.authority import Authority, Handed
from lifl.node.authority.authority_file import has_authority, open_authority
from lifl.node.authority.bearers import BearerTokens
from lifl.node.authority.credential_store import CredentialStore
from lifl.node.authority.revocations import Revocations
from lifl.tls.contexts import Contexts, is_usable
from lifl.tls.enrolment import enrol
from lifl.tls.folder import check_room, load, node_folder, save, unwritten
from lifl.tls.peer import Peer
from lifl.tls.signing_request import new_key

ELSEWHERE = "the certificates of this cluster come from elsewhere: it has no authority, and lets nobody in by a token"


class Credentials:
    """The credentials of the node with this number; `hosts` tells by which names and addresses it is reached now.

    A node that joins and has no identity gets one by the token.  `note` is the audit log's.
    """

    def __init__(
        self,
        config: NodeConfig,
        folder: Path,
        number: int,
        hosts: Callable[[], Sequence[str]],
        token: Token | None,
        note: Callable[..., None],
    ) -> None:
        self.note = note
        self.store = CredentialStore(folder / "lifl.db")
        self.revocations = Revocations(self.store, note=note)
        self.bearers = BearerTokens(self.store)
        self.authority: Authority | None = None
        self.contexts: Contexts | None = None
        self.on_renew: Callable[[], None] | None = None
        self.joins, self._secured = bool(config.join), secured(config)
        self.folder = node_folder(folder)
        self._name = f"{number:016x}"
        self.hosts = hosts
        if self._secured:
            try:
                self._open(config, folder, token)
            except BaseException:
                self.close()
                raise

    def _open(self, config: NodeConfig, folder: Path, token: Token | None) -> None:
        files = load(self.folder)
        if not self.joins and (files is None or has_authority(config, folder)):
            authority, path = open_authority(config, folder, self.store)
            self.authority = Authority(authority, path, self.store, self.revocations, self.note)
        if files is None or not is_usable(files):
            if self.authority is not None:
                self._take_own(self.authority)
            elif token is not None:
                check_room(self.folder)
                with signals.heeded_at_once():  # it waits for another machine, and has made nothing yet
                    enrolled = enrol(config.join, token, self._name, True, self.hosts())
                enrolled.save(self.folder)
            files = load(self.folder)
        if files is None:
            raise ResourceFault(
                f"this node has no identity in {self.folder}: join with a token, `lifl up --join HOST:PORT "
                "--token-file F`, which an operator makes with `lifl token create --role node`"
            )
        self.contexts = Contexts(files)

    def rotate(self, authority: Authority) -> str:
        """Put a new authority beside the old one, and have the node's own certificate of it; return its digest."""
        check_room(self.folder)  # else there would be one more authority each time that it is tried again
        digest = authority.rotate()
        self._take_own(authority)
        return digest

    def _take_own(self, authority: Authority) -> None:
        made = new_key()
        self.save(authority.issue_own(self._name, made.request, self.hosts()), made.key)

    def save(self, handed: Handed, key: bytes) -> None:
        """Put a new certificate of the node's own in place, with its key, for the next connection."""
        try:
            save(self.folder, ca=handed.trusted, certificate=handed.chain, key=key)
        except OSError as error:
            raise unwritten(self.folder, error) from error

    def renew_own(self) -> LiflError | None:
        """Renew the certificate of the authority's own node; return why that could not be done."""
        assert self.authority is not None
        try:
            self._take_own(self.authority)
        except LiflError as error:
            return error
        return None

    def renew_now(self) -> None:
        """Have the node's own certificate renewed, soon.  Raise `Refused` when there is none."""
        self.check_secured()
        if not self.renews:
            raise Refused("no-authority", "", ELSEWHERE)
        if self.on_renew is not None:
            self.on_renew()

    @property
    def renews(self) -> bool:
        """Whether there may be an authority that renews the node's own certificate: here, or where it has joined."""
        return self.authority is not None or self.joins

    @property
    def own(self) -> Peer:
        """What the node's own certificate says."""
        assert self.contexts is not None
        return self.contexts.own

    @property
    def has_moved(self) -> bool:
        """Whether the node is reached by names or addresses that its certificate does not have."""
        return not set(self.hosts()) <= set(self.own.hosts)

    @property
    def own_serial(self) -> str:
        """The serial of the node's own certificate."""
        return self.contexts.own.serial if self.contexts is not None else ""

    def authority_here(self, home: str) -> Authority:
        """Return the authority.  Raise `Refused` when it is on another node, whose control address is `home`."""
        self.check_home(home)
        if self.authority is None:
            raise Refused("no-authority", "", ELSEWHERE)
        return self.authority

    def check_home(self, home: str) -> None:
        """Raise `Refused` unless this node is the one whose word about certificates counts."""
        self.check_secured()
        if self.joins:
            where = f"ask the coordinator: lifl --node {home} ..." if home else "its coordinator is not known yet"
            raise Refused("not-the-authority", "", f"this node is not its cluster's authority; {where}")

    def check_secured(self) -> None:
        """Raise `Refused` when this node has no certificates."""
        if not self._secured:
            text = "this node has no certificates: it listens on this machine alone, or with --insecure"
            raise Refused("not-secured", "", f"{text}; one that others reach (--listen HOST:PORT) has")

    def close(self) -> None:
        """Close the database."""
        with contextlib.suppress(ResourceFault):
            self.store.close()

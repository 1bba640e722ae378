"""What a control port answers to who wants a certificate (`core/protocol/enrolment.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lifl.core.errors import LiflError, Refused
from lifl.core.limits import REFUSAL_CHARS_MAX
from lifl.core.protocol import enrolment as e
from lifl.core.protocol.cluster import PeerRedirect, PeerRefusal
from lifl.core.trust.enrolment import Asked
from lifl.core.trust.policy import Action, check
from lifl.node.authority.authority import Authority, Handed, Holder
from lifl.node.authority.credentials import ELSEWHERE, Credentials
from lifl.node.authority.hosts import is_host
from lifl.tls.peer import Peer


class Desk:
    """Answers; `home` tells the control address of the coordinator, empty while this node does not know it."""

    def __init__(self, credentials: Credentials, home: Callable[[], str]) -> None:
        self._credentials = credentials
        self._home = home

    def answer(self, message: e.Asking, peer: Peer | None, source: str) -> e.Answer:
        """Return what is said to who comes from the address `source`, with the certificate of `peer` or with none."""
        authority = self._credentials.authority
        try:
            if authority is None:
                return self._elsewhere()
            match message:
                case e.AskAuthority():
                    return e.TheAuthority(authority.trusted(), time.time())
                case e.Enrol(_version, token, secret, request, name, node, hosts):
                    asked = Asked(name, node)
                    handed = authority.enrol(token, secret, asked, request, _checked([*hosts, source]), source)
                case e.Renew(_version, request, hosts):
                    handed = self._renewed(authority, peer, request, _checked([*hosts, source]))
        except LiflError as error:
            return PeerRefusal(str(error)[:REFUSAL_CHARS_MAX])
        return e.Enrolled(handed.chain, handed.trusted)

    def _renewed(self, authority: Authority, peer: Peer | None, request: bytes, hosts: Sequence[str]) -> Handed:
        if peer is None or peer.cluster != authority.cluster:
            text = "a certificate is renewed by who shows it: this connection shows none of this cluster"
            raise Refused("no-certificate", "", f"{text}; join with a token (lifl enroll HOST:PORT --token-file F)")
        check(peer.identity, Action.RENEW, peer.identity.name)
        return authority.renew(Holder(peer.identity, peer.jobs, peer.serial, peer.issued_unix_s), request, hosts)

    def _elsewhere(self) -> e.Answer:
        self._credentials.check_secured()
        if not self._credentials.joins:
            return PeerRefusal(ELSEWHERE)
        if home := self._home():
            return PeerRedirect(home)
        return PeerRefusal("this member has not found the coordinator itself yet; come again", retry=True)


def _checked(hosts: Sequence[str]) -> tuple[str, ...]:
    """Return what may stand in a certificate, each once."""
    return tuple(dict.fromkeys(filter(is_host, (host.partition("%")[0] for host in hosts))))

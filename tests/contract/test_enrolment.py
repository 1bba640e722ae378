"""Enrolment over real TLS connections: who gets a certificate, and to whom a token's secret is told.

A `ControlPort` answers one connection after the other, in a thread, as the control port of a node does; it writes down
all that it was told.
"""

from __future__ import annotations

import resource
import socket
import sqlite3
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.x509 import load_pem_x509_certificates

from lifl.core.config.node import NodeConfig
from lifl.core.errors import LiflError, Refused, RemoteFault, ResourceFault
from lifl.core.identity import Identity
from lifl.core.limits import GUESSES_MAX
from lifl.core.protocol import cluster as p
from lifl.core.protocol import enrolment as e
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.trust.tokens import Token
from lifl.node.authority.authority_file import AUTHORITY_FILE
from lifl.node.authority.certificate_authority import make_authority
from lifl.node.authority.credentials import Credentials
from lifl.node.authority.desk import Desk
from lifl.tls import enrolment
from lifl.tls.contexts import Contexts
from lifl.tls.enrolment import Obtained, enrol, renew
from lifl.tls.folder import load, save
from lifl.tls.signing_request import new_key
from lifl.tls.tls_socket import TlsSocket

HERE = ("127.0.0.1", "localhost")
Answers = Callable[[Any, Any, str], Any]


def silent(*_what: Any, **_about: Any) -> None:
    """An audit log that keeps nothing."""


class ControlPort:
    """Answers what comes first on each connection; `heard` has all of it."""

    def __init__(self, contexts: Contexts, answers: Answers) -> None:
        self.heard: list[Any] = []
        self._contexts = contexts
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            raw, where = self._listener.accept()
            with raw:
                if not self._attend(raw, where[0]):
                    return

    def _attend(self, raw: socket.socket, host: str) -> bool:
        """Returns False when the test ends it: by a connection that says nothing."""
        raw.settimeout(60)
        if not raw.recv(1, socket.MSG_PEEK):
            return False
        try:
            sock = TlsSocket(raw, self._contexts.server(), server=True)
            sock.do_handshake()
            decoder: FrameDecoder[Any] = FrameDecoder(e.Asking)
            while (message := decoder.next_message()) is None:
                data = sock.recv(65_536)
                if not data:
                    return True
                decoder.feed(data)
            self.heard.append(message)
            sock.sendall(encode(self._answers(message, sock.peer, host)))
            sock.recv(1)
        except OSError:
            pass
        return True

    def close(self) -> None:
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()

    @property
    def secrets(self) -> list[str]:
        return [each.secret for each in self.heard if isinstance(each, e.Enrol)]


class First:
    """The first node of a cluster: its authority, and its control port."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        config = NodeConfig(state_dir=str(folder), listen="0.0.0.0:7433")
        self.folder = folder
        self.credentials = Credentials(config, folder, 0xA, lambda: HERE, None, silent)
        self.desk = Desk(self.credentials, lambda: "")
        assert self.credentials.authority is not None and self.credentials.contexts is not None
        self.authority = self.credentials.authority
        self.port = ControlPort(self.credentials.contexts, self.desk.answer)

    def token(self, role: Any = "client", pattern: str = "*", **more: Any) -> Token:
        return self.authority.create_token(role, pattern, more.get("jobs", ()), more.get("uses", 1), 900.0)

    def close(self) -> None:
        self.port.close()
        self.credentials.close()


@pytest.fixture(autouse=True)
def one_database_for_both_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port's thread and the test's never use it at once: one waits for the other."""
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, check_same_thread=False))


@pytest.fixture
def first(tmp_path: Path) -> Iterator[First]:
    made = First(tmp_path / "first")
    yield made
    made.close()


@pytest.fixture
def ports() -> Iterator[Callable[[Contexts, Answers], ControlPort]]:
    made: list[ControlPort] = []

    def start(contexts: Contexts, answers: Answers) -> ControlPort:
        made.append(ControlPort(contexts, answers))
        return made[-1]

    yield start
    for port in made:
        port.close()


def kept(obtained: Obtained, folder: Path) -> Contexts:
    obtained.save(folder)
    files = load(folder)
    assert files is not None
    return Contexts(files)


def test_a_client_gets_the_identity_that_its_token_says(first: First, tmp_path: Path) -> None:
    token = first.token("client", "hospital-*", jobs=("digits",))
    own = kept(enrol(first.port.address, token, "hospital-a"), tmp_path / "a").own
    assert (own.cluster, own.identity) == (first.authority.cluster, Identity("client", "hospital-a"))
    assert own.jobs == ("digits",) and not own.is_authority
    assert stat.S_IMODE((tmp_path / "a" / "key.pem").stat().st_mode) == 0o600
    assert [type(message) for message in first.port.heard] == [e.AskAuthority, e.Enrol]
    with pytest.raises(Refused, match="used up"):
        enrol(first.port.address, token, "hospital-b")


def test_the_key_stays_where_it_was_made(first: First, tmp_path: Path) -> None:
    obtained = enrol(first.port.address, first.token(), "a")
    key = obtained.key.splitlines()[1]
    for message in first.port.heard:
        assert key not in encode(message)
    first.credentials.store.close()
    for path in first.folder.rglob("*"):
        assert not path.is_file() or key not in path.read_bytes()


def test_a_node_gets_its_number_for_a_name_and_the_hosts_by_which_it_is_reached(first: First, tmp_path: Path) -> None:
    config = NodeConfig(state_dir=str(tmp_path), listen="0.0.0.0:7433", join=first.port.address)
    with pytest.raises(ResourceFault, match="lifl token create --role node"):
        Credentials(config, tmp_path, 0xB, lambda: ("node-b.example.org",), None, silent)
    for pattern, name in (("*", f"{0xB:016x}"), ("rack1-*", f"rack1-{0xC:016x}"), ("n3", "n3")):
        number = {"*": 0xB, "rack1-*": 0xC}.get(pattern, 0xD)
        folder = tmp_path / name
        folder.mkdir()
        token = first.token("node", pattern)
        credentials = Credentials(config, folder, number, lambda: ("node-b.example.org",), token, silent)
        assert credentials.contexts is not None and credentials.authority is None
        assert credentials.contexts.own.identity == Identity("node", name)
        credentials.close()
        again = Credentials(config, folder, number, lambda: (), None, silent)
        assert again.contexts is not None and again.contexts.own.serial == credentials.contexts.own.serial
        again.close()
    from cryptography import x509

    shown = x509.load_pem_x509_certificates((tmp_path / "n3" / "identity" / "cert.pem").read_bytes())[0]
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node-b.example.org"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"], "where it came from"


@pytest.mark.parametrize(("role", "node"), [("client", True), ("node", False)])
def test_a_token_for_the_wrong_kind_is_refused_before_it_is_used(first: First, role: str, node: bool) -> None:
    token = first.token(role, "x")
    with pytest.raises(Refused, match=f"for a {role}"):
        enrol(first.port.address, token, "x", node)
    enrol(first.port.address, token, "x", not node)


# ---- to whom the secret is told --------------------------------------------------------------------------------------


def test_another_clusters_server_hears_no_secret(first: First, tmp_path: Path) -> None:
    other = First(tmp_path / "other")
    try:
        with pytest.raises(Refused) as refused:
            enrol(other.port.address, first.token(), "a")
        assert refused.value.code == "wrong-authority" and "secret was not told" in refused.value.text
        assert [type(message) for message in other.port.heard] == [e.AskAuthority]
    finally:
        other.close()


def test_who_shows_the_right_roots_and_has_not_their_certificate_hears_no_secret(
    first: First, tmp_path: Path, ports: Callable[..., ControlPort]
) -> None:
    """A liar between them can pass on what the authority says of itself, and cannot be it."""
    other = First(tmp_path / "other")
    try:
        liar = ports(other.credentials.contexts, first.desk.answer)
        token = first.token()
        with pytest.raises(ResourceFault, match="not of this cluster's CA"):
            enrol(liar.address, token, "a")
        assert liar.secrets == [] and other.port.secrets == []
        enrol(first.port.address, token, "a")
    finally:
        other.close()


@pytest.mark.parametrize("role", ["node", "client", "operator"])
def test_a_member_that_is_not_the_authoritys_node_hears_no_secret(
    first: First, tmp_path: Path, ports: Callable[..., ControlPort], role: str
) -> None:
    """Each node, and each client, has a certificate of this authority; an operator's token would make it one."""
    member = kept(enrol(first.port.address, first.token(role, "m"), "m", node=role == "node"), tmp_path / "m")
    liar = ports(member, first.desk.answer)
    with pytest.raises(LiflError, match=r"secret was not told|purpose"):
        enrol(liar.address, first.token("operator", "root"))
    assert liar.secrets == []


def test_a_node_without_the_authority_names_the_one_that_has_it(
    first: First, tmp_path: Path, ports: Callable[..., ControlPort]
) -> None:
    config = NodeConfig(state_dir=str(tmp_path), listen="0.0.0.0:7433", join=first.port.address)
    member = Credentials(config, tmp_path, 0xB, lambda: HERE, first.token("node"), silent)
    home = [""]
    port = ports(member.contexts, Desk(member, lambda: home[0]).answer)
    with pytest.raises(Refused, match="not found the coordinator"):
        enrol(port.address, first.token(), "a")
    home[0] = first.port.address
    contexts = kept(enrol(port.address, first.token(), "a"), tmp_path / "a")
    assert renew(port.address, contexts).authority == first.port.address
    assert port.secrets == []
    member.close()


def test_redirects_in_a_circle_end(first: First, ports: Callable[..., ControlPort]) -> None:
    circle: list[str] = []
    port = ports(first.credentials.contexts, lambda message, peer, host: p.PeerRedirect(circle[0]))
    circle.append(port.address)
    with pytest.raises(RemoteFault, match="sent on 4 times"):
        enrol(port.address, first.token(), "a")
    assert len(port.heard) == 5


def test_a_cluster_of_ones_own_pki_lets_nobody_in_by_a_token(first: First, tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    folder.mkdir()
    handed = first.authority
    obtained = enrol(first.port.address, first.token("node", "own"), node=True)
    save(folder / "identity", ca=handed.trusted(), certificate=obtained.chain, key=obtained.key)
    credentials = Credentials(NodeConfig(listen="0.0.0.0:7433"), folder, 0xB, lambda: HERE, None, silent)
    assert credentials.authority is None and not (folder / "authority.pem").exists()
    answer = Desk(credentials, lambda: "").answer(e.AskAuthority(p.PEER_VERSION), None, "127.0.0.1")
    assert isinstance(answer, p.PeerRefusal) and "come from elsewhere" in answer.text
    assert credentials.revocations.revoke("AB" * 16, credentials.own_serial)
    credentials.close()


# ---- wrong tokens, and guesses ---------------------------------------------------------------------------------------


def test_a_guesser_learns_nothing_and_keeps_nobody_out_who_has_a_token(first: First) -> None:
    token = first.token()
    wrong = [Token(token.authority, token.number, "A" * 43), Token(token.authority, "00000000", token.secret)]
    said = set()
    for number in range(GUESSES_MAX):
        with pytest.raises(Refused) as refused:
            enrol(first.port.address, wrong[number % 2], "a")
        said.add(refused.value.text)
    assert len(said) == 1 and token.number not in said.pop()
    for guess in wrong:
        with pytest.raises(Refused, match="that token is wrong, as 10 were"):
            enrol(first.port.address, guess, "a")
    assert enrol(first.port.address, token, "a").chain, "from the address of the guesser, as behind one NAT"


def test_a_replayed_enrolment_gives_a_certificate_for_the_first_ones_key_alone(first: First) -> None:
    """Whoever has recorded all of it, and even broken the encryption, has not the key."""
    token = first.token()
    enrol(first.port.address, token, "a")
    (asked,) = [message for message in first.port.heard if isinstance(message, e.Enrol)]
    again = first.desk.answer(asked, None, "127.0.0.1")
    assert isinstance(again, e.Enrolled)
    from cryptography import x509

    keys = [x509.load_pem_x509_certificates(chain)[0].public_key() for chain in (again.chain,)]
    assert keys[0] == x509.load_der_x509_csr(asked.request).public_key()
    other = first.desk.answer(
        e.Enrol(asked.version, asked.token, asked.secret, enrolment.new_key().request, "b"), None, "127.0.0.1"
    )
    assert isinstance(other, p.PeerRefusal)


def test_an_answer_that_never_comes_is_not_waited_for_for_ever(
    first: First, ports: Callable[..., ControlPort], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "STEP_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ResourceFault, match=f"{address} cannot be reached: no answer within 0.2 s"):
            enrol(address, first.token(), "a")


def test_a_clock_that_is_behind_is_named_and_the_token_is_good_for_another_time(
    first: First, tmp_path: Path, ports: Callable[..., ControlPort]
) -> None:
    """The authority there was made an hour later than it is here."""
    there_unix_s = time.time() + 3600
    ahead, made = make_authority("c1", there_unix_s), new_key()
    own = ahead.issue(made.request, Identity("node", "n"), (), HERE, there_unix_s, there_unix_s, own=True)
    (tmp_path / "shown.pem").write_bytes(made.key + own.chain)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "shown.pem")
    told = e.TheAuthority(ahead.trusted(there_unix_s), there_unix_s)
    port = ports(SimpleNamespace(server=lambda: server), lambda *_about: told)
    with pytest.raises(ResourceFault, match=r"not valid yet.*clock is 3[56]\d\d s behind the one there.*same token"):
        enrol(port.address, Token(ahead.digest, "0123456789abcdef", "secret"))
    assert port.secrets == []


def test_a_rotation_that_the_disk_has_no_room_for_changes_nothing_and_says_what_to_do(first: First) -> None:
    before = first.authority.certificates.digest, (first.folder / AUTHORITY_FILE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ResourceFault, match=r"make room.*nothing was changed"):
            first.credentials.rotate(first.authority)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
        with pytest.raises(ResourceFault, match="the one of before stays: make room on its disk"):
            first.authority.rotate()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (first.authority.certificates.digest, (first.folder / AUTHORITY_FILE).read_bytes()) == before
    assert len(load_pem_x509_certificates(before[1])) == 1


def test_a_port_that_is_none_is_said_to_be_none(first: First) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(ResourceFault, match="control address of a node"):
        enrol(address, first.token(), "a")
    with pytest.raises(ResourceFault, match="HOST:PORT"):
        enrol("nonsense", first.token(), "a")


# ---- renewal ---------------------------------------------------------------------------------------------------------


def test_a_renewal_is_by_the_present_certificate_and_with_a_new_key(first: First, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    contexts = kept(enrol(first.port.address, first.token("client", "a", jobs=("digits",))), folder)
    before, key = contexts.own, (folder / "key.pem").read_bytes()
    renew(first.port.address, contexts).save(folder)
    after = contexts.own
    assert after.serial != before.serial and (after.identity, after.jobs) == (before.identity, before.jobs)
    assert (folder / "key.pem").read_bytes() != key
    renew(first.port.address, contexts).save(folder)


def test_who_shows_no_certificate_or_a_revoked_one_gets_no_other(first: First, tmp_path: Path) -> None:
    asked = e.Renew(p.PEER_VERSION, enrolment.new_key().request)
    answer = first.desk.answer(asked, None, "127.0.0.1")
    assert isinstance(answer, p.PeerRefusal) and "shows none" in answer.text
    contexts = kept(enrol(first.port.address, first.token("client", "a")), tmp_path / "a")
    first.credentials.revocations.revoke("a", first.credentials.own_serial)
    with pytest.raises(Refused, match="revoked"):
        renew(first.port.address, contexts)


def test_after_a_rotation_old_certificates_are_renewed_and_new_tokens_name_the_new_root(
    first: First, tmp_path: Path
) -> None:
    contexts = kept(enrol(first.port.address, first.token("client", "a")), tmp_path / "a")
    old = first.token("client", "b")
    before = first.authority.certificates.digest
    first.credentials.rotate(first.authority)
    new = first.token("client", "c")
    assert (old.authority, new.authority) == (before, first.authority.certificates.digest) and before != new.authority
    enrol(first.port.address, new)
    enrol(first.port.address, old)
    renewed = renew(first.port.address, contexts)
    assert renewed.roots.count(b"BEGIN") == 2
    assert kept(renewed, tmp_path / "a").own.identity == Identity("client", "a")


def test_the_first_nodes_own_certificate_is_the_authoritys_and_is_renewed_by_itself(first: First) -> None:
    contexts = first.credentials.contexts
    assert contexts is not None
    before = contexts.own
    assert before.is_authority and before.identity == Identity("node", f"{0xA:016x}")
    assert first.credentials.renew_own() is None
    assert contexts.own.expires_unix_s >= before.expires_unix_s > time.time()
    assert contexts.own.serial != before.serial and contexts.own.is_authority

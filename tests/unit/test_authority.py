"""The authority: what it certifies, for whom, and how it is rotated; OpenSSL judges the certificates.

`Members` are two ends of a TLS connection in memory: who believes whom is what a handshake says.
"""

from __future__ import annotations

import os
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from lifl.core.config.node import NodeConfig
from lifl.core.errors import Refused, ResourceFault
from lifl.core.identity import Identity, identity_of, issued_of
from lifl.core.limits import (
    CERTIFICATE_LIFETIME_S,
    CLOCK_SKEW_S,
    GUESS_WINDOW_S,
    GUESSES_MAX,
    KEY_AGE_S_MAX,
    REQUEST_BYTES_MAX,
    REVOKED_MAX,
    SERIAL_DIGITS_MIN,
    TOKENS_MAX,
    UNASKED_PER_DAY_MAX,
)
from lifl.core.protocol.cluster import Revoked
from lifl.core.trust.enrolment import Asked
from lifl.core.trust.revocation import Revocation
from lifl.core.trust.tokens import Token, read_token
from lifl.node.authority import credential_store, revocations
from lifl.node.authority.authority import Authority, Handed, Holder
from lifl.node.authority.authority_file import AUTHORITY_FILE, open_authority, write_authority
from lifl.node.authority.certificate_authority import ROOTS_MAX, make_authority, read_authority
from lifl.node.authority.credential_store import CredentialStore
from lifl.node.authority.hosts import hosts_of, is_host
from lifl.node.authority.revocations import Revocations
from lifl.tls.signing_request import new_key

DAY_S = 86_400.0
SOURCE = "192.0.2.1"


def _silent(*_what: Any, **_about: Any) -> None:
    """An audit log that keeps nothing."""


class Clock:
    """The time of day, as the test has it."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


class Scene:
    """An authority with its store, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.noted: list[tuple[Any, ...]] = []
        self.path = folder / AUTHORITY_FILE
        self.store = CredentialStore(folder / "lifl.db")
        self.revocations = Revocations(self.store, self.clock)
        made = make_authority("c1", self.clock.now)
        write_authority(self.path, made)
        self.authority = Authority(made, self.path, self.store, self.revocations, self.note, self.clock)

    def note(self, event: str, who: str, text: str = "", **about: Any) -> None:
        self.noted.append((event, who, about.get("token"), about.get("code", "")))

    def token(
        self, role: Any = "client", pattern: str = "*", uses: int = 1, ttl_s: float = 900.0, **more: Any
    ) -> Token:
        return self.authority.create_token(role, pattern, more.get("jobs", ()), uses, ttl_s)

    def enrol(
        self, token: Token, name: str = "", request: bytes = b"", node: bool = False, source: str = SOURCE
    ) -> Handed:
        request = request or new_key().request
        return self.authority.enrol(token.number, token.secret, Asked(name, node), request, ("10.0.0.9",), source)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.store.close()


def leaf(handed: Handed) -> x509.Certificate:
    return x509.load_pem_x509_certificates(handed.chain)[0]


def said(handed: Handed) -> tuple[str, Identity, list[str]]:
    """Cluster, identity, and jobs that a certificate says."""
    names = leaf(handed).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return *identity_of(uris), [uri.removeprefix("lifl-job:") for uri in uris if uri.startswith("lifl-job:")]


def issued(handed: Handed) -> float:
    """When a certificate says that it was issued."""
    names = leaf(handed).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = issued_of(names.get_values_for_type(x509.UniformResourceIdentifier))
    assert found is not None
    return found


def serial(handed: Handed) -> str:
    return f"{leaf(handed).serial_number:X}"


def believes(trusted: bytes, shown: bytes, key: bytes, folder: Path, host: str = "") -> str:
    """Empty when who trusts these roots believes that chain in a TLS handshake, as a server's when `host` is wanted,
    else as a client's; else what OpenSSL says."""
    file = folder / f"shown-{os.urandom(4).hex()}.pem"
    file.write_bytes(key + shown)
    own = make_authority("x", time.time())
    mine = new_key()
    mine_file = folder / f"mine-{os.urandom(4).hex()}.pem"
    issued = own.issue(mine.request, Identity("node", "x"), (), (), *[time.time()] * 2)
    mine_file.write_bytes(mine.key + issued.chain)
    judge = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if host else ssl.PROTOCOL_TLS_SERVER)
    judge.verify_mode = ssl.CERT_REQUIRED
    judge.load_verify_locations(cadata=trusted.decode())
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if host else ssl.PROTOCOL_TLS_CLIENT)
    other.check_hostname = False
    other.verify_mode = ssl.CERT_NONE
    other.load_cert_chain(file)
    if not host:
        judge.load_cert_chain(mine_file)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    first = judge.wrap_bio(back, there, server_side=not host, server_hostname=host or None)
    second = other.wrap_bio(there, back, server_side=bool(host))
    for side in (first, second) * 3:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    assert first.getpeercert()
    return ""


# ---- certificates ----------------------------------------------------------------------------------------------------


def test_a_certificate_says_role_name_jobs_and_its_time(scene: Scene) -> None:
    handed = scene.enrol(scene.token("client", "hospital-*", jobs=("digits", "faces")), "hospital-a")
    assert said(handed) == ("c1", Identity("client", "hospital-a"), ["digits", "faces"])
    certificate = leaf(handed)
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    assert (begins, ends) == (scene.clock.now - CLOCK_SKEW_S, scene.clock.now + CERTIFICATE_LIFETIME_S)
    assert issued(handed) == scene.clock.now


def test_only_a_node_is_a_server_and_has_hosts(scene: Scene, tmp_path: Path) -> None:
    key = new_key()
    node = scene.enrol(scene.token("node", "n1"), "n1", key.request, node=True)
    assert believes(node.trusted, node.chain, key.key, tmp_path, host="10.0.0.9") == ""
    assert believes(node.trusted, node.chain, key.key, tmp_path) == ""
    assert "IP address mismatch" in believes(node.trusted, node.chain, key.key, tmp_path, host="10.0.0.8")
    key = new_key()
    client = scene.enrol(scene.token("client", "c"), "c", key.request)
    assert believes(client.trusted, client.chain, key.key, tmp_path) == ""
    assert "purpose" in believes(client.trusted, client.chain, key.key, tmp_path, host="10.0.0.9")


def test_a_request_that_asks_for_another_role_and_name_gets_those_of_the_token(scene: Scene) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    asking = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("lifl://c1/operator/root")]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    handed = scene.enrol(scene.token("reader", "eve"), "", asking.public_bytes(s.Encoding.DER))
    assert said(handed) == ("c1", Identity("reader", "eve"), [])
    extensions = leaf(handed).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    used = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert used == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]


def _broken() -> bytes:
    request = bytearray(new_key().request)
    request[-1] ^= 1
    return bytes(request)


def _of_version_4() -> bytes:
    return new_key().request.replace(b"\x02\x01\x00", b"\x02\x01\x03", 1)


def _signed_by(key: Any) -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, algorithm)
    return made.public_bytes(s.Encoding.DER)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: b"\x00",
        lambda: b"\xff" * REQUEST_BYTES_MAX,
        lambda: new_key().request[:-4],
        lambda: b"\x30" * (REQUEST_BYTES_MAX + 1),
        _broken,
        _of_version_4,
        lambda: _signed_by(ec.generate_private_key(ec.SECP384R1())),
        lambda: _signed_by(ed25519.Ed25519PrivateKey.generate()),
        lambda: _signed_by(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    ],
    ids=["a byte", "bytes", "cut", "too long", "another's signature", "version 4", "P-384", "Ed25519", "RSA"],
)
def test_what_is_no_right_signing_request_costs_no_use(scene: Scene, request_of: Callable[[], bytes]) -> None:
    token = scene.token("client", "a")
    with pytest.raises(Refused) as refused:
        scene.enrol(token, "", request_of())
    assert refused.value.code == "bad-request"
    scene.enrol(token)


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_a_tokens_line_names_the_authority_and_the_store_has_no_secret(scene: Scene) -> None:
    token = scene.token()
    assert read_token(token.line()).authority == scene.authority.certificates.digest
    root = x509.load_pem_x509_certificates(scene.authority.trusted())[0]
    assert root.fingerprint(hashes.SHA256()).hex() == token.authority
    scene.store.close()
    for path in scene.path.parent.iterdir():
        assert token.secret.encode() not in path.read_bytes(), path


def test_a_used_token_lets_nobody_else_in_and_the_same_key_again(scene: Scene) -> None:
    token, key = scene.token(), new_key()
    first = scene.enrol(token, "a", key.request)
    with pytest.raises(Refused, match="used up"):
        scene.enrol(token, "b")
    again = scene.enrol(token, "a", key.request)
    assert said(again) == said(first)
    assert scene.store.token(token.number).used == 1  # type: ignore[union-attr]
    with pytest.raises(Refused) as refused:
        scene.enrol(token, "b", key.request)
    assert refused.value.code == "key-taken"


def test_a_token_of_two_uses_lets_two_in(scene: Scene) -> None:
    token = scene.token(uses=2)
    scene.enrol(token, "a")
    scene.enrol(token, "b")
    with pytest.raises(Refused, match="used up"):
        scene.enrol(token, "c")


def test_a_token_expires_by_the_authoritys_clock_and_can_be_revoked(scene: Scene) -> None:
    short, other = scene.token(ttl_s=10), scene.token()
    scene.clock.now += 10
    with pytest.raises(Refused, match="expired"):
        scene.enrol(short, "a")
    scene.store.revoke_token(other.number, scene.clock.now)
    with pytest.raises(Refused, match="revoked"):
        scene.enrol(other, "a")


def test_of_two_who_come_with_the_last_use_at_once_one_gets_it(tmp_path: Path) -> None:
    """Each with a connection of its own to the database, as two processes would have."""
    scene = Scene(tmp_path)
    token = scene.token(uses=1)
    tries = 8

    def attempt(number: int) -> str:
        store = CredentialStore(tmp_path / "lifl.db")
        try:
            authority = Authority(
                scene.authority.certificates, None, store, Revocations(store, scene.clock), _silent, scene.clock
            )
            authority.enrol(token.number, token.secret, Asked(f"n{number}", False), new_key().request, (), SOURCE)
        except Refused as refused:
            return refused.code
        finally:
            store.close()
        return "in"

    with ThreadPoolExecutor(tries) as pool:
        came = list(pool.map(attempt, range(tries)))
    assert sorted(came) == ["in"] + ["token-over"] * (tries - 1)
    assert len(scene.store.certificates(0, 100)) == 1
    scene.store.close()


def test_the_use_is_counted_only_when_the_certificate_is_written_down(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = scene.token("client", "a")
    monkeypatch.setattr(credential_store, "CERTIFICATES_MAX", 0)
    with pytest.raises(Refused) as refused:
        scene.enrol(token)
    assert refused.value.code == "too-many-certificates"
    monkeypatch.undo()
    scene.enrol(token)


def test_a_pattern_gives_nobody_anothers_name_and_a_token_for_the_name_alone_does(scene: Scene) -> None:
    scene.enrol(scene.token("client", "hospital-*"), "hospital-a")
    with pytest.raises(Refused) as refused:
        scene.enrol(scene.token("client", "hospital-*"), "hospital-a")
    assert refused.value.code == "name-taken"
    scene.enrol(scene.token("reader", "*"), "hospital-a")  # in another role it is another's
    scene.enrol(scene.token("client", "hospital-a"))


@pytest.mark.parametrize("pattern", ["mallory", "*"])
def test_the_uses_that_a_token_has_left_do_not_let_a_revoked_one_in_again(scene: Scene, pattern: str) -> None:
    token = scene.token("client", pattern, uses=3)
    first = scene.enrol(token, "mallory")
    scene.authority.renew(holder(first), new_key().request, ())
    scene.revocations.revoke("mallory", "")
    with pytest.raises(Refused, match="was revoked: ask for a new token"):
        scene.enrol(token, "mallory")
    scene.enrol(scene.token("client", "mallory"))


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_name_is_free_again_when_its_certificates_are_over(scene: Scene, how: str) -> None:
    handed = scene.enrol(scene.token(), "a")
    if how == "revoked":
        scene.revocations.revoke(serial(handed), "")
    else:
        scene.clock.now += CERTIFICATE_LIFETIME_S
    scene.enrol(scene.token(), "a")


def test_tokens_are_limited_and_those_that_are_over_make_room(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TOKENS_MAX >= 100
    monkeypatch.setattr(credential_store, "TOKENS_MAX", 3)
    first = [scene.token() for _ in range(3)]
    with pytest.raises(Refused) as refused:
        scene.token()
    assert refused.value.code == "too-many-tokens"
    scene.enrol(first[0], "a")
    scene.token()
    scene.store.revoke_token(first[1].number, scene.clock.now)
    scene.token(ttl_s=5)
    scene.clock.now += 5
    scene.token()
    with pytest.raises(Refused):
        scene.token()


def test_only_a_clients_token_is_for_a_job(scene: Scene) -> None:
    with pytest.raises(Refused):
        scene.token("operator", jobs=("digits",))


def test_who_guesses_is_told_no_more_and_who_has_a_right_token_comes_in_from_the_same_address(scene: Scene) -> None:
    token = scene.token(uses=2)
    wrong = Token(token.authority, token.number, Token("", "", "x" * 43).secret)
    for _ in range(GUESSES_MAX):
        with pytest.raises(Refused, match="not known"):
            scene.enrol(wrong, "a")
    scene.enrol(token, "c")
    for guess in (wrong, Token(token.authority, "00000000", token.secret)):
        with pytest.raises(Refused) as refused:
            scene.enrol(guess, "a")
        assert refused.value.code == "too-many-guesses"
    scene.enrol(token, "a", source="192.0.2.2")
    refused_notes = [("token.refused", SOURCE, token.number, "unknown-token")] * GUESSES_MAX
    refused_notes.append(("token.used", SOURCE, token.number, ""))
    refused_notes += [("token.refused", SOURCE, None, "too-many-guesses")] * 2
    assert scene.noted == [*refused_notes, ("token.used", "192.0.2.2", token.number, "")]
    scene.clock.now += GUESS_WINDOW_S
    scene.enrol(scene.token(), "b")


# ---- renewal ---------------------------------------------------------------------------------------------------------


def holder(handed: Handed) -> Holder:
    _cluster, identity, jobs = said(handed)
    return Holder(identity, tuple(jobs), serial(handed), issued(handed))


def test_a_renewed_certificate_says_what_the_one_before_it_said(scene: Scene) -> None:
    first = scene.enrol(scene.token("client", "a", jobs=("digits",)))
    scene.clock.now += 15 * DAY_S
    second = scene.authority.renew(holder(first), new_key().request, ())
    assert said(second) == said(first)
    assert leaf(second).not_valid_after_utc.timestamp() == scene.clock.now + CERTIFICATE_LIFETIME_S
    token = scene.store.certificate(serial(first)).token  # type: ignore[union-attr]
    assert [row.token for row in scene.store.certificates(0, 9)] == [token, token]


def test_a_revoked_certificate_is_not_renewed_nor_its_key_certified_again(scene: Scene) -> None:
    key = new_key()
    handed = scene.enrol(scene.token("client", "a"), "", key.request)
    scene.revocations.revoke("a", "")
    with pytest.raises(Refused) as refused:
        scene.authority.renew(holder(handed), new_key().request, ())
    assert refused.value.code == "revoked"
    with pytest.raises(Refused) as refused:
        scene.enrol(scene.token("client", "a"), "", key.request)
    assert refused.value.code == "key-revoked"


def test_who_renews_without_end_is_refused_until_the_next_day_and_can_be_revoked(scene: Scene) -> None:
    handed = scene.enrol(scene.token("client", "mallory"))
    for _ in range(UNASKED_PER_DAY_MAX - 1):
        handed = scene.authority.renew(holder(handed), new_key().request, ())
    with pytest.raises(Refused) as refused:
        scene.authority.renew(holder(handed), new_key().request, ())
    assert refused.value.code == "too-many-certificates"
    other = scene.enrol(scene.token("client", "other"))
    scene.authority.renew(holder(other), new_key().request, ())
    scene.clock.now += DAY_S
    scene.authority.renew(holder(handed), new_key().request, ())
    assert scene.revocations.revoke("mallory", "") == ["client/mallory"]
    assert len(scene.revocations.entries) == 1
    assert all(map(scene.revocations.has, scene.store.certificates_of("client", "mallory", scene.clock.now)))


def test_who_comes_with_one_use_of_a_token_again_and_again_is_refused_and_another_use_is_not(scene: Scene) -> None:
    token, key = scene.token("client", "mallory", uses=2), new_key()
    for _ in range(UNASKED_PER_DAY_MAX):
        scene.enrol(token, "", key.request)
    with pytest.raises(Refused) as refused:
        scene.enrol(token, "", key.request)
    assert refused.value.code == "too-many-certificates"
    scene.enrol(token)


def test_a_key_is_certified_again_until_it_is_too_old(scene: Scene) -> None:
    key = new_key()
    handed = scene.enrol(scene.token("client", "a"), "", key.request)
    until = scene.clock.now + KEY_AGE_S_MAX
    while scene.clock.now + 15 * DAY_S <= until:
        scene.clock.now += 15 * DAY_S
        handed = scene.authority.renew(holder(handed), key.request, ())
    scene.clock.now = until + 1
    with pytest.raises(Refused) as refused:
        scene.authority.renew(holder(handed), key.request, ())
    assert refused.value.code == "key-too-old"
    scene.authority.renew(holder(handed), new_key().request, ())


# ---- revocation ------------------------------------------------------------------------------------------------------


def test_a_name_means_all_its_certificates_and_a_serial_one(scene: Scene) -> None:
    first = scene.enrol(scene.token("client", "a"))
    second = scene.authority.renew(holder(first), new_key().request, ())
    assert scene.revocations.revoke(serial(first), "") == [serial(first)]
    identity = Identity("client", "a")
    listed = scene.revocations.list
    assert listed.names(identity, serial(first), issued(first))
    assert not listed.names(identity, serial(second), issued(second))
    assert scene.revocations.revoke("client/a", "") == ["client/a"]
    listed = scene.revocations.list
    assert listed.names(identity, serial(first), issued(first)) and listed.names(identity, "X", issued(second))
    changed = []
    scene.revocations.on_change = lambda: changed.append(True)
    again = CredentialStore(scene.store.path)
    assert [each.which for each in Revocations(again, scene.clock).entries] == ["client/a"], "one covers the other"
    again.close()
    assert changed == []


@pytest.mark.parametrize("clock_moves_s", [0.0, 0.000_000_4, 1.0, -3600.0])
def test_what_is_issued_after_a_revocation_is_valid_at_once_whatever_the_clock_does(
    scene: Scene, clock_moves_s: float
) -> None:
    """A certificate begins five minutes before it is issued: its beginning would make it one of those before."""
    scene.clock.now += 0.123_456_789
    identity, before = Identity("client", "a"), scene.enrol(scene.token("client", "a"))
    scene.revocations.revoke("a", "")
    scene.clock.now += clock_moves_s
    after = scene.enrol(scene.token("client", "a"))
    listed = scene.revocations.list
    assert listed.names(identity, serial(before), issued(before))
    assert not listed.names(identity, serial(after), issued(after))
    assert leaf(after).not_valid_before_utc.timestamp() <= scene.clock.now
    renewed = scene.authority.renew(holder(after), new_key().request, ())
    assert not listed.names(identity, serial(renewed), issued(renewed))
    scene.revocations.revoke("a", "")
    assert scene.revocations.list.names(identity, serial(renewed), issued(renewed)), "and is revoked by the next one"


def test_a_clock_that_was_set_back_does_not_keep_a_certificate_from_being_revoked(scene: Scene) -> None:
    handed = scene.enrol(scene.token("client", "a"))
    scene.clock.now -= 3600
    scene.revocations.revoke("a", "")
    assert scene.revocations.list.names(Identity("client", "a"), serial(handed), issued(handed))


def test_a_name_takes_one_place_of_the_list_however_many_certificates_it_has(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credential_store, "REVOKED_MAX", 2)
    for name in ("a", "b"):
        token = scene.token("client", name, uses=3)
        for _ in range(3):
            scene.enrol(token)
        scene.revocations.revoke(name, "")
    scene.revocations.revoke("a", "")
    assert [each.which for each in scene.revocations.entries] == ["client/a", "client/b"]
    scene.enrol(scene.token("client", "c"))
    with pytest.raises(Refused) as refused:
        scene.revocations.revoke("c", "")
    assert refused.value.code == "too-many-revocations"
    assert [each.which for each in scene.revocations.entries] == ["client/a", "client/b"]


def test_the_whole_list_is_as_long_as_nodes_take_it(scene: Scene) -> None:
    for number in range(REVOKED_MAX):
        scene.store._insert_revocations([Revocation(f"client/c{number}", 1.0, 1e12)])
    with pytest.raises(Refused, match="names and certificates"):
        scene.revocations.revoke("client/one-more", "")
    scene.revocations.revoke("client/c7", "")
    told = msgspec.msgpack.encode(Revoked(scene.revocations.entries))
    assert len(msgspec.msgpack.decode(told, type=Revoked).entries) == REVOKED_MAX


def test_a_list_that_an_earlier_release_wrote_by_serials_becomes_one_entry_for_each_name(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for name in ("all", "some"):
        handed = [scene.enrol(scene.token("client", name)) for _ in range(3)]
        rows = [Revocation(serial(each), scene.clock.now + 1, scene.clock.now + DAY_S) for each in handed]
        with scene.store._db:
            scene.store._insert_revocations(rows if name == "all" else rows[1:])
    scene.store.close()
    store = CredentialStore(tmp_path / "lifl.db")
    scene.clock.now += 1  # the moment at which they were revoked
    revocations = Revocations(store, scene.clock)
    assert [each.which for each in revocations.entries if "/" in each.which] == ["client/all"]
    assert len(revocations.entries) == 3, "of the other name one certificate is valid"
    assert [revocations.has(row) for row in store.certificates(0, 9)] == [True] * 3 + [False, True, True]
    old = Identity("client", "all")
    assert revocations.list.names(old, "X", scene.clock.now - CLOCK_SKEW_S), "it says only when it begins"
    authority = Authority(scene.authority.certificates, None, store, revocations, scene.note, scene.clock)
    token = authority.create_token("client", "all", (), 1, 900.0)
    new = authority.enrol(token.number, token.secret, Asked("", False), new_key().request, (), SOURCE)
    assert not revocations.list.names(old, serial(new), issued(new))
    store.close()


def test_a_name_of_two_roles_is_asked_back_and_the_own_certificate_stays(scene: Scene) -> None:
    scene.enrol(scene.token("client", "a"))
    reader = scene.enrol(scene.token("reader", "a"))
    with pytest.raises(Refused, match="client/a or reader/a"):
        scene.revocations.revoke("a", "")
    with pytest.raises(Refused) as refused:
        scene.revocations.revoke("reader/a", serial(reader))
    assert refused.value.code == "own-certificate"
    with pytest.raises(Refused) as refused:
        scene.revocations.revoke("nobody", "")
    assert refused.value.code == "unknown-certificate"


def test_the_beginning_of_a_serial_will_do_where_it_is_no_other_ones(scene: Scene) -> None:
    first, second = (scene.enrol(scene.token("client", name)) for name in "ab")
    begins = serial(first)[:SERIAL_DIGITS_MIN]
    assert scene.revocations.revoke(begins.lower(), "") == [serial(first)]
    with pytest.raises(Refused) as refused:
        scene.revocations.revoke(begins[:-1], "")
    assert refused.value.code == "unknown-certificate"
    other = begins + "0" * (len(serial(first)) - SERIAL_DIGITS_MIN)
    row = scene.store.certificate(serial(second))
    assert row is not None
    scene.store.add_certificate(msgspec.structs.replace(row, serial=other), "", scene.clock.now)
    with pytest.raises(Refused, match=rf"say {serial(first)} or {other}"):
        scene.revocations.revoke(begins, "")
    assert scene.revocations.revoke(serial(first)[:-1], "") == [serial(first)]


def test_a_serial_is_meant_before_somebody_who_is_called_like_it(scene: Scene) -> None:
    first = scene.enrol(scene.token("client", "a"))
    double = scene.enrol(scene.token("client", serial(first)))
    assert scene.revocations.revoke(serial(first), "") == [serial(first)]
    scene.enrol(scene.token("client", serial(double)[:SERIAL_DIGITS_MIN]))
    with pytest.raises(Refused) as refused:
        scene.revocations.revoke(serial(double)[:SERIAL_DIGITS_MIN], "")
    assert refused.value.code == "ambiguous" and serial(double) in refused.value.text


@pytest.mark.parametrize("which", ["client/x y", "client/", "/", "/a", "nobody/a", "client/a/b", "client/é", "a b", ""])
def test_what_is_nobodys_name_is_refused_and_the_list_can_be_read_again(scene: Scene, which: str) -> None:
    """An entry that could not be read would keep the node from starting."""
    with pytest.raises(Refused):
        scene.revocations.revoke(which, "")
    assert Revocations(scene.store, scene.clock).entries == ()


def test_what_was_issued_elsewhere_is_revoked_by_serial_or_by_role_and_name(scene: Scene) -> None:
    assert scene.revocations.revoke("AB" * 16, "") == ["AB" * 16]
    assert scene.revocations.revoke("00" + "cd" * 16, "") == ["CD" * 16], "as it is asked for"
    scene.revocations.revoke("client/b", "")
    listed, now, identity = scene.revocations.list, scene.clock.now, Identity("client", "b")
    assert listed.names(identity, "1", now - 1)
    assert not listed.names(identity, "1", now + 1), "a new one is another matter"
    assert not listed.names(Identity("reader", "b"), "1", now - 1)
    assert listed.names(Identity("reader", "x"), "AB" * 16, now + 1)


def test_revocations_end_with_what_they_are_about_and_are_limited(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.enrol(scene.token("client", "a"))
    scene.revocations.revoke("a", "")
    scene.clock.now += CERTIFICATE_LIFETIME_S
    assert scene.store.revocations(scene.clock.now) == []
    monkeypatch.setattr(credential_store, "REVOKED_MAX", 2)
    for name in ("b", "c", "d"):
        scene.enrol(scene.token("client", name))
    scene.revocations.revoke("b", "")
    scene.revocations.revoke("c", "")
    with pytest.raises(Refused) as refused:
        scene.revocations.revoke("d", "")
    assert refused.value.code == "too-many-revocations"
    assert len(scene.revocations.entries) == 2


def test_the_coordinators_word_takes_the_place_of_a_nodes_list(scene: Scene, tmp_path: Path) -> None:
    other = CredentialStore(tmp_path / "other.db")
    follower, changes = Revocations(other, scene.clock), []
    follower.on_change = lambda: changes.append(len(follower.entries))
    for name in ("a", "b"):
        scene.enrol(scene.token("client", name))
        scene.revocations.revoke(name, "")
    follower.replace(scene.revocations.entries)
    follower.replace(scene.revocations.entries)
    assert changes == [2] and follower.entries == scene.revocations.entries
    follower.replace(())
    assert changes == [2, 0] and Revocations(other, scene.clock).entries == ()
    other.close()


def test_where_the_coordinator_moves_a_node_keeps_what_either_was_told(scene: Scene, tmp_path: Path) -> None:
    other = CredentialStore(tmp_path / "other.db")
    follower, changes = Revocations(other, scene.clock), []
    follower.on_change = lambda: changes.append(sorted(entry.which for entry in follower.entries))
    here = Revocation("client/here", 5.0, 1e12)
    follower.merge([here])
    follower.merge([Revocation("client/there", 6.0, 1e12), msgspec.structs.replace(here, revoked_unix_s=4.0)])
    follower.merge([here])
    assert changes == [["client/here"], ["client/here", "client/there"]], "what is known is no change"
    assert Revocations(other, scene.clock).entries == follower.entries
    assert follower.list.names(Identity("client", "here"), "S", 4.5)
    other.close()


def test_of_two_lists_that_are_too_long_together_nothing_that_was_revoked_here_is_lost_and_the_rest_is_told(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "REVOKED_MAX", 3)
    notes: list[tuple[object, ...]] = []
    follower = Revocations(scene.store, scene.clock, lambda *given, **about: notes.append((*given, about)))
    now = scene.clock.now
    here = [Revocation(f"client/here-{number}", 5.0, now + 10 * number) for number in (1, 2)]
    follower.merge(here)
    assert not notes and not follower.trouble
    there = [Revocation(f"client/there-{number}", 5.0, now + 100 * number) for number in (1, 2, 3)]
    follower.merge(there)
    assert [each.which for each in follower.entries] == ["client/here-1", "client/here-2", "client/there-3"]
    assert "client/there-1, client/there-2;" in follower.trouble and "2 names" in follower.trouble
    assert [(event, about["count"]) for event, _who, _text, about in notes] == [("cert.kept", 2)]
    follower.merge(there)
    assert len(notes) == 1, "it is told once"
    scene.clock.now += 25
    follower.merge([])
    assert [each.which for each in follower.entries] == [each.which for each in there], "there is room now"
    assert not follower.trouble
    follower.merge([msgspec.structs.replace(there[0], revoked_unix_s=7.0)])
    assert follower.list.names(Identity("client", "there-1"), "S", 6.0), "what is known is renewed in its place"


# ---- the authority itself --------------------------------------------------------------------------------------------


def test_its_file_is_its_users_alone_and_is_read_again(scene: Scene, tmp_path: Path) -> None:
    assert stat.S_IMODE(scene.path.stat().st_mode) == 0o600
    found, path = open_authority(NodeConfig(), tmp_path, scene.store)
    assert (found.digest, path) == (scene.authority.certificates.digest, scene.path)
    scene.path.chmod(0o640)
    with pytest.raises(ResourceFault, match="chmod 600"):
        open_authority(NodeConfig(), tmp_path, scene.store)


def test_it_is_made_where_there_is_none_and_keeps_the_clusters_name(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path / "lifl.db")
    first, path = open_authority(NodeConfig(), tmp_path, store)
    assert path == tmp_path / AUTHORITY_FILE and path.exists()
    second, _ = open_authority(NodeConfig(), tmp_path, store)
    assert (first.cluster, first.digest) == (second.cluster, second.digest)
    store.close()


def test_after_a_rotation_who_trusts_the_old_or_the_new_root_believes_old_and_new_certificates(
    scene: Scene, tmp_path: Path
) -> None:
    keys = [new_key() for _ in range(3)]
    handed = [scene.enrol(scene.token("node", "n0"), "", keys[0].request, node=True)]
    for number in (1, 2):
        digest = scene.authority.rotate()
        assert digest == scene.authority.certificates.digest
        handed.append(scene.enrol(scene.token("node", f"n{number}"), "", keys[number].request, node=True))
    for judge in handed:
        for shown, key in zip(handed, keys, strict=True):
            assert believes(judge.trusted, shown.chain, key.key, tmp_path, host="10.0.0.9") == ""
    oldest, newest = handed[0], handed[-1]
    assert [each.trusted.count(b"BEGIN") for each in handed] == [1, 2, 3]
    first = x509.load_pem_x509_certificates(newest.trusted)[0].public_bytes(s.Encoding.PEM)
    assert believes(first, newest.chain, keys[2].key, tmp_path) == ""
    assert believes(first, oldest.chain, keys[0].key, tmp_path) != "", "the old one is trusted by itself alone"
    found, _ = open_authority(NodeConfig(), tmp_path, scene.store)
    assert found.trusted(scene.clock.now) == newest.trusted


def test_an_old_root_is_trusted_until_all_that_it_issued_has_expired_and_no_longer(scene: Scene) -> None:
    before = scene.authority.trusted()
    scene.authority.rotate()
    assert before in scene.authority.trusted()
    scene.clock.now += CERTIFICATE_LIFETIME_S
    assert before in scene.authority.trusted()
    scene.clock.now += 2 * CLOCK_SKEW_S
    assert before not in scene.authority.trusted()
    scene.authority.rotate()
    assert scene.authority.trusted().count(b"BEGIN") == 2


def test_roots_side_by_side_are_limited(scene: Scene) -> None:
    for _ in range(ROOTS_MAX - 1):
        scene.authority.rotate()
    before = scene.authority.certificates.digest
    with pytest.raises(Refused) as refused:
        scene.authority.rotate()
    assert refused.value.code == "too-many-roots" and scene.authority.certificates.digest == before
    handed = scene.enrol(scene.token(), "a")
    assert handed.trusted.count(b"BEGIN") == ROOTS_MAX


def given(tmp_path: Path, key: Any) -> tuple[Path, Path]:
    """A root of somebody's own, as files."""
    import datetime

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "our root")])
    now = datetime.datetime.now(datetime.UTC)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=10))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, algorithm)
    )
    cert, file = tmp_path / "root.pem", tmp_path / "root.key"
    cert.write_bytes(root.public_bytes(s.Encoding.PEM))
    file.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    file.chmod(0o600)
    return cert, file


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_a_given_authority_issues_within_its_own_time_and_is_not_rotated(tmp_path: Path, key: Any) -> None:
    cert, file = given(tmp_path, key)
    store = CredentialStore(tmp_path / "lifl.db")
    config = NodeConfig(ca_cert=str(cert), ca_key=str(file))
    found, path = open_authority(config, tmp_path, store)
    authority = Authority(found, path, store, Revocations(store), _silent)
    token = authority.create_token("node", "n", (), 1, 60.0)
    own = new_key()
    handed = authority.enrol(token.number, token.secret, Asked("", True), own.request, ("10.0.0.9",), SOURCE)
    assert believes(handed.trusted, handed.chain, own.key, tmp_path, host="10.0.0.9") == ""
    root = x509.load_pem_x509_certificate(cert.read_bytes())
    assert leaf(handed).not_valid_after_utc == root.not_valid_after_utc
    with pytest.raises(Refused) as refused:
        authority.rotate()
    assert refused.value.code == "authority-given"
    assert not (tmp_path / AUTHORITY_FILE).exists()
    store.close()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda cert, key: key.write_bytes(b""), "is no authority"),
        (lambda cert, key: cert.write_bytes(b"nothing"), "is no authority"),
        (lambda cert, key: key.write_bytes(new_key().key), "not that of the private key"),
        (lambda cert, key: key.chmod(0o644), "chmod 600"),
        (lambda cert, key: key.unlink(), "cannot be read"),
    ],
    ids=["no key", "no certificate", "another key", "open to others", "missing"],
)
def test_a_given_authority_that_cannot_be_one_is_refused_with_its_name(
    tmp_path: Path, spoil: Callable[[Path, Path], None], said: str
) -> None:
    cert, file = given(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    spoil(cert, file)
    store = CredentialStore(tmp_path / "lifl.db")
    with pytest.raises(ResourceFault, match=said) as fault:
        open_authority(NodeConfig(ca_cert=str(cert), ca_key=str(file)), tmp_path, store)
    assert str(cert) in str(fault.value) or str(file) in str(fault.value)
    store.close()


def test_a_certificate_that_is_no_authoritys_is_refused(scene: Scene) -> None:
    key = new_key()
    handed = scene.enrol(scene.token("node", "n"), "", key.request, node=True)
    with pytest.raises(ResourceFault, match="CA:TRUE"):
        read_authority("c1", key.key, handed.chain + handed.trusted, "x", given=True)
    with pytest.raises(ResourceFault, match="no root"):
        read_authority("c1", key.key, handed.chain, "x", given=True)


def test_a_store_of_a_later_format_is_left_alone(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path / "lifl.db")
    store._write("UPDATE credentials SET format = format + 1")
    store.close()
    with pytest.raises(ResourceFault, match="format 2"):
        CredentialStore(tmp_path / "lifl.db")


# ---- hosts -----------------------------------------------------------------------------------------------------------


def test_a_node_is_reached_by_what_it_listens_on_and_over_loopback() -> None:
    found = hosts_of(["node-a.example.org:7433", "10.0.0.1:7434", "[2001:db8::1]:7434"])
    assert found[:3] == ("node-a.example.org", "10.0.0.1", "2001:db8::1")
    assert {"localhost", "127.0.0.1", "::1"} <= set(found)


def test_everywhere_means_the_machines_addresses_and_never_itself() -> None:
    import psutil

    found = hosts_of(["0.0.0.0:7433", "[::]:7434"])
    assert not {"0.0.0.0", "::"} & set(found)
    lo = [each.address for each in psutil.net_if_addrs().get("lo", ())]
    assert "127.0.0.1" in found or "127.0.0.1" not in lo


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.example.org", "a b", "a/b", "0.0.0.0", "::", "-a", "a..b", "x" * 129, "ä.org", "a\n", "fe80::1%e"],
)
def test_what_may_not_stand_in_a_certificate_as_a_host(text: str) -> None:
    assert not is_host(text)

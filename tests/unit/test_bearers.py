"""Bearer tokens: who is known by one, until when, and what nodes know of them together."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lifl.core.errors import Refused
from lifl.core.identity import Identity
from lifl.core.limits import BEARERS_MAX, NAME_CHARS_MAX
from lifl.core.protocol import cluster as p
from lifl.core.protocol.client import ShowToken
from lifl.core.protocol.frames import encode
from lifl.core.trust.bearers import Bearer, BearerList, merged
from lifl.core.trust.enrolment import WrongToken
from lifl.core.trust.tokens import SECRET_BYTES, Token, digest_of, read_token
from lifl.node.authority.bearers import BearerTokens
from lifl.node.authority.credential_store import CredentialStore

NOW = 1_000_000.0
SECRET = secrets.token_urlsafe(SECRET_BYTES)
WHO = Identity("client", "hospital-3")


def entry(number: str = "0123abcd", **changes: object) -> Bearer:
    fields: dict[str, object] = {"role": "client", "name": "hospital-3", "job": "digits"}
    times = {"created_unix_s": NOW - 10, "expires_unix_s": NOW + 10}
    return Bearer(number, digest_of(SECRET), **(fields | times | changes))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CredentialStore]:
    made = CredentialStore(tmp_path / "lifl.db")
    yield made
    made.close()


def tokens(store: CredentialStore, now: float = NOW) -> BearerTokens:
    return BearerTokens(store, lambda: now)


def made_by(tokens: BearerTokens, identity: Identity = WHO, ttl_s: float = 60.0) -> Token:
    return tokens.create("ab" * 32, identity, "digits", ttl_s, 0.0)


def test_its_line_is_no_joining_tokens_and_the_other_way_round_and_no_secret_is_repeated() -> None:
    line = Token("ab" * 32, "0123abcd", SECRET, bearer=True).line()
    assert line.startswith("LIFLB1") and read_token(line, bearer=True).secret == SECRET
    joining = Token("ab" * 32, "0123abcd", SECRET).line()
    for text, bearer in ((line, False), (joining, True)):
        with pytest.raises(Refused, match="of no use here") as refused:
            read_token(text, bearer)
        assert SECRET not in refused.value.text
    assert SECRET not in repr(ShowToken("0123abcd", SECRET))


def test_who_knows_the_secret_is_known_and_who_does_not_hears_the_same_of_all() -> None:
    assert BearerList([entry()]).holder("0123abcd", SECRET, NOW) == entry()
    told = set()
    for entries in ((), (entry(),), (entry(revoked=True),), (entry(expires_unix_s=NOW),)):
        with pytest.raises(WrongToken) as wrong:
            BearerList(entries).holder("0123abcd", "x" * 43, NOW)
        told.add((wrong.value.code, wrong.value.text))
    assert len(told) == 1
    with pytest.raises(WrongToken):
        BearerList().holder("0123abcd", "", NOW)


@pytest.mark.parametrize(("changes", "said"), [({"revoked": True}, "revoked"), ({"expires_unix_s": NOW}, "expired")])
def test_one_that_is_over_says_so_to_who_knows_its_secret(changes: dict[str, object], said: str) -> None:
    listed = BearerList([entry(**changes)])
    with pytest.raises(Refused, match=f"is {said}: ask for a new one") as refused:
        listed.holder("0123abcd", SECRET, NOW)
    assert refused.value.code == "token-over" and not listed.is_valid("0123abcd", NOW)
    assert BearerList([entry()]).is_valid("0123abcd", NOW) and not BearerList().is_valid("0123abcd", NOW)


def test_nodes_know_together_what_each_was_told_and_a_revocation_counts_from_either_side() -> None:
    here, there = entry("00000001"), entry("00000002", revoked=True)
    over, back = entry("00000003", expires_unix_s=NOW), entry("00000002")
    known = merged([here, over, back], [there], NOW)
    assert known == (here, there) == merged([there], [back, here], NOW)


def test_it_is_kept_as_a_digest_over_a_restart_and_revoked_for_good(store: CredentialStore) -> None:
    listed, changes = tokens(store), []
    listed.on_change = lambda: changes.append(len(listed.entries))
    made, other = made_by(listed), made_by(listed)
    assert made.bearer and listed.list.holder(made.number, made.secret, NOW).identity == WHO
    assert made.secret.encode() not in store.path.read_bytes() and digest_of(made.secret) != made.secret.encode()
    assert listed.revoke(made.number) and not listed.revoke("ffffffff")
    again = tokens(store)
    assert again.entries == listed.entries and changes == [1, 2, 2]
    assert not again.list.is_valid(made.number, NOW) and again.list.is_valid(other.number, NOW)
    assert tokens(store, NOW + 60).entries == (), "what has expired is forgotten"


def test_it_is_a_clients_alone(store: CredentialStore) -> None:
    for role in ("node", "operator", "reader"):
        with pytest.raises(Refused, match=f"for a client, not for a {role}"):
            made_by(tokens(store), Identity(role, "a"))  # type: ignore[arg-type]


def test_they_are_limited_and_all_of_them_fit_what_tells_nodes_of_them(store: CredentialStore) -> None:
    name = "n" * NAME_CHARS_MAX
    full = [entry(f"{number:08x}", name=name, job=name, revoked=True) for number in range(BEARERS_MAX - 1)]
    listed = tokens(store)
    listed.replace(full)
    made_by(listed)
    with pytest.raises(Refused) as refused:
        made_by(listed)
    assert refused.value.code == "too-many-tokens"
    told = p.BearersTold(listed.entries)
    assert encode(told) and msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=p.BearersTold) == told
    too_many = msgspec.msgpack.encode(p.BearersTold((*listed.entries, entry("ffffffff"))))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(too_many, type=p.BearersTold)
    listed = tokens(store, NOW + 10)
    listed.replace(full)
    made_by(listed)

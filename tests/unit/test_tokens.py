"""Tokens: the line, what a token allows and to whom that is told, and how often one source may guess."""

from __future__ import annotations

import secrets

import pytest

from lifl.core.errors import Refused
from lifl.core.limits import GUESS_SOURCES_MAX, GUESS_WINDOW_S, GUESSES_MAX, NAME_CHARS_MAX, TOKEN_CHARS_MAX
from lifl.core.trust.enrolment import TOO_MANY_GUESSES, Asked, Guesses, TokenRow, WrongToken, known, named
from lifl.core.trust.tokens import NUMBER_BYTES, SECRET_BYTES, Token, digest_of, is_secret, read_token

NOW = 1_000_000.0
SECRET = secrets.token_urlsafe(SECRET_BYTES)
TOKEN = Token("ab" * 32, secrets.token_hex(NUMBER_BYTES), SECRET)


def row(**changes: object) -> TokenRow:
    fields: dict[str, object] = {"role": "client", "pattern": "hospital-*", "jobs": (), "uses": 1, "used": 0}
    times = {"created_unix_s": NOW - 10, "expires_unix_s": NOW + 10}
    return TokenRow(TOKEN.number, digest_of(SECRET), **(fields | times | changes))  # type: ignore[arg-type]


def test_a_token_is_one_line_and_shows_its_secret_nowhere_else() -> None:
    line = TOKEN.line()
    assert read_token(f"  {line}\n") == TOKEN
    assert "\n" not in line and len(line) <= TOKEN_CHARS_MAX
    assert SECRET not in repr(TOKEN) and SECRET not in str(TOKEN)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "LIFL1",
        TOKEN.line()[1:],
        TOKEN.line() + "x",
        TOKEN.line().replace("::", ":"),
        TOKEN.line().upper(),
        TOKEN.line() + "\n" + TOKEN.line(),
        TOKEN.line() + " " * 10_000,
        "LIFL1" + "x" * 200,
    ],
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(Refused) as refused:
        read_token(text)
    assert refused.value.code == "bad-token"
    assert SECRET not in refused.value.text


def test_a_secret_is_known_by_its_digest() -> None:
    assert is_secret(SECRET, digest_of(SECRET))
    assert not is_secret(SECRET[:-1], digest_of(SECRET))
    assert SECRET.encode() not in digest_of(SECRET)


def test_who_does_not_know_the_secret_hears_the_same_of_all_tokens() -> None:
    told = set()
    for each in (None, row(), row(used=1), row(expires_unix_s=NOW), row(revoked_unix_s=NOW), row(role="node")):
        with pytest.raises(WrongToken) as wrong:
            known(each, "another")
        told.add((wrong.value.code, wrong.value.field, wrong.value.text))
    assert len(told) == 1


def test_no_secret_is_right_for_a_token_that_is_not_there() -> None:
    for secret in ("", SECRET):
        with pytest.raises(WrongToken):
            known(None, secret)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"used": 1}, "used up"),
        ({"expires_unix_s": NOW}, "expired"),
        ({"revoked_unix_s": NOW}, "revoked"),
        ({"revoked_unix_s": NOW, "used": 1, "expires_unix_s": NOW}, "revoked"),
    ],
)
def test_a_token_that_is_over_lets_nobody_in(changes: dict[str, float], said: str) -> None:
    with pytest.raises(Refused, match=said) as refused:
        named(known(row(**changes), SECRET), Asked("hospital-a", False), NOW, again=False)
    assert refused.value.code == "token-over"


def test_who_lost_the_answer_to_the_last_use_may_ask_again_with_its_key_while_the_token_lasts() -> None:
    asked = Asked("hospital-a", False)
    assert named(row(used=1), asked, NOW, again=True) == "hospital-a"
    for changes in ({"expires_unix_s": NOW}, {"revoked_unix_s": NOW - 1}):
        with pytest.raises(Refused):
            named(row(used=1, **changes), asked, NOW, again=True)


@pytest.mark.parametrize(
    ("pattern", "wanted", "name"),
    [
        ("hospital-*", "hospital-a", "hospital-a"),
        ("*", "anything", "anything"),
        ("alice", "", "alice"),
        ("alice", "alice", "alice"),
        ("*", "n" * NAME_CHARS_MAX, "n" * NAME_CHARS_MAX),
    ],
)
def test_a_token_gives_a_name(pattern: str, wanted: str, name: str) -> None:
    assert named(row(pattern=pattern), Asked(wanted, False), NOW, again=False) == name


@pytest.mark.parametrize(
    ("pattern", "wanted", "code"),
    [
        ("hospital-*", "", "name-missing"),
        ("hospital-*", "bank-a", "wrong-name"),
        ("hospital-*", "Hospital-a", "wrong-name"),
        ("hospital-*", "hospital-*", "wrong-name"),
        ("hospital-*", "hospital-a b", "wrong-name"),
        ("hospital-*", "hospital-a/../b", "wrong-name"),
        ("*", "-a", "wrong-name"),
        ("*", "a\n", "wrong-name"),
        ("*", "n" * (NAME_CHARS_MAX + 1), "wrong-name"),
        ("alice", "bob", "wrong-name"),
    ],
)
def test_a_name_that_a_token_does_not_allow_is_refused(pattern: str, wanted: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        named(row(pattern=pattern), Asked(wanted, False), NOW, again=False)
    assert refused.value.code == code


@pytest.mark.parametrize(("role", "as_node"), [("client", True), ("operator", True), ("node", False)])
def test_a_nodes_token_is_for_nodes_and_no_others(role: str, as_node: bool) -> None:
    with pytest.raises(Refused) as refused:
        named(row(role=role, pattern="*"), Asked("a", as_node), NOW, again=False)
    assert refused.value.code == "wrong-role" and role in refused.value.text
    assert named(row(role=role, pattern="*"), Asked("a", not as_node), NOW, again=False) == "a"


# ---- guesses ---------------------------------------------------------------------------------------------------------


def is_shut_out(guesses: Guesses, host: str, now_s: float) -> bool:
    """Whether one more wrong token is told no more; it counts."""
    try:
        guesses.wrong(host, now_s)
    except Refused as refused:
        return refused.code == TOO_MANY_GUESSES
    return False


def test_a_source_that_guesses_is_told_no_more_for_a_while() -> None:
    guesses = Guesses()
    for number in range(GUESSES_MAX):
        assert not is_shut_out(guesses, "10.0.0.1", NOW + number)
    assert is_shut_out(guesses, "10.0.0.1", NOW + GUESSES_MAX)
    assert not is_shut_out(guesses, "10.0.0.2", NOW)
    assert is_shut_out(guesses, "10.0.0.1", NOW + GUESS_WINDOW_S - 0.5)
    assert not is_shut_out(guesses, "10.0.0.1", NOW + GUESS_WINDOW_S + 0.5), "what is refused so is no guess"
    assert is_shut_out(guesses, "10.0.0.1", NOW + GUESS_WINDOW_S + 0.5)


def test_all_addresses_of_an_ipv6_network_and_the_two_ways_to_write_one_are_one_source() -> None:
    guesses = Guesses()
    for number in range(GUESSES_MAX):
        guesses.wrong(f"2001:db8:1:2::{number + 1:x}", NOW)
        guesses.wrong("::ffff:10.0.0.1" if number % 2 else "10.0.0.1", NOW)
    assert is_shut_out(guesses, "2001:db8:1:2:ffff::1", NOW)
    assert not is_shut_out(guesses, "2001:db8:1:3::1", NOW)
    assert is_shut_out(guesses, "10.0.0.1", NOW) and is_shut_out(guesses, "::ffff:10.0.0.1", NOW)
    assert not is_shut_out(guesses, "fe80::1%eth0", NOW)


def test_sources_that_are_remembered_are_bounded() -> None:
    guesses = Guesses()
    for number in range(GUESS_SOURCES_MAX + 1):
        for _ in range(GUESSES_MAX):
            guesses.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", NOW)
    assert len(guesses._wrong) == GUESS_SOURCES_MAX
    assert is_shut_out(guesses, "10.0.0.1", NOW)
    assert not is_shut_out(guesses, "10.0.0.0", NOW), "the oldest is forgotten"

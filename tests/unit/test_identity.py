"""An identity is one text, and a certificate has exactly one of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifl.core.errors import LocalFault, RemoteFault
from lifl.core.identity import (
    ROLES,
    Identity,
    identity_of,
    identity_uri,
    issued_of,
    issued_uri,
    moment,
    parse_uri,
)
from lifl.core.limits import IDENTITY_URI_CHARS_MAX, NAME_CHARS_MAX

names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,63}\Z")
clusters = st.from_regex(r"\A[a-z0-9][a-z0-9.-]{0,63}\Z")


@given(clusters, st.sampled_from(ROLES), names)
def test_an_identity_is_read_as_it_was_written(cluster: str, role: str, name: str) -> None:
    identity = Identity(role, name)  # type: ignore[arg-type]
    uri = identity_uri(cluster, identity)
    assert parse_uri(uri) == (cluster, identity)
    assert len(uri) <= IDENTITY_URI_CHARS_MAX


def test_how_it_looks() -> None:
    assert identity_uri("c1", Identity("client", "ward:3")) == "lifl://c1/client/ward%3A3"
    assert str(Identity("client", "ward:3")) == "client ward:3"


@pytest.mark.parametrize(
    "uri",
    [
        "lifl://c1/client",
        "lifl://c1/client/",
        "lifl://c1/client/a/b",
        "lifl://c1/client/a?x",
        "lifl://c1/root/a",
        "lifl://c1/Client/a",
        "lifl://C1/client/a",
        "lifl:///client/a",
        "lifl://c1/client/ward:3",  # not as it is written: two texts for one identity
        "lifl://c1/client/ward%3a3",
        "lifl://c1/client/%61",
        "lifl://c1/client/a%0A",
        "lifl://c1/client/a\n",
        "lifl://c1/client/%FF",
        "lifl://c1/client/a%2Fb",
        "LIFL://c1/client/a",
        "spiffe://c1/client/a",
        f"lifl://c1/client/{'a' * (NAME_CHARS_MAX + 1)}",
        f"lifl://{'a' * (NAME_CHARS_MAX + 1)}/client/a",
        "lifl://c1/client/" + "%41" * 200,
    ],
)
def test_what_is_not_the_text_of_an_identity_is_refused(uri: str) -> None:
    with pytest.raises(RemoteFault, match="a certificate is for"):
        parse_uri(uri)


@pytest.mark.parametrize("identity", [Identity("client", ""), Identity("client", "a/b"), Identity("root", "a")])  # type: ignore[arg-type]
def test_what_cannot_be_an_identity_is_not_written(identity: Identity) -> None:
    with pytest.raises(LocalFault, match="a role is one of"):
        identity_uri("c1", identity)


def test_a_certificate_says_to_the_microsecond_when_it_was_issued() -> None:
    unix_s = 1_764_459_422.031_234_567
    assert issued_uri(unix_s) == "lifl-issued:1764459422.031235"
    assert issued_of(["lifl://c/client/a", issued_uri(unix_s)]) == moment(unix_s)
    assert issued_of(["lifl://c/client/a", "lifl-job:a"]) is None
    for wrong in (["lifl-issued:"], ["lifl-issued:nan"], ["LIFL-ISSUED:-1.000000"], [issued_uri(1.0)] * 2):
        with pytest.raises(RemoteFault):
            issued_of(wrong)


def test_a_certificate_has_exactly_one() -> None:
    one, other = "lifl://c1/client/a", "lifl://c1/operator/a"
    assert identity_of(["spiffe://c1/x", one]) == ("c1", Identity("client", "a"))
    for uris, text in (([], "no identity"), (["spiffe://c1/x"], "no identity"), ([one, other], "2 identities")):
        with pytest.raises(RemoteFault, match=text):
            identity_of(uris)
    with pytest.raises(RemoteFault, match="2 identities"):
        identity_of([one, "LIFL://c1/operator/a"])

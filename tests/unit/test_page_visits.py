"""Links to the page and visits of it: once, for a while, never too many, never more than who asked may do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lifl.core.config.node import NodeConfig
from lifl.core.errors import Refused
from lifl.core.identity import ROLES, Identity
from lifl.core.limits import WEB_LINK_S, WEB_LINKS_MAX, WEB_VISIT_S, WEB_VISITS_MAX
from lifl.core.trust.page_visits import PageVisits, Visitor, visitor_of
from lifl.node.pages import Pages

OWNER = Identity("operator", "owner")
WHO = visitor_of(OWNER, "operator")


def opened(visits: PageVisits, at: int, now: float = 0.0, who: Visitor = WHO) -> None:
    visits.link(f"link {at}", who, now)
    visits.open(f"link {at}", f"cookie {at}", f"key {at}", now)


def is_there(visits: PageVisits, at: int, now: float = 0.0) -> bool:
    try:
        visits.find(f"cookie {at}", f"key {at}", now)
    except Refused:
        return False
    return True


def test_a_link_is_good_once_and_until_its_end() -> None:
    visits = PageVisits()
    assert visits.link("a", WHO, 0.0) == WEB_LINK_S
    visits.link("b", WHO, 0.0)
    assert visits.open("a", "cookie", "key", WEB_LINK_S - 0.001).visitor == WHO
    for secret, now in (("a", 1.0), ("b", WEB_LINK_S), ("c", 0.0), ("", 0.0)):
        with pytest.raises(Refused) as refused:
            visits.open(secret, "other", "other", now)
        assert refused.value.code == "link-over"


def test_a_visit_takes_both_of_its_secrets_and_ends() -> None:
    visits = PageVisits()
    opened(visits, 1)
    opened(visits, 2)
    assert is_there(visits, 1, WEB_VISIT_S - 0.001)
    for cookie, key in (("cookie 1", "key 2"), ("cookie 1", ""), ("", "key 1"), ("key 1", "cookie 1")):
        with pytest.raises(Refused):
            visits.find(cookie, key, 0.0)
    visits.end("cookie 1", "key 2")
    assert is_there(visits, 1)
    visits.end("cookie 1", "key 1")
    assert not is_there(visits, 1) and is_there(visits, 2)
    assert not is_there(visits, 2, WEB_VISIT_S) and not visits.visits()


def test_who_asks_for_links_without_end_pushes_out_nobody_elses() -> None:
    """A reader cannot end an operator's visit, nor have its link forgotten."""
    visits, reader = PageVisits(), visitor_of(Identity("reader", "eve"), "reader")
    opened(visits, 0)
    visits.link("operator's", WHO, 0.0)
    for at in range(1, 3 * WEB_VISITS_MAX):
        opened(visits, at, who=reader)
        visits.link(f"more {at}", reader, 0.0)
    assert is_there(visits, 0) and visits.open("operator's", "c", "k", 0.0).visitor == WHO
    assert len(visits.visits()) == WEB_VISITS_MAX and is_there(visits, 3 * WEB_VISITS_MAX - 1)


def test_the_oldest_gives_way_at_the_limits() -> None:
    visits = PageVisits()
    for at in range(WEB_LINKS_MAX):
        visits.link(str(at), WHO, 0.0)
    assert len(visits.links()) == WEB_LINKS_MAX
    visits.link("more", WHO, 0.0)
    assert len(visits.links()) == WEB_LINKS_MAX
    with pytest.raises(Refused):
        visits.open("0", "cookie", "key", 0.0)
    visits.open("1", "cookie", "key", 0.0)
    for at in range(WEB_VISITS_MAX):
        opened(visits, at)
    assert len(visits.visits()) == WEB_VISITS_MAX and is_there(visits, 0)
    opened(visits, WEB_VISITS_MAX)
    assert len(visits.visits()) == WEB_VISITS_MAX and not is_there(visits, 0) and is_there(visits, 1)


@pytest.mark.parametrize("asker", ROLES)
@pytest.mark.parametrize("role", ROLES)
def test_a_link_gives_no_more_than_who_asks_may_do(asker: str, role: str) -> None:
    given = {("operator", "operator"), ("operator", "reader"), ("reader", "reader")}
    who = Identity(asker, "x")  # type: ignore[arg-type]
    if (asker, role) in given:
        visitor = visitor_of(who, role, "07", 5.0)  # type: ignore[arg-type]
        assert (visitor.identity, visitor.asked_by) == (Identity(role, "x"), who)  # type: ignore[arg-type]
        return
    with pytest.raises(Refused) as refused:
        visitor_of(who, role)  # type: ignore[arg-type]
    assert (refused.value.code, refused.value.field) == ("not-allowed", "role")


def test_links_and_visits_of_who_is_believed_no_more_end() -> None:
    visits, other = PageVisits(), visitor_of(Identity("operator", "other"), "reader", "0A", 3.0)
    opened(visits, 1)
    opened(visits, 2, who=other)
    visits.link("other's", other, 0.0)
    visits.link("owner's", WHO, 0.0)
    visits.end_where(lambda each: each.serial == "0A" and each.asked_by.name == "other")
    assert is_there(visits, 1) and not is_there(visits, 2)
    assert len(visits.links()) == 1


def test_only_digests_are_kept() -> None:
    visits = PageVisits()
    opened(visits, 1)
    visits.link("secret link", WHO, 0.0)
    kept = repr(vars(visits))
    assert not any(secret in kept for secret in ("cookie 1", "key 1", "secret link"))


@pytest.mark.parametrize(
    ("config", "code", "remedy"),
    [
        (NodeConfig(), "no-page", "lifl up --web"),
        (NodeConfig(http="0.0.0.0:7480", insecure=True), "not-secured", "--insecure"),
    ],
)
def test_a_node_that_has_no_page_says_how_to_get_one(config: NodeConfig, code: str, remedy: str) -> None:
    door: Any = SimpleNamespace(address=config.http) if config.http else None
    enforcement: Any = SimpleNamespace(add=lambda _door: None)
    pages = Pages(door, cast(Any, None), config, cast(Any, None), enforcement)
    with pytest.raises(Refused, match=remedy) as refused:
        pages.link("", None)
    assert (refused.value.code, refused.value.field) == (code, "http")

"""Connections that have not said who they are make room for each other, and nobody's flood takes all of it."""

from __future__ import annotations

import pytest

from lifl.core.limits import GREETING_GRACE_S
from lifl.node.greetings import Greetings, source_of


class Hall:
    """Greetings, and who was cut."""

    def __init__(self, all_max: int, source_max: int) -> None:
        self.greetings = Greetings(all_max, source_max)
        self.cut: list[str] = []

    def enter(self, who: str, host: str, now: float = 0.0) -> bool:
        return self.greetings.enter(who, host, now, lambda: self.cut.append(who))


def test_beyond_a_sources_share_it_is_turned_away_until_its_oldest_has_had_its_time() -> None:
    hall = Hall(10, 2)
    assert hall.enter("a1", "10.0.0.1")
    assert hall.enter("a2", "10.0.0.1", 0.5)
    assert not hall.enter("a3", "10.0.0.1", GREETING_GRACE_S - 0.01)
    assert hall.enter("b1", "10.0.0.2", 0.5)
    assert hall.cut == []
    assert hall.enter("a3", "10.0.0.1", GREETING_GRACE_S)
    assert hall.cut == ["a1"]
    assert not hall.enter("a4", "10.0.0.1", GREETING_GRACE_S + 0.4)


def test_in_all_the_source_that_has_most_makes_room() -> None:
    hall = Hall(4, 3)
    for who in ("f1", "f2", "f3"):
        assert hall.enter(who, "10.0.0.9")
    assert hall.enter("a", "10.0.0.1")
    assert not hall.enter("b", "10.0.0.2", 0.5)
    assert hall.enter("b", "10.0.0.2", 1.0)
    assert hall.enter("c", "10.0.0.3", 1.0)
    assert hall.cut == ["f1", "f2"]


def test_who_has_left_takes_no_room_and_is_not_cut() -> None:
    hall = Hall(2, 2)
    assert hall.enter("a", "10.0.0.1")
    hall.greetings.leave("a", "10.0.0.1")
    hall.greetings.leave("a", "10.0.0.1")
    assert hall.enter("b", "10.0.0.1", 5.0)
    assert hall.enter("c", "10.0.0.1", 5.5)
    assert hall.cut == []
    assert hall.enter("d", "10.0.0.1", 6.0)
    hall.greetings.leave("b", "10.0.0.1")  # it was cut, and says so
    assert not hall.enter("e", "10.0.0.2", 6.0)
    assert hall.cut == ["b"]


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fd00:1:2:3::77", "fd00:1:2:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_source_is_what_one_subscriber_has(host: str, source: str) -> None:
    assert source_of(host) == source

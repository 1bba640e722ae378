"""Connections that have not said who they are make room for each other, and nobody's flood takes all of it."""

from __future__ import annotations

import pytest

from lifl.core.limits import UNGREETED_S
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
    assert not hall.enter("a3", "10.0.0.1", UNGREETED_S - 0.01)
    assert hall.enter("b1", "10.0.0.2", 0.5)
    assert hall.cut == []
    assert hall.enter("a3", "10.0.0.1", UNGREETED_S)
    assert hall.cut == ["a1"]
    assert not hall.enter("a4", "10.0.0.1", UNGREETED_S + 0.4)


def test_in_all_the_source_that_has_most_makes_room_at_once_for_one_that_has_fewer() -> None:
    hall = Hall(4, 3)
    for who in ("f1", "f2", "f3"):
        assert hall.enter(who, "10.0.0.9")
    assert hall.enter("a", "10.0.0.1")
    assert hall.enter("b", "10.0.0.2", 0.5)
    assert hall.cut == ["f1"]
    assert not hall.enter("a2", "10.0.0.1", 0.5), "it would have as many"
    assert hall.enter("c", "10.0.0.3", 0.5)
    assert hall.cut == ["f1", "f2"]
    assert not hall.enter("d", "10.0.0.4", UNGREETED_S - 0.01), "all have one, and it is early"
    assert hall.enter("d", "10.0.0.4", UNGREETED_S)
    assert hall.cut == ["f1", "f2", "f3"]


def test_a_crowd_that_comes_again_and_again_keeps_nobody_out() -> None:
    hall, number = Hall(256, 64), 0
    for _ in range(20):
        for _ in range(300):
            number += 1
            hall.enter(f"f{number}", f"10.0.0.{number % 7}", number * 1e-4)
        assert hall.enter(f"honest {number}", "10.0.1.1", number * 1e-4)
        hall.greetings.leave(f"honest {number}")
    assert not [who for who in hall.cut if who.startswith("honest")]


def test_who_has_left_takes_no_room_and_is_not_cut() -> None:
    hall = Hall(2, 2)
    assert hall.enter("a", "10.0.0.1")
    hall.greetings.leave("a")
    hall.greetings.leave("a")
    assert hall.enter("b", "10.0.0.1", 5.0)
    assert hall.enter("c", "10.0.0.1", 5.5)
    assert hall.cut == []
    assert hall.enter("d", "10.0.0.1", 6.0)
    hall.greetings.leave("b")  # it was cut, and says so
    assert not hall.enter("e", "10.0.0.1", 6.0)
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

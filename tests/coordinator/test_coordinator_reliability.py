"""Who may take part in a job, and who is asked late because it did not keep its word."""

from __future__ import annotations

import math

import pytest
from coordinator_scene import CLOSED, HOME, NUMBER, OPEN, B, Led, Scene, admit, joined, sealed

from lifl.core import limits
from lifl.core.coordinator import reliability
from lifl.core.coordinator.branch_record import BranchRecord
from lifl.core.coordinator.reliability import (
    DECLINE,
    FORGET_ATTEMPTS,
    LATE_ATTEMPTS,
    MISSES_MAX,
    TROUBLED_ATTEMPTS,
    Record,
    Reliability,
    late_attempts,
)
from lifl.core.coordinator.round import Phase, Round
from lifl.core.ids import epoch_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution


def invited(led: Led) -> list[int]:
    return [conn for conn, _message in led.said(cm.Selected)]


def ended(
    books: Reliability, accepted: str = "", *, late: str = "", left: str = "", declined: str = "", spoilt: str = ""
) -> None:
    """An attempt has ended; clients are letters.  `late`: the deadline came first."""
    round_ = Round(1, 1, Scene().spec.config.selection, 0.0)
    round_.selected = dict.fromkeys(accepted + late + left + declined + spoilt)
    for client in accepted + spoilt:
        round_.accepted[client] = Contribution(client, 1.0)
    round_.left, round_.declined, round_.suspects, round_.overdue = (
        set(left),
        set(declined),
        frozenset(spoilt),
        bool(late),
    )
    books.ended(round_)
    assert not list(books.faults())


# ---- the list --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clients", "client", "taken"),
    [
        (["c1", "c2"], "c1", True),
        (["c1", "c2"], "c11", False),
        (["hospital-*"], "hospital-", True),
        (["hospital-*"], "hospital-3.west", True),
        (["hospital-*"], "clinic-3", False),
        (["*-1", "x"], "a-1", True),
        (["a.b"], "a-b", False),
        (["*"], "anybody", True),
    ],
)
def test_only_who_is_on_the_list_may_take_part(clients: list[str], client: str, taken: bool) -> None:
    scene = Scene(clients=clients)
    scene.has_round(Phase.WAITING, [])
    led = scene.handle(gm.ClientJoined(7, client, "j"))
    assert (client in scene.job.present) == taken
    refusals = led.said(cm.Refusal)
    if not taken:
        ((conn, refusal),) = refusals
        assert (conn, refusal.code, refusal.field, refusal.job) == (7, "not-listed", "client", "j")
        assert client in refusal.text
        assert "selection.clients" in refusal.text
    else:
        assert not refusals


def test_who_is_not_on_the_list_takes_no_name_away_and_its_update_is_not_taken() -> None:
    scene = Scene(clients=["c1", "c2"])
    scene.has_round(selected=["c1", "c2"])
    scene.here("c1")
    scene.handle(gm.ClientJoined(9, "c9", "j"))
    ((_conn, refusal),) = scene.handle(admit("c9")).said(cm.Refusal)
    assert refusal.code == "not-selected"
    assert list(scene.job.present) == ["c1"]


# ---- the books -------------------------------------------------------------------------------------------------------


def test_who_delivers_misses_nothing_and_each_way_not_to_is_counted() -> None:
    books = Reliability()
    ended(books, "a", late="b", left="c", declined="d", spoilt="e")
    assert books.records() == {
        "a": Record(1, 1, at=1),
        "b": Record(1, late=1, misses=1.0, at=1),
        "c": Record(1, left=1, misses=1.0, at=1),
        "d": Record(1, declined=1, misses=DECLINE, at=1),
        "e": Record(1, spoilt=1, misses=1.0, at=1),
    }
    assert [books.level(client) for client in "abcdef"] == [0, 1, 1, 1, 1, 0]


def test_a_round_that_was_complete_without_a_client_lays_nothing_to_it() -> None:
    books = Reliability()
    round_ = Round(1, 1, Scene().spec.config.selection, 0.0)
    round_.selected = {"a": None}
    books.ended(round_)
    assert books.records() == {"a": Record(1, at=1)}


def test_misses_halve_with_each_update_and_with_time() -> None:
    books = Reliability()
    for _ in range(3):
        ended(books, late="a")
    assert books.records()["a"].misses == 3.0
    ended(books, "a")
    assert books.records()["a"].misses == 1.5
    for _ in range(math.ceil(late_attempts(1.5)) + FORGET_ATTEMPTS):
        ended(books, "b")
    assert books.records()["a"].misses == pytest.approx(0.75, rel=0.02)


@pytest.mark.parametrize(
    ("misses", "attempts"),
    [(1, LATE_ATTEMPTS), (2, 3 * LATE_ATTEMPTS), (3, 7 * LATE_ATTEMPTS), (50, 31 * LATE_ATTEMPTS)],
)
def test_each_further_miss_doubles_for_how_long_a_client_is_asked_late(misses: int, attempts: int) -> None:
    books = Reliability()
    for _ in range(misses):
        ended(books, late="a")
    levels = []
    while books.level("a"):
        levels.append(books.level("a"))
        ended(books, "b")
    assert levels == [min(misses, MISSES_MAX)] * attempts


def test_who_declined_is_asked_late_for_a_moment() -> None:
    books = Reliability()
    ended(books, declined="a")
    assert books.level("a") == 1
    for _ in range(2):
        ended(books, "b")
    assert books.level("a") == 0


def test_the_books_are_of_those_that_were_selected_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "RELIABILITY_CLIENTS_MAX", 3)
    books = Reliability()
    ended(books, late="ab")
    ended(books, "c")
    ended(books, "a")
    assert list(books.records()) == ["b", "c", "a"]
    ended(books, late="d")
    assert list(books.records()) == ["c", "a", "d"]
    assert books.level("b") == 0
    assert limits.RELIABILITY_CLIENTS_MAX >= limits.CLIENTS_PER_ROUND_MAX


# ---- who is asked ----------------------------------------------------------------------------------------------------


def opens(scene: Scene, *clients: str) -> list[int]:
    """Who is invited when the waiting round opens."""
    scene.here(*clients)
    return invited(scene.do(scene.coordinator.node_suspect, HOME, False))


def test_who_missed_is_asked_when_not_enough_others_are_here() -> None:
    scene = Scene(goal=2)
    scene.has_round(Phase.WAITING, [])
    missed = Round(1, 1, scene.spec.config.selection, 0.0)
    missed.selected, missed.overdue = dict.fromkeys(["c1", "c2", "c3"]), True
    scene.job.selection.reliability.ended(missed)
    assert sorted(opens(scene, "c1", "c2", "c3", "c4", "c5")) == [4, 5]
    # One of the two leaves: of those who missed somebody is asked after all.
    led = scene.handle(gm.ClientLeft(4))
    assert len(invited(led)) == 1
    assert invited(led)[0] in (1, 2, 3)


def test_who_missed_less_is_asked_first() -> None:
    scene = Scene(goal=1)
    scene.has_round(Phase.WAITING, [])
    for late in (["c1", "c2"], ["c1"]):
        round_ = Round(1, 1, scene.spec.config.selection, 0.0)
        round_.selected, round_.overdue = dict.fromkeys(late), True
        scene.job.selection.reliability.ended(round_)
    assert opens(scene, "c1", "c2") == [2]


def test_among_those_who_missed_nothing_the_draw_is_what_it_was() -> None:
    drawn = []
    for with_books in (False, True):
        scene = Scene(goal=3, seed=4)
        scene.has_round(Phase.WAITING, [])
        if with_books:
            round_ = Round(1, 1, scene.spec.config.selection, 0.0)
            round_.selected, round_.overdue = {"c99": None}, True
            scene.job.selection.reliability.ended(round_)
        drawn.append(opens(scene, *(f"c{index}" for index in range(1, 30))))
    assert drawn[0] == drawn[1]


def test_for_a_while_after_a_missed_deadline_those_who_have_delivered_before_are_asked_first() -> None:
    books = Reliability()
    ended(books, "a")
    assert books.by_turn("xa", again=False) == [["x", "a"]]
    assert books.by_turn("xa", again=True) == [["a"], ["x"]]
    ended(books, "a", late="b")
    for _ in range(TROUBLED_ATTEMPTS):
        assert books.by_turn("xa", again=False) == [["a"], ["x"]]
        ended(books, "c")
    assert books.by_turn("xa", again=False) == [["x", "a"]]


def test_when_a_round_is_tried_again_those_who_have_delivered_before_are_asked_first() -> None:
    scene = Scene(goal=2)
    scene.has_round(Phase.WAITING, [], attempt=2)
    round_ = Round(1, 1, scene.spec.config.selection, 0.0)
    round_.selected = dict.fromkeys(["c7", "c9"])
    for client in round_.selected:
        round_.accepted[client] = Contribution(client, 1.0)
    scene.job.selection.reliability.ended(round_)
    assert sorted(opens(scene, *(f"c{index}" for index in range(1, 30)))) == [7, 9]


def test_silent_clients_cannot_starve_a_job_that_has_some_who_deliver() -> None:
    """Of 60 clients 52 never send anything, and a round needs 4: at first nobody is known; then few fail."""
    scene = Scene(goal=4)
    honest = {f"c{index}" for index in range(1, 9)}
    selection = scene.running().selection
    scene.here(*(f"c{index}" for index in range(1, 61)))
    attempts = []
    for number in range(1, 40):
        before: Round | None = None
        for attempt in range(1, 20):
            round_ = Round(number, attempt, scene.spec.config.selection, 0.0)
            round_.add(BranchRecord(0, HOME, 4, OPEN))
            if before is not None:
                round_.follow(before)
            selection.fill(round_)
            for client in honest & round_.selected.keys():
                round_.accepted[client] = Contribution(client, 1.0)
            round_.overdue = len(round_.accepted) < 4
            selection.reliability.ended(round_)
            before = round_
            if not round_.overdue:
                break
        attempts.append(attempt)
    assert max(attempts[2:]) <= 2
    assert sum(attempts[2:]) <= 1.25 * len(attempts[2:])


# ---- what is laid to whom --------------------------------------------------------------------------------------------


def books_of(scene: Scene) -> dict[str, Record]:
    return dict(scene.job.selection.reliability.records())


def test_at_the_deadline_those_are_late_who_have_sent_nothing() -> None:
    scene = Scene(goal=3, quorum=2)
    scene.here("c1", "c2", "c3")
    scene.has_round(branches=[(HOME, 3, OPEN)], accepted={"c1": 0, "c2": 0}, selected=["c3"])
    scene.do(scene.coordinator.tick, at=100.0)
    assert books_of(scene) == {}  # not before it is over
    scene.handle(o.BranchClosed(NUMBER, epoch_of(1, 1), 0, 2))
    scene.handle(o.ModelSealed(NUMBER, epoch_of(1, 1), {}))
    assert {client: (record.delivered, record.late) for client, record in books_of(scene).items()} == {
        "c1": (1, 0),
        "c2": (1, 0),
        "c3": (0, 1),
    }


def test_a_round_that_fails_for_too_few_lays_it_to_those_who_sent_nothing() -> None:
    scene = Scene(goal=2)
    scene.here("c1", "c2")
    scene.has_round(accepted={"c1": 0}, selected=["c2"])
    scene.do(scene.coordinator.tick, at=100.0)
    assert {client: (record.delivered, record.late) for client, record in books_of(scene).items()} == {
        "c1": (1, 0),
        "c2": (0, 1),
    }


def test_one_that_left_and_did_not_come_back_has_left_and_one_that_did_has_not() -> None:
    scene = Scene(goal=2)
    scene.here("c1", "c2", "c3")
    scene.has_round(selected=["c1", "c2"])
    scene.handle(gm.ClientLeft(1))
    scene.handle(gm.ClientLeft(2))
    scene.handle(joined("c2"))
    for client in ("c2", "c3"):
        scene.handle(admit(client))
        scene.handle(sealed(client))
    scene.handle(o.ModelSealed(NUMBER, epoch_of(1, 1), {}))
    assert {client: (record.delivered, record.left) for client, record in books_of(scene).items()} == {
        "c1": (0, 1),
        "c2": (1, 0),
        "c3": (1, 0),
    }


@pytest.mark.parametrize("how", ["gateway lost", "node leaves", "node drains", "node is back"])
def test_who_lost_its_node_has_not_left(how: str) -> None:
    scene = Scene(goal=1, nodes=(HOME, B))
    scene.here("c1", node=B)
    scene.here("c2")
    scene.has_round(branches=[(HOME, 1, OPEN)], selected=["c1"])
    if how == "gateway lost":
        scene.handle(gm.GatewayLost(), node=B)
    else:
        node = scene.coordinator.nodes.get(B)
        assert node is not None
        node.leaving, node.drains, node.known = how == "node leaves", how == "node drains", how != "node is back"
        scene.handle(gm.ClientLeft(1), node=B)
    scene.handle(admit("c2"))
    scene.handle(sealed("c2"))
    scene.handle(o.ModelSealed(NUMBER, epoch_of(1, 1), {}))
    assert books_of(scene)["c1"] == Record(1, at=1)


def test_a_round_that_a_fault_of_ours_ended_lays_nothing_to_anyone_but_the_suspects() -> None:
    scene = Scene(goal=3)
    scene.here("c1", "c2", "c3")
    scene.has_round(Phase.AGGREGATING, [(HOME, 2, CLOSED)], accepted={"c1": 0, "c2": 0}, selected=["c3"])
    scene.handle(o.BranchFailed(NUMBER, epoch_of(1, 1), "overflow", retry=True, suspects=("c2",)))
    assert {client: (record.delivered, record.spoilt, record.misses) for client, record in books_of(scene).items()} == {
        "c1": (1, 0, 0.0),
        "c2": (0, 1, 1.0),
        "c3": (0, 0, 0.0),
    }


def test_the_books_go_with_the_job() -> None:
    scene = Scene(goal=1)
    scene.here("c1")
    scene.has_round(selected=["c1"])
    scene.do(scene.coordinator.tick, at=100.0)
    assert books_of(scene)
    scene.do(scene.coordinator.cancel, "j")
    assert not books_of(scene)

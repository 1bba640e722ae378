"""What a node's processes had used when a round opened is noted while the round may still have a receipt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lifl.core import effects as fx
from lifl.node.meters import OPENED_MAX, Meters


def opened(meters: Meters, job: str, number: int) -> None:
    meters.published(fx.Publish("round.opened", job, {"round": number}))


def meters_() -> Meters:
    child: Any = SimpleNamespace(pid=0)
    return Meters(child, child)


def test_a_receipt_tells_what_was_used_since_its_round_opened() -> None:
    meters = meters_()
    opened(meters, "j", 1)
    row = fx.SaveRound("j", 1, 1, "committed", {"receipt": {"cpu_s": {}}})
    meters.complete(row, "unix")
    assert row.fields["receipt"]["redirector"] == "unix" and row.fields["receipt"]["cpu_s"].keys() >= {"lifld"}
    assert not meters._opened


def test_a_job_that_is_over_leaves_nothing() -> None:
    meters = meters_()
    for job, number in (("j", 1), ("j", 2), ("k", 1)):
        opened(meters, job, number)
    meters.published(fx.Publish("job.over", "j", {"status": "cancelled"}))
    assert [*meters._opened] == [("k", 1)]


def test_rounds_that_another_node_has_ended_are_let_go() -> None:
    meters = meters_()
    for number in range(OPENED_MAX + 1):
        opened(meters, "j", number)
    assert len(meters._opened) == OPENED_MAX and ("j", 0) not in meters._opened
    opened(meters, "j", 1)  # once more, by another attempt
    opened(meters, "k", 1)
    assert len(meters._opened) == OPENED_MAX and ("j", 1) in meters._opened and ("j", 2) not in meters._opened

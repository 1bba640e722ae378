"""A round's receipt as spans, and as the file that Perfetto and chrome://tracing open."""

from __future__ import annotations

from typing import Any

import pytest

from lifl.core.coordinator.spans import Span, in_rows, spans_of, trace_events
from lifl.core.errors import Refused


def task(role: str, number: int, pid: int, begin_s: float, end_s: float) -> dict[str, Any]:
    return {
        "role": role,
        "number": number,
        "pid": pid,
        "node": "1f",
        "began_s": begin_s,
        "ended_s": end_s,
        "cpu_s": 0.1,
    }


def line(**more: Any) -> dict[str, Any]:
    timeline = {
        "began_s": -2.0,
        "sealed_s": 5.0,
        "saved_s": 5.5,
        "ended_s": 6.0,
        "updates": {"a": (0.5, 1.0), "b": (0.75, 4.0)},
    }
    tree = [task("leaf", 0, 71, 0.25, 4.25), task("top", 1, 72, 4.0, 5.0), {"role": "middle", "number": 2, "pid": None}]
    found = {"round": 3, "attempt": 2, "status": "committed", "reason": "", "metrics": {"loss": 0.5}}
    return found | {"receipt": {"selected": 2, "timeline": timeline, "tree": tree}} | more


def named(spans: list[Span]) -> dict[str, tuple[float, float]]:
    return {span.name: (span.begin_s, span.end_s) for span in spans}


def test_a_round_has_its_phases_one_after_the_other_its_updates_and_its_tasks() -> None:
    assert named(spans_of(line())) == {
        "round 3": (-2.0, 6.0),
        "selection": (-2.0, 0.0),
        "collecting": (0.0, 4.0),
        "finish": (4.0, 5.0),
        "checkpoint": (5.0, 5.5),
        "commit": (5.5, 6.0),
        "a": (0.5, 1.0),
        "b": (0.75, 4.0),
        "leaf 0": (0.25, 4.25),
        "top 1": (4.0, 5.0),
    }


def test_a_round_that_failed_while_it_collected_ends_there() -> None:
    failed = line(status="failed", reason="no quorum")
    failed["receipt"]["timeline"] |= {"sealed_s": None, "saved_s": None, "updates": {}}
    found = named(spans_of(failed))
    assert {"finish", "checkpoint", "commit"}.isdisjoint(found)
    assert found["round 3"] == (-2.0, 6.0)


@pytest.mark.parametrize("receipt", [None, {}, {"selected": 2}])
def test_a_round_of_an_earlier_version_says_that_it_has_no_times(receipt: dict[str, Any] | None) -> None:
    with pytest.raises(Refused, match="earlier version"):
        spans_of(line(receipt=receipt))


def test_what_overlaps_is_on_rows_of_its_own() -> None:
    spans = [
        Span(name, "node 1", "worker 7", begin, end, {}) for name, begin, end in (("a", 0, 2), ("b", 1, 3), ("c", 2, 4))
    ]
    assert [(span.name, span.row) for span in in_rows(spans)] == [
        ("a", "worker 7"),
        ("b", "worker 7 (2)"),
        ("c", "worker 7"),
    ]


def test_the_file_has_complete_events_in_microseconds_from_zero_on_and_names_for_all_rows() -> None:
    trace = trace_events("j", line())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    by_name = {event["name"]: event for event in events}
    assert min(event["ts"] for event in events) == 0
    assert (by_name["leaf 0"]["ts"], by_name["leaf 0"]["dur"]) == (2_250_000, 4_000_000)
    assert by_name["round 3"]["args"] == {"round": 3, "attempt": 2, "status": "committed", "selected": 2, "loss": 0.5}
    names = {
        (event["pid"], event.get("tid")): event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"
    }
    assert {names[event["pid"], event["tid"]] for event in events} == {
        "round",
        "phases",
        "1",
        "2",
        "worker 71",
        "worker 72",
    }
    assert {names[event["pid"], None] for event in events} == {"round", "updates", "node 1f"}

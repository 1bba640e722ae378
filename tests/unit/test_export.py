"""What a tracker is told of a job, and when: each round once, its evaluation later, all that it has missed."""

from __future__ import annotations

from typing import Any

import pytest
from lifl_cli import trackers
from lifl_cli.export import Told, place_of
from lifl_cli.trackers import Point, Run, TrackerAway, _mlflow_name
from test_history import EVALUATED, Answers, line

from lifl.core.errors import Refused


class Kept:
    """A tracker that keeps what it is told, and its mark; one that is `away` takes nothing."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.kept, self.away, self.ended = "", False, 0

    def mark(self) -> str:
        return self.kept

    def tell(self, points: list[Point], mark: str) -> None:
        if self.away:
            raise TrackerAway("it is away")
        self.points += points
        self.kept = mark

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Kept:
    found = Kept()
    monkeypatch.setitem(trackers.TRACKERS, "kept", lambda _run, _address: found)
    return found


def telling(lines: list[dict[str, Any]]) -> Told:
    return Told(Answers(lines, a_frame=3), Run("j", "1", {}), "kept", "")  # type: ignore[arg-type]


def test_each_committed_round_is_told_once_in_order_by_whoever_goes_on(tracker: Kept) -> None:
    lines = [line(1), line(2, "failed"), line(3), line(4)]
    told = telling(lines)
    assert told.all(over=False) == 3
    assert told.all(over=False) == 0
    lines += [line(number) for number in range(5, 300)]
    assert told.all(over=False) == 295
    lines.append(line(300))
    assert telling(lines).all() == 1, "another process"
    assert [point.step for point in tracker.points] == [1, *range(3, 301)]
    assert tracker.points[0].unix_s == 1001.0
    assert tracker.points[0].values["loss"] == 1.0
    assert tracker.ended == 1


def test_what_an_evaluation_finds_after_its_round_was_told_is_told_then_and_once(tracker: Kept) -> None:
    lines = [line(1), line(2)]
    told = telling(lines)
    told.all(over=False)
    lines[-1] |= {"evaluation": EVALUATED}
    assert [told.all(over=False), told.all(over=False), telling(lines).all(over=False)] == [1, 0, 0]
    assert tracker.points[-1] == Point(
        2,
        1002.0,
        {"evaluation.loss": 0.5, "evaluation.loss.min": 0.25, "evaluation.loss.max": 0.75, "evaluation.loss.std": 0.1},
    )
    lines.append(line(3, evaluation=EVALUATED))
    assert telling(lines).all() == 1
    assert {"loss", "evaluation.loss"} <= tracker.points[-1].values.keys()
    assert tracker.kept == "3+"


def test_what_a_tracker_did_not_take_is_told_when_it_is_back(tracker: Kept) -> None:
    told = telling([line(1), line(2)])
    tracker.away = True
    with pytest.raises(TrackerAway):
        told.all()
    tracker.away = False
    told.forget()
    assert told.all() == 2
    assert [point.step for point in tracker.points] == [1, 2]


def test_each_clients_metrics_go_by_its_name(tracker: Kept) -> None:
    telling([line(1, receipt={"clients": {"a.b": {"loss": 3.0}}})]).all()
    assert tracker.points[0].values["client.a.b.loss"] == 3.0


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("loss", "loss"),
        ("top-5 acc", "top-5 acc"),
        ("a/b", "a/b"),
        ("/a", "_a"),
        ("a//b", "a__b"),
        ("../x", "_x"),
        ("größe, %", "größe_ _"),
        ("💥", "_"),
        ("a\\b", "a_b"),
        (".", "_"),
    ],
)
def test_a_name_that_mlflow_would_refuse_is_changed(name: str, shown: str) -> None:
    assert _mlflow_name(name) == shown


def test_which_tracker_is_meant(tmp_path: Any) -> None:
    config = {"tracker": "mlflow", "address": "http://m:1"}
    assert place_of("j", config, None, None, tmp_path) == ("mlflow", "http://m:1")
    assert place_of("j", config, "tensorboard", None, tmp_path) == (
        "tensorboard",
        str(tmp_path / "trackers" / "tensorboard"),
    )
    assert place_of("j", {}, "mlflow", None, tmp_path) == ("mlflow", trackers.MLFLOW_ADDRESS)
    assert place_of("j", {}, "wandb", "/w", tmp_path) == ("wandb", "/w")
    with pytest.raises(Refused, match="--to"):
        place_of("j", {}, None, None, tmp_path)

"""What grows with clients and tasks has its measure in what is told and kept of a round."""

from __future__ import annotations

import pytest
from coordinator_scene import HOME, OPEN, B, Scene

from lifl.core.coordinator.receipt import metrics_of, receipt_of
from lifl.core.coordinator.round import Phase
from lifl.core.coordinator.selection import Selection
from lifl.core.limits import COST_LINES_MAX, REASON_BYTES_MAX, ROUND_METRICS_MAX, TEXT_CHARS_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution


def test_a_long_reason_is_told_to_all_in_short_and_kept_whole() -> None:
    scene = Scene(attempts=2)
    scene.here("c1", "c2")
    scene.has_round(Phase.COLLECTING, selected=["c1", "c2"])
    reason = "é" * TEXT_CHARS_MAX
    led = scene.handle(o.BranchFailed(1, scene.round.epoch, reason, True))
    told = [message for _conn, message in led.said(cm.RoundOver)]
    assert len(told) == 2
    assert all(len(message.reason.encode()) <= REASON_BYTES_MAX for message in told)
    assert all(message.reason.startswith("é" * 190) and message.reason.endswith("...") for message in told)
    assert led.rows[0].fields["reason"] == reason


def test_of_many_names_of_metrics_those_that_most_sent_are_kept() -> None:
    scene = Scene()
    round_ = scene.has_round(Phase.COLLECTING, branches=((HOME, 100, OPEN),))
    for index in range(100):
        metrics = {f"m{index}-{number}": 1.0 for number in range(15)} | {"loss": float(index)}
        round_.accepted[f"c{index}"] = Contribution(f"c{index}", 1.0, metrics)
    found = metrics_of(round_.accepted)
    assert len(found) == ROUND_METRICS_MAX
    assert found["loss"] == 49.5


def test_a_receipt_has_a_line_for_so_many_tasks() -> None:
    scene = Scene()
    round_ = scene.has_round(Phase.COLLECTING, branches=((HOME, 2, OPEN), (HOME, 2, OPEN)))
    for record in round_.branches.values():
        record.cost = {"tree": [{"address": index} for index in range(COST_LINES_MAX - 1)]}
    tree = receipt_of(round_, 0.0)["tree"]
    assert len(tree) == COST_LINES_MAX


def test_the_loss_of_a_gateway_is_one_look_for_others_whatever_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one for each client, 10,000 of them took seconds: more than a node may be silent."""
    scene = Scene(goal=50, nodes=(HOME, B))
    names = [f"c{index}" for index in range(1, 51)]
    scene.here(*names)
    scene.has_round(Phase.COLLECTING, branches=((HOME, 50, OPEN),), selected=names)
    looks = []
    fill = Selection.fill
    monkeypatch.setattr(Selection, "fill", lambda self, round_: (looks.append(round_), fill(self, round_))[1])
    scene.handle(gm.GatewayLost())
    assert scene.coordinator.presence.of("j") == {}
    assert len(looks) == 1

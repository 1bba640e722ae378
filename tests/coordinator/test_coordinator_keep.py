"""Which models stay is said behind the row of each commit, and goes on where an earlier life has left it."""

from __future__ import annotations

from typing import Any

import pytest
from coordinator_scene import HOME, NUMBER, B, C, Scene

from lifl.core import effects as fx
from lifl.core.coordinator.round import Phase
from lifl.core.ids import epoch_of
from lifl.core.planning.keeping import Kept
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol.contribution import Contribution

KEEP = {"last": 2, "every": 5, "best": "acc"}


def commit(scene: Scene, number: int, acc: float | None) -> dict[str, Any]:
    """A round commits with this mean; what its row says of the models that stay."""
    round_ = scene.is_saving(number, ["c1"])
    round_.accepted["c1"] = Contribution("c1", 1.0, {"acc": acc} if acc is not None else {})
    led = scene.handle(o.ModelSaved(NUMBER, epoch_of(number, 1)))
    (row,) = [row for row in led.rows if row.status == "committed"]
    found: dict[str, Any] = row.fields["keep"]
    return found


def scene_of(checkpoint: dict[str, Any], nodes: tuple[int, ...] = (HOME,)) -> Scene:
    scene = Scene(rounds=1_000, checkpoint=checkpoint, nodes=nodes)
    scene.running()
    scene.has_round(Phase.WAITING, [], number=9)
    return scene


def files(number: int) -> tuple[str, str]:
    return f"/f/round-{number:05d}.safetensors", f"/f/round-{number:05d}.state.safetensors"


def committing(scene: Scene, before: int) -> None:
    """Rounds up to `before` are committed."""
    scene.job.rounds.committed = before
    scene.job.rounds.current = None


def test_each_commit_says_what_stays_behind_its_row() -> None:
    scene = Scene(rounds=1_000, states=("m",), checkpoint={"keep": KEEP, "upload": "s3://b"})
    scene.running()
    said = []
    for number, acc in ((1, 0.5), (2, 0.75), (3, None), (4, 0.25)):
        committing(scene, number - 1)
        said.append(commit(scene, number, acc))
    assert said == [
        {"since": 0, "best": [1, 0.5]},
        {"since": 0, "best": [2, 0.75]},
        {"since": 0, "best": [2, 0.75]},
        {"since": 0, "best": [2, 0.75]},
    ]
    assert scene.kept == [
        fx.KeepModels("j", NUMBER, "/f", Kept(number, 2, 5, best, 0), number, files(number), "s3://b")
        for number, best in ((1, 1), (2, 2), (3, 2), (4, 2))
    ]


def test_no_file_goes_before_the_row_of_the_commit_is_durable() -> None:
    scene = Scene(rounds=1_000, checkpoint={"keep": KEEP})
    scene.running()
    scene.is_saving(1, ["c1"])
    scene.turn.now = 1.0
    scene.coordinator.handle(HOME, o.ModelSaved(NUMBER, epoch_of(1, 1)))
    kinds = [type(effect) for effect in scene.turn.effects]
    assert kinds.index(fx.SaveRound) < kinds.index(fx.KeepModels)
    assert not [effect for effect in fx.without_decisions(scene.turn.effects) if isinstance(effect, fx.KeepModels)]


def resumed(scene: Scene, committed: int, said: dict[int, dict[str, Any]]) -> None:
    """The job goes on from an earlier life."""
    scene.loading()
    stored = {number: (1, (f"d{number}",)) for number in range(committed + 1)}
    scene.job.resume(committed, {}, {}, False, stored)
    scene.job.keeping.begin(committed, said)
    scene.job.start()
    scene.led()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({7: {"since": 0, "best": [3, 0.5]}}, Kept(7, 2, 5, 3, 0)),
        ({7: {"since": 4}}, Kept(7, 2, 5, -1, 4)),
        ({}, Kept(7, 2, 5, -1, 8)),  # an earlier version has committed it: all that is there stays
    ],
)
def test_what_an_earlier_life_has_said_still_holds(said: dict[int, dict[str, Any]], kept: Kept) -> None:
    scene = Scene(rounds=1_000, checkpoint={"keep": KEEP})
    resumed(scene, 7, said)
    scene.handle(o.JobOpened(NUMBER))
    assert scene.kept == [fx.KeepModels("j", NUMBER, "/f", kept)]


def test_when_an_older_model_is_taken_the_best_is_that_of_then() -> None:
    scene = Scene(rounds=1_000, checkpoint={"keep": KEEP})
    resumed(scene, 7, {7: {"since": 0, "best": [7, 0.9]}, 6: {"since": 0, "best": [3, 0.5]}})
    scene.handle(o.JobFailed(NUMBER, "/f/7 is damaged"))
    scene.handle(o.JobOpened(NUMBER))
    assert [each.kept for each in scene.kept] == [Kept(6, 2, 5, 3, 0)]


def test_nothing_is_said_before_there_is_a_model() -> None:
    scene = Scene(checkpoint={"keep": KEEP})
    scene.loading()
    scene.job.start()
    scene.handle(o.JobOpened(NUMBER))
    assert scene.kept == []


@pytest.mark.parametrize("replicas", [0, 1])
def test_the_nodes_that_keep_copies_and_know_of_it_are_told(replicas: int) -> None:
    scene = Scene(rounds=1_000, nodes=(HOME, B, C), checkpoint={"keep": KEEP, "replicas": replicas})
    knows = scene.coordinator.nodes.get(B)
    assert knows is not None
    knows.knows = frozenset({p.QUOTAS, p.COPIES, p.KEEPS})
    scene.running()
    scene.job.keeping.tell(4)
    told = scene.led().ordered(o.KeepCopies)
    assert told == ([(B, o.KeepCopies(NUMBER, Kept(4, 2, 5)))] if replicas else [])


def test_rows_are_trimmed_now_and_then_behind_the_commit() -> None:
    history = {"keep": {"rounds": 100, "receipts": 20}}
    scene = Scene(rounds=1_000, checkpoint={"keep": KEEP}, history=history)
    scene.running()
    for number in (63, 64, 65, 128):
        scene.job.keeping.tell(number, fresh=number)
    scene.job.keeping.tell(192)  # an earlier life has committed it
    scene.led()
    assert [(each.rounds, each.receipts, each.kept.committed) for each in scene.trims] == [
        (-35, 45, 64),
        (29, 109, 128),
    ]

"""What a user does to a job while it runs: paused, let go on, changed; and the line of those that wait for room."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from coordinator_scene import ARENA_BYTES, HOME, NUMBER, B, Led, Scene

from lifl.core import effects as fx
from lifl.core.config.edits import Edited, edited
from lifl.core.config.job import fold_job
from lifl.core.coordinator import job_life
from lifl.core.coordinator.coordinator import forget
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.round import Phase
from lifl.core.errors import Refused
from lifl.core.ids import epoch_of
from lifl.core.limits import JOBS_REMEMBERED
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o


def change(scene: Scene, *overrides: str) -> Edited:
    return edited(scene.spec.config, overrides)


def edit(scene: Scene, *overrides: str) -> tuple[Edited, Led]:
    found = change(scene, *overrides)
    return found, scene.do(job_life.edit, scene.coordinator, "j", found)


# ---- over ------------------------------------------------------------------------------------------------------------


def named(scene: Scene, name: str, number: int) -> JobSpec:
    job = msgspec.structs.replace(scene.spec.config.job, name=name)
    config = msgspec.structs.replace(scene.spec.config, job=job)
    return JobSpec(number, config, scene.spec.layout, (), f"/{name}")


def test_of_jobs_that_are_over_the_last_ones_are_remembered_by_when_they_ended() -> None:
    scene = Scene()
    coordinator = scene.coordinator
    for number in range(1, JOBS_REMEMBERED + 3):
        coordinator.start(coordinator.make(named(scene, f"j{number}", number)))

    def cancel(number: int) -> list[str]:
        coordinator.cancel(f"j{number}")
        coordinator.validate()
        return [*coordinator.jobs]

    for number in range(2, JOBS_REMEMBERED + 2):
        names = cancel(number)
    assert "j2" in names and len(names) == JOBS_REMEMBERED + 2, "as many as are remembered"
    last = f"j{JOBS_REMEMBERED + 2}"
    assert cancel(JOBS_REMEMBERED + 2) == ["j1", *(f"j{number}" for number in range(3, JOBS_REMEMBERED + 2)), last]
    assert cancel(1) == [*(f"j{number}" for number in range(4, JOBS_REMEMBERED + 2)), last, "j1"]
    coordinator.recall(coordinator.make(named(scene, "old", 999)), "finished", "")
    assert len(coordinator.jobs) == JOBS_REMEMBERED and "j4" not in coordinator.jobs


# ---- paused ----------------------------------------------------------------------------------------------------------


def test_a_paused_job_gives_its_room_back_and_takes_it_anew() -> None:
    scene = Scene(quorum=1, nodes=(HOME, B))
    scene.has_round(Phase.WAITING, [], number=2, attempt=3).changes = {"job.rounds": 2}
    commit(scene, 1)
    led = scene.do(job_life.pause, scene.coordinator, "j")
    assert led == Led(
        orders=[(HOME, o.CloseJob(NUMBER)), (B, o.CloseJob(NUMBER))],
        rows=[fx.SaveJob("j", "running", "paused"), fx.SaveJob("j", "running", "paused queued")],
        events=[("job.paused", {"reason": "by the user"}), ("job.rests", {"committed": 1})],
    )
    scene.here("c1", "c2")
    assert scene.do(scene.coordinator._try_open) == Led()
    assert scene.do(scene.coordinator.tick, at=200.0) == Led()
    assert (scene.job.round, scene.coordinator.next_timer(), place(scene, "j")) == (None, math.inf, None)
    led = scene.do(job_life.unpause, scene.coordinator, "j")
    ((node, load),) = led.ordered(o.LoadJob)
    assert (node, load.path, load.digests, load.adopt) == (HOME, "/f/round-00001.safetensors", ("d",), False)
    assert led.rows[-1] == fx.SaveJob("j", "running", "")
    led = scene.handle(o.JobOpened(NUMBER))
    assert led.ordered(o.OpenJob)[0][0] == B
    assert len(led.said(cm.Selected)) == 2
    # It is the attempt that was not begun, and what changed before that stands in its books.
    assert (scene.round.number, scene.round.attempt, scene.round.changes) == (2, 3, {"job.rounds": 2})


def commit(scene: Scene, number: int) -> None:
    """The model of the round is committed, with digests, though no round of it ran."""
    round_ = scene.books(Phase.COMMITTED, [], {}, {}, (), number, 1)
    round_.digests = ("d",)
    scene.job._checkpoints.committed(round_, 0, [])


def test_the_round_that_runs_is_finished_before_the_room_is_given_back() -> None:
    scene = Scene()
    scene.here("c1", "c2")
    scene.has_round(Phase.AGGREGATING, accepted={"c1": 0, "c2": 0})
    led = scene.do(job_life.pause, scene.coordinator, "j")
    assert led.rows == [fx.SaveJob("j", "running", "paused")] and led.orders == []
    led = scene.handle(o.ModelSealed(NUMBER, epoch_of(1, 1), {}))
    assert led.ordered(o.SaveModel) and not led.ordered(o.CloseJob)
    assert scene.job.round is None
    led = scene.handle(o.ModelSaved(NUMBER, epoch_of(1, 1)))
    assert led.ordered(o.CloseJob) and led.rows[-1] == fx.SaveJob("j", "running", "paused queued")
    assert scene.job.rounds.committed == 1


def test_one_that_goes_on_while_its_round_runs_keeps_its_room() -> None:
    scene = Scene()
    scene.here("c1", "c2")
    scene.has_round(Phase.AGGREGATING, accepted={"c1": 0, "c2": 0})
    scene.do(job_life.pause, scene.coordinator, "j")
    scene.handle(o.ModelSealed(NUMBER, epoch_of(1, 1), {}))
    led = scene.do(job_life.unpause, scene.coordinator, "j")
    assert not led.ordered(o.LoadJob) and len(led.said(cm.Selected)) == 2
    assert scene.round.number == 2
    assert not scene.handle(o.ModelSaved(NUMBER, epoch_of(1, 1))).ordered(o.CloseJob)


def test_one_that_was_begun_in_another_life_is_finished_though_its_job_is_paused() -> None:
    scene = Scene()
    job = scene.coordinator.make(scene.spec)
    job.resume(0, {}, {1: (1, "open", {})}, adopting=True)
    job.rounds.held = True
    scene.do(scene.coordinator.start, job, False)
    scene.handle(o.JobOpened(NUMBER))
    assert scene.round.phase is Phase.RECOVERING


def test_a_node_that_missed_it_is_told_again_that_the_room_is_given_back() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.running(1)
    scene.do(job_life.pause, scene.coordinator, "j")
    assert scene.handle(p.Inventory(jobs=(NUMBER,)), B).orders == [(B, o.CloseJob(NUMBER))]
    assert scene.handle(p.Inventory(), B).orders == []


def test_the_room_that_a_paused_job_gives_back_is_the_next_ones_and_it_waits_in_line_for_it() -> None:
    scene = Scene()
    line_of(scene, room_for=1.5)
    scene.coordinator.handle(HOME, o.JobOpened(NUMBER))
    scene.coordinator.handle(HOME, o.ModelSaved(NUMBER, 0))
    taken(scene)
    job_life.pause(scene.coordinator, "j")
    assert taken(scene) == {"loads": ["high"], "rows": [("j", "paused"), ("j", "paused queued"), ("high", "")]}
    job_life.unpause(scene.coordinator, "j")
    assert (taken(scene)["loads"], place(scene, "j")) == ([], (1, 3))


def test_a_change_of_a_paused_job_counts_when_it_goes_on_and_stands_in_the_books_of_its_next_round() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.running(1)
    commit(scene, 1)
    scene.do(job_life.pause, scene.coordinator, "j")
    _found, led = edit(scene, "client.options.lr=0.5")
    assert led.orders == []
    led = scene.do(job_life.unpause, scene.coordinator, "j")
    assert led.ordered(o.LoadJob)[0][1].client_options == {"lr": 0.5}
    scene.handle(o.JobOpened(NUMBER))
    assert scene.round.changes == {"client.options.lr": 0.5}


@pytest.mark.parametrize("call", [job_life.pause, job_life.unpause])
def test_what_is_so_already_is_refused(call: Any) -> None:
    scene = Scene()
    scene.running()
    if call is job_life.pause:
        scene.do(job_life.pause, scene.coordinator, "j")
    with pytest.raises(Refused):
        call(scene.coordinator, "j")
    assert scene.led() == Led()
    scene.do(scene.coordinator.cancel, "j")
    with pytest.raises(Refused, match="cancelled already"):
        call(scene.coordinator, "j")


# ---- changed ---------------------------------------------------------------------------------------------------------


def test_a_change_waits_for_the_end_of_the_round_that_runs() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.here("c1", "c2")
    round_ = scene.has_round(Phase.AGGREGATING, accepted={"c1": 0, "c2": 0})
    found, led = edit(scene, "client.options.lr=0.5", "selection.deadline_s=7", "job.rounds=9")
    changes = {"client.options.lr": 0.5, "selection.deadline_s": 7, "job.rounds": 9}
    assert led == Led(rows=[fx.SaveConfig("j", found.config)], events=[("job.edited", {"changes": changes})])
    assert (round_.deadline_s, scene.job.edits.pending, round_.changes) == (100.0, changes, {})
    led = scene.handle(o.ModelSealed(NUMBER, epoch_of(1, 1), {}))
    told = led.ordered(o.OpenJob)
    assert [(node, order.client_options, order.path) for node, order in told] == [
        (HOME, {"lr": 0.5}, ""),
        (B, {"lr": 0.5}, ""),
    ]
    assert (scene.round.number, scene.round.deadline_s, scene.round.changes) == (2, 7.0, changes)
    assert scene.job.edits.pending == {}
    assert scene.spec.config.job.rounds == 9


def test_a_round_that_waits_takes_a_change_at_once() -> None:
    scene = Scene()
    scene.has_round(Phase.WAITING, [])
    scene.here("c1")
    edit(scene, "selection.quorum=1", "selection.deadline_s=5", "selection.over_provision=2.0")
    round_ = scene.round
    assert (round_.quorum, round_.target, round_.deadline_at_s) == (1, 4, 5.0)
    assert scene.coordinator.next_timer() == 5.0
    scene.do(scene.coordinator.tick, at=5.0)
    assert round_.phase is Phase.COLLECTING


def test_more_rounds_keep_a_job_from_its_end_that_has_sealed_its_last() -> None:
    scene = Scene(rounds=1)
    scene.running(1)
    scene.is_saving(1, ["c1"])
    scene.job.rounds.committed = 0
    assert scene.job.round is None
    edit(scene, "job.rounds=2")
    assert scene.round.number == 2
    scene.handle(o.ModelSaved(NUMBER, epoch_of(1, 1)))
    assert not scene.job.over


def test_no_round_that_has_begun_is_taken_away() -> None:
    scene = Scene(rounds=5)
    scene.has_round(number=3)
    with pytest.raises(Refused, match="round 3 of job 'j' has begun"):
        job_life.edit(scene.coordinator, "j", change(scene, "job.rounds=2"))
    assert scene.led() == Led()
    edit(scene, "job.rounds=3")


def test_what_changes_while_the_model_is_loaded_waits_for_that() -> None:
    scene = Scene()
    scene.loading()
    _found, led = edit(scene, "client.options.lr=0.5")
    assert led.orders == []
    led = scene.handle(o.JobOpened(NUMBER))
    assert led.ordered(o.OpenJob)[0][1].client_options == {"lr": 0.5}


def test_a_round_that_is_tried_again_tells_in_its_receipt_what_changed_before_it() -> None:
    scene = Scene()
    scene.here("c1", "c2")
    round_ = scene.has_round(accepted={"c1": 0})
    round_.changes = {"client.options.lr": 0.5}
    led = scene.handle(o.BranchFailed(NUMBER, epoch_of(1, 1), "broken", retry=True))
    assert led.rows[0].fields["receipt"]["edited"] == {"client.options.lr": 0.5}
    assert scene.round.changes == {"client.options.lr": 0.5}


# ---- forgotten -------------------------------------------------------------------------------------------------------


def test_a_job_is_forgotten_when_it_is_over_and_its_name_is_free() -> None:
    scene = Scene()
    scene.running()
    with pytest.raises(Refused, match="lifl cancel j"):
        forget(scene.coordinator, "j")
    scene.do(scene.coordinator.cancel, "j")
    assert scene.do(forget, scene.coordinator, "j") == Led()
    assert scene.do(forget, scene.coordinator, "j") == Led()
    scene.do(scene.coordinator.submit, like(scene.spec, 2), ARENA_BYTES)


def like(spec: JobSpec, number: int, **job: Any) -> JobSpec:
    """A job like this one, under another number and with other keys of its section."""
    config = msgspec.structs.replace(spec.config, job=msgspec.structs.replace(spec.config.job, **job))
    return JobSpec(number, config, spec.layout, spec.states, f"/f{number}")


# ---- the line --------------------------------------------------------------------------------------------------------


def line_of(scene: Scene, room_for: float) -> dict[str, list[Any]]:
    """Jobs j, low, high and last come to an arena that has room for so many; the loads that were ordered, by event."""
    need = scene.spec.bytes_min()
    total = scene.coordinator.queue.total_bytes = int(room_for * need)
    scene.coordinator.submit(scene.spec, total)
    for number, (name, priority) in enumerate([("low", 10), ("high", 90), ("last", 10)], 2):
        spec = like(scene.spec, number, name=name, priority=priority)
        scene.coordinator.submit(spec, total)
    return taken(scene)


def taken(scene: Scene) -> dict[str, list[Any]]:
    """What was ordered to be loaded, and the rows that were written, since the last look."""
    scene.coordinator.validate()
    loads = [order.job for order in scene.turn.queue if isinstance(order, o.OpenJob)]
    rows = [(row.job, row.reason) for row in scene.turn.effects if isinstance(row, fx.SaveJob)]
    scene.turn.queue.clear()
    scene.turn.effects.clear()
    return {"loads": loads, "rows": rows}


def place(scene: Scene, name: str) -> tuple[int, int] | None:
    found = scene.coordinator.queue.place_of(scene.coordinator.jobs[name])
    return (found.position, found.length) if found is not None else None


def test_jobs_for_which_there_is_no_room_begin_by_priority_then_in_their_order() -> None:
    scene = Scene()
    led = line_of(scene, room_for=1.5)
    assert led["loads"] == ["j"]
    assert led["rows"] == [("j", ""), ("low", "queued"), ("high", "queued"), ("last", "queued")]
    assert [place(scene, name) for name in ("j", "high", "low", "last")] == [None, (1, 3), (2, 3), (3, 3)]
    for name, following in (("j", "high"), ("high", "low"), ("low", "last")):
        scene.coordinator.cancel(name)
        assert taken(scene) == {
            "loads": [following],
            "rows": [(name, "cancelled by the user"), (following, "")],
        }


def test_one_is_taken_out_of_line_by_its_end_and_stands_aside_while_it_is_paused() -> None:
    scene = Scene()
    line_of(scene, room_for=1.5)
    scene.coordinator.cancel("low")
    assert taken(scene)["loads"] == []
    assert place(scene, "last") == (2, 2)
    job_life.pause(scene.coordinator, "high")
    assert taken(scene)["rows"] == [("high", "paused queued")]
    assert (place(scene, "high"), place(scene, "last")) == (None, (1, 1))
    scene.coordinator.cancel("j")
    assert taken(scene)["loads"] == ["last"]
    job_life.unpause(scene.coordinator, "high")
    assert (taken(scene), place(scene, "high")) == ({"loads": [], "rows": [("high", "queued")]}, (1, 1))


def test_a_priority_that_changes_counts_at_once() -> None:
    scene = Scene()
    line_of(scene, room_for=1.5)
    config = scene.coordinator.jobs["last"].spec.config
    job_life.edit(scene.coordinator, "last", edited(config, ["job.priority=100"]))
    assert place(scene, "last") == (1, 3)


def test_a_small_job_does_not_overtake_a_large_one() -> None:
    scene = Scene(goal=64)
    small = Scene(goal=1).spec
    need, little = scene.spec.bytes_min(), small.bytes_min()
    assert little < need
    line_of(scene, room_for=1 + 0.99 * little / need + 0.5)
    scene.coordinator.submit(like(small, 9, name="small"), ARENA_BYTES)
    assert place(scene, "small") == (2, 4)


def test_a_paused_job_that_goes_on_in_another_life_stays_so() -> None:
    scene = Scene()
    job = scene.coordinator.make(scene.spec)
    job.resume(0, {}, {}, adopting=False)
    job.rounds.held = True
    scene.do(scene.coordinator.start, job, False)
    scene.here("c1", "c2")
    led = scene.handle(o.JobOpened(NUMBER))
    assert not led.said(cm.Selected) and led.ordered(o.CloseJob)
    assert scene.job.round is None


def test_of_a_job_that_waited_in_an_earlier_life_and_begins_now_no_row_says_that_it_waits() -> None:
    """Else what it accepts would not count in the next life, for it had no room."""
    scene = Scene()
    scene.coordinator.queue.total_bytes = 2 * scene.spec.bytes_min()
    job = scene.coordinator.make(scene.spec)
    job.resume(0, {}, {}, adopting=False)
    led = scene.do(scene.coordinator.start, job, True)
    assert led.rows == [fx.SaveJob("j", "running", "")]
    assert not job.queued


def test_a_session_of_folds_is_neither_paused_nor_changed() -> None:
    scene = Scene()
    scene.spec = JobSpec(NUMBER, fold_job("j", 2, "fedavg", {}), scene.spec.layout, (), "")
    scene.running()
    for call, given in ((job_life.pause, ()), (job_life.edit, (change(scene, "job.rounds=9"),))):
        with pytest.raises(Refused, match="session of folds"):
            call(scene.coordinator, "j", *given)
    assert scene.led() == Led()

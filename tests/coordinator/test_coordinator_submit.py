"""A job is submitted: refused at once, or loaded, and its first round begins."""

from __future__ import annotations

import math
from typing import Any

import pytest
from coordinator_scene import ARENA_BYTES, HOME, NUMBER, B, Led, Scene

from lifl.core import effects as fx
from lifl.core.coordinator.coordinator import check_new
from lifl.core.coordinator.round import Phase
from lifl.core.errors import LocalFault, Refused
from lifl.core.ids import epoch_of
from lifl.core.limits import JOBS_MAX
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o


def refused(scene: Scene, total_bytes: int = ARENA_BYTES) -> Refused:
    jobs = dict(scene.coordinator.jobs)
    with pytest.raises(Refused) as error:
        scene.coordinator.submit(scene.spec, total_bytes)
    assert scene.led() == Led()
    assert scene.coordinator.jobs == jobs
    return error.value


def test_a_job_is_saved_and_its_model_loaded() -> None:
    scene = Scene(states=("m",))
    led = scene.do(scene.coordinator.submit, scene.spec, ARENA_BYTES)
    aggregation, tensors = scene.spec.config.aggregation, scene.spec.layout.tensors
    order = o.OpenJob(NUMBER, "j", aggregation, 2, tensors, ("m",), 0, "/m")
    assert led == Led(orders=[(HOME, order)], rows=[fx.SaveJob("j", "running", "")])
    assert (scene.job.name, scene.job.status, scene.job.round) == ("j", "loading", None)
    assert scene.coordinator.running == {NUMBER: scene.job}


def test_when_its_model_is_there_it_runs_the_initial_model_is_saved_and_its_first_round_begins() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.loading()
    led = scene.handle(o.JobOpened(NUMBER), at=7.0)
    aggregation, tensors = scene.spec.config.aggregation, scene.spec.layout.tensors
    assert led == Led(
        orders=[
            (HOME, o.SaveModel(NUMBER, epoch_of(0, 0), "/f/round-00000.safetensors")),
            (B, o.OpenJob(NUMBER, "j", aggregation, 2, tensors, (), 0)),
            (B, o.ModelAt(NUMBER, 0, "home:1")),
        ],
        rows=[fx.SaveRound("j", 1, 1, "open", {})],
        events=[("job.running", {"rounds": 2})],
    )
    assert (scene.job.status, scene.round.number, scene.round.phase) == ("running", 1, Phase.WAITING)
    assert scene.round.deadline_at_s == 107.0
    assert [saving.number for saving in scene.job.rounds.saving] == [0]


def test_a_name_that_is_taken_is_refused() -> None:
    scene = Scene()
    scene.running()
    assert refused(scene).code == "job-exists"


def test_there_are_not_more_than_so_many_jobs() -> None:
    scene = Scene()
    others = {number: scene.coordinator.make(scene.spec) for number in range(2, JOBS_MAX + 2)}
    scene.coordinator.running.update(others)
    error = refused(scene, ARENA_BYTES)
    assert (error.code, error.text) == ("too-many-jobs", f"{JOBS_MAX} jobs run here; wait for one to end")
    scene.coordinator.running.popitem()
    check_new(scene.coordinator, scene.spec, ARENA_BYTES)  # one less: it is taken


def test_a_job_that_never_fits_the_arena_is_refused() -> None:
    scene = Scene()
    need = scene.spec.bytes_min()
    error = refused(scene, need - 1)
    assert (error.code, error.field) == ("too-large", "model")
    assert error.text.startswith(f"a round of job 'j' needs at least {need} bytes of the arena (model ")
    assert f" bytes, fan-in 2), the node has {need - 1}; start it with a larger arena" in error.text
    scene.do(scene.coordinator.submit, scene.spec, need)


def test_a_job_that_the_nodes_cannot_hold_together_is_refused() -> None:
    scene = Scene(nodes=(HOME, B), arena_bytes={HOME: 1000, B: 1000})
    assert refused(scene).code == "too-large"
    scene = Scene(nodes=(HOME, B))
    scene.do(scene.coordinator.submit, scene.spec, 0)  # together they can


def test_a_message_that_is_not_for_the_coordinator_is_a_fault_of_ours() -> None:
    with pytest.raises(LocalFault, match="no handler for Leaving"):
        Scene().coordinator.handle(HOME, p.Leaving())


def test_with_no_job_nothing_is_due() -> None:
    scene = Scene()
    assert scene.do(scene.coordinator.tick) == Led()
    assert scene.coordinator.next_timer() == math.inf


@pytest.mark.parametrize("states", [(), ("m",)])
def test_the_files_of_a_round(states: Any) -> None:
    spec = Scene(states=states).spec
    assert spec.path_of(3) == "/f/round-00003.safetensors"
    assert spec.state_path_of(0) == ""
    assert spec.state_path_of(3) == ("/f/round-00003.state.safetensors" if states else "")

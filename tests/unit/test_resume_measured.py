"""What another life of a node reads of earlier ones: jobs that are over, and what clients have measured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifl.core import events as ev
from lifl.core.config.job import parse_job
from lifl.core.limits import LOSS_ROUNDS_MAX
from lifl.core.schema import TensorSpec
from lifl.node.resume import Left, history_again, known_jobs, resume_jobs
from lifl.node.rows import JobRow
from lifl.node.store import NodeStore


def table(**sections: Mapping[str, Any]) -> dict[str, Any]:
    plain = {"job": {"name": "j", "rounds": 999}, "model": {"path": "/m"}, "selection": {"clients_per_round": 1}}
    return {name: plain.get(name, {}) | dict(sections.get(name, {})) for name in {*plain, *sections}}


def committed(number: int, **fields: Any) -> tuple[int, str, dict[str, Any]]:
    return number, "committed", {"path": f"/f/{number}", "digests": ("d",), "members": ["a", "b"], **fields}


def read(folder: Path, job: dict[str, Any], *rows: tuple[int, str, dict[str, Any]], again: bool = False) -> Any:
    """The history of a job with these rows of rounds."""
    (folder / "f").mkdir()
    with closing(NodeStore(folder / "lifl.db")) as store:
        store.add_job(parse_job(job), (TensorSpec("w", "float32", (1,)),), (), str(folder / "f"))
        store.save_job("j", "running", "")
        for number, status, fields in rows:
            store.save_round("j", number, 1, status, fields)
        if again:
            row = store.job("j")
            assert isinstance(row, JobRow)
            return history_again(store, row)
        ((_facts, history, _reason),) = known_jobs(store, 1, folder).running
    assert isinstance(history, ev.JobHistory)
    return history


@pytest.mark.parametrize("coordinates", [True, False])
def test_a_job_that_is_over_is_recalled_by_who_coordinates_and_keeps_no_member_from_starting(
    tmp_path: Path, coordinates: bool
) -> None:
    """Rows of such jobs stay on a node whose jobs were moved to a store, or that was alone and joins a cluster."""
    events: list[Any] = []
    arena: Any = SimpleNamespace(node=1, live=lambda: ())
    with closing(NodeStore(tmp_path / "lifl.db")) as store:
        store.add_job(parse_job(table()), (TensorSpec("w", "float32", (1,)),), (), "/f")
        store.save_job("j", "finished", "")
        resume_jobs(events.append, store, Left(arena, {}, lambda _drop: None), coordinates, tmp_path)
        assert [row.status for row in store.jobs()] == ["finished"]
    assert [type(event) for event in events] == [ev.ArenaAdopted] + [ev.JobRecalled] * coordinates


@pytest.mark.parametrize("strategy", ["power_of_choice", "mine:pick"])
def test_each_last_loss_is_read_and_what_is_damaged_or_missing_is_left_out(tmp_path: Path, strategy: str) -> None:
    rows = [
        committed(1, losses=[1.0, 2.0]),
        committed(2, losses=[None, 3.0]),
        committed(3),  # by a version that has written none
        committed(4, losses=[0.5, 0.5, 0.5]),
        committed(5, losses="damaged"),
    ]
    history = read(tmp_path, table(selection={"strategy": strategy}), *rows)
    assert history.losses == {"a": 1.0, "b": 3.0} and list(history.losses) == ["a", "b"]
    assert history.metrics == ()


def test_no_more_rounds_are_read_than_the_last_ones_and_none_where_nobody_looks_at_losses(tmp_path: Path) -> None:
    rows = [committed(number, losses=[1.0, float(number)]) for number in range(1, LOSS_ROUNDS_MAX + 1)]
    first = committed(0, members=[])
    rows[0] = (1, "committed", {**rows[0][2], "members": ["old", "b"]})
    last = committed(LOSS_ROUNDS_MAX + 1, losses=[1.0, 7.0])
    history = read(tmp_path, table(selection={"strategy": "power_of_choice"}), first, *rows, last)
    assert history.losses == {"a": 1.0, "b": 7.0}
    (tmp_path / "other").mkdir()
    assert read(tmp_path / "other", table(), last).losses == {}


def test_a_function_that_stops_goes_on_with_the_metrics_of_the_rounds(tmp_path: Path) -> None:
    rows = [committed(0, members=[]), committed(1, metrics={"loss": 2.0}), committed(2, metrics={"loss": 1.0})]
    job = table(job={"stop": "mine:enough"})
    assert read(tmp_path, job, *rows).metrics == ((1, {"loss": 2.0}), (2, {"loss": 1.0}))
    (tmp_path / "again").mkdir()
    assert read(tmp_path / "again", job, *rows, again=True).metrics == (), "of one that had ended it begins anew"


def test_and_of_a_job_with_evaluations_with_what_these_have_found(tmp_path: Path) -> None:
    figures = {"mean": 0.5, "min": 0.0, "max": 1.0, "std": 0.1, "clients": 2}
    found = {"clients": 2, "selected": 2, "metrics": {"loss": figures}, "server": {"metrics": {"acc": 0.9}}}
    rows = [
        committed(1, metrics={"loss": 9.0}),
        committed(2, evaluation=found),
        committed(3, evaluation={"metrics": {"loss": 3}}),
        committed(4, evaluation={}),
    ]
    history = read(tmp_path, table(job={"stop": "mine:enough"}, evaluation={"every": 1}), *rows)
    assert history.metrics == ((2, {"loss": 0.5, "acc": 0.9}),)
    assert history.evaluated


@pytest.mark.parametrize("status", ["open", "failed", "damaged"])
def test_an_evaluation_is_over_where_the_next_round_has_begun(tmp_path: Path, status: str) -> None:
    job = table(evaluation={"every": 1})
    assert read(tmp_path, job, committed(1), (2, status, {})).evaluated
    (tmp_path / "left").mkdir()
    assert not read(tmp_path / "left", job, committed(1)).evaluated


@pytest.mark.parametrize(
    ("rounds", "every", "evaluated", "is_all"),
    [(2, 1, True, True), (2, 1, False, False), (2, 3, False, True), (3, 1, True, False), (1, 2, False, False)],
)
def test_a_job_has_done_all_when_its_last_model_is_evaluated_too(
    rounds: int, every: int, evaluated: bool, is_all: bool
) -> None:
    config = parse_job(table(job={"rounds": rounds}, evaluation={"every": every}))
    assert ev.JobHistory(2, {}, {}, evaluated=evaluated).is_all_of(config) is is_all
    assert ev.JobHistory(2, {}, {}).is_all_of(parse_job(table(job={"rounds": rounds}))) is (rounds <= 2)


def test_those_that_had_begun_are_taken_up_before_those_in_line_and_these_in_their_order(tmp_path: Path) -> None:
    with closing(NodeStore(tmp_path / "lifl.db")) as store:
        for name, priority, reason in (
            ("low", 1, "queued"),
            ("high", 9, "queued"),
            ("begun", 1, ""),
            ("held", 5, "paused"),
        ):
            job = table(job={"name": name, "rounds": 9, "priority": priority})
            (tmp_path / name).mkdir()
            store.add_job(parse_job(job), (TensorSpec("w", "float32", (1,)),), (), str(tmp_path / name))
            store.save_job(name, "running", reason)
        running = known_jobs(store, 1, tmp_path).running
    assert [facts.config.job.name for facts, _history, _reason in running] == ["held", "begun", "high", "low"]

"""Which models stay: what a restart, the rule and a user need is never removed, and what is removed is never needed."""

from __future__ import annotations

import fcntl
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifl.core import effects as fx
from lifl.core.config.job import parse_job
from lifl.core.config.keep import KeepSection
from lifl.core.errors import ConfigError
from lifl.core.limits import KEEP_LAST, KEPT_RANGES_MAX, METRIC_NAME_CHARS_MAX
from lifl.core.planning.keeping import Best, Kept, better, models_max, ranges, removable
from lifl.node import folders
from lifl.node.keeper import LOCK, Keeper, held, models_in

ROUNDS = 60
KEEPS = st.builds(
    KeepSection,
    last=st.integers(1, ROUNDS),
    every=st.integers(0, ROUNDS),
    best=st.sampled_from(["", "acc", "-acc", "other"]),
)
VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=ROUNDS)


def rule(keep: KeepSection, committed: int, best: Best | None, since: int = 0) -> Kept:
    return Kept(committed, keep.last, keep.every, best.round if best else -1, since)


@given(KEEPS, VALUES, st.integers(0, 5))
def test_what_was_removed_is_never_asked_for_again_and_the_last_ones_stay(
    keep: KeepSection, values: list[float], since: int
) -> None:
    best: Best | None = None
    there: set[int] = set()
    for number, value in enumerate(values):
        best = better(keep, best, number, {"acc": value})
        there.add(number)
        kept = rule(keep, number, best, since)
        wanted = {each for each in range(number + 2) if kept.has(each)}
        assert wanted - {number + 1} <= there, "it was removed before"
        assert number + 1 in wanted, "what is being written goes"
        there -= set(removable(kept, there))
        assert set(range(max(0, number - keep.last + 1), number + 1)) <= there
        assert set(range(min(since, number + 1))) <= there
        if keep.every:
            assert set(range(0, number + 1, keep.every)) <= there
        if not since:
            assert len(there) <= models_max(keep, len(values))
    finite = [value for value in values if math.isfinite(value)]
    if keep.best in ("acc", "-acc") and finite:
        assert best is not None
        assert best.round in there
        assert best.value == (max if keep.best == "acc" else min)(finite)
        assert best.round == values.index(best.value), "of equals it is the first"
    else:
        assert best is None


@given(st.sets(st.integers(0, 500)))
def test_ranges_name_each_round_once(numbers: set[int]) -> None:
    found = ranges(numbers)
    assert len(found) <= KEPT_RANGES_MAX
    named = {number for first, last in found for number in range(first, last + 1)}
    assert named <= numbers
    if len(found) < KEPT_RANGES_MAX:
        assert named == numbers


def test_what_is_needed_stays() -> None:
    assert removable(Kept(10, 2), range(11), needed={3, 4}) == [0, 1, 2, 5, 6, 7, 8]
    assert removable(Kept(10, 1, best=0, every=5, since=2), range(11)) == [2, 3, 4, 6, 7, 8, 9]


# ---- the key -------------------------------------------------------------------------------------------------------


def kept_by(keep: Any) -> KeepSection:
    table = {"job": {"name": "j", "rounds": 9}, "model": {"path": "/m"}, "selection": {"clients_per_round": 1}}
    return parse_job(table | ({"checkpoint": {"keep": keep}} if keep is not None else {})).checkpoint.kept


def test_a_job_that_says_nothing_is_bounded() -> None:
    assert kept_by(None) == KeepSection(KEEP_LAST, 0, "")
    assert models_max(kept_by(None), 1_000_000) == KEEP_LAST + 1
    assert kept_by({"best": "-loss"}) == KeepSection(KEEP_LAST, 0, "-loss")


@pytest.mark.parametrize(
    ("keep", "at"),
    [
        ({"last": 0}, "checkpoint.keep.last"),
        ({"every": -1}, "checkpoint.keep.every"),
        ({"best": "-"}, "checkpoint.keep.best"),
        ({"best": "a\nb"}, "checkpoint.keep.best"),
        ({"best": "é" * (METRIC_NAME_CHARS_MAX + 1)}, "checkpoint.keep.best"),
        ({"lst": 3}, "checkpoint.keep.lst"),
        (3, "checkpoint.keep"),
    ],
)
def test_what_is_wrong_is_refused_by_its_key(keep: Any, at: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{at}"):
        kept_by(keep)


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job's folder, claimed for job 7 of node 1, with the models of rounds 0 to 5."""
    found = tmp_path / "jobs" / "j"
    found.mkdir(parents=True)
    folders.claim(found, 1, 7, "j")
    for number in range(6):
        (found / f"round-{number:05d}.safetensors").write_bytes(b"model")
        (found / f"round-{number:05d}.3.state.safetensors").write_bytes(b"states")
    return found


def sweep(folder: Path, kept: Kept, stay: frozenset[int] = frozenset(), begin: str = "", number: int = 7) -> Any:
    state = folder.parent.parent
    keeper = Keeper(state, SimpleNamespace(jobs={}))  # type: ignore[arg-type]
    return keeper._sweep(fx.KeepModels("j", number, "j", kept), stay, {begin})


def test_models_and_states_of_whatever_term_go_together_and_nothing_else(folder: Path) -> None:
    others = {".lifl-job", "round-00001.safetensors.bak", "notes.txt", ".round-00006.safetensors.tmp"}
    for name in others - {".lifl-job"}:
        (folder / name).write_text("mine")
    (folder / ".round-00002.safetensors.tmp").write_text("a worker was killed")
    seen = sweep(folder, Kept(5, 2, best=1), stay=frozenset({3}))
    assert list(models_in(folder)) and sorted(models_in(folder)) == [1, 3, 4, 5]
    assert all(len(paths) == 2 for paths in models_in(folder).values())
    assert {path.name for path in folder.iterdir() if not path.name.endswith("safetensors")} == others
    assert (seen.models, seen.nbytes, seen.fault) == (4, 4 * len(b"modelstates"), "")
    assert seen.free_bytes > 0


def test_the_folder_of_another_job_is_let_be(folder: Path) -> None:
    assert "is that of job 'j'" in sweep(folder, Kept(5, 1), number=8).fault
    assert sorted(models_in(folder)) == list(range(6))


def test_the_model_that_a_job_begins_with_stays_while_it_loads(folder: Path) -> None:
    sweep(folder, Kept(5, 1), begin=str(folder / "round-00002.safetensors"))
    assert sorted(models_in(folder)) == [2, 5]


def test_what_cannot_be_removed_is_told_and_tried_again(folder: Path) -> None:
    bad = folder / "round-00001.safetensors"
    bad.unlink()
    (bad / "x").mkdir(parents=True)
    assert str(bad) in sweep(folder, Kept(5, 1)).fault
    (bad / "x").rmdir()
    bad.rmdir()
    assert sweep(folder, Kept(5, 1)).fault == ""
    assert sorted(models_in(folder)) == [5]


def test_a_folder_that_is_gone_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    assert sweep(tmp_path / "jobs" / "j", Kept(5, 1)).models == 0


def test_nothing_is_removed_while_a_backup_is_made(tmp_path: Path) -> None:
    Keeper(tmp_path, SimpleNamespace(jobs={}))  # type: ignore[arg-type]
    with held(tmp_path):
        fd = os.open(tmp_path / LOCK, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)

"""The file by which a Flower run goes on: what it cannot be read from or written to is said, and ends nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save

from lifl.core.errors import ResourceFault
from lifl.integrations.flower.resume import VARIABLE, RunFile

TENSORS: dict[str, Any] = {
    "w": np.arange(3, dtype=np.float32),
    "é": np.zeros((0, 2), np.int64),
    "half": np.ones(2, ml_dtypes.bfloat16),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFile:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "runs"))
    return RunFile("publisher/ü", "FedAvg", TENSORS)


def test_a_run_goes_on_behind_the_last_round_that_was_written(run: RunFile) -> None:
    assert run.found() is None
    run.save(1, TENSORS)
    run.save(2, TENSORS)
    found = run.found()
    assert found is not None and found.round == 2 and list(found.tensors) == list(TENSORS)
    assert all(np.array_equal(found.tensors[name], array) for name, array in TENSORS.items())
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]
    run.remove()
    run.remove()
    assert run.found() is None


def test_what_is_no_such_file_is_named(run: RunFile) -> None:
    run.save(1, TENSORS)
    whole = run.path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], os.urandom(200), save({"w": TENSORS["w"]})):
        run.path.write_bytes(damaged)
        with pytest.raises(ResourceFault, match=f"{run.path.name}.*remove the file"):
            run.found()


def test_a_place_that_cannot_be_written_to_is_named_and_the_run_keeps_its_result(
    run: RunFile, caplog: pytest.LogCaptureFixture
) -> None:
    run.path.mkdir(parents=True)
    with pytest.raises(ResourceFault, match="round 3 cannot be written"):
        run.save(3, TENSORS)
    assert list(run.path.parent.iterdir()) == [run.path], "nothing half is left beside it"
    run.remove()
    assert "remove the file" in caplog.text


def test_a_full_disk_is_ours_to_tell(run: RunFile, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_given: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(ResourceFault, match="No space left"):
        run.save(1, TENSORS)


def test_an_account_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "~nobody-at-all/runs")
    with pytest.raises(ResourceFault, match=VARIABLE):
        RunFile("a", "FedAvg", TENSORS)

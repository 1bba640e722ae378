"""`lifl init`: the job's file that it writes is one, whatever the model is called; what is there already stays."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from lifl_cli.init import init, name_of
from safetensors.numpy import save_file

from lifl.core.config.job import parse_job
from lifl.core.errors import LiflError


def run(*arguments: str) -> str:
    """What it printed; raises what it raised."""
    done = CliRunner().invoke(init, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: str) -> str:
    with pytest.raises(LiflError) as error:
        run(*arguments)
    return str(error.value)


def model(path: Path) -> Path:
    save_file({"w": np.zeros((2, 3), np.float32), "n": np.zeros(1, np.int64)}, path)
    return path


@pytest.mark.parametrize("stem", ["model", "my model (1)", "ünï 模型", 'a"b\\c', "-", "x" * 120, "tab\tand\nnewline"])
def test_the_file_is_a_job_of_that_model(tmp_path: Path, stem: str) -> None:
    path, target = model(tmp_path / f"{stem}.safetensors"), tmp_path / "job.toml"
    run(str(path), "-o", str(target))
    config = parse_job(tomllib.loads(target.read_text()))
    assert tmp_path / config.model.path == path
    assert config.job.name == name_of(stem)
    assert "2 tensors (1 int64, 1 float32)" in target.read_text()
    assert "job.toml is there already" in refused(str(path), "-o", str(target))


def test_to_standard_output_with_the_whole_path(tmp_path: Path) -> None:
    path = model(tmp_path / "m.safetensors")
    assert parse_job(tomllib.loads(run(str(path), "-o", "-"))).model.path == str(path)


def test_as_json_it_says_what_was_written_or_what_would_be(tmp_path: Path) -> None:
    path, target = model(tmp_path / "m.safetensors"), tmp_path / "job.toml"
    told = json.loads(run(str(path), "-o", str(target), "--json"))
    assert told == {"file": str(target), "model": str(path)}
    told = json.loads(run(str(path), "-o", "-", "--json"))
    assert told["file"] is None and parse_job(tomllib.loads(told["text"])).model.path == str(path)


def test_what_is_no_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path, target = tmp_path / "m.safetensors", tmp_path / "job.toml"
    for content in (b"", b"\x00" * 8, b"\xff" * 64, b"PK\x03\x04 no safetensors"):
        path.write_bytes(content)
        assert str(path) in refused(str(path), "-o", str(target))
    assert not target.exists()
    assert "cannot be written" in refused(str(model(path)), "-o", str(tmp_path / "nowhere" / "job.toml"))


def test_a_file_of_pytorchs_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "m.pt"
    path.write_bytes(b"x")
    assert "`pip install torch`" in refused(str(path), "-o", str(tmp_path / "job.toml"))
    old = SimpleNamespace(__version__="2.5.1+cpu", load=pytest.fail)
    monkeypatch.setitem(sys.modules, "torch", old)
    monkeypatch.setitem(sys.modules, "safetensors.torch", SimpleNamespace(save_file=pytest.fail))
    assert "torch>=2.6" in refused(str(path), "-o", str(tmp_path / "job.toml"))
    model(tmp_path / "m.safetensors")
    assert "m.safetensors is there already" in refused(str(path), "-o", str(tmp_path / "job.toml"))
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["m.pt", "m.safetensors"]

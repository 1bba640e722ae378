"""What a command is told to write to: what is no file stays what it is, and what cannot be written is said at once."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from lifl_cli import fetch_model
from lifl_cli.main import cli
from lifl_cli.options import OutputFile

SIMULATE = ("simulate", "job.toml", "--clients", "2", "--trainer", "math:sqrt", "-o")
JOB = """[job]
name = "j"
rounds = 1
[model]
example = "digits-mlp"
[selection]
clients_per_round = 2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIFL_STATE", str(tmp_path / "no-node"))
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("", "'' names no file"),
        ("-", "'-' names no file, and standard output is none"),
        ("folder", "is a directory"),
        ("pipe", "'pipe' is no file, and stays what it is"),
        ("nowhere/model", "there is no folder 'nowhere': make it"),
    ],
)
@pytest.mark.parametrize("command", [("model", "j", "-o"), ("model", "get", "j", "-o"), SIMULATE], ids=" ".join)
def test_what_a_model_cannot_be_written_to_is_refused_before_anything_is_done(
    command: tuple[str, ...], output: str, says: str, folder: Path
) -> None:
    before = {path.name: path.lstat().st_ino for path in folder.iterdir()}
    done = CliRunner().invoke(cli, [*command, output])
    assert done.exit_code == 2 and says in done.output, done.output
    assert {path.name: path.lstat().st_ino for path in folder.iterdir()} == before


@pytest.mark.parametrize("command", [("trace", "j", "-o"), ("plot", "j", "-o")], ids=" ".join)
def test_what_is_written_where_it_stands_may_be_a_device(command: tuple[str, ...]) -> None:
    assert "no lifld runs" in CliRunner().invoke(cli, [*command, "/dev/null"]).output
    assert "'' names no file" in CliRunner().invoke(cli, [*command, ""]).output


def test_a_file_that_others_alone_may_write_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(os, "access", lambda path, _mode: asked.append(str(path)))
    for output, in_place, wanted in (("job.toml", True, "job.toml"), ("job.toml", False, str(folder))):
        with pytest.raises(click.BadParameter, match="by this account"):
            OutputFile(in_place=in_place).convert(output, None, None)
        assert asked.pop() == wanted


def test_a_bundle_that_cannot_be_written_says_what_to_do(folder: Path) -> None:
    done = CliRunner().invoke(cli, ["support-bundle", "-o", "nowhere/bundle.zip"])
    assert done.exit_code == 1 and "No such file or directory; name another file with -o" in done.output, done.output


def test_a_model_is_written_through_a_link(folder: Path) -> None:
    (folder / "last").symlink_to(folder / "folder" / "model")
    for model in (b"one", b"other"):
        fetch_model._copy((piece for piece in [model]), folder / "last", {"path": "/f"}, None)
        assert (folder / "last").is_symlink() and (folder / "folder" / "model").read_bytes() == model


@pytest.mark.parametrize(
    "command",
    [
        ("backup", ""),
        ("restore", ""),
        ("support-bundle", "-o", ""),
        ("status", "j", "--state", ""),
        ("down", "--state", ""),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_working_folder(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, list(command))
    assert done.exit_code == 1 and "an empty path names no file and no folder" in done.output, done.output

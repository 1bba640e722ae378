"""A checkpoint folder is one job's: another one is refused, on whatever node it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lifl.core.errors import Refused
from lifl.node import folders


def test_a_folder_is_claimed_once_for_one_job_of_one_node(tmp_path: Path) -> None:
    folders.check_free(tmp_path)
    folders.claim(tmp_path, 7, 1, "a")
    folders.claim(tmp_path, 7, 1, "a")
    assert folders.owner_of(tmp_path) == {"node": f"{7:016x}", "job": 1, "name": "a"}
    for node, number in ((7, 2), (8, 1)):
        with pytest.raises(Refused, match="job 'a'") as refused:
            folders.claim(tmp_path, node, number, "b")
        assert refused.value.code == "folder-in-use"
        folders.release(tmp_path, node, number)
    with pytest.raises(Refused, match="job 'a'"):
        folders.make_folder(tmp_path)
    folders.release(tmp_path, 7, 1)
    folders.claim(tmp_path, 8, 1, "b")


def test_a_folder_with_models_of_a_job_that_claimed_nothing_is_not_free(tmp_path: Path) -> None:
    (tmp_path / "round-00007.safetensors").touch()
    with pytest.raises(Refused, match="another job"):
        folders.make_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_claim_that_was_not_written_to_its_end_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / folders.CLAIM).write_text(text)
    folders.claim(tmp_path, 7, 1, "a")
    assert folders.owner_of(tmp_path)["job"] == 1


def test_a_folder_that_cannot_be_made_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=f"{tmp_path / 'file' / 'x'} cannot be made"):
        folders.make_folder(tmp_path / "file" / "x")


def refused(folder: Path, do: Callable[[], object]) -> None:
    """A job's folder is made, something is done, and the job refused."""
    with pytest.raises(ValueError), folders.made_folder(folder):  # noqa: PT011, PT012
        do()
        raise ValueError


@pytest.mark.parametrize("there", [0, 1, 2])
def test_a_folder_whose_job_is_refused_goes_as_far_as_it_was_made(tmp_path: Path, there: int) -> None:
    paths = [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    seen: list[bool] = []
    paths[there].mkdir(parents=True, exist_ok=True)
    refused(paths[-1], lambda: seen.append(paths[-1].is_dir()))
    assert seen == [True]
    assert [path.exists() for path in paths] == [number <= there for number in range(3)]
    with folders.made_folder(paths[-1]):
        pass
    assert paths[-1].is_dir()


def test_a_folder_that_holds_something_meanwhile_stays(tmp_path: Path) -> None:
    refused(tmp_path / "a" / "b", (tmp_path / "a" / "other").touch)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]


def model(path: Path, job: str = "a", number: int = 1) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({"w": np.zeros(2, np.float32)}, path, {"lifl.job": job, "lifl.number": str(number)})
    return path


def test_copies_of_one_job_go_and_nothing_else_does(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    mine = [model(folder / "round-00001.safetensors"), model(folder / ".round-00002.safetensors.tmp")]
    model(folder / "round-00002.state.safetensors")
    others = [model(folder / "round-00003.safetensors", number=2), model(folder / "round-00004.safetensors", "b")]
    others += [folder / "round-00005.safetensors", folder / "notes.txt"]
    for path in others[2:]:
        path.write_bytes(b"no model")
    size = mine[0].stat().st_size
    removed = folders.remove_copies(folder, 7, 1, "a")
    assert (removed.files, removed.nbytes > 2 * size) == (3, True)
    assert sorted(folder.iterdir()) == sorted(others)
    assert folders.remove_copies(folder, 7, 1, "a") == (0, 0)
    assert folders.remove_copies(tmp_path / "none", 7, 1, "a") == (0, 0)


@pytest.mark.parametrize(("owner", "number", "goes"), [(7, 1, True), (8, 1, False), (7, 2, False)])
def test_a_folder_that_a_job_has_claimed_is_let_be_unless_it_is_that_jobs(
    tmp_path: Path, owner: int, number: int, goes: bool
) -> None:
    path = model(tmp_path / "a" / "round-00001.safetensors", number=number)
    folders.claim(path.parent, 7, 1, "a")
    folders.remove_copies(path.parent, owner, number, "a")
    assert path.parent.exists() is not goes

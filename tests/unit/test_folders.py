"""A checkpoint folder is one job's: another one is refused, on whatever node it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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

"""A journal's file: what was synced is read back whole, what a power cut left behind it is not, damage is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lifl.core.errors import ResourceFault
from lifl.core.protocol.contribution import Contribution, pack_contribution
from lifl.node.journal.file import PLACES_MAX, JournalFile, named, path_of
from lifl.shm.checksum import checksum
from lifl.shm.direct import ALIGN_BYTES, DIRECT_BYTES_MIN

SIZES = [1, ALIGN_BYTES, ALIGN_BYTES + 1, DIRECT_BYTES_MIN + 5]


def data_of(client: str, nbytes: int) -> bytes:
    return (client.encode() * nbytes)[:nbytes]


def append(file: JournalFile, client: str, nbytes: int = 5000) -> int:
    data = data_of(client, nbytes)
    meta = pack_contribution(Contribution(client, 2.5, {"loss": 0.5}))
    return file.append(memoryview(data), meta, checksum(data))


def opened(folder: Path) -> JournalFile:
    return JournalFile(folder, 7, 257)


def clients(folder: Path) -> list[str]:
    file = opened(folder)
    found = file.scan()
    file.close()
    assert not found.fault
    return [each.client for each in found.stored]


@pytest.mark.parametrize("nbytes", SIZES)
def test_what_was_synced_is_read_back_with_all_that_goes_with_it(tmp_path: Path, nbytes: int) -> None:
    file = opened(tmp_path)
    places = [append(file, client, nbytes) for client in "abc"]
    file.sync()
    file.close()
    file = opened(tmp_path)
    found = file.scan()
    assert [(each.client, each.weight, each.metrics, each.place) for each in found.stored] == [
        (client, 2.5, {"loss": 0.5}, place) for client, place in zip("abc", places, strict=True)
    ]
    into = bytearray(nbytes)
    file.load(places[1], memoryview(into))
    assert bytes(into) == data_of("b", nbytes)
    assert append(file, "d") == found.end
    file.close()
    assert (tmp_path / "7-257.journal").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", [1, ALIGN_BYTES - 1, ALIGN_BYTES, ALIGN_BYTES + 100, 2 * ALIGN_BYTES])
def test_a_file_that_ends_within_an_update_ends_before_it(tmp_path: Path, cut: int) -> None:
    file = opened(tmp_path)
    append(file, "a")
    file.sync()
    place = append(file, "b")
    file.close()
    os.truncate(file.path, place + cut)
    assert clients(tmp_path) == ["a"]
    file = opened(tmp_path)
    append(file, "c")
    file.sync()
    file.close()
    assert clients(tmp_path) == ["a", "c"]


def test_what_was_not_synced_and_is_not_whole_is_none_and_what_is_whole_may_be_one(tmp_path: Path) -> None:
    file = opened(tmp_path)
    append(file, "a")
    file.sync()
    append(file, "b")
    place = append(file, "c")
    file.close()
    with open(file.path, "r+b") as raw:
        raw.seek(place + ALIGN_BYTES + 17)
        raw.write(b"x")
    assert clients(tmp_path) == ["a", "b"]


def test_damage_in_what_was_synced_is_told_and_the_others_are_kept(tmp_path: Path) -> None:
    file = opened(tmp_path)
    places = []
    for client in "abc":
        places.append(append(file, client))
        file.sync()
    file.close()
    with open(file.path, "r+b") as raw:
        raw.seek(places[1] + 40)
        raw.write(b"\xff" * 64)
    file = opened(tmp_path)
    found = file.scan()
    assert [each.client for each in found.stored] == ["a", "c"]
    assert f"damaged at byte {places[1]}" in found.fault
    with open(file.path, "r+b") as raw:
        raw.seek(places[0] + ALIGN_BYTES + 9)
        raw.write(b"\x00")
    with pytest.raises(ResourceFault, match="is not what was written"):
        file.load(places[0], memoryview(bytearray(5000)))
    for place, nbytes in ((places[0] + ALIGN_BYTES, 5000), (places[2], 4999)):
        with pytest.raises(ResourceFault):
            file.load(place, memoryview(bytearray(nbytes)))
    file.close()


def test_what_was_dropped_is_none_any_more(tmp_path: Path) -> None:
    file = opened(tmp_path)
    places = [append(file, f"c{number}", 1) for number in range(PLACES_MAX + 3)]
    file.drop(tuple(places[1:-1]))
    file.sync()
    file.close()
    assert clients(tmp_path) == ["c0", f"c{PLACES_MAX + 2}"]


def test_what_could_not_be_written_is_taken_back(tmp_path: Path) -> None:
    file = opened(tmp_path)
    append(file, "a")
    file.sync()
    append(file, "b")
    file.roll_back()
    append(file, "c")
    file.sync()
    file.close()
    assert clients(tmp_path) == ["a", "c"]


def test_a_file_of_a_later_version_stays_as_it_is(tmp_path: Path) -> None:
    file = opened(tmp_path)
    append(file, "a")
    file.sync()
    file.close()
    with open(file.path, "r+b") as raw:
        raw.seek(12)
        raw.write(b"\x09")
    before = file.path.read_bytes()
    with pytest.raises(OSError, match="run the release that wrote it"):
        opened(tmp_path)
    assert file.path.read_bytes() == before


def test_garbage_and_other_jobs_updates_are_none(tmp_path: Path) -> None:
    path_of(tmp_path, 7, 257).write_bytes(os.urandom(100_000))
    assert clients(tmp_path) == []
    other = JournalFile(tmp_path, 8, 257)
    append(other, "a")
    other.sync()
    other.close()
    other.path.rename(path_of(tmp_path, 7, 257))
    assert clients(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "at"), [("7-257.journal", (7, 257)), ("7.journal", None), ("a-b.journal", None), ("-1-2.journal", None)]
)
def test_a_name_says_whose_it_is(name: str, at: tuple[int, int] | None) -> None:
    assert named(Path(name)) == at

"""What outlives a node says its format: older ones are taken over, newer ones are refused with the release to take."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lifl.core import formats
from lifl.core.errors import Refused, ResourceFault
from lifl.core.limits import FORMAT_FILE_BYTES_MAX
from lifl.core.modelfile import model_pieces
from lifl.core.schema import Layout, TensorSpec
from lifl.node.state_format import FORMAT_FILE, FormatDamaged, check_format, take_format
from lifl.node.store import NodeStore
from lifl.worker import files

EARLIER = Path(__file__).parents[1] / "data" / "state-0.1.0" / "lifl.db"


def said(folder: Path, **fields: object) -> bytes:
    content = json.dumps({"format": formats.STATE_FORMAT, "release": "0.1.0"} | fields).encode()
    (folder / FORMAT_FILE).write_bytes(content)
    return content


def test_this_release_is_the_one_that_is_installed() -> None:
    assert importlib.metadata.version("lifl") == formats.RELEASE


def test_a_folder_says_its_format_from_its_first_start_on(tmp_path: Path) -> None:
    assert check_format(tmp_path) == 0
    take_format(tmp_path)
    assert check_format(tmp_path) == formats.STATE_FORMAT
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_bytes()) == {"format": formats.STATE_FORMAT, "release": formats.RELEASE}
    assert path.stat().st_mode & 0o777 == 0o600
    content = said(tmp_path, release="0.0.9", more=[1])
    take_format(tmp_path)
    assert path.read_bytes() == content, "who wrote it first in this format is who can read it"


def test_a_newer_folder_is_refused_with_the_release_to_take_and_stays_as_it_is(tmp_path: Path) -> None:
    content = said(tmp_path, format=formats.STATE_FORMAT + 1, release="7.8.9", more={"a": 1})
    with pytest.raises(ResourceFault, match=r"format 2.*take another release, LIFL 7\.8\.9 or a later one") as refused:
        take_format(tmp_path)
    assert not isinstance(refused.value, FormatDamaged)
    assert (tmp_path / FORMAT_FILE).read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"format": 0, "release": ""}', b'{"format": "1", "release": ""}', b'{"format": 1}']
    + [b"[" * FORMAT_FILE_BYTES_MAX, b'{"format": 1, "release": "' + b"x" * 65 + b'"}'],
)
def test_a_file_that_says_no_format_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FORMAT_FILE).write_bytes(content)
    with pytest.raises(FormatDamaged, match="lifl doctor --repair"):
        take_format(tmp_path)


@pytest.mark.parametrize("beyond", [0, 1])
def test_the_file_is_read_up_to_its_limit(tmp_path: Path, beyond: int) -> None:
    content = said(tmp_path)
    (tmp_path / FORMAT_FILE).write_bytes(content.ljust(FORMAT_FILE_BYTES_MAX + beyond))
    if beyond:
        with pytest.raises(FormatDamaged, match="longer"):
            check_format(tmp_path)
    else:
        assert check_format(tmp_path) == formats.STATE_FORMAT


def facts(path: Path) -> tuple[int, set[str], list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        rows = [
            *db.execute("SELECT * FROM node"),
            *db.execute("SELECT * FROM jobs"),
            *db.execute("SELECT * FROM rounds"),
        ]
        return int(db.execute("PRAGMA user_version").fetchone()[0]), tables, rows


def test_the_database_of_the_first_release_is_taken_over_whole(tmp_path: Path) -> None:
    path = tmp_path / "lifl.db"
    shutil.copy(EARLIER, path)
    version, tables, rows = facts(path)
    assert version == formats.DATABASE_OLDEST and "written" not in tables
    NodeStore(path).close()
    after = facts(path)
    assert after[0] == formats.DATABASE_FORMAT and after[1] >= tables | {"written", "seed"} and after[2] == rows
    NodeStore(path).close()
    assert facts(path) == after


def test_a_takeover_that_fails_leaves_the_earlier_format(tmp_path: Path) -> None:
    """Else a disk that is full at the wrong moment leaves what no release reads."""
    path = tmp_path / "lifl.db"
    shutil.copy(EARLIER, path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE blocks (x)")
        db.execute("CREATE INDEX written ON blocks (x)")  # so that the last of the new tables cannot be made
    before = facts(path)
    with pytest.raises(ResourceFault):
        NodeStore(path)
    assert facts(path) == before


@pytest.mark.parametrize("release", ["7.8.9", None, "x" * 65, b"\xff"])
def test_a_newer_database_is_refused_with_the_release_to_take(tmp_path: Path, release: object) -> None:
    path = tmp_path / "lifl.db"
    NodeStore(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"PRAGMA user_version = {formats.DATABASE_FORMAT + 1}")
        db.execute("ALTER TABLE jobs RENAME COLUMN folder TO place")
        if release is None:
            db.execute("DROP TABLE written")
        else:
            db.execute("UPDATE written SET release = ?", (release,))
    wanted = "LIFL 7.8.9 or a later one" if release == "7.8.9" else "the one that wrote it, or a later one"
    with pytest.raises(ResourceFault, match=f"format 4.*take another release, {wanted}$"):
        NodeStore(path)


def test_a_database_from_before_the_first_release_is_none(tmp_path: Path) -> None:
    path = tmp_path / "lifl.db"
    NodeStore(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA user_version = 1")
    with pytest.raises(ResourceFault, match="format 1"):
        NodeStore(path)


TENSORS = (TensorSpec("w", "float32", (4,)),)


@pytest.mark.parametrize(
    ("said", "fault", "told"),
    [
        (None, None, ""),
        ("1", None, ""),
        ("2", ResourceFault, r"format 2.*LIFL 7\.8\.9 or a later one"),
        ("x", Refused, "which is none"),
        ("9" * 400, Refused, "which is none"),
        ("²", Refused, "which is none"),
    ],
)
def test_a_checkpoint_says_its_format(
    tmp_path: Path, said: str | None, fault: type[Exception] | None, told: str
) -> None:
    """One of a newer release is no lost one, which the rounds after it would be set aside for."""
    layout, path = Layout(TENSORS), tmp_path / "round-00001.safetensors"
    metadata = {"lifl.round": "1"} | ({} if said is None else {"lifl.format": said, "lifl.release": "7.8.9"})
    save_file({"w": np.arange(4, dtype=np.float32)}, path, metadata)
    into = memoryview(bytearray(layout.data_bytes))
    if fault is None:
        assert files.read_file(path, model_pieces(layout), [into])[0] == metadata
    else:
        with pytest.raises(fault, match=told):
            files.read_file(path, model_pieces(layout), [into])

"""A node's folder and files are its user's alone, whatever the umask and whatever was there before."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
from nodes import LIFL

from lifl.core.config.node import parse_node
from lifl.core.errors import ResourceFault
from lifl.node import machine
from lifl.node.locks import StateLocks
from lifl.node.store import NodeStore


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o720, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused_with_the_command_that_closes_it(
    tmp_path: Path, bits: int
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(ResourceFault, match=f"mode {bits:04o}.*`chmod 700 {folder}`"):
        machine.state_folder(parse_node({"state_dir": str(folder)}))
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)
    assert machine.state_folder(parse_node({"state_dir": str(folder)})) == folder


def test_so_is_a_folder_for_models_that_others_may_write_to(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs").chmod(0o777)
    with pytest.raises(ResourceFault, match="chmod 700"):
        machine.state_folder(parse_node({"state_dir": str(tmp_path)}))


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_modes_are_set_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = machine.state_folder(parse_node({"state_dir": str(tmp_path / "state")}))
        StateLocks(folder).close()
        NodeStore(folder / "lifl.db").close()
    finally:
        os.umask(before)
    assert {path.name: oct(mode(path)) for path in (folder, *folder.iterdir())} == {
        "state": "0o700",
        "jobs": "0o700",
        "lifld.lock": "0o600",
        "children.lock": "0o600",
        "lifl.db": "0o600",
    }


def test_a_database_that_was_open_to_others_is_closed_with_what_is_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "lifl.db"
    NodeStore(path).close()
    for name in ("lifl.db", "lifl.db-wal", "lifl.db-shm"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    store = NodeStore(path)
    try:
        assert {path.name: oct(mode(path)) for path in tmp_path.iterdir()} == dict.fromkeys(
            ("lifl.db", "lifl.db-wal", "lifl.db-shm"), "0o600"
        )
    finally:
        store.close()


@pytest.mark.parametrize("umask", [0, 0o777])
def test_a_node_that_is_started_under_any_umask_can_be_opened_by_its_user_alone(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "state"
    state = ["--state", str(folder)]
    flags = ["--listen", "127.0.0.1:0", "--arena-bytes", "32MiB", "--capacity", "1"]
    done = subprocess.run([*LIFL, "up", "-d", *flags, *state], capture_output=True, text=True, check=False, umask=umask)
    try:
        assert done.returncode == 0, done.stderr
        found = {path.name: mode(path) for path in folder.iterdir()}
        assert {name: oct(bits) for name, bits in found.items() if bits & 0o077 or not bits & 0o600} == {}
        assert {"lifl.db", "lifld.log", "lifld.sock", "gateway.sock", "jobs"} <= found.keys()
    finally:
        subprocess.run([*LIFL, "down", *state], check=False, capture_output=True)


def test_lifl_up_refuses_an_open_folder_before_it_writes_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    done = subprocess.run([*LIFL, "up", "-d", "--state", str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert f"`chmod 700 {tmp_path}`" in done.stderr


def test_lifl_up_says_what_to_do_about_a_disk_that_is_full(tmp_path: Path) -> None:
    """With -d it said nothing: there was no room for the log, either."""
    state = tmp_path / "n"
    command = f"ulimit -f 0; exec {shlex.join(LIFL)} up -d --redirector unix --listen 127.0.0.1:0 --state {state}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == f"Error: state folder {state} cannot be written: File too large; make room on its disk\n"

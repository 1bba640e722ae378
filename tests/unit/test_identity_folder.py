"""An identity folder: whole, none, or a clear error; its user's alone; replaced at once."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lifl.core.errors import ResourceFault
from lifl.tls.folder import check_room, home_of, load, locked, node_folder, save, user_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "identity", ca=b"ca", certificate=b"certificate", key=b"key")
    return tmp_path / "identity"


def test_what_is_saved_is_its_users_alone(folder: Path) -> None:
    files = load(folder)
    assert files is not None
    assert [path.read_bytes() for path in files[1:]] == [b"ca", b"certificate", b"key"]
    assert [path.stat().st_mode & 0o777 for path in (folder, *files[1:])] == [0o700, 0o600, 0o600, 0o600]
    assert sorted(os.listdir(folder)) == ["ca.pem", "cert.pem", "key.pem"]


def test_one_file_is_replaced_and_the_others_stay(folder: Path) -> None:
    files = load(folder)
    assert files is not None
    before = files.stamp()
    save(folder, certificate=b"renewed")
    after = files.stamp()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert files.certificate.read_bytes() == b"renewed"


class _Killed(BaseException):
    """As if the process had ended there."""


def _saved_until(folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Renews, and is killed at the `step`-th time that something is renamed, opened or removed; False: it was done."""
    steps = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step:
                raise _Killed
            return call(*given, **more)

        return run

    with monkeypatch.context() as patched:
        for name in ("replace", "open", "unlink"):
            patched.setattr(os, name, counted(getattr(os, name)))
        try:
            save(folder, ca=b"CA", certificate=b"CERTIFICATE", key=b"KEY", home=b"there:1")
        except _Killed:
            return True
    return False


def test_a_kill_at_any_step_leaves_the_old_identity_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for step in range(1, 100):
        folder = tmp_path / str(step)
        save(folder, ca=b"ca", certificate=b"certificate", key=b"key")
        killed = _saved_until(folder, step, monkeypatch)
        files = load(folder)
        assert files is not None
        found.append([path.read_bytes() for path in files[1:]])
        assert found[-1] in ([b"ca", b"certificate", b"key"], [b"CA", b"CERTIFICATE", b"KEY"])
        save(folder, ca=b"ca", certificate=b"certificate", key=b"key")
        assert not list(folder.glob(".*.new")), "nothing of it stays"
        if not killed:
            break
    assert [found[0], found[-1]] == [[b"ca", b"certificate", b"key"], [b"CA", b"CERTIFICATE", b"KEY"]]
    assert home_of(folder) == "there:1"


def test_one_process_renews_and_the_others_go_on(folder: Path) -> None:
    with locked(folder) as mine, locked(folder) as also:
        assert mine and not also
    with locked(folder) as mine:
        assert mine


def test_none_is_no_error(tmp_path: Path) -> None:
    assert load(tmp_path / "none") is None
    save(tmp_path / "joins", ca=b"ca")
    assert load(tmp_path / "joins") is None


@pytest.mark.parametrize("missing", ["ca.pem", "cert.pem", "key.pem"])
def test_a_part_that_is_missing_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ResourceFault, match=f"has no {missing}"):
        load(folder)


@pytest.mark.parametrize(("part", "mode", "remedy"), [("", 0o750, "chmod 700"), ("key.pem", 0o640, "chmod 600")])
def test_what_others_may_read_is_refused_with_the_remedy(folder: Path, part: str, mode: int, remedy: str) -> None:
    (folder / part).chmod(mode)
    with pytest.raises(ResourceFault, match=f"{remedy} "):
        load(folder)


@pytest.mark.parametrize("part", ["", "key.pem"])
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a file to another user")
def test_anothers_is_refused(folder: Path, part: str) -> None:
    os.chown(folder / part, 65534, 65534)
    with pytest.raises(ResourceFault, match="belongs to another user"):
        load(folder)


def test_a_folder_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceFault, match="cannot be read"):
        load(tmp_path / "file")


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LIFL_IDENTITY", raising=False)
    assert node_folder(tmp_path) == tmp_path / "identity"
    assert user_folder("node-a:7433") == tmp_path / ".config/lifl/identities/node-a_7433"
    assert user_folder("[fd00::1]:7433") == tmp_path / ".config/lifl/identities/fd00::1_7433"
    monkeypatch.setenv("LIFL_IDENTITY", "~/mine")
    assert user_folder("node-a:7433") == tmp_path / "mine"
    assert user_folder("node-a:7433", "/given") == Path("/given")


def test_where_an_identity_cannot_be_written_nobody_is_asked_for_one_and_nothing_is_left(tmp_path: Path) -> None:
    """A token is used up by whoever gets a certificate for it, whether or not that can be kept."""
    folder = tmp_path / "of" / "mine"
    check_room(folder)
    assert not folder.exists()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(ResourceFault, match=rf"{folder} cannot be written.*same token"):
            check_room(folder)
        assert not folder.exists()
        folder.mkdir(0o700)
        with pytest.raises(OSError, match="too large"):
            save(folder, key=bytes(8192))
        assert not list(folder.iterdir()), "no room is taken by what was not written"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

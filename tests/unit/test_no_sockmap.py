"""Where the kernel refuses bpf(2) to lifld, though the program could be loaded, AF_UNIX sockets take its place."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lifl.core.errors import ResourceFault
from lifl.redirect import open_redirector
from lifl.redirect.sockmap import bpf

TABLE_BYTES = 1 << 24
"""At least as much as each of the program's tables has."""


def loaded(_window: int) -> dict[str, int]:
    """Descriptors as the loader hands them over, of tables that no program has."""
    made = {name: os.memfd_create(name) for name in ("routes", "slots", "totals", "sockets")}
    for descriptor in made.values():
        os.ftruncate(descriptor, TABLE_BYTES)
    return made


@pytest.fixture(params=[errno.EPERM, errno.ENOSYS], ids=["not allowed", "not there"])
def refused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Linux before 5.19 to a process without rights; a kernel, or an emulator, without bpf(2)."""

    def call(_command: int, _attribute: bytes) -> bytes:
        raise OSError(request.param, "refused")

    monkeypatch.setattr(bpf, "call", call)
    return int(request.param)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_auto_takes_unix_sockets_and_says_why(refused: int, tmp_path: Path) -> None:
    before = descriptors()
    redirector = open_redirector("auto", tmp_path, load=loaded)
    assert redirector.name == "unix"
    assert "no record came through it" in redirector.why
    assert ("5.19" in redirector.why) is (refused == errno.EPERM)
    redirector.close()
    assert descriptors() == before


@pytest.mark.usefixtures("refused")
def test_sockmap_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    before = descriptors()
    with pytest.raises(ResourceFault, match="no record came through it"):
        open_redirector("sockmap", tmp_path, load=loaded)
    assert descriptors() == before

"""The look at what a run leaves behind sees each kind of thing that a node could leave."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import leaks
import pytest
import skips

LEAKS = Path(leaks.__file__)
NAME = f"lifl-test-{uuid.uuid4().hex[:12]}"
WAIT_S = 120.0


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE_S", 0.0)


@pytest.fixture
def before() -> dict[str, set[str]]:
    return leaks.machine()


def found(before: dict[str, set[str]], kind: str) -> str:
    """The line about one kind; others may be at work on this machine and leave lines of other kinds."""
    return "".join(line for line in leaks.machine_leaks(before) if line.startswith(kind))


@pytest.fixture
def segment() -> Iterator[Path]:
    path = Path("/dev/shm") / NAME
    yield path
    path.unlink(missing_ok=True)


def test_shared_memory(before: dict[str, set[str]], segment: Path) -> None:
    segment.touch()
    assert NAME in found(before, "shared memory")


@pytest.mark.skipif(skips.has_no_sockmap(), reason="NOT TESTED, the sockmap cannot run on this machine")
def test_ebpf_objects(before: dict[str, set[str]], tmp_path: Path) -> None:
    from lifl.redirect import open_redirector

    redirector = open_redirector("sockmap", tmp_path)
    own = {"prog_id:": "prog", "map_id:": "map"}
    held = set()
    for fd in os.listdir("/proc/self/fdinfo"):
        with suppress(FileNotFoundError):  # the listing's own
            lines = [line.split() for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()]
            held |= {f"{own[words[0]]}:{words[1]}" for words in lines if words and words[0] in own}
    line = found(before, "eBPF objects")
    redirector.close()
    seen = set(line.partition(": ")[2].split(", "))
    assert {name.partition(":")[0] for name in seen & held} == {"prog", "map"}


@pytest.mark.skipif(skips.has_no_namespaces(), reason="NOT TESTED, it needs namespaces")
def test_network_namespaces(before: dict[str, set[str]]) -> None:
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    try:
        assert NAME in found(before, "network namespaces")
    finally:
        subprocess.run(["ip", "netns", "del", NAME], check=True)
    assert NAME not in found(before, "network namespaces")


@pytest.mark.skipif(skips.has_no_mounts(), reason="NOT TESTED, it needs the right to mount")
def test_mounts(tmp_path: Path) -> None:
    """In its own mount namespace, by the command line that `.ci/run` uses."""
    script = (
        '"$PYTHON" "$LEAKS" save "$SAVED" && mount -t tmpfs x "$PLACE" && exec "$PYTHON" "$LEAKS" compare "$SAVED" 0'
    )
    paths = {"PYTHON": sys.executable, "LEAKS": str(LEAKS), "SAVED": f"{tmp_path}.before", "PLACE": str(tmp_path)}
    environment = {**os.environ, **paths, leaks.MARK: NAME}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"LEFT BEHIND: mounts: tmpfs at {tmp_path}" in done.stdout


@pytest.mark.parametrize(("part", "seen"), [("", True), ("/gw0", True), ("1", False)])
def test_processes_of_the_run_and_of_its_parts(part: str, seen: bool) -> None:
    environment = {**os.environ, leaks.MARK: f"{NAME}{part}"}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE) as process:
        assert (process.pid in leaks.marked_processes(NAME)) == seen
        process.communicate(b"\n", timeout=WAIT_S)


def test_the_command_line_says_what_is_left_and_fails(tmp_path: Path, segment: Path) -> None:
    environment = {**os.environ, leaks.MARK: NAME}
    look, saved = [sys.executable, str(LEAKS)], str(tmp_path / "before")
    subprocess.run([*look, "save", saved], env=environment, check=True)
    segment.touch()
    compare = [*look, "compare", saved, "0"]
    done = subprocess.run(compare, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert NAME in done.stdout and "LEFT BEHIND: shared memory" in done.stdout

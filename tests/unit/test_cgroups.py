"""Limits of containers: files as they were recorded on machines of both versions, and a group of this machine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import LIFL, run_lifl
from skips import has_no_memory_groups

from lifl.core.config.node import NodeConfig
from lifl.core.errors import ResourceFault
from lifl.node import cgroups, machine

WAIT_S = 120.0
"""Only a failing test waits so long."""
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
V2_MOUNTS = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
V1_GROUPS = "9:name=systemd:/docker/4f\n4:memory:/docker/4f\n1:cpu,cpuacct:/docker/4f\n0::/\n"
UNLIMITED_V1 = "9223372036854771712\n"


def machine_of(folder: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    (folder / "proc/self/mountinfo").write_text(mounts)
    for name, text in files.items():
        file = folder / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_docker_with_version_1_mounts_the_group_itself(tmp_path: Path) -> None:
    """The host's path stands in /proc/self/cgroup; with no namespace of groups it is the mount's root."""
    files = {
        "memory/memory.limit_in_bytes": "536870912\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    root = machine_of(tmp_path, V1_GROUPS, V1_MOUNTS.format(root="/docker/4f"), files)
    limit = cgroups.memory_limit(root)
    assert limit == (536870912, "/sys/fs/cgroup/memory/memory.limit_in_bytes", 1)
    assert cgroups.cpu_quota(root) == (1.5, "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", 1)


def test_the_groups_above_limit_too(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": UNLIMITED_V1,
        "memory/docker/memory.limit_in_bytes": "1000\n",
        "memory/docker/4f/memory.limit_in_bytes": "2000\n",
        "cpu,cpuacct/docker/4f/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/docker/4f/cpu.cfs_period_us": "100000\n",
    }
    root = machine_of(tmp_path, V1_GROUPS, V1_MOUNTS.format(root="/"), files)
    assert cgroups.memory_limit(root) == (1000, "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes", 1)
    assert cgroups.cpu_quota(root) is None


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000\n", None), ("50000 100000\n", 0.5), ("400000 100000\n", 4.0)]
)
def test_version_2(tmp_path: Path, quota: str, cores: float | None) -> None:
    slice_ = "system.slice/lifl.service"
    files = {
        f"{slice_}/memory.max": "268435456\n",
        "system.slice/memory.max": "max\n",
        f"{slice_}/cpu.max": quota,
        "system.slice/cpu.max": "max 100000\n",
    }
    root = machine_of(tmp_path, f"0::/{slice_}\n", V2_MOUNTS.format(root="/"), files)
    assert cgroups.memory_limit(root) == (268435456, f"/sys/fs/cgroup/{slice_}/memory.max", 2)
    found = cgroups.cpu_quota(root)
    assert (found.cores if found else None) == cores


def test_a_container_with_version_2_sees_its_group_as_the_root(tmp_path: Path) -> None:
    files = {"memory.max": "134217728\n", "cpu.max": "200000 100000\n"}
    for number, group in enumerate(("0::/\n", "0::/../../kubepods/pod1\n")):
        root = machine_of(tmp_path / str(number), group, V2_MOUNTS.format(root="/"), files)
        assert cgroups.memory_limit(root) == (134217728, "/sys/fs/cgroup/memory.max", 2)
        assert cgroups.cpu_quota(root) == (2.0, "/sys/fs/cgroup/cpu.max", 2)


@pytest.mark.parametrize("text", ["", "max\n", UNLIMITED_V1, "-1\n", "many\n"])
def test_what_is_no_limit_is_none(tmp_path: Path, text: str) -> None:
    files = {"memory.max": text, "cpu.max": text}
    root = machine_of(tmp_path, "0::/\n", V2_MOUNTS.format(root="/"), files)
    assert cgroups.memory_limit(root) is None
    assert cgroups.cpu_quota(root) is None


def test_a_machine_without_groups_has_no_limits(tmp_path: Path) -> None:
    assert cgroups.memory_limit(tmp_path) is None
    assert cgroups.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "cores"), [("50000 100000\n", 1), ("150000 100000\n", 2), ("max 100000\n", 64)])
def test_cores_are_those_of_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int) -> None:
    root = machine_of(tmp_path, "0::/\n", V2_MOUNTS.format(root="/"), {"cpu.max": quota})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))
    assert machine.cores(root) == cores
    assert machine.workers_max(NodeConfig(), root) == cores + 1
    assert machine.workers_max(NodeConfig(workers_max=7), root) == 7


def test_an_arena_beyond_the_limit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    root = machine_of(tmp_path, "0::/\n", V2_MOUNTS.format(root="/"), {"memory.max": f"{1 << 29}\n"})
    with pytest.raises(ResourceFault, match=rf"{1 << 30} bytes.*{1 << 29} bytes.*v2.*memory\.max.*--arena-bytes"):
        machine.check_memory_limit(1 << 30, root)
    with pytest.raises(ResourceFault):  # the processes need some, too
        machine.check_memory_limit(1 << 29, root)
    machine.check_memory_limit(1 << 28, root)


# ---- a group of this machine ---------------------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[Path]:
    """A group below the test's own; what is in it at the end has ended."""
    own = next(
        line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line
    )
    folder = Path("/sys/fs/cgroup/memory") / own.lstrip("/") / f"lifl-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    folder.rmdir()


def lifl_in(group: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LIFL, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None,
    )


@pytest.mark.skipif(has_no_memory_groups(), reason="no memory group of version 1 can be made")
def test_a_node_in_a_group_with_too_little_memory(group: Path, state_dir: Path) -> None:
    (group / "memory.limit_in_bytes").write_text(str(512 << 20))
    flags = ["--state", str(state_dir), "--listen", "127.0.0.1:0", "--capacity", "2"]
    for detach in ([], ["-d"]):
        done = lifl_in(group, "up", *detach, *flags, "--arena-bytes", "1GiB")
        assert done.returncode == 1, done.stdout
        assert len(done.stderr.splitlines()) == 1, done.stderr
        for text in (str(512 << 20), str(1 << 30), "cgroup v1", group.name, "--arena-bytes"):
            assert text in done.stderr
    done = lifl_in(group, "up", "-d", *flags, "--arena-bytes", "64MiB")
    assert done.returncode == 0, done.stderr
    assert run_lifl("down", "--state", str(state_dir)).returncode == 0
    found = json.loads(lifl_in(group, "doctor", "--json", "--state", str(state_dir)).stdout)
    (about,) = [line for line in found if line["what"] == "memory limit"]
    assert about["level"] == "warn"
    assert "512.0 MiB" in about["text"]
    assert "1.0 GiB" in about["text"]
    assert "--arena-bytes" in about["fix"]

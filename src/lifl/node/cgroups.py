"""What a container allows: the limits of memory and of CPU time that the control groups of this process set.

A process is in one group of each hierarchy; the groups above it limit it too, as far as they can be seen from here.
Version 1 has a hierarchy for each controller, version 2 one for all, and a machine may have both.  What
/proc/self/cgroup calls a group is looked for from the root of what is mounted: in a container that is often the group
itself, under a path that only the host knows.  All paths are below `root`: files of another machine can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")
UNLIMITED_BYTES = 1 << 62
"""What version 1 says where there is no limit is some pages less than 2^63."""


class MemoryLimit(NamedTuple):
    """The smallest limit of memory, and the file that has it."""

    limit_bytes: int
    file: str
    version: int

    @property
    def where(self) -> str:
        """How people are told of it."""
        return f"cgroup v{self.version}, {self.file}"


class CpuQuota(NamedTuple):
    """The smallest quota of CPU time, in cores, and the file that has it."""

    cores: float
    file: str
    version: int

    @property
    def where(self) -> str:
        """How people are told of it."""
        return f"cgroup v{self.version}, {self.file}"


class _Group(NamedTuple):
    folder: Path
    version: int


def memory_limit(root: Path = ROOT) -> MemoryLimit | None:
    """Return the limit of this process's memory; None when there is none, or none can be read."""
    found = []
    for group in _groups("memory", root):
        file = group.folder / ("memory.limit_in_bytes" if group.version == 1 else "memory.max")
        words = _words(file)
        if words and words[0].isdecimal() and int(words[0]) < UNLIMITED_BYTES:
            found.append(MemoryLimit(int(words[0]), _shown(file, root), group.version))
    return min(found, default=None)


def cpu_quota(root: Path = ROOT) -> CpuQuota | None:
    """Return how many cores' time this process is allowed; None when that is not limited, or cannot be read."""
    found = []
    for group in _groups("cpu", root):
        file = group.folder / ("cpu.cfs_quota_us" if group.version == 1 else "cpu.max")
        words = _words(file)
        if group.version == 1:
            words += _words(group.folder / "cpu.cfs_period_us")
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
            found.append(CpuQuota(int(words[0]) / int(words[1]), _shown(file, root), group.version))
    return min(found, default=None)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _shown(file: Path, root: Path) -> str:
    return f"/{file.relative_to(root)}"


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    """Yield the groups of this process that may limit what the controller counts, from the innermost to the root."""
    places = {(version, name): path for version, names, path in _memberships(root) for name in names}
    for version, names, mount_root, mount_point in _mounts(root):
        name = controller if version == 1 else ""
        if name not in names or (version, name) not in places:
            continue
        top = root / mount_point.lstrip("/")
        inside = _inside(places[version, name], mount_root)
        yield from (_Group(top / part, version) for part in (inside, *inside.parents))


def _inside(path: str, mount_root: str) -> PurePosixPath:
    """Return a group's path from what is mounted; when it lies elsewhere, what is mounted is all that can be seen."""
    group = PurePosixPath(path)
    if ".." in group.parts or not group.is_relative_to(mount_root):
        return PurePosixPath()
    return group.relative_to(mount_root)


def _memberships(root: Path) -> Iterator[tuple[int, list[str], str]]:
    """Yield version, controllers (of version 2: one without a name) and path of each group of this process."""
    for line in _lines(root / "proc/self/cgroup"):
        number, names, path = line.split(":", 2)
        yield (2 if number == "0" and not names else 1), names.split(","), path


def _mounts(root: Path) -> Iterator[tuple[int, list[str], str, str]]:
    """Yield version, controllers, root and mount point of each hierarchy that is mounted."""
    for line in _lines(root / "proc/self/mountinfo"):
        about, _, rest = line.partition(" - ")
        fields, kind = about.split(), rest.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 1 if kind[0] == "cgroup" else 2
        yield version, kind[2].split(",") if version == 1 else [""], fields[3], fields[4]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []

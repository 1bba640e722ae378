"""What a node could leave behind on a machine, and how a test run finds it.

Everything that a test run starts inherits one environment variable (`MARK`), so its processes are told
apart from all others, daemons included; a part of a run has a mark below the run's (``run/part``).  Shared memory,
eBPF objects, network namespaces and mounts carry no such mark: their changes are held against the run only where the
machine is the run's own (`LIFL_OWN_MACHINE=1`, which `.ci/run` sets).  Descriptors are counted in the test's process
(`conftest.py`); those of other processes go with them.

    python tests/leaks.py save FILE        python tests/leaks.py compare FILE [SECONDS TO SETTLE]
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

MARK = "LIFL_TEST_RUN"
OWN_MACHINE = "LIFL_OWN_MACHINE"
SETTLE_S = 10.0
"""The kernel frees eBPF objects, and kills the children of a killed daemon, a little later."""

Found = TypeVar("Found", list[str], dict[int, str])

_BPF_CALL = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine)
_PROG_GET_NEXT_ID, _MAP_GET_NEXT_ID, _PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID, _GET_INFO = 11, 12, 13, 14, 15
_PROG_TYPE_SK_MSG = 16
_MAP_TYPES_SOCKMAP = (15, 18)
_libc = ctypes.CDLL(None, use_errno=True)


def segments() -> set[str]:
    """The shared-memory segments of nodes and of tests."""
    return {path.name for path in Path("/dev/shm").glob("lifl*")}


def namespaces() -> set[str]:
    """The named network namespaces."""
    folder = Path("/run/netns")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def mounts() -> set[str]:
    """What is mounted where, without the folder of network namespaces: `ip netns` mounts it once and for good."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {f"{line[line.index('-') + 1]} at {line[4]}" for line in lines if "netns" not in line[4]}


def marked_processes(mark: str) -> dict[int, str]:
    """The living processes with this mark or one below it, this process apart: command line by pid."""
    exactly, below = f"{MARK}={mark}".encode(), f"{MARK}={mark}/".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            if any(word == exactly or word.startswith(below) for word in words):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
        except OSError:
            continue  # it has ended, or belongs to another user
    return found


def bpf_objects() -> set[str]:
    """This machine's SK_MSG programs and sockmaps, as ``prog:ID`` and ``map:ID``; none without the right to ask."""
    return {f"prog:{i}" for i in _ids(_PROG_GET_NEXT_ID) if _kind(_PROG_GET_FD_BY_ID, i) == _PROG_TYPE_SK_MSG} | {
        f"map:{i}" for i in _ids(_MAP_GET_NEXT_ID) if _kind(_MAP_GET_FD_BY_ID, i) in _MAP_TYPES_SOCKMAP
    }


def _bpf(command: int, attribute: ctypes.Array[ctypes.c_char]) -> int:
    if _BPF_CALL is None:
        return -1
    return int(_libc.syscall(_BPF_CALL, command, attribute, len(attribute)))


def _ids(command: int) -> list[int]:
    found: list[int] = []
    last = 0
    while True:
        attribute = ctypes.create_string_buffer(struct.pack("<III", last, 0, 0), 120)
        if _bpf(command, attribute) < 0:
            return found
        (last,) = struct.unpack_from("<I", attribute.raw, 4)
        found.append(last)


def _kind(command: int, number: int) -> int:
    fd = _bpf(command, ctypes.create_string_buffer(struct.pack("<III", number, 0, 0), 120))
    if fd < 0:
        return -1
    try:
        info = ctypes.create_string_buffer(256)
        attribute = ctypes.create_string_buffer(struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)), 120)
        return -1 if _bpf(_GET_INFO, attribute) < 0 else int(struct.unpack_from("<I", info.raw)[0])
    finally:
        os.close(fd)


def machine() -> dict[str, set[str]]:
    """All that carries no mark."""
    return {
        "shared memory": segments(),
        "eBPF objects": bpf_objects(),
        "network namespaces": namespaces(),
        "mounts": mounts(),
    }


def machine_leaks(before: dict[str, set[str]]) -> list[str]:
    """What is there now and was not `before`, once the kernel has had `SETTLE_S` to clear up."""
    return settled(lambda: [f"{k}: {', '.join(sorted(v - before[k]))}" for k, v in machine().items() if v - before[k]])


def settled(look: Callable[[], Found]) -> Found:
    """What `look` finds, asked again for a while as long as it finds anything."""
    deadline = time.monotonic() + SETTLE_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def main() -> int:
    """The command line, for `.ci/run`."""
    global SETTLE_S
    action, path, *settle_s = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    SETTLE_S = float(settle_s[0]) if settle_s else SETTLE_S
    if action == "save":
        path.write_text(json.dumps({kind: sorted(names) for kind, names in machine().items()}))
        return 0
    before = {kind: set(names) for kind, names in json.loads(path.read_text()).items()}
    mark = os.environ.get(MARK, "")
    found = machine_leaks(before)
    left = settled(lambda: {p: c for p, c in marked_processes(mark).items() if p != os.getppid()})
    found += [f"process {pid}: {command}" for pid, command in left.items()]
    print("\n".join(f"LEFT BEHIND: {leak}" for leak in found) or "nothing is left behind")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())


def mapped_file(array: Any) -> str:
    """Which file an array's memory is of; empty: of none, it is the process' own."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            if first <= address < last:
                return line.split(maxsplit=5)[5].strip() if len(line.split()) > 5 else ""
    raise AssertionError("it is not mapped")

"""Capabilities, the parts of root's rights: given up in all five sets, for this process and all that it starts.

Root without capabilities is still the owner of root's files, and nothing more.  Taking one out of the bounding set, and
locking the bits that give root its rights back at an exec, need CAP_SETPCAP: who never had it cannot, and has nothing
to get back either once it takes no new rights.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from pathlib import Path

from lifl.confine import kernel
from lifl.core.errors import ResourceFault

BPF, NET_ADMIN, SYS_ADMIN = 39, 12, 21
SETPCAP = 8
_VERSION = 0x20080522
_SECUREBITS = 0xEF
"""No rights for root as such, at no change of user or exec, no ambient ones; all of it locked."""
NUMBERS = {"x86_64": (125, 126), "aarch64": (90, 91), "riscv64": (90, 91)}
"""capget(2) and capset(2)."""


def held() -> tuple[int, int, int]:
    """Return this thread's effective, permitted and inheritable capabilities, a bit each."""
    header = ctypes.create_string_buffer(struct.pack("<Ii", _VERSION, 0), 8)
    data = ctypes.create_string_buffer(24)
    kernel.syscall(_numbers()[0], header, data)
    low, high = struct.unpack("<3I3I", data.raw)[:3], struct.unpack("<3I3I", data.raw)[3:]
    effective, permitted, inheritable = (first | second << 32 for first, second in zip(low, high, strict=True))
    return effective, permitted, inheritable


def hold(effective: int, permitted: int, inheritable: int) -> None:
    """Set this thread's capabilities.  Raise `OSError` when some of them are not its to have."""
    sets = (effective, permitted, inheritable)
    header = ctypes.create_string_buffer(struct.pack("<Ii", _VERSION, 0), 8)
    words = [each & 0xFFFF_FFFF for each in sets] + [each >> 32 for each in sets]
    kernel.syscall(_numbers()[1], header, ctypes.create_string_buffer(struct.pack("<6I", *words), 24))


def _numbers() -> tuple[int, int]:
    found = NUMBERS.get(kernel.MACHINE)
    if found is None:
        raise ResourceFault(f"the system calls for capabilities on {kernel.MACHINE} are not known")
    return found


def shut() -> None:
    """Keep every capability from coming back at an exec or a change of user, as far as this thread may say so."""
    if not held()[0] >> SETPCAP & 1:
        return
    kernel.prctl(kernel.PR_SET_SECUREBITS, _SECUREBITS)
    for capability in range(64):
        try:
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:  # the kernel knows no more of them
                return
            raise


def drop_all() -> None:
    """Give up every capability in all five sets, and every way to a new one.  Call it while there is one thread."""
    if kernel.MACHINE in NUMBERS:
        shut()
        kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
        hold(0, 0, 0)
    kernel.take_no_new_rights()


def status_of(pid: int | str) -> dict[str, str]:
    """Return the lines of /proc/PID/status.  Raise `OSError` when the process is gone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

"""The calls of the C library, and the system calls by number, that take rights away."""

from __future__ import annotations

import ctypes
import os
import platform

PR_SET_DUMPABLE = 4
PR_SET_SECUREBITS = 28
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

MACHINE = platform.machine()
_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
_libc.syscall.restype = ctypes.c_long
_Passed = int | bytes | ctypes.Array[ctypes.c_char] | None


def prctl(option: int, *arguments: int) -> int:
    """Call prctl(2).  Raise `OSError`."""
    result = int(_libc.prctl(option, *(*arguments, 0, 0, 0, 0)[:4]))
    if result < 0:
        raise _error(f"prctl {option}")
    return result


def syscall(number: int, *arguments: _Passed) -> int:
    """Call a system call by its number; integers are passed as unsigned longs.  Raise `OSError`."""
    passed = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        raise _error(f"system call {number}")
    return result


def _error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def take_no_new_rights() -> None:
    """Let no exec give this process, or what it starts, a right that it does not have."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def hide_memory() -> None:
    """Keep other processes of the same user from this one's memory and environment, and make no core file."""
    prctl(PR_SET_DUMPABLE, 0)

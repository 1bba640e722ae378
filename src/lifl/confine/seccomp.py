"""Filters of system calls: what is refused fails with EPERM, and the process goes on.

All calls are allowed but those that a filter names, whole or by their arguments: so no version of Python, NumPy or the
C library is tied to a list of ours.  A call that is newer than the table of numbers, and the calls of another
architecture's interface, are answered as by a kernel that does not have them.

A filter is a program for the kernel's classic BPF, made here of instructions by hand; several of one process all have
to agree.
Source: the kernel's Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterable
from typing import NamedTuple

from lifl.confine import kernel
from lifl.confine.syscalls import NEWEST, NUMBERS

_ARCHITECTURES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""The column of `NUMBERS`, the kernel's word for it, the number of seccomp(2)."""
_SET_MODE_FILTER = 1
_ALL_THREADS = 1
_X32 = 0x4000_0000
"""Set in the numbers of a second interface of x86-64 that nothing of ours uses."""

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ANY = 0xFFFF_FFFF

_Instruction = tuple[int, int, int, int]


class Argument(NamedTuple):
    """Whether the lower half of an argument, as far as `mask` goes, is one of `values`."""

    argument: int
    values: tuple[int, ...]
    mask: int = _ANY
    refuses: bool = False
    """When it is, the call is refused; else: when it is not."""


class Refusal(NamedTuple):
    """A call that is refused: always, or when one of the `tests` says so."""

    call: str
    tests: tuple[Argument, ...] = ()
    error: int = errno.EPERM


def always(*calls: str, error: int = errno.EPERM) -> list[Refusal]:
    """Return the refusals of whole calls."""
    return [Refusal(call, (), error) for call in calls]


def program(refusals: Iterable[Refusal], machine: str = kernel.MACHINE) -> bytes:
    """Return the filter as the kernel takes it; nothing for a machine whose system calls' numbers are not known."""
    if machine not in _ARCHITECTURES:
        return b""
    column, architecture, _ = _ARCHITECTURES[machine]
    code: list[_Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_EQUAL, 1, 0, architecture), _refused(errno.ENOSYS)]
    code += [(_LOAD, 0, 0, _NUMBER_AT)]
    if column == 0:
        code += [(_AT_LEAST, 0, 1, _X32), _refused(errno.ENOSYS)]
    code += [(_AT_LEAST, 0, 1, NEWEST), _refused(errno.ENOSYS)]
    for refusal in refusals:
        number = NUMBERS[refusal.call][column]
        if number >= 0:
            body = _body(refusal)
            code += [(_EQUAL, 0, len(body), number), *body]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _refused(error: int) -> _Instruction:
    return (_RETURN, 0, 0, _ERRNO | error)


def _body(refusal: Refusal) -> list[_Instruction]:
    """Return what follows when the call's number is that of the refusal; it always ends in an answer."""
    no = _refused(refusal.error)
    if not refusal.tests:
        return [no]
    code: list[_Instruction] = []
    for test in refusal.tests:
        code.append((_LOAD, 0, 0, _ARGUMENTS_AT + 8 * test.argument))
        if test.mask != _ANY:
            code.append((_AND, 0, 0, test.mask))
        if test.refuses:
            for value in test.values:
                code += [(_EQUAL, 0, 1, value), no]
        else:
            count = len(test.values)
            code += [(_EQUAL, count - index, 0, value) for index, value in enumerate(test.values)]
            code.append(no)
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def with_number(code: bytes, placeholder: int, number: int) -> bytes:
    """Return a filter made for the argument `placeholder`, an odd 32-bit number, for `number` instead."""
    return code.replace(struct.pack("<HBBI", _EQUAL, 1, 0, placeholder), struct.pack("<HBBI", _EQUAL, 1, 0, number))


def install(code: bytes) -> bool:
    """Put a filter on all threads of this process, which takes no new rights any more, for ever.

    Return False where the machine cannot.  Raise `OSError` for anything but that.
    """
    if not code:
        return False
    buffer = ctypes.create_string_buffer(code, len(code))
    about = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    try:
        kernel.syscall(_ARCHITECTURES[kernel.MACHINE][2], _SET_MODE_FILTER, _ALL_THREADS, about)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL):  # a kernel without it
            return False
        raise
    return True

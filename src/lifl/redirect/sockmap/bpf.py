"""The two bpf(2) commands that the daemon itself needs once the loader has handed the maps over.

They need no rights beyond the map's descriptor.  The loader's bcc is not used here: it would bring a compiler along.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from lifl.core.errors import ResourceFault

MAP_UPDATE_ELEM = 2
MAP_DELETE_ELEM = 3
NOEXIST = 1
_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_ATTRIBUTE_BYTES = 120
_ELEMENT = struct.Struct("<IxxxxQQQ")  # map descriptor, pointer to the key, pointer to the value, flags

_libc = ctypes.CDLL(None, use_errno=True)


def call(command: int, attribute: bytes) -> bytes:
    """Call bpf(2) with a `union bpf_attr`; return it as the kernel left it.  Raise `OSError`."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise ResourceFault(f"the number of bpf(2) on {platform.machine()} is not known; use the unix redirector")
    buffer = ctypes.create_string_buffer(attribute, max(len(attribute), _ATTRIBUTE_BYTES))
    if _libc.syscall(number, command, buffer, len(buffer)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf command {command}: {os.strerror(code)}")
    return buffer.raw


def put_socket(sockhash: int, slot: int, fd: int) -> None:
    """Put a socket into a SOCKHASH under a key that must be free (else EEXIST)."""
    key, value = ctypes.c_uint32(slot), ctypes.c_uint32(fd)
    call(MAP_UPDATE_ELEM, _ELEMENT.pack(sockhash, ctypes.addressof(key), ctypes.addressof(value), NOEXIST))


def remove_socket(sockhash: int, slot: int) -> None:
    """Take a slot's socket out, if it is still there; what its owner had not read is discarded by the kernel."""
    key = ctypes.c_uint32(slot)
    try:
        call(MAP_DELETE_ELEM, _ELEMENT.pack(sockhash, ctypes.addressof(key), 0, 0))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise

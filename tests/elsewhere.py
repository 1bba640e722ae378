"""A Python as it is on macOS or Windows, as far as a client can tell; it is run as a script.

    python tests/elsewhere.py macos|windows FILE [ARGUMENTS]

What those systems do not have is taken away before anything of LIFL is loaded, and so are the packages that are not
installed there.  The system below stays Linux: names that mean something else there are not tried.
"""

from __future__ import annotations

import importlib
import mmap
import os
import runpy
import select
import signal
import socket
import sys

LINUX = ("posix_ipc", "uvloop", "bcc", "psutil._pslinux")
WINDOWS_LACKS = ("fcntl", "grp", "pwd", "resource", "termios", "_posixshmem")
MACOS = {
    select: ("epoll", "POLLRDHUP"),
    socket: ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "MSG_CMSG_CLOEXEC"),
    os: ("memfd_create", "pidfd_open", "sched_getaffinity"),
    signal: ("pidfd_send_signal", "SIGPWR", "SIGSTKFLT"),
}
WINDOWS = {
    select: ("poll", "epoll", "POLLIN", "POLLOUT", "POLLRDHUP"),
    socket: ("AF_UNIX", "SCM_RIGHTS", "CMSG_SPACE", "MSG_CMSG_CLOEXEC", "TCP_USER_TIMEOUT", "send_fds", "recv_fds"),
    socket.socket: ("sendmsg", "recvmsg", "recvmsg_into"),
    mmap: ("MAP_PRIVATE", "MAP_SHARED", "MAP_ANONYMOUS", "PROT_READ", "PROT_WRITE"),
    os: ("register_at_fork", "fork", "geteuid", "getuid", "fchmod", "pidfd_open", "sched_getaffinity", "O_CLOEXEC")
    + ("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK"),
}


def become(system: str) -> None:
    """Take away what the system does not have."""
    missing = LINUX + (WINDOWS_LACKS if system == "windows" else ())
    sys.modules.update(dict.fromkeys(missing))  # None: an import fails
    for owner, names in (WINDOWS if system == "windows" else MACOS).items():
        for name in names:
            if owner is socket.socket:
                setattr(socket.socket, name, property(_missing))
            elif hasattr(owner, name):
                delattr(owner, name)


def _missing(_self: object) -> None:
    raise AttributeError("not on this system")


OTHERS = ("contextlib", "hashlib", "hmac", "json", "logging", "pathlib", "ssl", "subprocess", "tempfile", "threading")
OTHERS += ("urllib.request", "cryptography.x509", "ml_dtypes", "msgspec", "numpy", "safetensors.numpy")
"""Python's own, and packages that have a build for each system: they have their own ways there."""

if __name__ == "__main__":
    for each in OTHERS:
        importlib.import_module(each)
    become(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")

"""Who may do what: the boxes of the gateway, the HTTP door, the zygote, and workers, also of a user's own rule.

* The gateway reads Python's own files and writes none; it dials TCP and takes what comes to the doors that it was
  given; it starts no process and signals itself only; its memory is `GATEWAY_DATA_BYTES`, and some for each connection.
* The HTTP door is as the gateway, but dials nobody.
* The zygote uses files as its user may, but runs none; it makes no sockets but those of its workers; it forks
  them.
* A worker is as the zygote, but starts no process and signals itself only; it has the redirector's sockets, and its
  share of the machine's memory.
* A worker of a user's rule is as a worker, but reads Python's own files and those of the rule's folder only, writes
  none, and makes no memory that is shared.

All of them: no capabilities, no new ones, no core file, memory that others of the same user cannot read, and none of
the kernel's calls that only administrators, debuggers and attackers need.  A box is entered once, by the process
itself, before it hears the first word of a stranger; what is asked for later is refused with EPERM.

The zygote enters its box before the first fork, so that a worker only adds what a zygote cannot do without.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lifl.confine import capabilities, kernel, landlock, seccomp
from lifl.confine.seccomp import Argument, Refusal, always
from lifl.core.limits import GATEWAY_CONNECTION_BYTES, GATEWAY_DATA_BYTES, HTTP_DATA_BYTES, WORKER_DESCRIPTORS_MAX

_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_STREAM, _DGRAM = 1, 2
_TYPE_MASK = 0xF
_OPEN_CHANGES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000
_ENOSYS = 38
_SET_OWNER = (8, 10, 15)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX: who gets a signal, and which, when a descriptor is ready."""
_BAD_IOCTLS = (0x5412, 0x541C, 0x8901, 0x8902)
"""TIOCSTI and TIOCLINUX type into a terminal; FIOSETOWN and SIOCSPGRP are F_SETOWN by another name."""
_SHARED_ANONYMOUS = 0x21

_KERNELS_OWN = always(
    *("acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime", "delete_module", "execve"),
    *("execveat", "fanotify_init", "fanotify_mark", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick"),
    *("init_module", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie"),
    *("memfd_secret", "migrate_pages", "modify_ldt", "mount", "mount_setattr", "move_mount", "move_pages"),
    *("name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree", "open_tree_attr", "perf_event_open"),
    *("personality", "pidfd_getfd", "pivot_root", "process_madvise", "process_mrelease", "process_vm_readv"),
    *("process_vm_writev", "ptrace", "quotactl", "quotactl_fd", "reboot", "request_key", "setdomainname"),
    *("sethostname", "setns", "settimeofday", "swapoff", "swapon", "syslog", "umount2", "unshare", "uselib"),
    *("userfaultfd", "vhangup", "bind", "listen"),
) + always("io_uring_enter", "io_uring_register", "io_uring_setup", error=_ENOSYS)
"""For every process."""

_NO_PROCESSES = [
    *always("fork", "vfork"),
    *always("clone3", error=_ENOSYS),  # its flags lie where a filter cannot look; the C library then takes clone
    Refusal("clone", (Argument(0, (_CLONE_THREAD,), _CLONE_THREAD),)),
]
_NO_IPC = always(
    *("shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv", "msgctl"),
    *("mq_open", "mq_unlink"),
)
_NO_CHANGE_OF_FILES = [
    Refusal("open", (Argument(1, (0,), _OPEN_CHANGES),)),
    Refusal("openat", (Argument(2, (0,), _OPEN_CHANGES),)),
    *always("openat2", error=_ENOSYS),
    *always(
        "creat",
        "truncate",
        "ftruncate",
        "fallocate",
        "mkdir",
        "mkdirat",
        "mknod",
        "mknodat",
        "rmdir",
        "unlink",
        "unlinkat",
        "rename",
    ),
    *always("renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "chmod", "fchmod", "fchmodat"),
    *always("fchmodat2", "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr", "fsetxattr", "removexattr"),
    *always("lremovexattr", "fremovexattr", "setxattrat", "removexattrat", "file_setattr", "utime", "utimes"),
    *always("utimensat", "futimesat"),
]
_NO_SHARED_MEMORY = [
    *always("memfd_create"),
    Refusal("mmap", (Argument(3, (_SHARED_ANONYMOUS,), _SHARED_ANONYMOUS, refuses=True),)),
]


_OWN_PID = 0x7FED_C0DE
"""Stands in a filter that is made before the process that it is for; no process has so high a number."""
_SIGNALS_ITSELF_ONLY = [
    *always("tkill", "pidfd_send_signal", "pidfd_open"),
    *(
        Refusal(call, (Argument(0, (_OWN_PID,)),))
        for call in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
    ),
    Refusal("fcntl", (Argument(1, _SET_OWNER, refuses=True),)),
    Refusal("ioctl", (Argument(1, _BAD_IOCTLS, refuses=True),)),
]
_DATAGRAMS_ONLY = Refusal("socket", (Argument(0, (_AF_UNIX,)), Argument(1, (_DGRAM,), _TYPE_MASK)))
_NO_OTHERS_LIMITS = [
    *(
        Refusal(call, (Argument(0, (0,)),))
        for call in ("prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler")
    ),
    Refusal("setpriority", (Argument(1, (0,)),)),
    *always("ioprio_set"),
]


@cache
def _gateway_filter() -> bytes:
    tcp = (Argument(0, (_AF_INET, _AF_INET6)), Argument(1, (_STREAM,), _TYPE_MASK))
    kept = [*_NO_PROCESSES, *_NO_IPC, *_NO_CHANGE_OF_FILES, *_NO_SHARED_MEMORY, *_SIGNALS_ITSELF_ONLY]
    return seccomp.program([*_KERNELS_OWN, *kept, *_NO_OTHERS_LIMITS, Refusal("socket", tcp)])


@cache
def _http_filter() -> bytes:
    kept = [*_NO_PROCESSES, *_NO_IPC, *_NO_CHANGE_OF_FILES, *_NO_SHARED_MEMORY, *_SIGNALS_ITSELF_ONLY]
    return seccomp.program([*_KERNELS_OWN, *kept, *_NO_OTHERS_LIMITS, *always("socket", "connect")])


@cache
def _worker_filter(redirector: str) -> bytes:
    if redirector == "unix":
        sockets = [_DATAGRAMS_ONLY]
    else:
        pairs = Refusal("socketpair", (Argument(1, (_STREAM,), _TYPE_MASK),))  # of datagrams: they reach any name
        sockets = [*always("socket", "connect"), pairs]
    return seccomp.program([*_NO_PROCESSES, *_SIGNALS_ITSELF_ONLY, *_NO_OTHERS_LIMITS, *sockets])


@cache
def _rule_filter() -> bytes:
    return seccomp.program([*_NO_CHANGE_OF_FILES, *_NO_SHARED_MEMORY])


def _limit(kind: int, most: int) -> None:
    """Set a limit for good, unless a tighter one holds already."""
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _enter() -> None:
    """Give up what no process of a node needs beside `lifld`'s loader."""
    capabilities.drop_all()
    kernel.hide_memory()
    _limit(resource.RLIMIT_CORE, 0)


def keep_lengths() -> None:
    """Have no descriptor that this thread opens from now on make a file shorter, whoever has it later.

    The kernel notes that with what is open (Landlock's version 3, Linux 6.2); an earlier one lets it be.
    Raise `OSError`.
    """
    if landlock.version() >= 3:
        landlock.restrict(landlock.TRUNCATE, [], 0)


def enter_gateway(connections_max: int, folders: Sequence[Path] = ()) -> int:
    """Enter the gateway's box, in which beside Python's own files those in `folders` can be read.

    Return the version of Landlock that holds it; 0: none.
    """
    _enter()
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_DATA, GATEWAY_DATA_BYTES + connections_max * GATEWAY_CONNECTION_BYTES)
    readable = landlock.readable([*python_folders(), *folders], None)
    held = landlock.restrict(None, readable, landlock.BIND_TCP)
    seccomp.install(seccomp.with_number(_gateway_filter(), _OWN_PID, os.getpid()))
    return held


def enter_http(folders: Sequence[Path] = ()) -> int:
    """Enter the HTTP door's box, as the gateway's, but it dials nobody; return the version of Landlock (0: none)."""
    _enter()
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_DATA, HTTP_DATA_BYTES)
    readable = landlock.readable([*python_folders(), *folders], None)
    held = landlock.restrict(None, readable, landlock.BIND_TCP | landlock.CONNECT_TCP)
    seccomp.install(seccomp.with_number(_http_filter(), _OWN_PID, os.getpid()))
    return held


def enter_outbound() -> None:
    """Enter the box of the process that brings models to a store elsewhere: it keeps what its user may do, no more."""
    _enter()


def enter_zygote() -> int:
    """Enter the zygote's box, which its workers inherit; return the version of Landlock that holds it (0: none)."""
    _enter()
    held = landlock.restrict(landlock.SPECIAL, [(Path("/"), 0)], landlock.BIND_TCP | landlock.CONNECT_TCP)
    seccomp.install(seccomp.program([*_KERNELS_OWN, *_NO_IPC, *always("accept", "accept4"), _DATAGRAMS_ONLY]))
    for redirector in ("unix", "sockmap"):  # made before the forks, as is all that a worker finds here
        _worker_filter(redirector)
    _rule_filter()
    python_folders()
    return held


def enter_worker(port: dict[str, Any], data_bytes: int) -> None:
    """Enter a worker's box, on top of the zygote's: with at most `data_bytes` of memory of its own (0: any).

    The redirector on AF_UNIX sockets sends datagrams to other workers' names; nothing else of the node takes datagrams.
    """
    _limit(resource.RLIMIT_NOFILE, WORKER_DESCRIPTORS_MAX)
    if data_bytes:
        _limit(resource.RLIMIT_DATA, data_bytes)
    seccomp.install(seccomp.with_number(_worker_filter(str(port.get("kind"))), _OWN_PID, os.getpid()))


def enter_rule(rule_folder: str, state_folder: Path | None) -> None:
    """Enter the box of a user's rule, on top of a worker's; its folder is readable, but for the node's state.

    Raise `OSError` when the kernel has what it takes and does not do it: then the rule must not run.
    """
    _limit(resource.RLIMIT_FSIZE, 0)
    folders = [*python_folders(), *([Path(rule_folder).resolve()] if rule_folder else [])]
    landlock.restrict(None, landlock.readable(folders, state_folder), landlock.BIND_TCP | landlock.CONNECT_TCP)
    seccomp.install(_rule_filter())


_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone"),
    *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/proc/self", "/proc/meminfo", "/proc/cpuinfo"),
    *("/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu"),
)
"""What libraries read that are loaded late."""


@cache
def python_folders() -> list[Path]:
    """Return where this interpreter finds modules and libraries: its own, ours, and what is installed in place."""
    found = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *filter(None, sys.path)]
    found.append(os.path.dirname(os.path.dirname(__file__)))
    for name, module in list(sys.modules.items()):
        if name.startswith("__editable__"):
            found += getattr(module, "MAPPING", {}).values()
    return [*(Path(each).resolve() for each in dict.fromkeys(found)), *map(Path, _SYSTEM)]

"""Filters of system calls as the kernel would run them, on both architectures, and the paths that Landlock is told."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from lifl.confine import box, kernel, landlock, seccomp
from lifl.confine.seccomp import Argument, Refusal, always, program
from lifl.confine.syscalls import NEWEST, NUMBERS

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
ALLOWED = 0
both = pytest.mark.parametrize("machine", ARCHITECTURES)


def answer(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """The error with which a filter answers a system call; 0: it is allowed."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, *(0,) * 6)[:6])
    instructions = list(struct.iter_unpack("<HBBI", code))
    accumulator = at = 0
    while True:
        operation, if_true, if_false, value = instructions[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x06:
                return 0 if value == 0x7FFF0000 else value & 0xFFFF


def asked(machine: str, refusals: list[Refusal], call: str, *arguments: int) -> int:
    column, architecture = ARCHITECTURES[machine]
    return answer(program(refusals, machine), architecture, NUMBERS[call][column], *arguments)


@both
def test_what_is_named_is_refused_and_nothing_else(machine: str) -> None:
    refusals = [*always("ptrace", "bpf"), *always("io_uring_setup", error=errno.ENOSYS)]
    assert asked(machine, refusals, "ptrace") == errno.EPERM
    assert asked(machine, refusals, "bpf", 1, 2, 3) == errno.EPERM
    assert asked(machine, refusals, "io_uring_setup") == errno.ENOSYS
    assert asked(machine, refusals, "mount") == ALLOWED


@both
def test_other_interfaces_and_newer_calls_do_not_exist(machine: str) -> None:
    column, architecture = ARCHITECTURES[machine]
    code = program(always("ptrace"), machine)
    ptrace = NUMBERS["ptrace"][column]
    for other in (0x40000003, 0, 0xC000003E if column else 0xC00000B7):  # 32 bits; none; the other machine's
        assert answer(code, other, ptrace) == errno.ENOSYS
        assert answer(code, other, 0) == errno.ENOSYS
    assert answer(code, architecture, NEWEST - 1) == ALLOWED
    assert answer(code, architecture, NEWEST) == errno.ENOSYS
    assert answer(code, architecture, 0x40000000 | ptrace) == errno.ENOSYS


@both
def test_arguments(machine: str) -> None:
    own = [Refusal("kill", (Argument(0, (77,)),))]
    assert asked(machine, own, "kill", 77, 9) == ALLOWED
    assert asked(machine, own, "kill", 78, 9) == errno.EPERM
    assert asked(machine, own, "kill", 0xFFFF_FFFF, 9) == errno.EPERM  # all
    assert asked(machine, own, "kill", 5 << 32 | 77, 9) == ALLOWED, "the kernel takes the lower half, too"
    several = [Refusal("socket", (Argument(0, (2, 10)), Argument(1, (1,), 0xF)))]
    assert [asked(machine, several, "socket", family, 1) for family in (2, 10, 1, 16)] == [0, 0, 1, 1]
    assert [asked(machine, several, "socket", 2, kind) for kind in (1, 0x80001, 2, 3)] == [0, 0, 1, 1]
    bad = [Refusal("fcntl", (Argument(1, (8, 10), refuses=True), Argument(2, (5,), refuses=True)))]
    assert [asked(machine, bad, "fcntl", 0, which) for which in (8, 9, 10)] == [1, 0, 1]
    assert asked(machine, bad, "fcntl", 0, 9, 5) == errno.EPERM


@both
def test_the_boxes(machine: str) -> None:
    no_files = box._NO_CHANGE_OF_FILES
    if machine == "x86_64":
        assert asked(machine, no_files, "open", 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOWED
        assert asked(machine, no_files, "open", 0, os.O_RDWR) == errno.EPERM
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_RDONLY | os.O_CREAT | os.O_EXCL):
        assert asked(machine, no_files, "openat", 0, 0, flags) == errno.EPERM
    assert asked(machine, no_files, "openat", 0, 0, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) == ALLOWED
    threads = 0x3D0F00  # as the C library makes one
    assert asked(machine, box._NO_PROCESSES, "clone", threads) == ALLOWED
    assert asked(machine, box._NO_PROCESSES, "clone", 0x1200011) == errno.EPERM  # as it forks
    assert asked(machine, box._NO_PROCESSES, "clone3") == errno.ENOSYS
    private, shared = 0x22, 0x21
    assert asked(machine, box._NO_SHARED_MEMORY, "mmap", 0, 4096, 3, private) == ALLOWED
    assert asked(machine, box._NO_SHARED_MEMORY, "mmap", 0, 4096, 3, 0x01) == ALLOWED  # of a file
    assert asked(machine, box._NO_SHARED_MEMORY, "mmap", 0, 4096, 3, shared) == errno.EPERM
    assert asked(machine, box._NO_SHARED_MEMORY, "mmap", 0, 4096, 3, 0x23) == errno.EPERM  # MAP_SHARED_VALIDATE


@both
def test_a_filter_that_was_made_before_its_process(machine: str) -> None:
    column, architecture = ARCHITECTURES[machine]
    made = program(box._SIGNALS_ITSELF_ONLY, machine)
    code = seccomp.with_number(made, box._OWN_PID, 4242)
    for call in ("kill", "tgkill", "rt_sigqueueinfo"):
        number = NUMBERS[call][column]
        assert answer(code, architecture, number, 4242) == ALLOWED
        assert answer(code, architecture, number, 4243) == errno.EPERM
        assert answer(code, architecture, number, box._OWN_PID) == errno.EPERM


@pytest.mark.skipif(kernel.MACHINE not in ARCHITECTURES, reason="no filter for this machine")
def test_no_box_slows_or_limits_another_process() -> None:
    column, architecture = ARCHITECTURES[kernel.MACHINE]
    for code in (box._gateway_filter(), *map(box._worker_filter, ("unix", "sockmap"))):
        for call in ("prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"):
            assert answer(code, architecture, NUMBERS[call][column], 0) == ALLOWED
            assert answer(code, architecture, NUMBERS[call][column], 4242) == errno.EPERM
        nice = NUMBERS["setpriority"][column]
        assert answer(code, architecture, nice, 0, 0) == ALLOWED
        assert answer(code, architecture, nice, 0, 4242) == errno.EPERM


def test_a_machine_whose_calls_are_not_known_has_no_filter() -> None:
    assert program(always("ptrace"), "s390x") == b""
    assert not seccomp.install(b"")


def test_each_name_has_one_number() -> None:
    for column in (0, 1):
        numbers = [pair[column] for pair in NUMBERS.values() if pair[column] >= 0]
        assert len(numbers) == len(set(numbers))
        assert max(numbers) < NEWEST


def rights(folders: list[Path], but: Path | None) -> dict[Path, int]:
    return dict(landlock.readable(folders, but))


def test_a_folder_is_readable_but_for_what_is_hidden_in_it(tmp_path: Path) -> None:
    home = tmp_path.resolve()
    state = home / ".local/state/lifl"
    state.mkdir(parents=True)
    (home / "rule.py").touch()
    (home / "data").mkdir()
    (home / ".local/bin").mkdir()
    (home / "way").symlink_to(state)
    found = rights([home], state)
    readable = {path for path, access in found.items() if access & landlock.READ_FILE}
    assert readable == {home / "rule.py", home / "data", home / ".local/bin"}
    assert found[home] == landlock.READ_DIR
    assert rights([home], None) == {home: landlock.READ}
    assert rights([home / "data"], state) == {home / "data": landlock.READ}


def test_what_is_named_within_the_hidden_folder_is_readable(tmp_path: Path) -> None:
    state = tmp_path.resolve()
    (state / "configs").mkdir()
    (state / "own.py").touch()
    (state / "lifl.db").touch()
    assert rights([state / "configs"], state) == {state / "configs": landlock.READ}
    found = rights([state], state)
    assert {path.name for path, access in found.items() if access & landlock.READ_FILE} == {"own.py"}


def test_python_finds_its_modules() -> None:
    folders = box.python_folders()
    for module in (os, pytest, box):
        assert any(Path(str(module.__file__)).resolve().is_relative_to(folder) for folder in folders), module
    assert Path("/") not in folders


def test_what_a_thread_opens_that_keeps_lengths_cuts_nothing_short_whoever_has_it(tmp_path: Path) -> None:
    """And what the other threads open does, as before."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 8192)
    with ThreadPoolExecutor(1, initializer=box.keep_lengths) as opener:
        kept = opener.submit(os.open, file, os.O_RDWR).result()
    own = os.open(f"/proc/self/fd/{kept}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError) if landlock.version() >= 3 else nullcontext():
            os.ftruncate(kept, 4096)
        with mmap.mmap(kept, 8192) as mapped:
            mapped[:2] = b"yz"
        os.ftruncate(own, 4096)
        assert file.stat().st_size == 4096
    finally:
        os.close(kept)
        os.close(own)

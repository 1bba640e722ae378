"""Wall clocks that a test sets: those of the processes of one node, at any time, forward or back.

A library that is loaded before the C library's own (LD_PRELOAD) adds to CLOCK_REALTIME what a file says; the clocks
that only go forward are left alone.  Each process maps the file when it begins, before it gives up the right to read
it.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

FILE = "LIFL_TEST_CLOCK"
SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead_s;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LIFL_TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) ahead_s = at;
    if (fd >= 0) close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *to) {
    int result = syscall(SYS_clock_gettime, clock, to);
    if (!result && ahead_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) to->tv_sec += *ahead_s;
    return result;
}

int gettimeofday(struct timeval *to, void *zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec;
    to->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """One node's wall clock, right until it is set; `env` is for its processes."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.clock"
        self.set(0)
        self.env = {"LD_PRELOAD": str(library(folder)), FILE: str(self._path)}

    def set(self, ahead_s: int) -> None:
        """Sets it so far ahead of the machine's own; negative: behind."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.write(struct.pack("=q", ahead_s))


def library(folder: Path) -> Path:
    """The library, built in the folder; skips the test where it cannot be."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("NOT TESTED: no C compiler")
    made, source = folder / "clock.so", folder / "clock.c"
    if not made.exists():
        source.write_text(SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(source)], check=True)
    return made

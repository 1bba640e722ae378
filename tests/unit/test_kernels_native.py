"""The compiled kernel is what it says: loaded quickly if built, missing without harm, and the lock released."""

from __future__ import annotations

import subprocess
import sys
import threading
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from lifl.rules import kernels, native


def test_without_the_library_or_with_a_broken_one_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(native, "find_spec", lambda _name: None)
    assert native.load() is None
    broken = f"{tmp_path}/_fold.so"
    with open(broken, "w") as file:
        file.write("no library")
    monkeypatch.setattr(native, "find_spec", lambda name: ModuleSpec(name, None, origin=broken))
    assert native.load() is None
    # A library, but not ours: libm has no lifl_fold.
    monkeypatch.setattr(native, "find_spec", lambda name: ModuleSpec(name, None, origin="libm.so.6"))
    assert native.load() is None


def test_other_threads_run_during_a_fold() -> None:
    if kernels.COMPILED is None:
        pytest.skip("the compiled kernel was not built: no C compiler when LIFL was installed")
    vectors = [np.ones(1_000_000, np.float32)] * 64
    acc = np.empty(1_000_000)
    go, over, seen = threading.Event(), threading.Event(), []

    def look() -> None:
        go.wait()
        seen.append(not over.is_set())

    def fold_once() -> bool:
        """Whether a thread that waits for the interpreter's lock got it during the fold."""
        go.clear()
        over.clear()
        thread = threading.Thread(target=look)
        thread.start()
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(60.0)  # the lock goes over only if who has it lets it go
        try:
            go.set()
            kernels.fold(acc, vectors, [1.0] * 64)
            over.set()
        finally:
            sys.setswitchinterval(interval_s)
        thread.join()
        return seen[-1]

    # On a busy machine the thread may wake too late, but not each time.
    assert any(fold_once() for _ in range(50))
    assert (acc == 64).all()


def test_the_library_needs_nothing_but_libc() -> None:
    if kernels.COMPILED is None:
        pytest.skip("the compiled kernel was not built: no C compiler when LIFL was installed")
    loads = f"import ctypes; assert ctypes.CDLL({kernels.COMPILED.path!r}).lifl_fold"
    subprocess.run([sys.executable, "-S", "-E", "-c", loads], check=True)
    with open(kernels.COMPILED.path, "rb") as file:
        assert b"libpython" not in file.read()

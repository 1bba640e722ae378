"""Objects of a real arena that other processes have as loans: their bytes are nobody else's, whatever dies."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lifl.core.ids import Key, Kind
from lifl.shm import loans
from lifl.shm.mapping import Borrowed, own_pages
from lifl.shm.owned_arena import OwnedArena
from lifl.shm.segment import remove_segment

NODE, JOB = 7, 1
NBYTES = 5 << 20
ARENA_BYTES = 16 << 20
_numbers = itertools.count()


@pytest.fixture
def arena() -> Iterator[OwnedArena]:
    name = f"/lifl-test-{os.getpid()}-l-{next(_numbers)}"
    arena = OwnedArena.create(name, ARENA_BYTES, NODE, 16)
    yield arena
    arena.close()
    remove_segment(name)


def model_of(arena: OwnedArena, value: int = 7, nbytes: int = NBYTES) -> Key:
    key = arena.alloc(Kind.MODEL, JOB, 1, nbytes)
    arena.data(key)[:] = bytes([value]) * nbytes
    arena.seal(key, 1.0, 0)
    return key


def borrowed(arena: OwnedArena, key: Key, ended: list[Any] | None = None) -> NDArray[np.uint8]:
    fd = lend(arena, key)
    try:
        memory = Borrowed(fd, arena.offset(key), NBYTES, lambda *at: None if ended is None else ended.append(at))
    finally:
        os.close(fd)
    return np.frombuffer(memory.view, np.uint8)


def is_lent(arena: OwnedArena, key: Key) -> bool:
    return loans.is_lent(*arena.place(key))


def lend(arena: OwnedArena, key: Key) -> int:
    arena.lend(key)
    return loans.lend(*arena.place(key))


def test_a_model_is_lent_as_long_as_anything_refers_to_it(arena: OwnedArena) -> None:
    key, other = model_of(arena), model_of(arena)
    ended: list[Any] = []
    lent = borrowed(arena, key, ended)
    kept = lent[4096:4100]
    del lent
    assert is_lent(arena, key) and not is_lent(arena, other) and not ended
    assert kept.tolist() == [7] * 4
    del kept
    assert len(ended) == 1 and not is_lent(arena, key)
    loans.wait(*arena.place(key))


def test_what_is_written_to_it_is_the_process_own(arena: OwnedArena) -> None:
    key = model_of(arena)
    ended: list[Any] = []
    first, second = borrowed(arena, key, ended), borrowed(arena, key)
    address = first.ctypes.data
    assert not own_pages(address, NBYTES, 32)
    first[: NBYTES // 2] = 9
    assert own_pages(address, NBYTES, 32) == 16
    assert (second == 7).all() and bytes(arena.data(key)[:2]) == b"\7\7" and (first[NBYTES // 2 :] == 7).all()
    del first
    assert ended == [(address, NBYTES)]


def test_a_descriptor_of_a_loan_writes_nothing(arena: OwnedArena) -> None:
    key = model_of(arena)
    fd = lend(arena, key)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", arena.offset(key))
        with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
            os.ftruncate(fd, 0)
        assert is_lent(arena, key), "a loan on its way counts, too"
    finally:
        os.close(fd)
    assert not is_lent(arena, key)


@pytest.mark.parametrize("ends", ["exits", "is killed"])
def test_a_process_that_has_it_by_a_fork_keeps_it_until_it_ends(arena: OwnedArena, ends: str) -> None:
    key = model_of(arena)
    lent = borrowed(arena, key)
    go, said = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(go[0], 1)
        os.write(said[1], b"y" if (lent == 7).all() else b"n")
        if ends == "exits":
            os._exit(0)
        signal.pause()
    del lent
    os.write(go[1], b"g")
    assert os.read(said[0], 1) == b"y"
    if ends == "is killed":
        assert is_lent(arena, key)
        os.kill(child, signal.SIGKILL)
    loans.wait(*arena.place(key))
    assert not is_lent(arena, key)
    os.waitpid(child, 0)
    for fd in (*go, *said):
        os.close(fd)


def test_the_next_daemon_finds_what_is_lent_and_hears_when_it_is_given_back(arena: OwnedArena) -> None:
    key, other = model_of(arena), model_of(arena)
    lent = borrowed(arena, key)
    arena.places.close()  # as the process' end does
    following = OwnedArena.adopt(arena.name)
    try:
        assert is_lent(following, key) and not is_lent(following, other)
        waiting = threading.Thread(target=loans.wait, args=following.place(key))
        waiting.start()
        following.free(other)
        assert (lent == 7).all() and waiting.is_alive()
        del lent
        waiting.join()
        following.free(key)
        assert following.free_bytes == following.capacity_bytes
    finally:
        following.close()


def test_a_segment_of_which_something_is_lent_is_no_other_jobs(arena: OwnedArena) -> None:
    arena.begin_job(JOB, "alice")
    arena.begin_job(2, "alice")
    key = model_of(arena)
    lent = borrowed(arena, key)
    arena.end_job(JOB)
    other = arena.alloc(Kind.MODEL, 2, 1, 4096)
    assert arena.entry(other).segment != arena.places._of_job[JOB].number
    assert (lent == 7).all()


def test_the_arena_may_be_removed_while_something_is_lent(arena: OwnedArena) -> None:
    lent = borrowed(arena, model_of(arena))
    arena.close(unlink=True)
    assert (lent == 7).all()
    lent[:] = 1

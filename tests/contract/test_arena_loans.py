"""Objects of a real arena that other processes have as loans: their bytes are nobody else's, whatever dies."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lifl.core.errors import ArenaFull
from lifl.core.ids import Key, Kind
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
    fd = arena.loan(key)
    try:
        memory = Borrowed(fd, arena.offset(key), NBYTES, lambda *at: None if ended is None else ended.append(at))
    finally:
        os.close(fd)
    return np.frombuffer(memory.view, np.uint8)


def overwrite(arena: OwnedArena) -> int:
    """Fills all that is free with other bytes; how many objects that took."""
    keys = []
    try:
        while True:
            keys.append(model_of(arena, 0xAB, 1 << 20))
    except ArenaFull:
        pass
    for key in keys:
        arena.free(key)
    return len(keys)


def test_what_is_freed_while_it_is_lent_is_neither_there_nor_free_until_it_is_given_back(arena: OwnedArena) -> None:
    free = arena.free_bytes
    key = model_of(arena)
    ended: list[Any] = []
    lent = borrowed(arena, key, ended)
    kept = lent[4096:4100]
    del lent
    arena.free(key)
    assert (arena.objects, arena.used_bytes, list(arena.live())) == (0, 0, [])
    assert arena.free_bytes < free - NBYTES
    assert overwrite(arena) == 10 and not ended
    assert kept.tolist() == [7] * 4
    del kept
    assert len(ended) == 1 and arena.free_bytes == free
    assert overwrite(arena) > 10


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
    fd = arena.loan(key)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", arena.offset(key))
        with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
            os.ftruncate(fd, 0)
        arena.free(key)
        assert arena.free_bytes < arena.capacity_bytes, "a loan on its way counts, too"
    finally:
        os.close(fd)
    assert arena.free_bytes == arena.capacity_bytes


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
    arena.free(key)
    overwrite(arena)
    os.write(go[1], b"g")
    assert os.read(said[0], 1) == b"y"
    if ends == "is killed":
        assert arena.free_bytes < arena.capacity_bytes
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert arena.free_bytes == arena.capacity_bytes
    for fd in (*go, *said):
        os.close(fd)


@pytest.mark.parametrize("freed", [False, True])
def test_the_next_daemon_finds_what_is_lent_and_frees_it_no_sooner(arena: OwnedArena, freed: bool) -> None:
    key = model_of(arena)
    lent = borrowed(arena, key)
    if freed:
        arena.free(key)
    arena.places.close()  # as the process' end does
    following = OwnedArena.adopt(arena.name)
    try:
        (found,) = [each for each, _ in following.live()]
        assert found == key
        following.free(key)
        overwrite(following)
        assert (lent == 7).all() and following.free_bytes < following.capacity_bytes
        del lent
        assert following.free_bytes == following.capacity_bytes
    finally:
        following.close()


def test_a_segment_of_which_something_is_lent_is_no_other_jobs(arena: OwnedArena) -> None:
    arena.begin_job(JOB, "alice")
    arena.begin_job(2, "alice")
    key = model_of(arena)
    lent = borrowed(arena, key)
    arena.end_job(JOB)
    arena.free(key)
    other = arena.alloc(Kind.MODEL, 2, 1, 4096)
    assert arena.entry(other).segment != arena.places._of_job[JOB].number
    arena.free(other)
    arena.end_job(2)
    overwrite(arena)
    assert (lent == 7).all()


def test_the_arena_may_be_removed_while_something_is_lent(arena: OwnedArena) -> None:
    lent = borrowed(arena, model_of(arena))
    arena.close(unlink=True)
    assert (lent == 7).all()
    lent[:] = 1

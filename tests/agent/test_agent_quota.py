"""Who may take how much of the arena."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, Arena

from lifl.core.agent.quota import NO_JOB, Quota
from lifl.core.errors import ArenaFull
from lifl.core.ids import Kind


def quota_of(nbytes: int) -> Quota:
    return Quota(Arena(nbytes))


def test_a_reservation_is_granted_only_beside_those_of_others() -> None:
    quota = quota_of(100)
    assert quota.reserve(1, 60)
    assert not quota.reserve(2, 41)
    assert quota.reserve(2, 40)
    assert quota.reserve(1, 50), "it may be changed"
    assert not quota.reserve(1, 61)
    assert quota.reserve(3, 10), "what was refused changed nothing"


def test_what_a_job_uses_counts_as_its_reservation() -> None:
    quota = quota_of(100)
    quota.reserve(1, 60)
    quota.alloc(Kind.UPDATE, 1, EPOCH, 60)
    assert quota.reserve(2, 40)
    with pytest.raises(ArenaFull, match="1 bytes do not fit: 40 are free, 40 of them reserved for the running rounds"):
        quota.alloc(Kind.UPDATE, 1, EPOCH, 1)
    quota.alloc(Kind.UPDATE, 2, EPOCH, 30, 10)
    assert (quota.used_bytes, quota.total_bytes) == (100, 100)


def test_an_arena_in_pieces_is_full_too() -> None:
    quota = quota_of(100)
    quota.store.allows = 0
    with pytest.raises(ArenaFull, match="the arena is full"):
        quota.alloc(Kind.UPDATE, 1, EPOCH, 1)
    assert not list(quota.problems())


def test_the_end_of_a_job_ends_its_reservation_its_slabs_and_when_all_is_freed_its_account() -> None:
    quota = quota_of(100)
    quota.reserve(1, 60)
    quota.start_peak(1)
    key = quota.alloc(Kind.UPDATE, 1, EPOCH, 10, 0, "slab")
    assert quota.store.slabs == {"slab"}
    quota.release(1)
    assert (quota.store.slabs, quota.peaks, quota.job_used_bytes(1)) == (set(), {}, 10)
    quota.free(key)
    quota.release(1)
    assert quota._used == {}


def test_what_was_there_before_is_adopted_out_of_any_other_account() -> None:
    quota = quota_of(100)
    key = quota.store.alloc(Kind.UPDATE, 1, EPOCH, 10)
    quota.adopt(key, NO_JOB)
    assert quota.job_used_bytes(NO_JOB) == 10
    quota.adopt(key, 1)
    assert (quota.job_used_bytes(NO_JOB), quota.job_used_bytes(1)) == (0, 10)
    quota.store.seal(key, "c1")
    assert (quota.sealed(key), quota.epoch_of(key), quota.members(key)[0].client) == (True, EPOCH, "c1")


def test_the_peak_is_that_of_the_whole_arena_while_a_round_runs() -> None:
    quota = quota_of(100)
    quota.free(quota.alloc(Kind.UPDATE, 1, EPOCH, 90))
    quota.start_peak(1)
    quota.free(quota.alloc(Kind.UPDATE, 2, EPOCH, 50))
    quota.alloc(Kind.UPDATE, 2, EPOCH, 20)
    assert quota.peaks == {1: 50}


def test_a_shared_object_is_freed_by_its_last_reader() -> None:
    quota = quota_of(100)
    key = quota.alloc(Kind.MODEL, 1, EPOCH, 10)
    quota.share(key, 2)
    quota.free(key)
    assert quota.used_bytes == 10
    quota.free(key)
    assert quota.used_bytes == 0
    assert not list(quota.problems())

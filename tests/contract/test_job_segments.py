"""The segments of jobs in real shared memory: no page is in two, none shows another job's bytes, whatever dies."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from lifl.core.errors import ArenaFull, ResourceFault, StaleKey
from lifl.core.ids import Key, Kind
from lifl.core.limits import SEGMENTS_ENDED_MAX
from lifl.shm import earlier_segment, job_segments, layout, segment
from lifl.shm.arena import Arena
from lifl.shm.layout import PAGE_BYTES, ObjectState
from lifl.shm.owned_arena import OwnedArena
from lifl.shm.segment import SegmentMissing, remove_segment, segments_of

ENTRIES, NODE, PAGES = 24, 7, 48
ARENA_BYTES = layout.data_offset(ENTRIES) + PAGES * PAGE_BYTES
JOBS = (1, 2, 3, 4)
OWNERS = {1: "alice", 2: "alice", 3: "bob", 4: ""}
_numbers = itertools.count()


def fresh_name() -> str:
    return f"/lifl-test-{os.getpid()}-s-{next(_numbers)}"


@pytest.fixture
def name() -> Iterator[str]:
    name = fresh_name()
    yield name
    remove_segment(name)


@pytest.fixture
def arena(name: str) -> Iterator[OwnedArena]:
    arena = OwnedArena.create(name, ARENA_BYTES, NODE, ENTRIES)
    yield arena
    arena.close()


def check_pages(arena: OwnedArena) -> None:
    """Each segment holds what the books say, and all of them the arena."""
    residency = arena.places.residency
    for number, fd in arena.places.open_now().items():
        assert segment.held_bytes(fd) == residency.held_bytes(number), f"segment {number}"
    assert sum(segment.held_bytes(fd) for fd in arena.places.open_now().values()) == arena.capacity_bytes


def content(fd: int) -> bytes:
    """All bytes of a segment, without making a page of a hole."""
    return os.pread(fd, ARENA_BYTES, 0)


def foreign(job: int) -> set[int]:
    """What a job may not see: what others have written, but for jobs of its owner."""
    return {0xA0 + other for other in JOBS if other != job and not (OWNERS[job] and OWNERS[other] == OWNERS[job])}


class Machine(RuleBasedStateMachine):
    keys: Bundle[Key] = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.name = fresh_name()
        self.daemon = OwnedArena.create(self.name, ARENA_BYTES, NODE, ENTRIES)
        self.live: dict[Key, tuple[int, bool]] = {}
        self.lent: dict[int, int] = {}  # by inode: the job whose client may have it still

    @rule(
        target=keys,
        job=st.sampled_from(JOBS),
        nbytes=st.integers(1, 9 * PAGE_BYTES),
        slab=st.booleans(),
        sealed=st.booleans(),
    )
    def alloc(self, job: int, nbytes: int, slab: bool, sealed: bool) -> Key:
        self.daemon.begin_job(job, OWNERS[job])
        try:
            key = self.daemon.alloc(Kind.PARTIAL, job, 1, nbytes, 32, job if slab else None)
        except ArenaFull:
            fits = self.daemon.largest_free_bytes >= layout.extent_bytes(nbytes, 32)
            assert not fits or len(self.live) == ENTRIES
            return Key(0, 0, NODE)
        with contextlib.closing(Arena.attach(self.name)) as other, other.data(key) as data:
            assert not set(data) & foreign(job), "bytes of another owner's job"
            data[:] = bytes([0xA0 + job]) * nbytes
            if sealed:
                other.seal(key, 1.0, 1, bytes([0xA0 + job]) * 8)
        self.live[key] = job, sealed
        return key

    @rule(key=keys)
    def free(self, key: Key) -> None:
        if self.live.pop(key, None) is not None:
            self.daemon.free(key)

    def inode_of(self, key: Key) -> int:
        return os.fstat(self.daemon.places.descriptor(self.daemon.entry(key).segment)).st_ino

    @rule(key=keys)
    def lend(self, key: Key) -> None:
        if key in self.live:
            self.daemon.lend(key)
            self.lent[self.inode_of(key)] = self.live[key][0]

    @rule(job=st.sampled_from(JOBS))
    def end(self, job: int) -> None:
        for key in [key for key, (owner, _) in self.live.items() if owner == job]:
            self.free(key)
        self.daemon.close_slab(job)
        self.daemon.end_job(job)

    @rule()
    def restart(self) -> None:
        assert self.daemon.close()
        self.daemon = OwnedArena.adopt(self.name)
        self.live = {key: (job, sealed) for key, (job, sealed) in self.live.items() if sealed}

    @invariant()
    def each_page_is_in_one_segment_and_each_byte_in_its_jobs(self) -> None:
        check_pages(self.daemon)
        found = dict(self.daemon.live())
        assert set(found) == set(self.live)
        names = segments_of(self.name)
        for number, fd in self.daemon.places.open_now().items():
            owner = names[number].rpartition(".")[2]
            others = foreign(int(owner)) if owner in map(str, JOBS) else {0xA0 + job for job in JOBS}
            assert not others & set(content(fd)[layout.data_offset(ENTRIES) :: 512]), (
                f"{names[number]} has others' bytes"
            )
        for key, (job, sealed) in self.live.items():
            assert names[found[key].segment].endswith(f".{job}")
            assert self.lent.get(self.inode_of(key), job) == job, "another job's client may write to it"
            assert found[key].state == (ObjectState.SEALED if sealed else ObjectState.WRITING)
            assert set(self.daemon.data(key)) == {0xA0 + job}

    def teardown(self) -> None:
        assert self.daemon.close(unlink=True)
        assert segments_of(self.name) == {}


Machine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestSegments = Machine.TestCase


def test_two_jobs_in_an_arena_for_one_and_a_half_take_pages_of_each_other_and_see_zeros(arena: OwnedArena) -> None:
    size = PAGES * 2 // 3 * PAGE_BYTES - 100
    for _ in range(3):
        for job in (1, 2):
            key = arena.alloc(Kind.MODEL, job, 1, size)
            assert set(arena.data(key)) == {0}
            arena.data(key)[:] = bytes([job]) * size
            with pytest.raises(ArenaFull):
                arena.alloc(Kind.MODEL, 3 - job, 1, size)
            arena.free(key)
            check_pages(arena)


def test_the_next_object_of_a_job_is_where_the_last_one_was(arena: OwnedArena) -> None:
    """Warm pages stay where they are while there is room for all; catches two jobs that take turns at one place."""
    first = {job: arena.offset(key) for job in JOBS if (key := arena.alloc(Kind.UPDATE, job, 1, 3 * PAGE_BYTES))}
    for key, _ in arena.live():
        arena.free(key)
    held = {number: segment.held_bytes(fd) for number, fd in arena.places.open_now().items()}
    for job in reversed(JOBS):
        assert arena.offset(arena.alloc(Kind.UPDATE, job, 1, 3 * PAGE_BYTES)) == first[job] or job == 1
    assert held == {number: segment.held_bytes(fd) for number, fd in arena.places.open_now().items()}


def test_the_segment_of_a_job_that_is_over_goes_when_others_have_its_pages(arena: OwnedArena) -> None:
    closed: list[int] = []
    arena.places.on_closed = closed.append
    first, second = (arena.alloc(Kind.UPDATE, job, 1, 100) for job in (1, 2))
    gone = arena.entry(second).segment
    other = Arena.attach(arena.name)
    held = other.data(second)
    arena.free(second)
    arena.end_job(2)
    assert len(segments_of(arena.name)) == 2 and not closed
    arena.free(first)
    arena.alloc(Kind.MODEL, 3, 1, arena.capacity_bytes - 100)
    assert gone in closed and len(segments_of(arena.name)) == 2  # of job 1, which is not over, and of 3
    assert bytes(held) == bytes(100)  # whoever still has it mapped sees nothing of it
    with pytest.raises(StaleKey):
        other.data(second)
    del held
    assert other.close()


# ---- spares ------------------------------------------------------------------------------------------------


def job_of(arena: OwnedArena, job: int, owner: str, nbytes: int = 0, lend: bool = False) -> tuple[int, set[int]]:
    """A job of one object, from beginning to end: the object's segment, and what it found there."""
    nbytes = nbytes or arena.capacity_bytes - PAGE_BYTES
    arena.begin_job(job, owner)
    key = arena.alloc(Kind.UPDATE, job, 1, nbytes)
    number = arena.entry(key).segment
    if lend:
        arena.lend(key)
    found = set(arena.data(key))
    arena.data(key)[:] = bytes([0xA0 + job]) * nbytes
    arena.free(key)
    arena.end_job(job)
    check_pages(arena)
    return number, found


def test_the_next_job_of_an_owner_has_the_segment_of_the_last_as_it_is(
    arena: OwnedArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = job_of(arena, 1, "alice")
    with monkeypatch.context() as patch:
        patch.setattr(job_segments, "reserve", None)
        patch.setattr(job_segments, "punch", None)
        assert job_of(arena, 2, "alice") == (first, {0xA1})
        assert list(segments_of(arena.name).values()) == [f"{arena.name}.{first}.2"]
    assert job_of(arena, 1, "alice") == (first, {0xA2})  # a number that comes again is no other's


@pytest.mark.parametrize(
    ("before", "lend", "after"),
    [("alice", False, "bob"), ("alice", True, "alice"), ("", False, ""), ("", False, "alice"), ("alice", False, "")],
)
def test_another_owners_job_and_one_after_a_lent_segment_find_zeros_in_a_fresh_one(
    arena: OwnedArena, before: str, lend: bool, after: str
) -> None:
    first, _ = job_of(arena, 1, before, lend=lend)
    second, found = job_of(arena, 2, after)
    assert second != first and found == {0}


def test_a_segment_with_an_object_of_its_job_is_no_spare(arena: OwnedArena) -> None:
    """Catches a model that is being sent when its job ends, and is written over by a process of the next one."""
    arena.begin_job(1, "alice")
    kept = arena.alloc(Kind.MODEL, 1, 1, 100)
    arena.data(kept)[:] = b"k" * 100
    arena.end_job(1)
    second, _ = job_of(arena, 2, "alice", arena.largest_free_bytes - 100)
    assert second != arena.entry(kept).segment
    with contextlib.closing(Arena.attach(arena.name)) as other:
        assert bytes(other.data(kept)) == b"k" * 100
    arena.free(kept)
    assert job_of(arena, 3, "alice", 100)[0] == second  # the largest


def test_a_lent_segment_that_a_job_goes_on_with_stays_lent(arena: OwnedArena) -> None:
    first, _ = job_of(arena, 1, "alice", lend=True)
    again, _ = job_of(arena, 1, "alice")
    assert again == first
    assert job_of(arena, 2, "alice")[0] != first


def test_after_a_restart_no_segment_is_a_spare(arena: OwnedArena) -> None:
    """Who has had it is not written down."""
    first, _ = job_of(arena, 1, "alice")
    arena.close()
    adopted = OwnedArena.adopt(arena.name)
    second, found = job_of(adopted, 2, "alice")
    assert second != first and found == {0}
    assert job_of(adopted, 3, "alice") == (second, {0xA2})
    adopted.close()


def test_no_number_is_a_second_segments(arena: OwnedArena) -> None:
    """A process that knows a segment by its number would write to what it has mapped."""
    seen = set()
    for job in range(1, 9):
        key = arena.alloc(Kind.MODEL, job, 1, arena.capacity_bytes - 100)
        assert arena.entry(key).segment not in seen
        seen.add(arena.entry(key).segment)
        arena.free(key)
        arena.end_job(job)


def test_very_many_jobs_one_after_the_other_leave_few_segments(name: str) -> None:
    pages = 4 * SEGMENTS_ENDED_MAX
    arena = OwnedArena.create(name, layout.data_offset(ENTRIES) + pages * PAGE_BYTES, NODE, ENTRIES)
    arena.alloc(Kind.MODEL, 999, 1, 100)
    for job in range(1, 2 * SEGMENTS_ENDED_MAX):
        keys = [arena.alloc(Kind.UPDATE, job, 1, (2 * SEGMENTS_ENDED_MAX - job) * PAGE_BYTES - 100)]
        for key in keys:
            arena.free(key)
        arena.end_job(job)
        assert len(segments_of(name)) <= SEGMENTS_ENDED_MAX + 2
        check_pages(arena)
    assert arena.close(unlink=True)


# ---- pages that cannot be had ------------------------------------------------------------------------------


def test_pages_that_somebody_else_took_in_between_are_a_full_arena_until_they_are_back(
    arena: OwnedArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = arena.alloc(Kind.UPDATE, 1, 1, 100)
    arena.data(kept)[:] = b"k" * 100
    arena.seal(kept, 1.0, 1)

    def reserve(fd: int, begin: int, nbytes: int) -> None:
        raise ResourceFault("/dev/shm is full")

    with monkeypatch.context() as full:
        full.setattr(job_segments, "reserve", reserve)
        for _ in range(3):
            with pytest.raises(ArenaFull, match=r"not to be had.*full"):
                arena.alloc(Kind.UPDATE, 2, 1, 100)
    assert arena.used_bytes == PAGE_BYTES
    held = sum(segment.held_bytes(fd) for fd in arena.places.open_now().values())
    assert held < arena.capacity_bytes
    arena.alloc(Kind.UPDATE, 2, 1, arena.largest_free_bytes - 100)
    check_pages(arena)
    assert bytes(arena.data(kept)) == b"k" * 100


def test_holes_that_a_job_has_touched_are_taken_from_it_when_memory_is_short(
    arena: OwnedArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule, or a local client, that writes to all of its mapping takes memory beside the arena, for so long."""
    for job in (1, 2):
        arena.alloc(Kind.UPDATE, job, 1, 100)
    number = next(entry.segment for _, entry in arena.live() if entry.job == 2)
    arena.segments.views()[number][::PAGE_BYTES] = b"x" * (ARENA_BYTES // PAGE_BYTES)
    assert segment.held_bytes(arena.places.descriptor(number)) == ARENA_BYTES
    real, tries = job_segments.reserve, []

    def reserve(fd: int, begin: int, nbytes: int) -> None:
        tries.append(begin)
        if len(tries) == 1:
            raise ResourceFault("/dev/shm is full")
        real(fd, begin, nbytes)

    monkeypatch.setattr(job_segments, "reserve", reserve)
    arena.alloc(Kind.UPDATE, 3, 1, 100)
    assert len(tries) == 2
    check_pages(arena)


def test_they_are_taken_from_a_job_that_is_over(arena: OwnedArena) -> None:
    for job in (1, 2):
        key = arena.alloc(Kind.UPDATE, job, 1, 100)
    view = arena.segments.views()[arena.entry(key).segment]
    view[::PAGE_BYTES] = b"x" * (ARENA_BYTES // PAGE_BYTES)
    arena.free(key)
    arena.end_job(2)
    check_pages(arena)


# ---- cut short -----------------------------------------------------------------------------------------


def cut(arena: OwnedArena, key: Key, length: int) -> None:
    """What a program of the node's account can do to a segment."""
    os.truncate(f"/dev/shm{segments_of(arena.name)[arena.entry(key).segment]}", length)


def test_a_segment_that_was_cut_or_punched_is_whole_again_and_its_job_named(arena: OwnedArena) -> None:
    keys = [arena.alloc(Kind.UPDATE, job, 1, 3 * PAGE_BYTES) for job in (1, 2, 3)]
    for key in keys:
        arena.data(key)[:] = b"d" * 3 * PAGE_BYTES
        arena.seal(key, 1.0, 1)
    assert arena.mend() == []
    cut(arena, keys[1], PAGE_BYTES)
    assert arena.entry(keys[1]).state == ObjectState.WRITING  # lifld, too, can go on looking at it
    segment.punch(arena.places.descriptor(arena.entry(keys[2]).segment), arena.entry(keys[2]).offset, PAGE_BYTES)
    assert arena.mend() == [2, 3]
    check_pages(arena)
    assert arena.mend() == []
    assert bytes(arena.data(keys[0])) == b"d" * 3 * PAGE_BYTES
    assert set(arena.data(keys[1])) == {0}
    arena.free(keys[1])
    arena.alloc(Kind.UPDATE, 2, 1, arena.largest_free_bytes - 100)
    check_pages(arena)


@pytest.mark.parametrize("length", [1, ARENA_BYTES - PAGE_BYTES, ARENA_BYTES + PAGE_BYTES])
def test_an_arena_is_adopted_with_all_that_others_have_when_one_segment_has_another_length(
    arena: OwnedArena, length: int
) -> None:
    """Catches a node that throws everybody's updates away because one job's memory was tampered with."""
    keep, spoiled = (arena.alloc(Kind.UPDATE, job, 1, PAGE_BYTES) for job in (1, 2))
    arena.data(keep)[:] = b"k" * PAGE_BYTES
    arena.seal(keep, 1.0, 1, b"")
    cut(arena, spoiled, length)
    arena.close()
    adopted = OwnedArena.adopt(arena.name)
    check_pages(adopted)
    assert bytes(adopted.data(keep)) == b"k" * PAGE_BYTES
    assert adopted.mend() == []
    adopted.close()


# ---- death -------------------------------------------------------------------------------------------------

DYING = """
    import sys
    from lifl import failpoints
    from lifl.core.ids import Kind
    from lifl.shm.owned_arena import OwnedArena
    made = OwnedArena.create(sys.argv[1], int(sys.argv[2]), 7, 24)
    kept = [made.alloc(Kind.UPDATE, job, 1, 5000, 8) for job in (1, 2)]
    for job, key in enumerate(kept, 1):
        made.data(key)[:] = bytes([job]) * 5000
        made.seal(key, 1.0, 1, b"who")
    freed = made.alloc(Kind.UPDATE, 1, 1, 40000)
    made.data(freed)[:] = bytes([1]) * 40000
    made.free(freed)
    failpoints.arm(sys.argv[3] + "=kill")
    made.alloc(Kind.UPDATE, 3, 1, 40000, 8)
"""


@pytest.mark.parametrize("point", ["lifld.punch.before", "lifld.punch.after", "lifld.reserve.after"])
def test_a_lifld_that_dies_while_pages_move_leaves_what_is_sealed_and_all_of_the_memory(name: str, point: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(DYING), name, str(ARENA_BYTES), point]
    assert subprocess.run(command, check=False, timeout=300).returncode == -signal.SIGKILL
    assert len(segments_of(name)) == 3
    arena = OwnedArena.adopt(name)
    check_pages(arena)
    live = dict(arena.live())
    assert {(entry.job, entry.state) for entry in live.values()} == {(1, ObjectState.SEALED), (2, ObjectState.SEALED)}
    for key, entry in live.items():
        assert (set(arena.data(key)), bytes(arena.meta(key))) == ({entry.job}, b"who")
    fresh = arena.alloc(Kind.UPDATE, 3, 1, arena.largest_free_bytes - 100)
    assert set(arena.data(fresh)) == {0}
    check_pages(arena)
    assert arena.close(unlink=True)


def test_a_killed_node_of_one_job_keeps_its_pages_as_they_were(
    arena: OwnedArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is reserved anew, and the job goes on in its segment."""
    key = arena.alloc(Kind.UPDATE, 5, 1, 100)
    arena.close()

    def reserve(fd: int, begin: int, nbytes: int) -> None:
        raise AssertionError("reserved again")

    monkeypatch.setattr(job_segments, "reserve", reserve)
    adopted = OwnedArena.adopt(arena.name)
    again = adopted.alloc(Kind.UPDATE, 5, 1, 100)
    assert adopted.entry(again).segment == adopted.entry(key).segment
    adopted.close()


def test_segments_without_a_table_are_no_arena_and_are_cleared_away(arena: OwnedArena) -> None:
    arena.alloc(Kind.UPDATE, 5, 1, 100)
    arena.close()
    os.unlink(f"/dev/shm{arena.name}")
    with pytest.raises(SegmentMissing):
        OwnedArena.adopt(arena.name)
    made = OwnedArena.create(arena.name, ARENA_BYTES, NODE, ENTRIES)
    assert list(segments_of(arena.name).values()) == [f"{arena.name}.1.free"]
    made.close()


@pytest.mark.parametrize("step", ["link", "rename"])
def test_an_arena_of_an_earlier_version_is_taken_over_whole_or_not_at_all(
    name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offset = layout.data_offset(ENTRIES)
    entry = (ObjectState.SEALED, Kind.UPDATE, 41, 0, 3, 4, 1, 3, offset, 2 * PAGE_BYTES, 5000, 2.5, 99, 8)
    header = (layout.MAGIC, layout.EARLIER_VERSION, ENTRIES, NODE, ARENA_BYTES, layout.TABLE_OFFSET, offset)
    fd = segment.make_file(name)
    os.posix_fallocate(fd, 0, ARENA_BYTES)
    os.pwrite(fd, layout.HEADER.pack(*header) + (3).to_bytes(8, "little") + layout.INITIALISED.to_bytes(8, "little"), 0)
    os.pwrite(fd, layout.ENTRY.pack(*entry), layout.entry_position(2))
    os.pwrite(fd, b"d" * 5000 + bytes(-5000 % 64) + b"who", offset)
    os.close(fd)

    def fail(*_arguments: object) -> None:
        raise OSError("killed here")

    with monkeypatch.context() as dying:
        dying.setattr(earlier_segment.os, step, fail)
        with pytest.raises(OSError, match="killed here"):
            OwnedArena.adopt(name)
    with pytest.raises(segment.SegmentEarlier):
        Arena.attach(name)
    arena = OwnedArena.adopt(name)
    ((key, found),) = arena.live()
    assert (found.weight, found.job, bytes(arena.data(key)), bytes(arena.meta(key))) == (2.5, 3, b"d" * 5000, b"who")
    check_pages(arena)
    assert not os.path.exists(f"/dev/shm{segment.new_table_name(name)}")
    other = Arena.attach(name)
    assert bytes(other.meta(key)) == b"who"
    assert other.close()
    fresh = arena.alloc(Kind.UPDATE, 3, 1, 100)
    assert arena.entry(fresh).segment != arena.entry(key).segment
    arena.free(key)
    assert arena.close(unlink=True)


def test_an_object_is_made_where_files_may_not_grow(arena: OwnedArena) -> None:
    """A limit of files' sizes holds for what is written, be it within a segment that is long since as large."""
    key = arena.alloc(Kind.UPDATE, 1, 1, 100)
    fd = arena.places.descriptor(arena.entry(key).segment)
    offset = arena.entry(key).offset
    os.pwrite(fd, b"\xff" * PAGE_BYTES, offset)
    arena.free(key)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        again = arena.alloc(Kind.UPDATE, 1, 1, 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handled)
    assert arena.entry(again).offset == offset
    assert os.pread(fd, PAGE_BYTES, offset).count(0) == layout.SEAL_BYTES

"""The allocator against a model of its live extents: whatever is asked in whatever order, the bytes stay
sound.
"""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from lifl.core.errors import ArenaFull, LocalFault
from lifl.shm.allocator import RUN_SLOTS_FIRST, RUN_SLOTS_MAX, Allocator
from lifl.shm.layout import PAGE_BYTES

BEGIN = 3 * PAGE_BYTES
PAGES = 64
END = BEGIN + PAGES * PAGE_BYTES
OWNERS = 4


def longest_gap(live):
    edges = [(BEGIN, BEGIN), *sorted((o, o + size) for o, size in live.items()), (END, END)]
    return max(following - end for (_, end), (following, _) in pairwise(edges))


class AllocatorMachine(RuleBasedStateMachine):
    extents = Bundle("extents")

    def __init__(self):
        super().__init__()
        self.allocator = Allocator(BEGIN, END)
        self.live = {}  # offset -> bytes
        self.owner = {}
        self.peak = 0

    @rule(
        target=extents,
        nbytes=st.integers(1, 12 * PAGE_BYTES) | st.integers(1, END) | st.sampled_from([PAGE_BYTES, 4 * PAGE_BYTES]),
        slab=st.sampled_from([None, "a", "b"]),
        owner=st.integers(0, OWNERS - 1),
    )
    def alloc(self, nbytes, slab, owner):
        size = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
        gap = longest_gap(self.live)
        assert self.allocator.largest_free_bytes == gap
        if gap < size:
            with pytest.raises(ArenaFull, match=f"no room for {size} bytes.* has {gap};"):
                self.allocator.alloc(nbytes, slab)
            return multiple()
        offset = self.allocator.alloc(nbytes, slab)
        self.live[offset] = size
        self.owner[offset] = owner
        self.peak = max(self.peak, sum(self.live.values()))
        return offset

    @rule(offset=consumes(extents))
    def free(self, offset):
        if offset in self.live:
            self.allocator.free(offset)
            del self.live[offset]
        else:  # its owner died before
            with pytest.raises(LocalFault):
                self.allocator.free(offset)

    @rule(owner=st.integers(0, OWNERS - 1))
    def owner_dies(self, owner):
        for offset in [o for o in self.live if self.owner[o] == owner]:
            self.allocator.free(offset)
            del self.live[offset]

    @rule(slab=st.sampled_from(["a", "b", "never-used"]))
    def close_slab(self, slab):
        self.allocator.close_slab(slab)

    @rule()
    def restart(self):
        self.allocator = Allocator(BEGIN, END)
        self.allocator.adopt(self.live.items())
        self.peak = sum(self.live.values())

    @invariant()
    def sound(self):
        edges = sorted((o, o + size) for o, size in self.live.items())
        assert all(start >= BEGIN and end <= END for start, end in edges)
        assert all(end <= following for (_, end), (following, _) in pairwise(edges))
        used = sum(self.live.values())
        assert self.allocator.used_bytes == used
        assert self.allocator.free_bytes == PAGES * PAGE_BYTES - used
        assert self.allocator.peak_bytes == self.peak

    def teardown(self):
        for offset in self.live:
            self.allocator.free(offset)
        for slab in ("a", "b"):
            self.allocator.close_slab(slab)
        assert self.allocator.used_bytes == 0
        # One hole again: a plain request for everything needs no help from slabs.
        assert self.allocator.alloc(PAGES * PAGE_BYTES) == BEGIN


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@given(
    count=st.integers(2, 200),
    pages=st.integers(1, 5),
    others=st.lists(st.integers(1, 3), max_size=200),
)
@settings(max_examples=100, deadline=None)
def test_a_slab_lies_in_few_progressions_whatever_is_allocated_between(count, pages, others):
    """Catches a slab that hands out slots from all over: a batch would not fold as one matrix."""
    allocator = Allocator(0, 4096 * PAGE_BYTES)
    offsets = []
    for index in range(count):
        offsets.append(allocator.alloc(pages * PAGE_BYTES - index % PAGE_BYTES, "updates"))
        if index < len(others):
            allocator.alloc(others[index] * PAGE_BYTES)
    breaks = sum(1 for a, b in pairwise(sorted(offsets)) if b - a != pages * PAGE_BYTES)
    runs, slots, room = 0, 0, RUN_SLOTS_FIRST
    while slots < count:
        runs, slots, room = runs + 1, slots + room, min(2 * room, RUN_SLOTS_MAX)
    assert breaks <= runs - 1


def test_slots_are_reused_lowest_first():
    allocator = Allocator(0, 1024 * PAGE_BYTES)
    offsets = [allocator.alloc(PAGE_BYTES, 1) for _ in range(12)]
    for index in (9, 2, 5):
        allocator.free(offsets[index])
    assert [allocator.alloc(PAGE_BYTES, 1) for _ in range(3)] == [offsets[2], offsets[5], offsets[9]]


def test_the_heap_reuses_its_lowest_hole_that_fits():
    allocator = Allocator(0, 64 * PAGE_BYTES)
    first, small, second, _ = (allocator.alloc(n * PAGE_BYTES) for n in (4, 1, 4, 1))
    allocator.free(small)
    allocator.free(second)
    assert allocator.alloc(PAGE_BYTES) == small
    allocator.free(first)
    assert allocator.alloc(2 * PAGE_BYTES) == first


def test_sizes_of_one_slab_may_differ_and_each_has_its_own_stride():
    allocator = Allocator(0, 1024 * PAGE_BYTES)
    ones = [allocator.alloc(PAGE_BYTES, 1) for _ in range(4)]
    threes = [allocator.alloc(3 * PAGE_BYTES, 1) for _ in range(4)]
    assert {b - a for a, b in pairwise(ones)} == {PAGE_BYTES}
    assert {b - a for a, b in pairwise(threes)} == {3 * PAGE_BYTES}


def test_what_a_slab_reserved_serves_others_when_the_heap_is_short():
    """Catches an arena that says "full" while a job that has ended, or idles, still reserves it."""
    allocator = Allocator(0, 64 * PAGE_BYTES)
    kept = [allocator.alloc(4 * PAGE_BYTES, "job") for _ in range(5)]
    for offset in kept[1:]:
        allocator.free(offset)
    assert allocator.alloc(60 * PAGE_BYTES) == kept[0] + 4 * PAGE_BYTES
    with pytest.raises(ArenaFull):
        allocator.alloc(PAGE_BYTES, "job")
    allocator.free(kept[0])
    assert allocator.alloc(4 * PAGE_BYTES, "job") == kept[0]


def test_runs_in_use_stay_whole_while_unused_ones_suffice():
    """Catches a heap that, when short, takes apart the slabs of running jobs though an idle job's would do."""
    allocator = Allocator(0, 64 * PAGE_BYTES)
    busy = allocator.alloc(PAGE_BYTES, "busy")
    idle = allocator.alloc(8 * PAGE_BYTES, "idle")
    allocator.free(idle)
    assert allocator.alloc(58 * PAGE_BYTES) == idle
    allocator.alloc(PAGE_BYTES)
    assert allocator.alloc(PAGE_BYTES, "busy") == busy + PAGE_BYTES


def test_a_refused_request_leaves_the_runs_as_they_were():
    """Catches a full arena that takes the runs of all jobs apart each time that it answers BUSY."""
    allocator = Allocator(0, 64 * PAGE_BYTES)
    first = [allocator.alloc(PAGE_BYTES, "job") for _ in range(2)]
    with pytest.raises(ArenaFull):
        allocator.alloc(64 * PAGE_BYTES)
    between = allocator.alloc(PAGE_BYTES)
    third = allocator.alloc(PAGE_BYTES, "job")
    assert [first[1], third] == [first[0] + PAGE_BYTES, first[1] + PAGE_BYTES]
    assert between >= RUN_SLOTS_FIRST * PAGE_BYTES


@pytest.mark.parametrize("nbytes", [0, -1])
def test_an_extent_has_bytes(nbytes):
    with pytest.raises(LocalFault):
        Allocator(0, PAGE_BYTES).alloc(nbytes)


@pytest.mark.parametrize(("begin", "end"), [(0, 0), (1, PAGE_BYTES + 1), (0, PAGE_BYTES - 1), (8192, 4096)])
def test_the_range_is_whole_pages(begin, end):
    with pytest.raises(LocalFault):
        Allocator(begin, end)


@pytest.mark.parametrize(
    "extents",
    [
        [(BEGIN - PAGE_BYTES, PAGE_BYTES)],
        [(END, PAGE_BYTES)],
        [(BEGIN, END)],
        [(BEGIN + 1, PAGE_BYTES)],
        [(BEGIN, 100)],
        [(BEGIN, 0)],
        [(BEGIN, 2 * PAGE_BYTES), (BEGIN + PAGE_BYTES, PAGE_BYTES)],
        [(BEGIN, PAGE_BYTES), (BEGIN, PAGE_BYTES)],
    ],
)
def test_adopt_refuses_extents_that_cannot_be_and_changes_nothing(extents):
    allocator = Allocator(BEGIN, END)
    kept = allocator.alloc(PAGE_BYTES)
    with pytest.raises(LocalFault):
        allocator.adopt(extents)
    assert allocator.used_bytes == PAGE_BYTES
    allocator.free(kept)


def test_ten_thousand_objects_can_be_live_at_once():
    allocator = Allocator(0, 20_000 * PAGE_BYTES)
    offsets = [allocator.alloc(PAGE_BYTES, "job" if n % 3 else None) for n in range(10_000)]
    for offset in offsets[::2]:
        allocator.free(offset)
    offsets[::2] = [allocator.alloc(PAGE_BYTES, "job") for _ in offsets[::2]]
    assert len(set(offsets)) == 10_000
    for offset in offsets:
        allocator.free(offset)
    allocator.close_slab("job")
    assert allocator.largest_free_bytes == 20_000 * PAGE_BYTES
    assert allocator.alloc(20_000 * PAGE_BYTES) == 0


def test_what_is_asked_for_from_above_leaves_what_lies_below_whole():
    """Catches partials among updates: freed one by one, these leave gaps that are too short for the next partial."""
    allocator = Allocator(0, 12 * PAGE_BYTES)
    low = [allocator.alloc(PAGE_BYTES) for _ in range(2)]
    high = [allocator.alloc(2 * PAGE_BYTES, high=True) for _ in range(2)]
    assert (low, high) == ([0, PAGE_BYTES], [10 * PAGE_BYTES, 8 * PAGE_BYTES])
    near = [[(3 * PAGE_BYTES, 7 * PAGE_BYTES)]]
    assert allocator.alloc(PAGE_BYTES, near=near, high=True) == 6 * PAGE_BYTES
    assert allocator.alloc(PAGE_BYTES, near=near) == 3 * PAGE_BYTES
    assert allocator.alloc(2 * PAGE_BYTES, "slab", high=True) == 4 * PAGE_BYTES

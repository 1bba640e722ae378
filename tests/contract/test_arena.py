"""The arena in a real segment, against a model of its objects; then each of its limits and refusals."""

import contextlib
import itertools
import os
import stat
import struct
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from lifl.core.errors import ArenaFull, LocalFault, ResourceFault, StaleKey
from lifl.core.ids import Key, Kind
from lifl.shm import arena as arena_module
from lifl.shm import layout, owned_arena, segment
from lifl.shm.arena import Arena
from lifl.shm.layout import ENTRIES_MAX, PAGE_BYTES, ObjectState
from lifl.shm.owned_arena import OwnedArena
from lifl.shm.segment import SegmentMissing, SegmentUnfinished, SegmentUnusable, remove_segment

ENTRIES = 24
ARENA_BYTES = 64 * PAGE_BYTES
NODE = 0xFEDC_BA98_7654_3210
_numbers = itertools.count()


def fresh_name():
    return f"/lifl-test-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def name():
    name = fresh_name()
    yield name
    remove_segment(name)


@pytest.fixture
def arena(name):
    arena = OwnedArena.create(name, ARENA_BYTES, NODE, ENTRIES)
    yield arena
    arena.close()


@pytest.fixture
def other(arena):
    """The same segment as another process sees it."""
    other = Arena.attach(arena.name)
    yield other
    other.close()


def pattern(key, nbytes):
    return (key.pack() * (nbytes // 16 + 1))[:nbytes]


class ArenaMachine(RuleBasedStateMachine):
    keys = Bundle("keys")

    def __init__(self):
        super().__init__()
        self.name = fresh_name()
        self.daemon = OwnedArena.create(self.name, ARENA_BYTES, NODE, ENTRIES)
        self.other = Arena.attach(self.name)
        self.live = {}  # key -> (kind, data_bytes, meta_room, sealed meta or None)
        self.stale = set()
        self.epoch = 1

    @rule(
        target=keys,
        kind=st.sampled_from(Kind),
        data_bytes=st.integers(0, 5 * PAGE_BYTES),
        meta_room=st.integers(0, 200),
        slab=st.sampled_from([None, 1, 2]),
    )
    def alloc(self, kind, data_bytes, meta_room, slab):
        try:
            key = self.daemon.alloc(kind, 3, 4, data_bytes, meta_room, slab)
        except ArenaFull:
            needed = layout.extent_bytes(data_bytes, meta_room)
            assert len(self.live) == ENTRIES or self.daemon.largest_free_bytes < needed
            return Key(0, 0, NODE)
        assert key not in self.live
        assert key not in self.stale
        view = self.other.data(key)
        assert len(view) == data_bytes
        view[:] = pattern(key, data_bytes)
        self.live[key] = (kind, data_bytes, meta_room, None)
        return key

    @rule(key=keys, meta=st.binary(max_size=200), weight=st.floats(0, 1e9), members=st.integers(0, 2**32 - 1))
    def seal(self, key, meta, weight, members):
        if key not in self.live:
            with pytest.raises(StaleKey):
                self.other.seal(key, weight, members, meta)
            return
        kind, data_bytes, meta_room, sealed = self.live[key]
        if sealed is not None or len(meta) > meta_room:
            with pytest.raises(LocalFault):
                self.other.seal(key, weight, members, meta)
            return
        self.other.seal(key, weight, members, meta, checksum=data_bytes)
        entry = self.daemon.entry(key)
        assert (entry.weight, entry.contributions, entry.checksum) == (weight, members, data_bytes)
        self.live[key] = (kind, data_bytes, meta_room, meta)

    @rule(key=keys)
    def free(self, key):
        if self.live.pop(key, None) is None:
            with pytest.raises(StaleKey):
                self.daemon.free(key)
        else:
            self.daemon.free(key)
            self.stale.add(key)

    @rule(slab=st.sampled_from([1, 2]))
    def close_slab(self, slab):
        self.daemon.close_slab(slab)

    @rule()
    def restart(self):
        """The daemon dies without a word; the next one adopts.  Updates may still be written by their clients."""
        assert self.daemon.close()
        self.daemon = OwnedArena.adopt(self.name)
        self.epoch += 1
        gone = [key for key, (kind, *_, sealed) in self.live.items() if sealed is None and kind is not Kind.UPDATE]
        for key in gone:
            del self.live[key]
            self.stale.add(key)

    @invariant()
    def every_live_object_is_intact(self):
        found = dict(self.daemon.live())
        assert set(found) == set(self.live)
        assert self.other.epoch == self.epoch
        for key, (kind, data_bytes, meta_room, sealed) in self.live.items():
            entry = self.other.entry(key)
            assert entry == found[key]
            assert (entry.kind, entry.data_bytes, entry.meta_room) == (kind, data_bytes, meta_room)
            assert (entry.job, entry.round) == (3, 4)
            assert entry.state == (ObjectState.WRITING if sealed is None else ObjectState.SEALED)
            data = self.other.data(key)
            assert data == pattern(key, data_bytes)
            assert data.readonly == (sealed is not None)
            assert self.other.meta(key) == (sealed or b"")
        for key in self.stale:
            with pytest.raises(StaleKey):
                self.other.data(key)
        assert self.daemon.used_bytes == sum(entry.extent_bytes for entry in found.values())

    def teardown(self):
        remove_segment(self.name)
        for key in list(self.live):
            self.daemon.free(key)
        assert self.daemon.used_bytes == 0
        assert self.daemon.free_bytes == self.daemon.largest_free_bytes == self.daemon.capacity_bytes
        assert self.other.close()
        assert self.daemon.close()


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# ---- between any two lines -------------------------------------------------------------------------------


ARENA_FILES = {module.__file__ for module in (arena_module, owned_arena, segment)}


@contextlib.contextmanager
def at_each_line(look):
    """Calls `look` before each line of the arena's code that runs in the block."""

    def trace(frame, event, arg):
        if frame.f_code.co_filename not in ARENA_FILES:
            return None
        if event == "line":
            sys.settrace(None)
            look()
            sys.settrace(trace)
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


def test_a_segment_in_the_making_cannot_be_opened(name):
    """Catches `initialised` stored before what it promises."""
    seen = []

    def look():
        try:
            with contextlib.closing(Arena.attach(name)) as other:
                seen.append((other.node, other.entries, other.epoch))
        except (SegmentMissing, SegmentUnfinished) as error:
            seen.append(type(error))

    with at_each_line(look):
        made = OwnedArena.create(name, ARENA_BYTES, NODE, ENTRIES)
    assert made.close()
    changes = [what for what, _ in itertools.groupby(seen)]
    assert changes == [SegmentMissing, SegmentUnfinished, (NODE, ENTRIES, 1)]


def test_a_stale_key_never_fits_while_its_slot_is_used_again(arena, other):
    """Catches a state or generation stored too early: a late reader would get somebody else's bytes."""
    stale = [arena.alloc(Kind.UPDATE, 1, 1, 10) for _ in range(ENTRIES)]
    for key in stale:
        arena.free(key)
    looks = []

    def look():
        with pytest.raises(StaleKey):
            other.entry(stale[0])
        looks.append(1)

    with at_each_line(look):
        again = arena.alloc(Kind.MODEL, 2, 2, 5000)
        arena.seal(again, 1.0, 1)
        arena.free(again)
    assert again.slot == stale[0].slot
    assert len(looks) > 20


def test_an_object_appears_sealed_only_with_all_that_the_seal_says(arena, other):
    """Catches a seal that commits before its meta, weight or checksum is stored, and a free that lingers."""
    key = arena.alloc(Kind.UPDATE, 1, 1, 10, meta_bytes=4)
    seen = []

    def look():
        try:
            entry = other.entry(key)
        except StaleKey:
            seen.append("gone")
            return
        if entry.state == ObjectState.SEALED:
            assert (entry.weight, entry.contributions, entry.checksum) == (1.5, 2, 3)
            assert other.meta(key) == b"meta"
        seen.append(ObjectState(entry.state).name)

    with at_each_line(look):
        arena.seal(key, 1.5, 2, b"meta", 3)
        arena.free(key)
    assert [what for what, _ in itertools.groupby(seen)] == ["WRITING", "SEALED", "gone"]


# ---- what others may not do ------------------------------------------------------------------------------


def test_only_the_owner_of_the_node_can_open_the_segment(arena):
    about = os.stat(f"/dev/shm{arena.name}")
    assert stat.S_IMODE(about.st_mode) == 0o600
    assert about.st_uid == os.geteuid()


def test_the_whole_arena_is_the_budget_and_is_reserved_when_it_is_made(arena):
    """Catches a segment that is only as long as promised but not backed: a later touch would be SIGBUS."""
    (first,) = segment.segments_of(arena.name).values()
    about = [os.stat(f"/dev/shm{name}") for name in (arena.name, first)]
    assert about[1].st_size == arena.arena_bytes == ARENA_BYTES
    assert sum(each.st_blocks * 512 for each in about) == ARENA_BYTES
    assert arena.capacity_bytes == ARENA_BYTES - layout.data_offset(ENTRIES)


def test_who_only_attached_cannot_allocate_free_or_unlink(arena):
    key = arena.alloc(Kind.UPDATE, 1, 1, 10)
    for other in (Arena.attach(arena.name), OwnedArena.attach(arena.name)):
        for forbidden in ("alloc", "free", "close_slab", "used_bytes", "live"):
            assert not hasattr(other, forbidden)
        with pytest.raises(TypeError):
            other.close(unlink=True)
        assert other.close()
    assert arena.entry(key).state == ObjectState.WRITING


def test_a_key_of_another_node_or_slot_is_refused(arena):
    key = arena.alloc(Kind.UPDATE, 1, 1, 10)
    for wrong in (
        key._replace(node=NODE + 1),
        key._replace(slot=ENTRIES),
        key._replace(slot=2**32 - 1),
        key._replace(slot=key.slot + 1),
        key._replace(generation=key.generation + 1),
        Key(0, 0, 0),
    ):
        with pytest.raises(StaleKey):
            arena.entry(wrong)


def test_a_generation_comes_back_only_after_all_others(arena):
    """The counter wraps from its maximum to 1: 0 is never a generation, so a zeroed key fits nothing."""
    key = arena.alloc(Kind.UPDATE, 1, 1, 10)
    arena.free(key)
    position = layout.entry_position(key.slot) + layout.GENERATION_OFFSET
    arena.window(position, 4)[:] = struct.pack("<I", layout.U32_MAX)
    again = [arena.alloc(Kind.UPDATE, 1, 1, 10) for _ in range(ENTRIES)][-1]
    assert (again.slot, again.generation) == (key.slot, 1)


def test_a_sealed_object_reads_the_same_everywhere_and_is_read_only(arena):
    key = arena.alloc(Kind.PARTIAL, 1, 2, 100, meta_bytes=20)
    arena.data(key)[:] = bytes(range(100))
    arena.seal(key, 7.5, 3, b"who", 99)
    other = Arena.attach(arena.name)
    with other.data(key) as data, other.meta(key) as meta:
        assert data == bytes(range(100))
        assert meta == b"who"
        with pytest.raises(TypeError):
            data[0] = 1
        with pytest.raises(TypeError):
            meta[0] = 1
    entry = other.entry(key)
    assert (entry.weight, entry.contributions, entry.checksum, entry.kind) == (7.5, 3, 99, Kind.PARTIAL)
    assert other.close()


def test_equal_updates_of_a_job_lie_at_equal_distances(name):
    arena = OwnedArena.create(name, 4 << 20, NODE)
    offsets = [arena.offset(arena.alloc(Kind.UPDATE, 1, 1, 5000, 1024, slab=(1, "update"))) for _ in range(28)]
    assert {b - a for a, b in itertools.pairwise(offsets)} == {8192}
    assert all(offset % PAGE_BYTES == 0 for offset in offsets)
    arena.close()


# ---- limits ----------------------------------------------------------------------------------------------


def test_the_table_bounds_the_objects(arena):
    keys = [arena.alloc(Kind.UPDATE, 1, 1, 1) for _ in range(ENTRIES)]
    with pytest.raises(ArenaFull, match=f"{ENTRIES} entries"):
        arena.alloc(Kind.UPDATE, 1, 1, 1)
    arena.free(keys[7])
    assert arena.alloc(Kind.UPDATE, 1, 1, 1).slot == keys[7].slot


def test_an_object_as_large_as_the_arena_fits_and_one_byte_more_does_not(arena):
    most = arena.capacity_bytes - layout.META_ALIGN_BYTES  # the rest is the seal's
    with pytest.raises(ArenaFull, match="arena_bytes"):
        arena.alloc(Kind.MODEL, 1, 1, most + 1)
    key = arena.alloc(Kind.MODEL, 1, 1, most)
    assert arena.free_bytes == 0
    with pytest.raises(ArenaFull):
        arena.alloc(Kind.MODEL, 1, 1, 1)
    arena.free(key)
    assert (arena.used_bytes, arena.peak_bytes) == (0, arena.capacity_bytes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"data_bytes": -1},
        {"meta_bytes": -1},
        {"meta_bytes": 2**32},
        {"job": -1},
        {"job": 2**32},
        {"round": 2**32},
    ],
)
def test_numbers_that_do_not_fit_are_refused_and_take_nothing(arena, wrong):
    with pytest.raises(LocalFault):
        arena.alloc(**({"kind": Kind.UPDATE, "job": 1, "round": 1, "data_bytes": 1} | wrong))
    assert arena.used_bytes == 0
    assert list(arena.live()) == []


@pytest.mark.parametrize(
    "wrong", [{"contributions": 2**32}, {"contributions": -1}, {"checksum": 2**64}, {"checksum": -1}]
)
def test_a_seal_that_does_not_fit_leaves_the_object_writing(arena, wrong):
    key = arena.alloc(Kind.UPDATE, 1, 1, 1)
    with pytest.raises(LocalFault):
        arena.seal(key, **({"weight": 1.0, "contributions": 1} | wrong))
    assert arena.entry(key).state == ObjectState.WRITING


@pytest.mark.parametrize(
    ("arena_bytes", "node", "entries"),
    [
        (layout.data_offset(ENTRIES) + PAGE_BYTES - 1, 1, ENTRIES),
        (0, 1, ENTRIES),
        (-1, 1, ENTRIES),
        (ARENA_BYTES, 1, 0),
        (1 << 30, 1, ENTRIES_MAX + 1),
        (ARENA_BYTES, -1, ENTRIES),
        (ARENA_BYTES, 2**64, ENTRIES),
    ],
)
def test_an_arena_that_cannot_be_is_refused(name, arena_bytes, node, entries):
    with pytest.raises(LocalFault):
        OwnedArena.create(name, arena_bytes, node, entries)
    assert not os.path.exists(f"/dev/shm{name}")


def test_the_smallest_and_the_longest_table(name):
    smallest = OwnedArena.create(name, layout.data_offset(1) + PAGE_BYTES + 17, 2**64 - 1, 1)
    assert smallest.capacity_bytes == PAGE_BYTES
    smallest.close(unlink=True)
    longest = OwnedArena.create(name, layout.data_offset(ENTRIES_MAX) + 8 * PAGE_BYTES, 0, ENTRIES_MAX)
    longest.alloc(Kind.UPDATE, 1, 1, 1)
    assert longest.close(unlink=True)


# ---- segments that cannot be used ------------------------------------------------------------------------


def test_a_name_that_is_taken_is_not_taken_over(arena):
    key = arena.alloc(Kind.UPDATE, 1, 1, 10)
    with pytest.raises(ResourceFault, match="exists already"):
        OwnedArena.create(arena.name, ARENA_BYTES, NODE, ENTRIES)
    with contextlib.closing(Arena.attach(arena.name)) as found:
        assert found.entry(key).state == ObjectState.WRITING


@pytest.mark.parametrize("opener", [Arena.attach, OwnedArena.adopt])
def test_a_missing_segment_is_told_from_a_broken_one(name, opener):
    with pytest.raises(SegmentMissing):
        opener(name)


@pytest.mark.parametrize("bad", ["/a/b", "/" + "x" * 300, ""])
def test_a_name_that_cannot_be_is_refused(bad):
    with pytest.raises(ResourceFault):
        OwnedArena.create(bad, ARENA_BYTES, NODE, ENTRIES)
    with pytest.raises(ResourceFault):
        Arena.attach(bad)


DAMAGES = {
    "unfinished": (layout.INITIALISED_OFFSET, b"\0", SegmentUnfinished, "not finished"),
    "foreign": (0, b"ELF", SegmentUnusable, "no arena"),
    "version": (8, b"\3", SegmentUnusable, "layout version 3"),
    "entries": (12, b"\xff\xff\xff\xff", SegmentUnusable, "header"),
    "length": (24, b"\0\0\1", SegmentUnusable, "header"),
    "table offset": (32, b"\1", SegmentUnusable, "header"),
    "data offset": (40, b"\1", SegmentUnusable, "header"),
}


@pytest.mark.parametrize("opener", [Arena.attach, OwnedArena.adopt])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_segment_that_is_not_ours_is_refused_and_left_as_it_is(arena, damage, opener):
    offset, stored, fault, text = DAMAGES[damage]
    arena.window(offset, len(stored))[:] = stored
    before = bytes(arena.window(0, PAGE_BYTES))
    with pytest.raises(fault, match=text):
        opener(arena.name)
    assert arena.window(0, PAGE_BYTES) == before


ENTRY_DAMAGES = {
    "state": (layout.STATE_OFFSET, "<B", 3),
    "kind": (layout.KIND_OFFSET, "<B", 9),
    "offset outside": (32, "<Q", ARENA_BYTES),
    "offset overlaps": (32, "<Q", layout.data_offset(ENTRIES)),
    "offset in the table": (32, "<Q", 0),
    "extent": (40, "<Q", 100),
    "data longer than its extent": (48, "<Q", 2 * PAGE_BYTES),
    "meta longer than its room": (layout.META_BYTES_OFFSET, "<I", 11),
    "segment": (layout.BODY_OFFSET, "<I", 7),
}


@pytest.mark.parametrize(
    ("damage", "kind"),
    # An unsealed object of an unknown kind is freed like any other that is no update.
    [(d, k) for d in ENTRY_DAMAGES for k in (Kind.UPDATE, Kind.PARTIAL) if (d, k) != ("kind", Kind.UPDATE)],
)
def test_a_damaged_entry_is_refused_before_anything_is_freed(arena, damage, kind):
    """A partial that is sealed, or an update that is not: both stay when a daemon adopts."""
    writing, kept = arena.alloc(Kind.MODEL, 1, 1, 100, 10), arena.alloc(kind, 1, 1, 100, 10)
    if kind is Kind.PARTIAL:
        arena.seal(kept, 1.0, 1, b"0123456789")
    offset, form, value = ENTRY_DAMAGES[damage]
    if damage == "offset overlaps":
        arena.seal(writing, 1.0, 1)
    struct.pack_into(form, arena.window(layout.entry_position(kept.slot), 128), offset, value)
    before = bytes(arena.window(0, layout.data_offset(ENTRIES)))
    with pytest.raises(SegmentUnusable, match="damaged"):
        OwnedArena.adopt(arena.name)
    assert arena.window(0, layout.data_offset(ENTRIES)) == before


def as_before(name, slot, generation, offset, data, meta):
    """Writes the segment of an earlier version, field by field: owner and address stood where nothing is read now."""
    header = struct.pack("<8sIIQQQQ", b"LIFLSHM\0", 1, ENTRIES, NODE, ARENA_BYTES, 4096, layout.data_offset(ENTRIES))
    entry = struct.pack("<BBxxI", 2, Kind.PARTIAL, generation) + struct.pack(
        "<IIIIIIQQQdQI", 4321, 3, 4, 7, 1234, len(meta), offset, 2 * PAGE_BYTES, len(data), 2.5, 99, 100
    )
    with open(f"/dev/shm{name}", "w+b") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(ARENA_BYTES)
        file.write(header + struct.pack("<QQ", 3, 0x0D15EA5E_F1F0F1F0))
        file.seek(4096 + slot * 128)
        file.write(entry)
        os.posix_fallocate(file.fileno(), 0, ARENA_BYTES)
        file.seek(offset)
        file.write(data)
        file.seek(offset + -(-len(data) // 64) * 64)
        file.write(meta)


def test_a_segment_of_the_earlier_version_is_adopted_with_what_is_sealed_in_it(name):
    offset = layout.data_offset(ENTRIES) + 3 * PAGE_BYTES
    as_before(name, 2, 41, offset, b"d" * 5000, b"who")
    arena = OwnedArena.adopt(name)
    assert arena.epoch == 4
    key = Key(2, 41, NODE)
    ((found, entry),) = arena.live()
    assert found == key
    assert entry == arena.entry(key)
    told = (entry.kind, entry.job, entry.round, entry.contributions, entry.weight, entry.checksum, entry.meta_room)
    assert told == (Kind.PARTIAL, 3, 4, 7, 2.5, 99, 100)
    assert (arena.data(key), arena.meta(key)) == (b"d" * 5000, b"who")
    assert (arena.used_bytes, entry.extent_bytes) == (2 * PAGE_BYTES, 2 * PAGE_BYTES)
    again = [arena.alloc(Kind.UPDATE, 1, 1, 10) for _ in range(ENTRIES - 1)]
    assert not {slot for slot, *_ in again} & {2}
    assert arena.close(unlink=True)


def test_a_cut_off_segment_is_refused(arena):
    os.truncate(f"/dev/shm{arena.name}", layout.data_offset(ENTRIES) - PAGE_BYTES)
    with pytest.raises(SegmentUnusable, match="header"):
        Arena.attach(arena.name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_segment_of_another_user_is_not_trusted(arena):
    os.chown(f"/dev/shm{arena.name}", 12345, 12345)
    with pytest.raises(SegmentUnusable, match="12345"):
        Arena.attach(arena.name)


# ---- closing ---------------------------------------------------------------------------------------------


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def mappings(name):
    with open("/proc/self/maps", encoding="ascii") as maps:
        return sum(name in line for line in maps)


def test_closing_leaves_no_descriptor_mapping_or_name(name):
    before = descriptors()
    arena = OwnedArena.create(name, ARENA_BYTES, NODE, ENTRIES)
    other = Arena.attach(arena.name)
    assert other.close()
    assert arena.close(unlink=True)
    assert descriptors() == before
    assert mappings(name) == 0
    assert not os.path.exists(f"/dev/shm{name}")
    assert arena.close()


def test_views_outlive_close_and_the_mapping_goes_with_the_last_of_them(name):
    before = descriptors()
    arena = OwnedArena.create(name, ARENA_BYTES, NODE, ENTRIES)
    key = arena.alloc(Kind.UPDATE, 1, 1, 3)
    held = arena.data(key)
    assert not arena.close(unlink=True)
    held[:] = b"abc"
    assert held == b"abc"
    del held, arena
    assert mappings(name) == 0
    assert descriptors() == before


def test_a_closed_arena_says_so(arena):
    key = arena.alloc(Kind.UPDATE, 1, 1, 3)
    arena.close()
    for use in (
        lambda: arena.entry(key),
        lambda: arena.alloc(Kind.UPDATE, 1, 1, 3),
        lambda: arena.window(0, 1),
        lambda: arena.epoch,
    ):
        with pytest.raises(LocalFault, match="closed"):
            use()


def test_a_process_that_is_closed_to_other_jobs_has_its_own_job_alone(arena, other):
    """Catches a function of the user's that could look at what other jobs have in the arena."""
    with pytest.raises(StaleKey, match="no segment of job 7"):
        other.close_to_other_jobs(7)
    keys = {job: arena.alloc(Kind.UPDATE, job, 1, 10) for job in (1, 2)}
    for key in keys.values():
        arena.data(key)[:] = b"x" * 10
        arena.seal(key, 1.0, 1)
    assert bytes(other.data(keys[2])) == b"x" * 10
    other.close_to_other_jobs(1)
    assert bytes(other.data(keys[1])) == b"x" * 10 and other.holds(keys[1])
    assert not other.holds(keys[2]) and not other.segments.descriptors()
    with pytest.raises(ResourceFault, match="is not this process's to open"):
        other.data(keys[2])


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (0, ARENA_BYTES + 1), (ARENA_BYTES, 1), (0, -1)])
def test_a_window_ends_at_the_segment(arena, offset, nbytes):
    with pytest.raises(LocalFault):
        arena.window(offset, nbytes)


def test_the_daemon_needs_no_numpy():
    code = "import sys, lifl.shm.arena, lifl.shm.prefault; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

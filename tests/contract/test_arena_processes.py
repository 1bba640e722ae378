"""The arena across real processes: killed at any line, short of memory, populated in the background."""

import contextlib
import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.errors import LocalFault, ResourceFault, StaleKey
from lifl.core.ids import Key, Kind
from lifl.shm import layout, mapping, prefault
from lifl.shm.arena import Arena
from lifl.shm.layout import PAGE_BYTES, ObjectState
from lifl.shm.mapping import HUGE_PAGE_BYTES
from lifl.shm.owned_arena import OwnedArena
from lifl.shm.prefault import CHUNK_BYTES, SCARCE_MAX, Prefault
from lifl.shm.segment import SHM_FOLDER, SegmentMissing, SegmentUnfinished, remove_segment

ENTRIES = 6
ARENA_BYTES = 40 * PAGE_BYTES
NODE = 11

# A daemon that makes an arena, then allocates, fills, seals and frees without end.  It says on its output
# what it promises: "sealed" after the seal has returned, "freeing" before the free begins.  A trace
# function counts the lines that the program runs in the arena's and the allocator's code and kills the
# process with SIGKILL at line `fatal`.
DAEMON = textwrap.dedent("""
    import json, os, random, signal, sys
    from lifl.shm import allocator, arena, job_segments, layout, owned_arena, residency, segment
    from lifl.core.ids import Kind

    name, fatal, seed, arena_bytes, entries = sys.argv[1], *map(int, sys.argv[2:])
    files = {module.__file__ for module in (allocator, arena, job_segments, layout, owned_arena, residency, segment)}
    lines = 0

    def say(*what):
        os.write(1, (json.dumps(what) + "\\n").encode())

    def count(frame, event, arg):
        global lines
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            lines += 1
            if lines == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    sys.settrace(count)
    made = owned_arena.OwnedArena.create(name, arena_bytes, 11, entries)
    say("made")
    choose = random.Random(seed)
    sealed = []
    while True:
        if len(sealed) < entries and (not sealed or choose.random() < 0.6):
            key = made.alloc(Kind.UPDATE, 1, 2, choose.randrange(12000), 16, choose.choice([None, "job"]))
            data = made.data(key)
            data[:] = bytes([key.generation % 256]) * len(data)
            made.seal(key, key.generation, 1, key.pack())
            sealed.append(key)
            say("sealed", *key)
        else:
            key = sealed.pop(choose.randrange(len(sealed)))
            say("freeing", *key)
            made.free(key)
""")


@pytest.fixture
def name(request):
    name = f"/lifl-test-{os.getpid()}-p-{abs(hash(request.node.name))}"
    remove_segment(name)
    yield name
    remove_segment(name)


def run_daemon(name, fatal, seed):
    """What a daemon said before it was killed at line `fatal`."""
    command = [sys.executable, "-c", DAEMON, name, str(fatal), str(seed), str(ARENA_BYTES), str(ENTRIES)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_adopted(name, said):
    arena = OwnedArena.adopt(name)
    promised, doubtful, gone = set(), set(), set()
    for what, *key in said:
        if what == "sealed":
            promised.add(Key(*key))
            doubtful.clear()
        elif what == "freeing":
            promised.remove(Key(*key))
            doubtful = {Key(*key)}
            gone.add(Key(*key))
    live = dict(arena.live())
    assert promised <= set(live), "an object that was sealed is lost"
    # At most one object more: not sealed yet; sealed, but killed before it said so; or before the free was done.
    assert len(set(live) - promised) <= 1
    assert not (set(live) & gone) - doubtful, "a freed object is back"
    for key, entry in live.items():
        if entry.state == ObjectState.WRITING:
            assert entry.kind == Kind.UPDATE
            continue
        assert entry.state == ObjectState.SEALED
        assert entry.weight == key.generation
        assert arena.meta(key) == key.pack()
        assert arena.data(key) == bytes([key.generation % 256]) * entry.data_bytes
    edges = sorted((e.offset, e.offset + e.extent_bytes) for e in live.values())
    assert all(end <= following for (_, end), (following, _) in pairwise(edges))
    # Use every free slot again: no key of an earlier life may fit.
    known = {Key(*key) for what, *key in said if what != "made"} | set(live)
    fresh = [arena.alloc(Kind.UPDATE, 1, 1, 1) for _ in range(ENTRIES - len(live))]
    assert not known & set(fresh), "a generation was given out twice"
    for key in gone - set(live):
        with pytest.raises(StaleKey):
            arena.entry(key)
    for key in fresh + list(live):
        arena.free(key)
    assert arena.free_bytes == arena.largest_free_bytes == arena.capacity_bytes
    assert arena.close(unlink=True)


@given(fatal=st.integers(1, 2500), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_daemon_killed_at_any_line_loses_nothing_that_it_promised(fatal, seed):
    name = f"/lifl-test-{os.getpid()}-kill"
    remove_segment(name)
    said = run_daemon(name, fatal, seed)
    try:
        if said:
            check_adopted(name, said)
        else:
            # Killed while the segment was made: there is none, or it is refused, or it was just finished.
            with (
                contextlib.suppress(SegmentMissing, SegmentUnfinished),
                contextlib.closing(OwnedArena.adopt(name)) as it,
            ):
                assert list(it.live()) == []
    finally:
        remove_segment(name)


def test_a_daemon_killed_in_alloc_seal_and_free_line_by_line(name):
    """The same without gaps over the lines of one alloc, seal and free, where each order of stores matters."""
    for fatal in range(150, 330, 6):
        said = run_daemon(name, fatal, 1)
        if said:
            check_adopted(name, said)
        remove_segment(name)


def test_a_worker_killed_while_it_writes_leaves_its_object_writing(name):
    """What it has sealed is whole; the daemon frees what it was still writing."""
    arena = OwnedArena.create(name, ARENA_BYTES, NODE, ENTRIES)
    code = textwrap.dedent("""
        import os, sys
        from lifl.core.ids import Key
        from lifl.shm.arena import Arena
        arena = Arena.attach(sys.argv[1])
        print(os.getpid(), flush=True)
        first, second = (Key.unpack(bytes.fromhex(line.strip())) for line in (input(), input()))
        arena.data(first)[:] = b"a" * 5000
        arena.seal(first, 2.0, 1, b"me")
        arena.data(second)[:2500] = b"b" * 2500
        print("half", flush=True)
        input()
    """)
    command = [sys.executable, "-c", code, name]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as worker:
        assert int(worker.stdout.readline()) == worker.pid
        keys = [arena.alloc(Kind.PARTIAL, 1, 1, 5000, 10) for _ in range(2)]
        other = arena.alloc(Kind.PARTIAL, 1, 1, 5000, 10)
        worker.stdin.write("".join(key.pack().hex() + "\n" for key in keys))
        worker.stdin.flush()
        assert worker.stdout.readline() == "half\n"
        worker.kill()
        worker.wait()
    left = [k for k, e in arena.live() if e.state == ObjectState.WRITING]
    assert left == [keys[1], other]
    arena.free(keys[1])
    assert arena.data(keys[0]) == b"a" * 5000
    assert (arena.entry(keys[0]).weight, bytes(arena.meta(keys[0]))) == (2.0, b"me")
    assert arena.entry(other).state == ObjectState.WRITING
    assert arena.close(unlink=True)


def test_a_stale_segment_of_a_dead_daemon_is_found_and_can_be_replaced(name):
    run_daemon(name, 2000, 3)
    with pytest.raises(ResourceFault, match="adopt"):
        OwnedArena.create(name, ARENA_BYTES, NODE, ENTRIES)
    remove_segment(name)
    remove_segment(name)
    assert OwnedArena.create(name, ARENA_BYTES, NODE, ENTRIES).close(unlink=True)


# ---- memory is short -------------------------------------------------------------------------------------


def test_more_than_dev_shm_has_free_is_refused_with_advice_and_leaves_nothing(name):
    about = os.statvfs(SHM_FOLDER)
    free_bytes = about.f_bavail * about.f_frsize
    with pytest.raises(ResourceFault, match=r"free of \d+.*arena_bytes.*remount") as caught:
        OwnedArena.create(name, free_bytes + (1 << 30), NODE, ENTRIES)
    assert str(free_bytes >> 24) in str(caught.value) or str(free_bytes)[:3] in str(caught.value)
    assert not os.path.exists(SHM_FOLDER + name)


REFUSED = textwrap.dedent("""
    import os, sys
    from lifl.core.errors import ResourceFault
    from lifl.shm.owned_arena import OwnedArena
    before = len(os.listdir("/proc/self/fd"))
    try:
        OwnedArena.create(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    except ResourceFault as fault:
        assert "--arena-bytes" in str(fault) and "ulimit -f" in str(fault), fault
    else:
        raise AssertionError("an arena longer than files may be was made")
    assert len(os.listdir("/proc/self/fd")) == before
""")


def test_a_limit_of_the_length_of_files_is_said_and_leaves_nothing(name):
    """Files may not be so long as the arena is.

    In a process of its own: making an arena lifts the soft limit to the hard one, and only root may lift that again.
    """
    limit = ARENA_BYTES - PAGE_BYTES
    child = subprocess.run(
        [sys.executable, "-c", REFUSED, name, str(ARENA_BYTES), str(NODE), str(ENTRIES)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert not os.path.exists(SHM_FOLDER + name)


def can_mount():
    if os.geteuid() or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small /dev/shm of its own")
def test_a_small_dev_shm_is_filled_to_the_last_page_and_not_beyond(name):
    """In its own mount namespace: a /dev/shm of 1 MiB.  A touch beyond what is backed would be SIGBUS."""
    code = textwrap.dedent("""
        import os, sys
        from lifl.core.errors import ResourceFault
        from lifl.shm.owned_arena import OwnedArena
        from lifl.core.ids import Kind
        try:
            OwnedArena.create(sys.argv[1], (1 << 20) + 4096, 1, 8)
        except ResourceFault as error:
            assert "/dev/shm has 1048576 free of 1048576" in str(error), error
        else:
            raise SystemExit("it was not refused")
        assert os.listdir("/dev/shm") == []
        arena = OwnedArena.create(sys.argv[1], 1 << 20, 1, 8)
        key = arena.alloc(Kind.MODEL, 1, 1, arena.capacity_bytes - 64)
        arena.data(key)[:] = b"x" * (arena.capacity_bytes - 64)
        arena.close(unlink=True)
    """)
    script = f'mount -t tmpfs -o size=1m lifl-test {SHM_FOLDER} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", code, name]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not os.path.exists(SHM_FOLDER + name)


# ---- populating ------------------------------------------------------------------------------------------


def mapped_bytes(name, field="Rss"):
    """How much of the segment this process has in its page tables."""
    found, inside = 0, False
    with open("/proc/self/smaps", encoding="ascii") as smaps:
        for line in smaps:
            if "-" in line.split()[0]:
                inside = name in line
            elif inside and line.startswith(f"{field}:"):
                found += int(line.split()[1]) * 1024
    return found


def opened(arena):
    """The arena's first segment, as a process sees it."""
    arena.segments.open_all()
    return arena.segments.views()[1]


@pytest.fixture
def arena(name):
    arena = OwnedArena.create(name, 4 * CHUNK_BYTES + 3 * PAGE_BYTES, NODE, ENTRIES)
    yield arena
    arena.close()


@pytest.mark.parametrize("old_kernel", [False, True])
def test_populating_maps_exactly_the_pages_asked_for(arena, old_kernel, monkeypatch):
    if old_kernel:  # advice that this kernel does not know is refused as an older one refuses these
        monkeypatch.setattr(mapping, "_POPULATE_WRITE", 223)
    other = Arena.attach(arena.name)
    whole = opened(other)
    before = mapped_bytes(arena.name)
    mapping.populate(whole[2 * CHUNK_BYTES : 3 * CHUNK_BYTES + 5])
    grown = mapped_bytes(arena.name) - before
    # The end is a cut page; reading may map neighbours along.
    assert CHUNK_BYTES + PAGE_BYTES <= grown <= CHUNK_BYTES + (1 << 18)
    mapping.populate(whole[:0])
    del whole
    assert other.close()


def test_a_segment_is_mapped_where_huge_pages_fit_and_unmapped_with_its_last_view(arena):
    other = Arena.attach(arena.name)
    view = opened(other)[:]
    assert ctypes.addressof(ctypes.c_char.from_buffer(view)) % HUGE_PAGE_BYTES == 0
    before = mapped_bytes(arena.name, "Size")
    table_bytes = layout.data_offset(ENTRIES)
    assert not other.close()
    assert mapped_bytes(arena.name, "Size") == before - table_bytes
    view.release()
    assert other.close()
    assert mapped_bytes(arena.name, "Size") == before - table_bytes - (arena.arena_bytes + 1023) // 1024 * 1024


def test_prefault_makes_huge_pages_that_every_process_maps_at_once(arena):
    populating = Prefault(arena)
    assert populating.wait(300)
    if populating.refused:
        pytest.skip(f"huge pages of shared memory: {os.strerror(populating.refused)}")
    assert populating.huge_bytes == 3 * CHUNK_BYTES  # the first chunk begins with a hole, where the table would be
    code = """
        import sys
        from lifl.shm.arena import Arena
        arena = Arena.attach(sys.argv[1])
        arena.segments.open_all()
        arena.segments.views()[1][2 << 20 :: 2 << 20].tobytes()
        with open("/proc/self/smaps") as smaps:
            print(sum(int(line.split()[1]) for line in smaps if line.startswith("ShmemPmdMapped:")))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), arena.name]
    shown = subprocess.run(command, capture_output=True, check=True, text=True, timeout=300).stdout
    assert int(shown) * 1024 == 3 * CHUNK_BYTES


@pytest.mark.parametrize(("code", "asked"), [(errno.EINVAL, 1), (errno.ENOMEM, SCARCE_MAX + 1), (errno.EBUSY, 99)])
def test_huge_pages_that_cannot_be_had_are_not_asked_for_without_end(name, code, asked, monkeypatch):
    arena = OwnedArena.create(name, 100 * CHUNK_BYTES, NODE, ENTRIES)
    calls = []

    def collapse(chunk):
        calls.append(len(chunk))
        return code

    monkeypatch.setattr(prefault, "collapse", collapse)
    populating = Prefault(arena)
    assert populating.wait(60)
    assert len(calls) == asked
    assert populating.done_bytes == arena.arena_bytes
    assert populating.huge_bytes == 0
    assert arena.close(unlink=True)


def test_prefault_maps_all_of_the_arena_and_changes_nothing_that_others_write(arena):
    key = arena.alloc(Kind.UPDATE, 1, 1, 3 * CHUNK_BYTES)
    stop = threading.Event()
    written = [0]

    def write():
        with arena.data(key) as data:
            while not stop.is_set():
                written[0] += 1
                for at in range(0, len(data), PAGE_BYTES):
                    struct.pack_into("<Q", data, at, written[0])
                for at in range(0, len(data), PAGE_BYTES):
                    assert struct.unpack_from("<Q", data, at) == (written[0],)

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(20):
        populating = Prefault(arena)
        assert populating.wait(300)
        assert populating.error is None
    stop.set()
    writer.join()
    assert populating.done_bytes == arena.arena_bytes
    assert mapped_bytes(arena.name) == arena.arena_bytes  # with the table's, which is a hole of the segment
    assert {struct.unpack_from("<Q", arena.data(key), at)[0] for at in range(0, 3 * CHUNK_BYTES, PAGE_BYTES)} == {
        written[0]
    }


def test_prefault_stops_after_its_chunk_and_then_holds_nothing(name, monkeypatch):
    arena = OwnedArena.create(name, 64 * CHUNK_BYTES, NODE, ENTRIES)
    made, stopped = threading.Event(), threading.Event()

    def populate(view):
        made.set()
        assert stopped.wait(300)

    monkeypatch.setattr(prefault, "populate", populate)
    populating = Prefault(arena)
    assert made.wait(300)
    monkeypatch.setattr(populating._thread, "join", stopped.set)  # the stop is told, then waits
    populating.stop()
    monkeypatch.undo()
    populating.stop()
    assert populating.done_bytes == CHUNK_BYTES
    assert arena.close(unlink=True)


def test_an_arena_closed_under_a_prefault_stays_mapped_until_it_ends(name):
    arena = OwnedArena.create(name, 64 * CHUNK_BYTES, NODE, ENTRIES)
    populating = Prefault(arena)
    arena.close(unlink=True)
    assert populating.wait(300)
    assert populating.error is None
    assert arena.close()


def test_memory_that_runs_out_under_a_prefault_is_told(arena, monkeypatch):
    def populate(view):
        raise ResourceFault("no memory")

    monkeypatch.setattr(prefault, "populate", populate)
    populating = Prefault(arena)
    assert populating.wait(300)
    assert isinstance(populating.error, ResourceFault)
    assert populating.done_bytes == 0


def test_prefault_ends_at_the_arena(arena):
    with pytest.raises(LocalFault):
        Prefault(arena, arena.arena_bytes + 1)
    some = Prefault(arena, CHUNK_BYTES + 1)
    assert some.wait(300)
    assert some.done_bytes == CHUNK_BYTES + 1
    assert layout.data_offset(ENTRIES) < CHUNK_BYTES

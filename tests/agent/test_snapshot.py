"""A copy of a graph of objects: exact, apart from the original, and the same after its way through a file."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from enum import Enum
from typing import Any, NamedTuple

import msgpack
import msgspec
import pytest
from agent_scene import Arena
from hypothesis import given
from hypothesis import strategies as st

from lifl.core import snapshot
from lifl.core.agent.pool import Pool, Worker, WorkerState
from lifl.core.errors import LocalFault, RemoteFault
from lifl.core.event_log import RecordingStore, ReplayStore
from lifl.core.ids import Key, Kind
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution
from lifl.core.snapshot import Ref, Snapshot

KEY = Key(1, 2, 3)


class Pair(NamedTuple):
    """A tuple with names that is none of the engine's."""

    one: Any
    two: Any


def copied(root: Any, by_file: bool = True) -> Any:
    """A copy, by way of a file or not."""
    taken = snapshot.take(root, RecordingStore)
    if by_file:
        taken = Snapshot(snapshot.unpack(snapshot.pack(taken.objects)))
    return snapshot.restore(taken)


def kinds(root: Any) -> list[str]:
    """The names of the objects in a copy, in order."""
    return [name for name, _ in snapshot.take(root, RecordingStore).objects]


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": 1, "b": None},
        [1, 2.5, "x", b"y", True, None],
        {KEY: (1, 2)},
        set(),
        {KEY, Key(4, 5, 6)},
        deque([(1.0, KEY)]),
        Counter({KEY: 2, Key(4, 5, 6): -1}),
        {WorkerState.IDLE: frozenset({WorkerState.BUSY})},
        {"c": Contribution("c1", 2.0, {"loss": 0.5})},
        {"raw": gm.TellClient(1, msgspec.Raw(b"\x01"))},
        [{"a": [1]}, {"b": []}],
        {"t": ([1], {"x": {2}})},
        [(1, [2]), (3, [4])],
        {Kind.UPDATE: float("inf")},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_copied_is_as_it_was(value: Any, by_file: bool) -> None:
    found = copied(value, by_file)
    assert found == value
    assert type(found) is type(value)


def test_a_counter_counts_nothing_when_it_is_restored() -> None:
    assert copied(Counter({"a": 5})) == {"a": 5}
    assert copied(Counter("aab"))["z"] == 0


def test_a_defaultdict_goes_on_making_what_it_made() -> None:
    found = copied(defaultdict(dict, {1: {"a": None}}))
    found[2]["b"] = None
    assert found == {1: {"a": None}, 2: {"b": None}}


def test_one_of_another_kind_is_not_copied_into_what_it_is_not() -> None:
    with pytest.raises(LocalFault, match="a defaultdict that makes"):
        copied(defaultdict(list))


@pytest.mark.parametrize("by_file", [False, True])
def test_what_two_share_they_share_in_the_copy(by_file: bool) -> None:
    shared = [1]
    found = copied({"a": shared, "b": shared, "t": (shared, [1])}, by_file)
    assert found["a"] is found["b"] is found["t"][0]
    assert found["t"][1] is not found["a"]
    assert kinds([shared, shared]) == ["list", "list"], "it is copied once"


@pytest.mark.parametrize("by_file", [False, True])
def test_circles_are_closed_in_the_copy(by_file: bool) -> None:
    pool = Pool(4, 30.0)
    worker = pool._new()
    worker.served = ("j", 1)
    worker.pool = pool  # type: ignore[attr-defined]
    found = copied(pool, by_file)
    assert found is not pool and type(found) is Pool
    assert found.workers[1].pool is found
    assert (found.workers[1].served, found.workers[1].state) == (("j", 1), WorkerState.STARTING)
    assert vars(found).keys() == vars(pool).keys()


def test_the_copy_is_apart_from_the_original() -> None:
    pool = Pool(4, 30.0)
    taken = snapshot.take(pool, RecordingStore)
    pool.prepare(2)
    assert snapshot.restore(taken).workers == {}
    one, other = snapshot.restore(taken), snapshot.restore(taken)
    one.prepare(1)
    assert other.workers == {}


def test_tuples_with_objects_in_them_keep_their_kind() -> None:
    worker = Worker(1)
    found = snapshot.restore(snapshot.take([Pair(worker, 1), Pair(worker, (worker,))], RecordingStore))
    assert type(found[0]) is Pair
    assert found[0].one is found[1].one is found[1].two[0] is not worker


@pytest.mark.parametrize("first", [(KEY, None), (KEY, 1)])
def test_a_container_of_tuples_is_looked_at_whole(first: tuple[Any, ...]) -> None:
    worker = Worker(1)
    waiting = deque([first, (KEY, worker)])
    found = copied({"waiting": waiting, "worker": worker})
    assert found["waiting"][1][1] is found["worker"] is not worker
    by_key = copied({"d": {1: first, 2: (KEY, worker)}})
    assert by_key["d"][2][1].number == 1


def test_a_container_without_objects_is_one_entry_whatever_is_in_it() -> None:
    many = {number: (number, KEY) for number in range(1000)}
    assert kinds({"many": many}) == ["dict", "dict"]


def test_what_is_left_out_is_made_anew() -> None:
    found = copied({"store": RecordingStore(Arena(10))})
    assert type(found["store"]) is ReplayStore


def test_what_is_not_of_the_engine_is_refused() -> None:
    with pytest.raises(LocalFault, match=r"a agent_scene\.Arena cannot be copied with the engine's state"):
        copied({"arena": Arena(10)})
    with pytest.raises(LocalFault, match="a object cannot be written to a record"):
        snapshot.pack({"x": object()})


# ---- files that are none ---------------------------------------------------------------------------------------------

FOREIGN = [
    ["struct", "os:system", ["true"]],
    ["struct", "subprocess:Popen", [["true"]]],
    ["struct", "lifl.node.store:NodeStore", ["/tmp/x"]],
    ["struct", "lifl.corex:Thing", []],
    ["struct", "lifl.core.coordinator.membership:random._os.system", ["true"]],
    ["struct", "lifl.core.snapshot:import_module", ["this"]],
    ["struct", "lifl.core.snapshot:msgpack.unpackb", [b"\x01"]],
    ["struct", "lifl.core.snapshot:unpack", [b"\x01"]],
    ["struct", "lifl.core.agent.pool:Pool", [1, 2.0]],
    ["enum", "lifl.core.agent.pool:TRANSITIONS", "IDLE"],
    ["enum", "lifl.core.agent.pool:Pool", "IDLE"],
    ["enum", "lifl.core.agent.pool:WorkerState", "NONE"],
    ["tuple", "lifl.core.agent.pool:Pool", [1, 2.0]],
    ["struct", "lifl.core.none:Thing", []],
    ["struct", "lifl.core.ids:Nothing", []],
    ["struct", 5, []],
]
DAMAGED = [
    ["what", 1],
    [],
    [5],
    ["dict", [[1]]],
    ["dict", [[["dict", []], 1]]],
    ["list", 5],
    ["raw", "text"],
    ["struct", "lifl.core.ids:Key"],
    ["struct", "lifl.core.protocol.contribution:Contribution", []],
    ["struct", "lifl.core.protocol.contribution:Contribution", 7],
    ["tuple", "lifl.core.ids:Key", [1]],
    ["frozenset", [["dict", []]]],
]


@pytest.mark.parametrize("content", FOREIGN + DAMAGED, ids=repr)
def test_a_file_that_names_what_it_may_not_or_is_damaged_is_refused(content: Any) -> None:
    with pytest.raises(RemoteFault, match="record"):
        snapshot.unpack(msgpack.packb(content))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91", b"\x01\x02", b"\xd9", b"not a record", b"\x91" * 5000])
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteFault, match="the record is damaged"):
        snapshot.unpack(data)


@pytest.mark.parametrize("depth", [100, 300, 500, 5000])
def test_a_record_that_is_nested_deeply_is_read_or_refused(depth: int) -> None:
    data = msgpack.packb(["list", [1]])
    head = data[: data.index(b"\x01")]
    try:
        found = snapshot.unpack(head * depth + b"\x01")
    except RemoteFault:
        assert depth > 100
    else:
        assert isinstance(found, list)


@pytest.mark.parametrize(
    "objects",
    [
        [],
        [("lifl.core.agent.pool:Pool", None)],
        [("lifl.core.protocol.contribution:Contribution", {"client": "c"})],
        [("lifl.core.coordinator.membership:random._os.system", None)],
        [("os:environ", {})],
        [("dict", {1: Ref(7)})],
        [("dict", 5)],
        [("list", 5)],
        [("set", [[1]])],
        [5],
        [("what", {})],
        5,
    ],
    ids=repr,
)
def test_a_copy_that_cannot_be_restored_is_refused(objects: Any) -> None:
    with pytest.raises(RemoteFault, match="record"):
        snapshot.restore(Snapshot(objects))


@given(st.data())
def test_a_record_with_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    pool = Pool(4, 30.0)
    pool.prepare(2)
    packed = bytearray(snapshot.pack(snapshot.take(pool, RecordingStore).objects))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        snapshot.restore(Snapshot(snapshot.unpack(bytes(packed))))
    except RemoteFault:
        pass


def test_an_enum_is_itself_again() -> None:
    class Other(Enum):
        A = 1

    assert snapshot.unpack(snapshot.pack({"s": WorkerState.IDLE}))["s"] is WorkerState.IDLE
    with pytest.raises(RemoteFault, match="which is none of LIFL's decisions"):
        snapshot.unpack(snapshot.pack(Other.A))

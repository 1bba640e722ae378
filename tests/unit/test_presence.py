"""Updates that lack some of a job's tensors, through the tasks of a tree, against a reference in float64."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lifl.core.errors import ConfigError
from lifl.core.ids import Key, Kind, Record
from lifl.core.protocol.contribution import Contribution, absent_bits, pack_contribution, unpack_contributions
from lifl.core.protocol.worker import TaskStart
from lifl.core.schema import DTYPE_BYTES, Layout, TensorSpec
from lifl.rules import kernels
from lifl.rules.kernels import exact, numpy_dtype, weight_of
from lifl.shm.owned_arena import OwnedArena
from lifl.worker.presence import Presence
from lifl.worker.task import OpenTask

TENSORS = (
    TensorSpec("head.w", "float32", (5, 3)),
    TensorSpec("empty", "float32", (0, 2)),
    TensorSpec("lora_a", "float32", (700,)),
    TensorSpec("steps", "int64", (2,)),
    TensorSpec("lora_b", "float32", ()),
    TensorSpec("wide", "float64", (9,)),
    TensorSpec("half", "bfloat16", (11,)),
    TensorSpec("count", "uint8", (6,)),
    TensorSpec("steps2", "int64", (3,)),
    TensorSpec("mask", "bool", (4,)),
    TensorSpec("half2", "bfloat16", (3,)),
)
LAYOUT = Layout(TENSORS)
NAMES = [tensor.name for tensor in TENSORS]
AVERAGED = [tensor.name for tensor in TENSORS if tensor.dtype != "bool" and tensor.size]
META_ROOM = 16 * 1024
PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Values = dict[str, np.ndarray]


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "COMPILED", None)
    else:
        assert kernels.COMPILED is not None


class Bench:
    """An arena and the tasks of one tree, run here."""

    def __init__(self) -> None:
        self.arena = OwnedArena.create(f"/lifl-test-{uuid.uuid4().hex[:12]}", 32 << 20, node=7, entries=512)
        self.keys: list[Key] = []
        self.address = 0

    def alloc(self, kind: Kind, nbytes: int) -> Key:
        key = self.arena.alloc(kind, 1, 1, nbytes, META_ROOM, slab=("t", kind))
        self.arena.data(key)[:] = b"\xff" * nbytes  # NaN: what recycled memory may hold
        self.keys.append(key)
        return key

    def put(self, kind: Kind, values: Values, member: Contribution | None = None) -> Key:
        key = self.alloc(kind, LAYOUT.data_bytes)
        data = self.arena.data(key)
        for tensor, offset in zip(LAYOUT.tensors, LAYOUT.offsets, strict=True):
            raw = values[tensor.name].astype(numpy_dtype(tensor.dtype)).tobytes()
            data[offset : offset + len(raw)] = raw
        meta = pack_contribution(member) if member is not None else b""
        self.arena.seal(key, member.weight if member is not None else 0.0, int(member is not None), meta)
        return key

    def task(self, role: str, inputs: list[Key], rule: str, batches: int = 1, **more: object) -> Key:
        """The output of one task, which gets its inputs in so many batches."""
        self.address += 1
        top = role == "top"
        output = self.alloc(Kind.MODEL if top else Kind.PARTIAL, LAYOUT.data_bytes if top else LAYOUT.accumulator_bytes)
        segments, accumulators = LAYOUT.segments, LAYOUT.accumulators
        what = (role, "j", 1, rule, {}, "", True, len(inputs), 0, output.pack())
        how = (segments if role == "leaf" else accumulators, segments if top else accumulators, segments)
        treated = more.pop("treated", ())
        start = TaskStart(self.address, 1, *what, *how, treated=treated, places=LAYOUT.places, **more)  # type: ignore[arg-type]
        task = OpenTask(start, self.arena)
        done = None
        step = -(-len(inputs) // batches)
        for begin in range(0, len(inputs), step):
            for key in inputs[begin : begin + step]:
                task.add(Record(self.address, key, 1))
            done = task.advance()
            if done is None and begin + step < len(inputs) and not top:
                task._take(fold=True)  # as if more had come than a batch takes
        assert done is not None
        return output

    def read(self, key: Key) -> Values:
        data = bytes(self.arena.data(key))
        return {
            t.name: np.frombuffer(data, numpy_dtype(t.dtype), t.size, offset).reshape(t.shape)
            for t, offset in zip(LAYOUT.tensors, LAYOUT.offsets, strict=True)
        }

    def clear(self) -> None:
        for key in self.keys:
            self.arena.free(key)
        self.keys = []


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.arena.close(unlink=True)


def fixed_mask() -> tuple[object, ...]:
    from lifl.core.config.aggregation import AggregationSection
    from lifl.core.planning.treatment import treated

    return treated(LAYOUT, AggregationSection())


def member_of(client: int, weight: float, there: set[str]) -> Contribution:
    absent = absent_bits(NAMES, there) if len(there) < len(NAMES) else msgspec.UNSET
    return Contribution(f"c{client}", weight, {}, absent)


def tree(bench: Bench, updates: list[Key], fan_in: int, batches: int, rule: str, **more: object) -> Key:
    """The new model of a tree of leaves, middles of two, and a top that takes the last update itself."""
    leaves, last = updates[:-1], updates[-1:]
    partials = [
        bench.task("leaf", leaves[begin : begin + fan_in], rule, batches) for begin in range(0, len(leaves), fan_in)
    ]
    while len(partials) > 3:
        middles = [partials[begin : begin + 2] for begin in range(0, len(partials), 2)]
        partials = [bench.task("middle", each, rule, batches) if len(each) > 1 else each[0] for each in middles]
    return bench.task("top", [*partials, *last], rule, treated=fixed_mask(), **more)


def reference(name: str, model: Values, updates: list[tuple[Values, float, set[str]]]) -> tuple[np.ndarray, bool]:
    """The mean over those that have the tensor, and whether there are any: exactly, by fractions."""
    rows = [(values[name], Fraction(weight)) for values, weight, there in updates if name in there]
    if not rows:
        return model[name], False
    whole = sum(weight for _, weight in rows)
    flat = [row.reshape(-1) for row, _ in rows]
    mean = [
        float(sum(Fraction(f[i].item()) * w for f, (_, w) in zip(flat, rows, strict=True)) / whole)
        for i in range(flat[0].size)
    ]
    return np.array(mean).reshape(rows[0][0].shape), True


def values_of(random: np.random.Generator, nan: set[str] = frozenset()) -> Values:  # type: ignore[assignment]
    made: Values = {}
    for tensor in TENSORS:
        dtype = numpy_dtype(tensor.dtype)
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            made[tensor.name] = random.integers(info.min, info.max, tensor.shape, dtype, endpoint=True)
        elif dtype.kind == "b":
            made[tensor.name] = random.integers(0, 2, tensor.shape).astype(bool)
        else:
            made[tensor.name] = np.asarray(random.normal(0, 1, tensor.shape)).astype(dtype)
        if tensor.name in nan:
            made[tensor.name] = np.full_like(made[tensor.name], np.nan if dtype.kind not in "iub" else 1)
    return made


SUBSETS = st.lists(st.sampled_from(NAMES), unique=True, max_size=len(NAMES)).map(set)


@PROPERTY
@given(
    seed=st.integers(0, 2**32 - 1),
    lacking=st.lists(SUBSETS, min_size=1, max_size=9),
    weights=st.lists(st.floats(1e-3, 1e3) | st.integers(1, 10_000).map(float), min_size=9, max_size=9),
    fan_in=st.integers(1, 4),
    batches=st.integers(1, 3),
)
def test_each_tensor_is_the_mean_of_those_that_have_it(
    bench: Bench, seed: int, lacking: list[set[str]], weights: list[float], fan_in: int, batches: int
) -> None:
    """What is absent has NaN in its place: it is not read."""
    random = np.random.default_rng(seed)
    model = values_of(random)
    updates = [
        (values_of(random, nan=absent), weight, set(NAMES) - absent)
        for absent, weight in zip(lacking, weights, strict=False)
    ]
    keys = [
        bench.put(Kind.UPDATE, values, member_of(client, weight, there))
        for client, (values, weight, there) in enumerate(updates)
    ]
    start = bench.put(Kind.MODEL, model)
    made = bench.read(tree(bench, keys, fan_in, batches, "fedavg", model=start.pack()))
    bench.clear()
    np.testing.assert_array_equal(made["mask"], model["mask"])
    for name in AVERAGED:
        wanted, sent = reference(name, model, updates)
        if not sent:
            np.testing.assert_array_equal(made[name], model[name], err_msg=name)
        elif made[name].dtype.kind in "iu":
            near = np.array([round(Fraction(x)) for x in wanted.reshape(-1)], object).reshape(wanted.shape)
            slack = np.abs(near).astype(float) * 2.0**-52 + 1  # the reference is a float64, the sum is exact
            assert (np.abs(made[name].astype(object) - near) <= slack).all(), name
        else:
            step = float(ml_dtypes.finfo(made[name].dtype).eps)
            np.testing.assert_allclose(made[name].astype(float), wanted, rtol=step, atol=1e-15, err_msg=name)


@PROPERTY
@given(
    seed=st.integers(0, 2**32 - 1),
    lacking=st.lists(SUBSETS, min_size=1, max_size=9),
    weights=st.lists(st.floats(1e-300, 1e300) | st.sampled_from([1.0, 3.0, 0.1]), min_size=9, max_size=9),
    fan_in=st.integers(1, 4),
    batches=st.integers(1, 3),
)
def test_equal_updates_give_exactly_that_value_whoever_lacks_what(
    bench: Bench, seed: int, lacking: list[set[str]], weights: list[float], fan_in: int, batches: int
) -> None:
    random = np.random.default_rng(seed)
    model, value = values_of(random), values_of(random)
    keys = [
        bench.put(Kind.UPDATE, value, member_of(client, weight, set(NAMES) - absent))
        for client, (absent, weight) in enumerate(zip(lacking, weights, strict=False))
    ]
    made = bench.read(tree(bench, keys, fan_in, batches, "fedavg", model=bench.put(Kind.MODEL, model).pack()))
    bench.clear()
    for name in AVERAGED:
        sent = any(name not in absent for absent in lacking)
        np.testing.assert_array_equal(made[name], (value if sent else model)[name], err_msg=name)


def test_a_server_optimiser_does_not_step_what_nobody_has_sent(bench: Bench) -> None:
    random = np.random.default_rng(3)
    model, first, second = values_of(random), values_of(random), values_of(random)
    there = {"head.w", "wide", "half"}
    keys = [bench.put(Kind.UPDATE, each, member_of(client, 1.0, there)) for client, each in enumerate([first, second])]
    states, new = {}, {}
    for name, value in (("momentum", 0.25), ("second_moment", 0.5)):
        states[name], new[name] = (bench.alloc(Kind.STATE, LAYOUT.state_bytes) for _ in range(2))
        for segment in LAYOUT.states:
            kernels.vector(bench.arena.data(states[name]), segment)[:] = value
        bench.arena.seal(states[name], 0.0, 0)
    more = {
        "model": bench.put(Kind.MODEL, model).pack(),
        "states": {name: key.pack() for name, key in states.items()},
        "new_states": {name: key.pack() for name, key in new.items()},
    }
    made = bench.read(tree(bench, keys, 1, 1, "fedadam", **more))
    for tensor, place in zip(TENSORS, LAYOUT.places, strict=True):
        if tensor.name not in AVERAGED or tensor.dtype.startswith(("int", "uint")):
            continue
        same = (made[tensor.name] == model[tensor.name]).all()
        assert same == (tensor.name not in there), tensor.name
        for name, value in (("momentum", 0.25), ("second_moment", 0.5)):
            state = kernels.vector(bench.arena.data(new[name]), LAYOUT.states[place.segment])
            run = state[place.begin : place.begin + place.count]
            assert (run == value).all() == (tensor.name not in there), (tensor.name, name)
    bench.clear()


OWN = """
from lifl.rules import Rule


class Own(Rule):
    def fold(self, acc, updates, weights, keep):
        pass
"""


def test_a_rule_with_a_fold_of_its_own_is_refused(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    what = ("leaf", "j", 1, "own:Own", {}, str(tmp_path), True, 1, 0, bytes(16), (), ())
    with pytest.raises(ConfigError, match=r"job\.trainable: rule own:Own has a `fold` of its own"):
        OpenTask(TaskStart(1, 1, *what, places=LAYOUT.places), bench.arena)  # type: ignore[arg-type]


def test_places_and_runs() -> None:
    presence = Presence(LAYOUT.places)
    for tensor, offset, place in zip(LAYOUT.tensors, LAYOUT.offsets, LAYOUT.places, strict=True):
        if tensor.size:
            segment = LAYOUT.segments[place.segment]
            assert segment.dtype == tensor.dtype
            assert segment.offset + place.begin * DTYPE_BYTES[tensor.dtype] == offset
        assert place.count == tensor.size
    whole = presence.units_of([Contribution("a", 2.0), Contribution("b", 0.5)])
    assert set(whole) == {exact(2.5)}
    part = presence.units_of([member_of(1, 4.0, {"lora_a"}), member_of(2, 1.0, set(NAMES))])
    assert [float(weight_of(units)) for units in part] == [5.0 if name == "lora_a" else 1.0 for name in NAMES]
    floats = next(index for index, segment in enumerate(LAYOUT.segments) if segment.dtype == "float32")
    every = list(presence.runs(floats, slice(0, 716), [whole]))
    assert every == [(slice(0, 716), [2.5])]
    assert list(presence.runs(floats, slice(0, 716), [whole, part])) == [
        (slice(0, 15), [2.5, 1.0]),
        (slice(15, 715), [2.5, 5.0]),
        (slice(715, 716), [2.5, 1.0]),
    ]
    assert list(presence.runs(floats, slice(20, 40), [part])) == [(slice(20, 40), [5.0])]
    assert list(presence.runs(floats, slice(10, 16), [part])) == [(slice(10, 15), [1.0]), (slice(15, 16), [5.0])]


def test_what_an_update_lacks_is_kept_with_its_contribution_and_no_other_is_longer() -> None:
    plain = Contribution("c", 1.0, {"loss": 0.5})
    assert b"absent" not in pack_contribution(plain)
    lacking = msgspec.structs.replace(plain, absent=b"\x05\x00")
    assert unpack_contributions(pack_contribution(plain) + pack_contribution(lacking)) == [plain, lacking]
    assert absent_bits(["a", "b", "c"], {"b"}) == b"\x05"
    assert absent_bits([f"t{n}" for n in range(9)], {"t0"}) == b"\xfe\x01"
    # Of another node's word that is too short or too long, what is not told is there.
    presence = Presence(LAYOUT.places)
    for absent in (b"\x01", b"\x01\x00\xff\xff\xff\xff"):
        units = presence.units_of([msgspec.structs.replace(plain, absent=absent)])
        assert [bool(each) for each in units] == [False] + [True] * (len(NAMES) - 1)

"""Workers as they run: a real zygote, its forked workers, a real arena, both redirectors."""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from lifl import failpoints
from lifl.core.errors import ResourceFault
from lifl.core.ids import Key, Kind, Record
from lifl.core.limits import SUSPECTS_MAX
from lifl.core.modelfile import CLAIM
from lifl.core.protocol.contribution import Contribution, pack_contribution, unpack_contributions
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.protocol.gateway import Drain
from lifl.core.protocol.worker import (
    Checkpoint,
    Drop,
    Exited,
    Expect,
    Fork,
    Forked,
    FromWorker,
    FromZygote,
    Load,
    Retire,
    TaskDone,
    TaskDropped,
    TaskFailed,
    TaskStart,
    WorkerReady,
    ZygoteReady,
)
from lifl.core.schema import EARLIER_PARTIAL, NARROW_PARTIAL, Layout, TensorSpec, align, end_of, relaid
from lifl.redirect import open_redirector
from lifl.rules import integers, kernels
from lifl.rules.kernels import vector
from lifl.shm.checksum import StreamChecksum
from lifl.shm.layout import ObjectState
from lifl.shm.owned_arena import OwnedArena
from lifl.worker import files

WAIT_S = 60.0
REST_S = 0.5
"""Longer than any period with which something could look whether there is work."""
META_ROOM = 8192
TENSORS = (
    TensorSpec("w", "float32", (700, 3)),
    TensorSpec("b", "float16", (33,)),
    TensorSpec("steps", "int64", (1,)),
)
LAYOUT = Layout(TENSORS)
PACKED = LAYOUT.packed


class Channel:
    """A link seen from the daemon: frames out (with descriptors), messages in."""

    def __init__(self, sock: socket.socket, kinds: Any) -> None:
        sock.settimeout(WAIT_S)
        self.sock = sock
        self._decoder: FrameDecoder[Any] = FrameDecoder(kinds)

    def send(self, message: Any, descriptors: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        assert self.sock.sendmsg([encode(message)], rights) > 0

    def take(self, kind: type) -> Any:
        while (message := self._decoder.next_message()) is None:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._decoder.feed(data)
        assert isinstance(message, kind), message
        return message

    def quiet(self) -> bool:
        """Whether nothing is there to read (the peer has had its chance: ask it something first)."""
        return self._decoder.next_message() is None and not select.select([self.sock], [], [], 0)[0]


class Node:
    """What the daemon has: arena, redirector, zygote; and helpers to make objects."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.name = f"/lifl-test-{uuid.uuid4().hex[:12]}"
        self.arena = OwnedArena.create(self.name, 32 * 1024 * 1024, node=7, entries=256)
        self.redirector = open_redirector(kind, folder)
        here, there = socket.socketpair()
        command = [sys.executable, "-m", "lifl.worker.zygote", "--fd", str(there.fileno()), "--arena", self.name]
        self.process = subprocess.Popen(command, pass_fds=[there.fileno()])
        there.close()
        self.zygote = Channel(here, FromZygote)
        assert self.zygote.take(ZygoteReady).pid == self.process.pid
        self.workers = 0
        self.channels: list[Channel] = []

    def fork(self) -> Handle:
        self.workers += 1
        registration = self.redirector.register()
        here, there = socket.socketpair()
        descriptors = [there.fileno(), *registration.descriptors]
        self.zygote.send(Fork(self.workers, registration.port, len(descriptors)), descriptors)
        there.close()
        registration.handed_over()
        pid = self.zygote.take(Forked).pid
        worker = Handle(Channel(here, FromWorker), pid, registration.slot)
        self.channels.append(worker.channel)
        ready = worker.channel.take(WorkerReady)
        assert (ready.worker, ready.pid) == (self.workers, pid)
        return worker

    def close(self) -> None:
        for channel in [self.zygote, *self.channels]:
            channel.sock.close()
        assert self.process.wait(WAIT_S) is not None
        self.redirector.close()
        self.arena.close(unlink=True)

    def alloc(self, kind: Kind, data_bytes: int) -> Key:
        key = self.arena.alloc(kind, 1, 1, data_bytes, META_ROOM, slab=("t", kind))
        self.arena.data(key)[:] = b"\xff" * data_bytes  # NaN: what recycled memory may hold
        return key

    def put(self, number: int, values: dict[str, np.ndarray], weight: float) -> Key:
        """A sealed update of client `number`."""
        key = self.alloc(Kind.UPDATE, LAYOUT.data_bytes)
        data = self.arena.data(key)
        for tensor, offset in zip(LAYOUT.tensors, LAYOUT.offsets, strict=True):
            raw = values[tensor.name].astype(kernels.numpy_dtype(tensor.dtype)).tobytes()
            data[offset : offset + len(raw)] = raw
        data.release()
        self.arena.seal(key, weight, 1, pack_contribution(Contribution(f"c{number}", weight)))
        return key

    def partial(self, layout: Layout = LAYOUT) -> Key:
        return self.alloc(Kind.PARTIAL, layout.accumulator_bytes)

    def model(self) -> Key:
        return self.alloc(Kind.MODEL, LAYOUT.data_bytes)

    def read(self, key: Key) -> dict[str, np.ndarray]:
        data = bytes(self.arena.data(key))
        return {
            t.name: np.frombuffer(data, kernels.numpy_dtype(t.dtype), t.size, offset).reshape(t.shape)
            for t, offset in zip(LAYOUT.tensors, LAYOUT.offsets, strict=True)
        }

    def give(self, address: int, *keys: Key, attempt: int = 1) -> None:
        assert self.redirector.send([Record(address, key, attempt) for key in keys]) == []

    def state(self, key: Key) -> ObjectState:
        return ObjectState(self.arena.entry(key).state)


class Handle:
    """A worker as the daemon has it."""

    def __init__(self, channel: Channel, pid: int, slot: int) -> None:
        self.channel, self.pid, self.slot = channel, pid, slot

    def sync(self) -> None:
        """Returns when the worker has done everything that came before."""
        self.channel.send(Drop(9999, 77))
        assert self.channel.take(TaskDropped).attempt == 77


@pytest.fixture(params=["sockmap", "unix"])
def node(request, tmp_path):
    try:
        made = Node(request.param, tmp_path)
    except ResourceFault as fault:
        pytest.skip(f"NOT TESTED, the {request.param} redirector cannot run on this machine: {fault}")
    yield made
    made.close()


@pytest.fixture
def one(tmp_path):
    made = Node("unix", tmp_path)
    yield made
    made.close()


def task(address: int, role: str, output: Key, expect: int, **more: Any) -> TaskStart:
    inputs = LAYOUT.segments if role == "leaf" else LAYOUT.accumulators
    outputs = LAYOUT.segments if role == "top" else LAYOUT.accumulators
    settings: dict[str, Any] = {
        "attempt": 1,
        "rule": "fedavg",
        "options": {},
        "rule_folder": "",
        "eager": True,
        "parent": 0,
        "inputs": inputs,
        "outputs": outputs,
        "model_segments": LAYOUT.segments,
    }
    settings |= more
    return TaskStart(address=address, role=role, job="j", round=1, expect=expect, output=output.pack(), **settings)


def start(node: Node, worker: Handle, message: TaskStart) -> None:
    worker.channel.send(message)
    node.redirector.route(message.address, worker.slot)


def update(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"w": rng.normal(size=(700, 3)), "b": rng.normal(size=33), "steps": rng.integers(0, 1000, 1)}


def mean_of(updates: list[dict[str, np.ndarray]], weights: list[float]) -> dict[str, np.ndarray]:
    whole = sum(weights)
    mean = {n: sum(w * u[n] for w, u in zip(weights, updates, strict=True)) / whole for n in updates[0]}
    return mean | {"steps": np.rint(mean["steps"])}


def check(read: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(read["w"], expected["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(read["b"].astype(float), expected["b"], rtol=2e-3, atol=2e-3)
    assert read["steps"] == expected["steps"]


@pytest.mark.parametrize("eager", [True, False])
def test_a_tree_of_real_processes(node: Node, eager: bool) -> None:
    rng = np.random.default_rng(2)
    updates = [update(rng) for _ in range(8)]
    weights = [float(w) for w in rng.integers(1, 500, 8)]
    leaves = [node.fork() for _ in range(3)]
    middle, top = node.fork(), node.fork()
    model, new_model = node.put(99, update(rng), 1.0), node.model()
    middle_output = node.partial()
    top_start = task(1, "top", new_model, 2, model=model.pack())
    start(node, top, top_start)
    start(node, middle, task(2, "middle", middle_output, 2, parent=1))
    shares = [(3, range(3), 2), (4, range(3, 6), 2), (5, range(6, 8), 1)]
    for worker, (address, share, parent) in zip(leaves, shares, strict=True):
        start(node, worker, task(address, "leaf", node.partial(), len(share), parent=parent, eager=eager))
    keys = [node.put(i, u, w) for i, (u, w) in enumerate(zip(updates, weights, strict=True))]
    for address, share, _parent in shares:
        for i in share:
            node.give(address, keys[i])
    for worker, (_address, share, _parent) in zip(leaves, shares, strict=True):
        done = worker.channel.take(TaskDone)
        assert (done.inputs, done.members, done.weight) == (len(share), len(share), sum(weights[i] for i in share))
        assert 0 <= done.cpu_s <= done.busy_s + 0.1
    assert middle.channel.take(TaskDone).members == 6
    done = top.channel.take(TaskDone)
    assert (done.address, done.inputs, done.members, done.weight) == (1, 2, 8, sum(weights))
    check(node.read(new_model), mean_of(updates, weights))
    members = unpack_contributions(node.arena.meta(new_model))
    assert sorted((m.client, m.weight) for m in members) == [(f"c{i}", w) for i, w in enumerate(weights)]
    gap = LAYOUT.segments[0].offset + LAYOUT.segments[0].count * 4
    assert bytes(node.arena.data(new_model)[gap : LAYOUT.segments[1].offset]).strip(b"\0") == b""


def test_a_model_is_rounded_once_whatever_the_batches_of_its_tasks(one: Node) -> None:
    """To half an ulp of the mean itself, though nearly all of it cancels."""
    rng = np.random.default_rng(8)
    worker, updates, weights = one.fork(), [], [float(w) for w in rng.uniform(1, 1000, 60)]
    for index in range(60):
        made = {"w": np.float32(rng.normal(size=(700, 3))), "b": np.float16(rng.normal(size=33)), "steps": np.ones(1)}
        updates.append(made | ({n: -updates[-1][n] for n in ("w", "b")} if index % 2 else {}))
    keys = [one.put(i, u, w) for i, (u, w) in enumerate(zip(updates, weights, strict=True))]
    model = one.model()
    start(one, worker, task(1, "top", model, 5, model=keys[0].pack()))
    start(one, worker, task(2, "middle", one.partial(), 2, parent=1))
    for address, expect in ((3, 32), (4, 28)):
        start(one, worker, task(address, "leaf", one.partial(), expect, parent=2))
    one.give(1, *[one.put(60 + i, updates[i], 1.0) for i in range(4)])
    for address, begin, end in ((3, 0, 32), (4, 32, 60)):
        for batch in range(begin, end, 4):  # a leaf folds what is there when its worker looks
            one.give(address, *keys[batch : min(batch + 4, end)])
            if batch + 4 < end:
                worker.sync()
        assert worker.channel.take(TaskDone).inputs == end - begin
    assert [worker.channel.take(TaskDone).inputs for _ in range(2)] == [2, 5]
    shares = np.array([*weights, 1.0, 1.0, 1.0, 1.0]) / (sum(weights) + 4.0)
    for name, bits, least in (("w", 23, -149), ("b", 10, -24)):
        exact = sum(s * u[name].astype(np.float64) for s, u in zip(shares, [*updates, *updates[:4]], strict=True))
        ulp = 2.0 ** np.maximum(np.frexp(exact)[1] - 1 - bits, least)
        assert (np.abs(one.read(model)[name].astype(np.float64) - exact) / ulp).max() <= 0.501


def test_the_largest_integers_are_right_though_no_float64_is_what_a_partial_weighs(one: Node) -> None:
    """Tasks take the weight of a partial from its members."""
    worker, rng = one.fork(), np.random.default_rng(9)
    weights = [1 / 3, 0.1, 1e-9, 2.0**53 - 1, 0.7, 123.4, 1e-300, 3e15]
    values = [2**63 - 1, 2**63 - 2, 2**63 - 1, 2**63 - 5, -(2**63), -(2**63), 1 - 2**63, -(2**63)]
    updates = [update(rng) | {"steps": np.array([value])} for value in values]
    keys = [one.put(i, u, w) for i, (u, w) in enumerate(zip(updates, weights, strict=True))]
    model = one.model()
    start(one, worker, task(1, "top", model, 2, model=keys[0].pack()))
    start(one, worker, task(2, "middle", one.partial(), 2, parent=1))
    for address, parent in ((3, 2), (4, 2), (5, 1)):
        start(one, worker, task(address, "leaf", one.partial(), 2 if parent == 2 else 4, parent=parent))
    for address, some in ((3, keys[:2]), (4, keys[4:6]), (5, [*keys[2:4], *keys[6:]])):
        one.give(address, *some)
    for _ in range(5):
        worker.channel.take(TaskDone)
    exact = sum(Fraction(w) * x for w, x in zip(weights, values, strict=True)) / sum(map(Fraction, weights))
    assert abs(int(one.read(model)["steps"][0]) - exact) <= Fraction(1, 2) + Fraction(1, 2**40)


def test_duplicates_foreign_attempts_and_unknown_addresses_change_nothing(node: Node) -> None:
    rng = np.random.default_rng(3)
    updates = [update(rng) for _ in range(3)]
    worker = node.fork()
    output = node.partial()
    start(node, worker, task(7, "leaf", output, 3))
    keys = [node.put(i, u, 2.0) for i, u in enumerate(updates)]
    node.redirector.route(8, worker.slot)
    node.give(7, keys[0], keys[0])
    node.give(7, keys[2], attempt=2)
    node.give(8, keys[1])
    node.give(7, keys[0], keys[1], keys[1])
    worker.sync()
    assert worker.channel.quiet()
    assert node.state(output) == ObjectState.WRITING
    node.give(7, keys[2])
    done = worker.channel.take(TaskDone)
    assert (done.inputs, done.members, done.weight) == (3, 3, 6.0)
    node.give(7, keys[0])  # its task is over
    worker.sync()
    segment = LAYOUT.accumulators[0]
    vector_sum = vector(node.arena.data(output), segment) * 6.0
    np.testing.assert_allclose(vector_sum, sum(2 * u["w"].ravel() for u in updates), rtol=1e-4, atol=1e-5)


def test_several_tasks_at_once_and_expect_that_is_lowered(one: Node) -> None:
    rng = np.random.default_rng(4)
    worker = one.fork()
    outputs = [one.partial() for _ in range(3)]
    for number, output in enumerate(outputs):
        start(one, worker, task(20 + number, "leaf", output, 5, eager=number != 1))
    keys = [one.put(i, update(rng), 1.0 + i) for i in range(6)]
    for i, key in enumerate(keys):
        one.give(20 + i % 3, key)
    worker.sync()
    assert worker.channel.quiet()
    worker.channel.send(Expect(21, 2, 2))  # another attempt's
    worker.channel.send(Expect(21, 1, 2))
    assert worker.channel.take(TaskDone).address == 21
    worker.channel.send(Expect(22, 1, 3))  # comes before its third input
    worker.sync()
    one.give(22, one.put(9, update(rng), 1.0))
    assert worker.channel.take(TaskDone).inputs == 3
    worker.channel.send(Drop(20, 1))
    assert worker.channel.take(TaskDropped).address == 20
    assert [one.state(output) for output in outputs] == [ObjectState.WRITING, ObjectState.SEALED, ObjectState.SEALED]
    worker.channel.send(Retire())
    assert one.zygote.take(Exited).status == 0


def test_a_killed_worker_leaves_its_inputs_and_its_output_can_be_made_again(node: Node) -> None:
    rng = np.random.default_rng(5)
    updates = [update(rng) for _ in range(2)]
    keys = [node.put(i, u, 1.0) for i, u in enumerate(updates)]
    worker = node.fork()
    output = node.partial()
    start(node, worker, task(3, "leaf", output, 2))
    node.give(3, keys[0])
    worker.sync()
    os.kill(worker.pid, signal.SIGKILL)
    exited = node.zygote.take(Exited)
    assert (exited.pid, os.WTERMSIG(exited.status)) == (worker.pid, signal.SIGKILL)
    with pytest.raises((EOFError, ConnectionResetError)):
        worker.channel.take(TaskDone)
    assert [node.state(key) for key in keys] == [ObjectState.SEALED] * 2
    assert node.state(output) == ObjectState.WRITING
    node.redirector.retire(worker.slot)
    node.arena.free(output)

    other = node.fork()
    leaf_output, new_model = node.partial(), node.model()
    start(node, other, task(3, "leaf", leaf_output, 2, attempt=2, parent=4))
    start(node, other, task(4, "top", new_model, 1, model=keys[0].pack()))
    node.give(3, *keys, attempt=2)
    assert [other.channel.take(TaskDone).address for _ in range(2)] == [3, 4]
    check(node.read(new_model), mean_of(updates, [1.0, 1.0]))


USERS_RULES = """
from lifl.rules import Rule

class Fails(Rule):
    def finish(self, model, mean, state):
        return model + undefined_name

class Doubles(Rule):
    states = ("rounds",)
    def initial(self, name):
        return 5.0
    def finish(self, model, mean, state):
        state["rounds"] += 1
        return mean * 2
"""


def run_leaf_and_top(node: Node, worker: Handle, **more: Any) -> tuple[Any, Key, list[dict]]:
    rng = np.random.default_rng(6)
    updates = [update(rng) for _ in range(2)]
    keys = [node.put(i, u, 1.0) for i, u in enumerate(updates)]
    new_model = node.model()
    start(node, worker, task(3, "leaf", node.partial(), 2, parent=4))
    start(node, worker, task(4, "top", new_model, 1, model=keys[0].pack(), **more))
    node.give(3, *keys)
    assert worker.channel.take(TaskDone).address == 3
    return worker.channel.take(TaskDone | TaskFailed), new_model, updates


def test_a_users_rule_that_raises_fails_its_task_and_nothing_else(one: Node, tmp_path: Path) -> None:
    (tmp_path / "users_rules.py").write_text(USERS_RULES)
    worker = one.fork()
    settings = {"rule_folder": str(tmp_path)}
    failed, model, _ = run_leaf_and_top(one, worker, rule="users_rules:Fails", **settings)
    assert isinstance(failed, TaskFailed)
    assert "NameError" in failed.text
    assert "users_rules.py:6 in finish" in failed.text
    assert not failed.retry
    assert one.state(model) == ObjectState.WRITING
    worker.channel.send(task(5, "top", model, 1, rule="users_rules:Doubled", **settings))
    assert "did you mean 'Doubles'" in worker.channel.take(TaskFailed).text
    done, model, updates = run_leaf_and_top(one, worker)
    assert isinstance(done, TaskDone)
    check(one.read(model), mean_of(updates, [1.0, 1.0]))


def test_states_are_carried_from_round_to_round(one: Node, tmp_path: Path) -> None:
    (tmp_path / "users_rules.py").write_text(USERS_RULES)
    worker = one.fork()
    old: dict[str, bytes] = {}
    for round_number in (1, 2):
        new = {"rounds": one.alloc(Kind.STATE, LAYOUT.state_bytes).pack()}
        done, model, updates = run_leaf_and_top(
            one,
            worker,
            rule="users_rules:Doubles",
            rule_folder=str(tmp_path),
            states=old,
            new_states=new,
        )
        assert isinstance(done, TaskDone)
        old = new
        data = one.arena.data(Key.unpack(new["rounds"]))
        by_dtype = dict(zip([s.dtype for s in LAYOUT.segments], LAYOUT.states, strict=True))
        assert (vector(data, by_dtype["float32"]) == 5.0 + round_number).all()
        assert (vector(data, by_dtype["float16"]) == 5.0 + round_number).all()
        assert (vector(data, by_dtype["int64"]) == 0.0).all()
        expected = mean_of(updates, [1.0, 1.0])
        doubled = {n: v if n == "steps" else 2 * v for n, v in expected.items()}
        check(one.read(model), doubled)


@pytest.mark.parametrize("way", ["update", "partial"])
def test_a_number_that_a_rule_cannot_compute_is_worth_a_retry_and_named(one: Node, way: str) -> None:
    worker, rng = one.fork(), np.random.default_rng(6)
    updates = [update(rng) for _ in range(3)]
    updates[2]["w"][3, 1] = 1e25  # its square is no float32
    keys = [one.put(i, u, 1.0) for i, u in enumerate(updates)]
    new = {name: one.alloc(Kind.STATE, LAYOUT.state_bytes).pack() for name in ("momentum", "second_moment")}
    order = {"rule": "fedadam", "new_states": new, "model": keys[0].pack()}
    if way == "update":
        start(one, worker, task(4, "top", one.model(), 3, **order))
        one.give(4, *keys)
        said = "1e+25, is of c2"
    else:
        start(one, worker, task(3, "leaf", one.partial(), 2, parent=4))
        start(one, worker, task(4, "top", one.model(), 2, **order))
        one.give(3, *keys[1:])
        one.give(4, keys[0])
        assert worker.channel.take(TaskDone).address == 3
        said = "5e+24, is of one of c1, c2"
    failed = worker.channel.take(TaskFailed)
    assert failed.retry and (failed.dtype, failed.element) == ("float32", 3 * 3 + 1)
    assert "'second_moment' of FedAdam is not finite" in failed.text and said in failed.text


@pytest.mark.parametrize("clients", [SUSPECTS_MAX, SUSPECTS_MAX + 1])
def test_of_many_that_may_be_why_none_is_named(one: Node, clients: int) -> None:
    """The inputs of the top are one client, and a partial of so many, in which the number is."""
    worker, rng = one.fork(), np.random.default_rng(6)
    updates = [update(rng) for _ in range(2)]
    updates[1]["w"][3, 1] = 1e25
    partial = one.partial()
    keys = [one.put(0, updates[0], 1.0), one.put(1, updates[1], 1.0)]
    start(one, worker, task(3, "leaf", partial, 1))
    one.give(3, keys[1])
    assert worker.channel.take(TaskDone).address == 3
    folded = one.partial()
    with memoryview(one.arena.data(folded)) as copy, memoryview(one.arena.data(partial)) as made:
        copy[:] = made
    members = b"".join(pack_contribution(Contribution(f"c{number}", 1.0)) for number in range(1, clients + 1))
    one.arena.seal(folded, float(clients), clients, members)
    new = {name: one.alloc(Kind.STATE, LAYOUT.state_bytes).pack() for name in ("momentum", "second_moment")}
    order = {"rule": "fedadam", "new_states": new, "model": keys[0].pack()}
    start(one, worker, task(4, "top", one.model(), 2, **order))
    one.give(4, keys[0], folded)
    failed = worker.channel.take(TaskFailed)
    named = tuple(f"c{number}" for number in range(1, clients + 1))
    assert failed.suspects == (named if clients <= SUSPECTS_MAX else ())


@pytest.mark.parametrize("role", ["top", "middle"])
@pytest.mark.parametrize("kind", [Kind.EARLIER_PARTIAL, Kind.NARROW_PARTIAL])
def test_a_partial_of_an_earlier_version_counts_as_what_it_is(one: Node, role: str, kind: Kind) -> None:
    """A restarted node goes on from what it had sealed before the upgrade."""
    worker, rng = one.fork(), np.random.default_rng(7)
    updates, weights = [update(rng) for _ in range(3)], [3.0, 5.0, 11.0]
    segments = relaid(LAYOUT.segments, EARLIER_PARTIAL if kind is Kind.EARLIER_PARTIAL else NARROW_PARTIAL)
    earlier = one.alloc(kind, align(end_of(segments)))
    data = one.arena.data(earlier)
    sums = {t.name: sum(w * u[t.name].ravel() for w, u in zip(weights[:2], updates, strict=False)) for t in TENSORS}
    for source, segment in zip(LAYOUT.segments, segments, strict=True):
        whole = np.concatenate([sums[t.name] for t in TENSORS if t.dtype == source.dtype])
        if kind is Kind.EARLIER_PARTIAL:  # sums, scaled by a power of two
            vector(data, segment)[:] = whole * 2.0 ** -kernels.exponent(8.0)
        elif segment.dtype == "float32":  # means; sums of integers as today
            vector(data, segment)[:] = whole / 8.0
        else:
            exact = sum(int(w) * int(u["steps"][0]) for w, u in zip(weights[:2], updates, strict=False))
            integers.put(vector(data, segment), np.array([exact << (integers.BITS["int128"] - 4)], object))  # 8 < 2^4
    del data
    one.arena.seal(earlier, 8.0, 2)
    last = one.put(2, updates[2], weights[2])
    model = one.model()
    if role == "top":
        start(one, worker, task(4, "top", model, 2, model=last.pack()))
        one.give(4, earlier, last)
    else:
        start(one, worker, task(3, "leaf", one.partial(), 1, parent=5))
        start(one, worker, task(5, "middle", one.partial(), 2, parent=4))
        start(one, worker, task(4, "top", model, 1, model=last.pack()))
        one.give(3, last)
        one.give(5, earlier)
        assert {worker.channel.take(TaskDone).address for _ in range(2)} == {3, 5}
    assert worker.channel.take(TaskDone).weight == 19.0
    check(one.read(model), mean_of(updates, weights))


def test_an_input_that_is_gone_is_worth_a_retry(one: Node) -> None:
    worker = one.fork()
    start(one, worker, task(3, "leaf", one.partial(), 1))
    key = one.put(1, update(np.random.default_rng(1)), 1.0)
    one.arena.free(key)
    one.give(3, key)
    failed = worker.channel.take(TaskFailed)
    assert failed.retry
    assert "stale" in failed.text


def test_an_input_of_another_size_is_refused(one: Node) -> None:
    worker = one.fork()
    start(one, worker, task(3, "leaf", one.partial(), 1))
    key = one.alloc(Kind.UPDATE, 64)
    one.arena.seal(key, 1.0, 1)
    one.give(3, key)
    assert "no sealed input" in worker.channel.take(TaskFailed).text


def test_checkpoint_and_load(one: Node, tmp_path: Path) -> None:
    worker = one.fork()
    values = update(np.random.default_rng(8))
    model = one.put(1, values, 1.0)
    state = one.alloc(Kind.STATE, LAYOUT.state_bytes)
    np.frombuffer(one.arena.data(state), np.uint8)[:] = 0
    one.arena.seal(state, 1.0, 1)
    path, state_path = tmp_path / "new" / "round-00003.safetensors", tmp_path / "new" / "r.state.safetensors"
    order = Checkpoint(
        address=0,
        attempt=3,
        job="j",
        round=3,
        path=str(path),
        tensors=PACKED,
        model=model.pack(),
        state_path=str(state_path),
        states={"momentum": state.pack()},
    )
    worker.channel.send(order)
    assert worker.channel.take(TaskDone).attempt == 3
    assert sorted(p.name for p in path.parent.iterdir()) == ["r.state.safetensors", "round-00003.safetensors"]
    read = safetensors.numpy.load_file(path)
    assert {n: str(v.dtype) for n, v in read.items()} == {t.name: t.dtype for t in TENSORS}
    np.testing.assert_array_equal(read["w"], values["w"].astype(np.float32))
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.metadata()["lifl.round"] == "3"
    assert sorted(safetensors.numpy.load_file(state_path)) == ["momentum/b", "momentum/w"]

    output, loaded_state = one.model(), one.alloc(Kind.STATE, LAYOUT.state_bytes)
    load = Load(0, 4, "j", str(path), PACKED, output.pack(), str(state_path), {"momentum": loaded_state.pack()})
    worker.channel.send(load)
    worker.channel.take(TaskDone)
    assert one.state(output) == one.state(loaded_state) == ObjectState.SEALED
    assert bytes(one.arena.data(loaded_state)).strip(b"\0") == b""
    for name, value in one.read(output).items():
        np.testing.assert_array_equal(value, read[name])


def test_files_that_cannot_be_written_or_read_fail_only_their_task(one: Node, tmp_path: Path) -> None:
    worker = one.fork()
    model = one.put(1, update(np.random.default_rng(8)), 1.0)
    (tmp_path / "file").write_text("not a folder")
    worker.channel.send(Checkpoint(0, 1, "j", 1, str(tmp_path / "file" / "x"), PACKED, model.pack()))
    assert "file" in worker.channel.take(TaskFailed).text
    worker.channel.send(Load(0, 2, "j", str(tmp_path / "missing"), PACKED, one.model().pack()))
    assert "missing" in worker.channel.take(TaskFailed).text
    (tmp_path / "garbage").write_bytes(b"garbage that is long enough")
    worker.channel.send(Load(0, 2, "j", str(tmp_path / "garbage"), PACKED, one.model().pack()))
    assert "no usable safetensors file" in worker.channel.take(TaskFailed).text
    nan = {"w": np.full((700, 3), np.nan, np.float32), "b": np.zeros(33, np.float16), "steps": np.zeros(1, np.int64)}
    safetensors.numpy.save_file(nan, tmp_path / "nan")
    output = one.model()
    worker.channel.send(Load(0, 2, "j", str(tmp_path / "nan"), PACKED, output.pack()))
    assert "NaN" in worker.channel.take(TaskFailed).text
    assert one.state(output) == ObjectState.WRITING
    worker.sync()


def checkpoint_of(one: Node, path: Path, number: int = 7, round_: int = 3) -> Checkpoint:
    model = one.put(1, update(np.random.default_rng(8)), 1.0)
    return Checkpoint(0, 1, "j", round_, str(path), PACKED, model.pack(), number=number, epoch=round_ << 8 | 1)


def test_a_checkpoint_says_whose_it_is_and_is_loaded_as_no_other(one: Node, tmp_path: Path) -> None:
    worker, path = one.fork(), tmp_path / "model"
    worker.channel.send(checkpoint_of(one, path))
    (digest,) = worker.channel.take(TaskDone).digests
    with safetensors.safe_open(path, "numpy") as opened:
        said = opened.metadata()
    assert {name: said[name] for name in ("lifl.job", "lifl.number", "lifl.round", "lifl.epoch")} == {
        "lifl.job": "j",
        "lifl.number": "7",
        "lifl.round": "3",
        "lifl.epoch": str(3 << 8 | 1),
    }
    wrong = [("k", 7, 3), ("j", 8, 3), ("j", 7, 4)]
    for job, number, round_ in wrong:
        load = Load(0, 2, job, str(path), PACKED, one.model().pack(), number=number, round=round_, digests=(digest,))
        worker.channel.send(load)
        failed = worker.channel.take(TaskFailed)
        assert f"is not the checkpoint of round {round_}" in failed.text and not failed.retry
    for own, digests in ((3, (digest,)), (3, ()), (None, ())):
        output = one.model()
        load = Load(0, 3, "j", str(path), PACKED, output.pack(), number=7, round=own, digests=digests)
        worker.channel.send(load)
        worker.channel.take(TaskDone)
        assert one.state(output) == ObjectState.SEALED


def test_a_checkpoint_that_another_node_wrote_is_loaded_by_the_digest_of_its_row_alone(
    one: Node, tmp_path: Path
) -> None:
    """Another node coordinated then; without a digest it may be another job's of the same name and number."""
    worker, path = one.fork(), tmp_path / "model"
    worker.channel.send(checkpoint_of(one, path))
    worker.channel.take(TaskDone)
    header = path.read_bytes()
    own = f"{one.arena.node:016x}".encode()
    assert header.count(own) == 1
    path.write_bytes(header.replace(own, b"0123456789abcdef"))
    digest = StreamChecksum()
    digest.update(path.read_bytes())
    known = f"{digest.finish():016x}"
    for digests, taken in (((known,), True), ((), False)):
        output = one.model()
        worker.channel.send(Load(0, 2, "j", str(path), PACKED, output.pack(), number=7, round=3, digests=digests))
        if taken:
            worker.channel.take(TaskDone)
        else:
            assert "lifl.node 0123456789abcdef" in worker.channel.take(TaskFailed).text


def test_a_copy_is_not_written_into_the_folder_of_another_job(one: Node, tmp_path: Path) -> None:
    """An earlier life of the node may have had one of the same name, in another cluster."""
    worker, path = one.fork(), tmp_path / "model"
    copy = msgspec.structs.replace(checkpoint_of(one, path), node=5)
    claim = tmp_path / CLAIM
    for number, name in ((8, "j"), (7, "k")):
        claim.write_text(json.dumps({"node": "0" * 16, "job": number, "name": name}))
        worker.channel.send(copy)
        failed = worker.channel.take(TaskFailed)
        assert "is that of another job" in failed.text and not failed.retry
        assert not path.exists()
    for text in (json.dumps({"node": "0" * 16, "job": 7, "name": "j"}), "", "[7]"):
        claim.write_text(text)
        worker.channel.send(copy)
        worker.channel.take(TaskDone)


def test_one_byte_flipped_anywhere_in_a_checkpoint_is_found(one: Node, tmp_path: Path) -> None:
    worker, path = one.fork(), tmp_path / "model"
    worker.channel.send(checkpoint_of(one, path))
    digests = worker.channel.take(TaskDone).digests
    whole = path.read_bytes()
    for place in (4000, 4096 + 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        output = one.model()
        worker.channel.send(Load(0, 2, "j", str(path), PACKED, output.pack(), number=7, round=3, digests=digests))
        failed = worker.channel.take(TaskFailed)
        assert not failed.retry
        assert "damaged" in failed.text or "no usable safetensors file" in failed.text
        assert one.state(output) == ObjectState.WRITING


def test_a_rules_state_is_checked_as_the_model_is(one: Node, tmp_path: Path) -> None:
    worker = one.fork()
    state = one.alloc(Kind.STATE, LAYOUT.accumulator_bytes)
    np.frombuffer(one.arena.data(state), np.uint8)[:] = 0
    one.arena.seal(state, 1.0, 1)
    order = checkpoint_of(one, tmp_path / "model")
    states = {"m": state.pack()}
    worker.channel.send(msgspec.structs.replace(order, state_path=str(tmp_path / "state"), states=states))
    digests = worker.channel.take(TaskDone).digests
    assert len(digests) == 2
    whole = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(whole[:-1] + b"\1")
    loaded = {"m": one.alloc(Kind.STATE, LAYOUT.accumulator_bytes).pack()}
    output = one.model().pack()
    load = Load(0, 2, "j", order.path, PACKED, output, str(tmp_path / "state"), loaded, 7, 3, digests)
    worker.channel.send(load)
    assert f"{tmp_path / 'state'} is damaged" in worker.channel.take(TaskFailed).text


@pytest.mark.parametrize("code", ["ENOSPC", "EIO", "EROFS"])
@pytest.mark.parametrize("point", ["worker.file_fsync.before", "worker.file_fsync.after", "worker.folder_fsync.before"])
def test_a_disk_that_refuses_a_checkpoint_is_named_with_what_to_do(tmp_path: Path, code: str, point: str) -> None:
    arena = OwnedArena.create(f"/lifl-{uuid.uuid4().hex[:16]}", 1 << 24, 1, 64)
    try:
        key = arena.alloc(Kind.MODEL, 7, 3 << 8, LAYOUT.data_bytes)
        path = tmp_path / "model"
        order = Checkpoint(0, 1, "j", 3, str(path), PACKED, key.pack(), number=7)
        with failpoints.armed(f"{point}=raise:{code}"), pytest.raises(ResourceFault) as told:
            files.checkpoint(order, arena)
        assert str(path) in str(told.value) and files.ADVICE[getattr(errno, code)] in str(told.value)
        assert list(tmp_path.glob(".*")) == [], "half a file is left"
        files.checkpoint(order, arena)
        assert path.exists()
    finally:
        arena.close(unlink=True)


def test_a_file_that_is_lost_is_not_waited_for_and_one_whose_folder_is_not_there_is(one: Node, tmp_path: Path) -> None:
    worker = one.fork()
    for path, retry in ((tmp_path / "lost", False), (tmp_path / "no" / "disk", True)):
        worker.channel.send(Load(0, 2, "j", str(path), PACKED, one.model().pack(), number=7, round=3))
        failed = worker.channel.take(TaskFailed)
        assert (failed.retry, str(path) in failed.text) == (retry, True)


def descriptors_of(pid: int) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return sorted(found)


def test_the_zygote_keeps_no_descriptor_of_its_workers_and_they_none_of_its(node: Node) -> None:
    before = descriptors_of(node.process.pid)
    first, second = node.fork(), node.fork()
    assert descriptors_of(node.process.pid) == before
    shared = set(descriptors_of(first.pid)) & set(descriptors_of(second.pid))
    assert not [name for name in shared if name.startswith(("socket:", "pipe:")) and name not in standard_streams()]


def standard_streams() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)}


def gone(pid: int) -> None:
    """Returns when the process has ended, whoever reaps it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], WAIT_S)[0], f"process {pid} lives on"
    finally:
        os.close(fd)


def test_no_worker_outlives_the_zygote_nor_the_daemons_link(one: Node) -> None:
    workers = [one.fork(), one.fork()]
    workers[0].channel.sock.close()  # EOF on the control link ends a worker
    assert one.zygote.take(Exited).pid == workers[0].pid
    os.kill(one.process.pid, signal.SIGKILL)
    gone(workers[1].pid)


def test_drain_waits_for_the_last_worker(one: Node) -> None:
    worker = one.fork()
    one.zygote.send(Drain())
    worker.sync()
    assert one.process.poll() is None
    worker.channel.send(Retire())
    assert one.zygote.take(Exited).status == 0
    assert one.process.wait(WAIT_S) == 0


def test_forks_sent_at_once_get_their_own_descriptors(one: Node) -> None:
    ends = []
    os.kill(one.process.pid, signal.SIGSTOP)
    for number in range(5):
        registration = one.redirector.register()
        here, there = socket.socketpair()
        descriptors = [there.fileno(), *registration.descriptors]
        one.zygote.send(Fork(100 + number, registration.port, len(descriptors)), descriptors)
        there.close()
        registration.handed_over()
        ends.append(Channel(here, FromWorker))
    os.kill(one.process.pid, signal.SIGCONT)
    assert [end.take(WorkerReady).worker for end in ends] == [100, 101, 102, 103, 104]
    for end in ends:
        end.sock.close()


def test_a_resting_worker_and_zygote_use_no_cpu(one: Node) -> None:
    worker = one.fork()
    worker.sync()

    def time_slices() -> list[str]:
        stats = [Path(f"/proc/{pid}/schedstat").read_text().split() for pid in (worker.pid, one.process.pid)]
        return [stat[2] for stat in stats]

    def at_rest() -> bool:
        before = time_slices()
        said, _, _ = select.select([worker.channel.sock, one.zygote.sock], [], [], REST_S)
        assert not said
        return time_slices() == before

    end_s = time.monotonic() + WAIT_S
    while not at_rest():  # what was begun may still have to be done; a poll never rests so long
        assert time.monotonic() < end_s

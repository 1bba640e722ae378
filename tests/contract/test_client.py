"""The client against a real gateway: rounds, resubmission, reconnection, refusals before anything is sent."""

from __future__ import annotations

import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gateway_standin import WAIT_S, Peer, StandIn
from safetensors.numpy import save_file

from lifl import Client
from lifl.client import JobCancelled, JobFailed, NodeUnreachable, Refused, RoundEnded
from lifl.client.home import pause
from lifl.core.errors import LocalFault
from lifl.core.fields import Message
from lifl.core.ids import Key, Kind
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.schema import Layout, TensorSpec

TENSORS = (
    TensorSpec("w", "float32", (300, 7)),
    TensorSpec("h", "bfloat16", (5, 1)),
    TensorSpec("steps", "int64", ()),
    TensorSpec("v", "float32", (11,)),
)
LAYOUT = Layout(TENSORS)


def update(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "v": draw.standard_normal(11).astype(np.float32),  # not in the model's order: names are what counts
        "w": draw.standard_normal((300, 7)).astype(np.float32),
        "h": draw.standard_normal((5, 1)).astype(ml_dtypes.bfloat16),
        "steps": np.asarray(seed, np.int64),
    }


def as_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    data = bytearray(LAYOUT.data_bytes)
    for tensor, offset in zip(TENSORS, LAYOUT.offsets, strict=True):
        raw = tensors[tensor.name].tobytes()
        data[offset : offset + len(raw)] = raw
    return bytes(data)


@pytest.fixture
def node() -> Iterator[StandIn]:
    standin = StandIn()
    standin.open_job("digits", LAYOUT)
    standin.put_model(as_bytes(update(99)))
    standin.react = lambda message: play(standin, message, 1)
    try:
        yield standin
    finally:
        standin.close()


def play(node: StandIn, message: Message, rounds: int) -> None:
    """A daemon that selects at once, commits what it accepts, and ends the job after `rounds`."""
    match message:
        case gm.ClientJoined(conn, client):
            number = 1 + sum(1 for accepted in node.accepted if accepted[2] == client)
            if number <= rounds:
                node.select(client, "digits", number, rate=0.5)
            else:
                node.deliver(conn, cm.JobOver("digits", "finished"))
        case gm.Sealed(conn):
            _, number, client = list(node.accepted)[-1]
            node.deliver(conn, cm.Committed("digits", number, True))
            if number < rounds:
                node.select(client, "digits", number + 1)
            else:
                node.deliver(conn, cm.JobOver("digits", "finished"))


def stored(node: StandIn, number: int = 1, client: str = "c1") -> bytes:
    return bytes(node.arena.data(node.accepted["digits", number, client]))


@pytest.mark.parametrize("way", ["tcp", "direct", "unix", "folder"])
def test_three_rounds_end_with_the_job(node: StandIn, way: str) -> None:
    node.react = lambda message: play(node, message, 3)
    address = {"tcp": node.tcp, "folder": node.folder.name}.get(way, f"unix:{node.unix}")
    progress: list[tuple[int, int]] = []
    seen = []
    with Client(address, job="digits", client="c1", direct=way != "unix") as client:
        for round_ in client.rounds():
            assert {n: a.tobytes() for n, a in round_.model.items()} == {n: a.tobytes() for n, a in update(99).items()}
            assert [(a.dtype.name, a.shape) for a in round_.model.values()] == [(t.dtype, t.shape) for t in TENSORS]
            done = round_.submit(update(round_.number), 5, {"loss": 1.0}, lambda *now: progress.append(now))
            assert done.accepted and client.wait_committed(round_) and round_.committed
            seen.append((round_.number, round_.job, round_.options.get("rate")))
    assert seen == [(1, "digits", 0.5), (2, "digits", None), (3, "digits", None)]
    for number in (1, 2, 3):
        assert stored(node, number) == as_bytes(update(number))
    assert progress[-1] == (LAYOUT.data_bytes, LAYOUT.data_bytes)


def one_round(node: StandIn, tensors: object, **arguments: object) -> None:
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            assert round_.submit(tensors, **({"weight": 2} | arguments)).accepted  # type: ignore[arg-type]


def test_a_safetensors_file_is_taken(node: StandIn, tmp_path: Path) -> None:
    save_file(update(7), tmp_path / "update.safetensors")
    one_round(node, tmp_path / "update.safetensors")
    assert stored(node) == as_bytes(update(7))


class FakeTorchTensor:
    """What the client uses of torch's tensors; torch itself is too large for the tests."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.dtype = f"torch.{array.dtype.name}"

    def detach(self) -> FakeTorchTensor:
        return self

    cpu = contiguous = detach

    def view(self, dtype: object) -> FakeTorchTensor:
        return FakeTorchTensor(self.array.view(dtype))

    def numpy(self) -> np.ndarray:
        assert self.dtype != "torch.bfloat16", "NumPy has no bfloat16"
        return self.array


def test_a_state_dict_is_taken_with_its_bfloat16(node: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(int16=np.int16))
    one_round(node, {name: FakeTorchTensor(array) for name, array in update(7).items()})
    assert stored(node) == as_bytes(update(7))


def test_strided_and_big_endian_arrays_are_taken(node: StandIn) -> None:
    tensors = update(7)
    odd = dict(tensors)
    odd["w"] = np.asfortranarray(tensors["w"])
    odd["v"] = tensors["v"].astype(">f4")
    one_round(node, odd)
    assert stored(node) == as_bytes(tensors)


BAD = {
    "missing": ({"w": None}, {}, "missing-tensor", "tensors.w"),
    "unknown": ({"more": np.zeros(3, np.float32)}, {}, "unknown-tensor", "tensors.more"),
    "shape": ({"v": np.zeros(12, np.float32)}, {}, "wrong-shape", "tensors.v"),
    "dtype": ({"v": np.zeros(11)}, {}, "wrong-dtype", "tensors.v"),
    "complex": ({"v": np.zeros(11, np.complex64)}, {}, "wrong-dtype", "tensors.v"),
    "NaN": ({"v": np.full(11, np.nan, np.float32)}, {}, "not-finite", "tensors.v"),
    "inf in bfloat16": ({"h": np.full((5, 1), np.inf, ml_dtypes.bfloat16)}, {}, "not-finite", "tensors.h"),
    "zero weight": ({}, {"weight": 0}, "bad-weight", "weight"),
    "infinite weight": ({}, {"weight": float("inf")}, "bad-weight", "weight"),
    "NaN metric": ({}, {"metrics": {"loss": float("nan")}}, "bad-metric", "metrics.loss"),
    "a metric without a name": ({}, {"metrics": {"": 1.0}}, "bad-metric", "metrics"),
    "a metric with a long name": ({}, {"metrics": {"n" * 33: 1.0}}, "bad-metric", "metrics"),
    "a metric named by a line": ({}, {"metrics": {"loss\n": 1.0}}, "bad-metric", "metrics"),
    "a metric named by an escape": ({}, {"metrics": {"\x1b[2J": 1.0}}, "bad-metric", "metrics"),
    "a metric that turns the line round": ({}, {"metrics": {"\u202eloss": 1.0}}, "bad-metric", "metrics"),
    "a metric named by half a letter": ({}, {"metrics": {"\ud800": 1.0}}, "bad-metric", "metrics"),
    "metrics of too many bytes": (
        {},
        {"metrics": {chr(0x430 + n) * 32: 1.0 for n in range(16)}},
        "bad-metric",
        "metrics",
    ),
    "many metrics": ({}, {"metrics": {str(n): 1.0 for n in range(17)}}, "bad-metric", "metrics"),
}


def test_a_bad_update_is_refused_here_and_a_good_one_still_goes(node: StandIn) -> None:
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            for changes, arguments, code, field in BAD.values():
                tensors = {name: array for name, array in (update() | changes).items() if array is not None}
                with pytest.raises(Refused) as caught:
                    round_.submit(tensors, **({"weight": 1} | arguments))
                assert (caught.value.code, caught.value.field) == (code, field)
            assert not any(isinstance(message, gm.Admit) for message in node.said)
            assert round_.submit(update(), weight=1).accepted


def test_busy_is_waited_out(node: StandIn) -> None:
    node.busy = 3
    one_round(node, update(1))
    assert stored(node) == as_bytes(update(1))
    assert sum(isinstance(message, gm.Admit) for message in node.said) == 4


@pytest.mark.parametrize(("status", "error"), [("failed", JobFailed), ("cancelled", JobCancelled)])
def test_a_job_that_does_not_finish_is_an_error_with_its_reason(
    node: StandIn, status: str, error: type[Exception]
) -> None:
    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined):
            node.deliver(message.conn, cm.JobOver("digits", status, "the disk is full"))

    node.react = react
    with Client(node.tcp, job="digits", client="c1") as client, pytest.raises(error, match="the disk is full"):
        next(client.rounds())


def test_an_unknown_job_is_refused(node: StandIn) -> None:
    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined):
            node.deliver(message.conn, cm.Refusal("unknown-job", "job", "no job 'x' here", "x"))

    node.react = react
    with Client(node.tcp, job="x", client="c1") as client, pytest.raises(Refused, match="no job"):
        next(client.rounds())


def test_a_round_that_went_on_without_us_is_no_error(node: StandIn) -> None:
    """A straggler's update is not accepted, and the next round comes."""
    late = threading.Event()

    def react(message: Message) -> None:
        if isinstance(message, gm.Admit) and message.round == 1:
            late.set()
        play(node, message, 2)

    node.react = react
    admit = node._admit

    def refuse_first(message: gm.Admit) -> None:
        if message.round != 1:
            admit(message)
            return
        node.deliver(message.conn, cm.RoundOver("digits", 1, "committed without you"))
        node.deliver(message.conn, cm.Refusal("round-over", "round", "round 1 is over", "digits", 1))
        node.accepted["digits", 1, "c1"] = node.model  # type: ignore[assignment]
        node.select("c1", "digits", 2)

    node._admit = refuse_first  # type: ignore[method-assign]
    results = []
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            results.append((round_.number, round_.submit(update(), weight=1).accepted, round_.committed))
    assert late.is_set()
    assert results[0][:2] == (1, False)
    assert results[1][:2] == (2, True)


def test_a_round_that_begins_again_while_its_update_is_offered_selects_again(node: StandIn) -> None:
    """The end of the first attempt and the selection of the second come before the answer to the offer."""
    admit = node._admit

    def refuse_first(message: gm.Admit) -> None:
        node._admit = admit  # type: ignore[method-assign]
        node.deliver(message.conn, cm.RoundOver("digits", 1, "a node is gone; the round begins again"))
        node.select("c1", "digits", 1)
        node.deliver(message.conn, cm.Refusal("round-over", "round", "round 1 is over", "digits", 1))

    node._admit = refuse_first  # type: ignore[method-assign]
    accepted = []
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            assert round_.committed is None
            accepted.append(round_.submit(update(), weight=1).accepted)
            if accepted[-1]:
                assert client.wait_committed(round_)
    assert accepted == [False, True]


@pytest.mark.parametrize("when", ["before Go", "after the body", "twice"])
@pytest.mark.parametrize("over", [cm.RoundOver("digits", 1, "too late"), cm.JobOver("digits", "finished")])
def test_the_news_of_the_end_may_come_in_place_of_the_answer(node: StandIn, when: str, over: Message) -> None:
    """The round is committed, or the job ends, while its update is on its way: then that is all that is told."""
    deliver, answer = node.deliver, node._answer

    def silent(message: gm.FromGateway) -> None:
        if isinstance(message, gm.Admit) and message.round == 1 and when != "after the body":
            deliver(message.conn, over)
        if isinstance(message, gm.Sealed) and node.keys[message.key][1] == 1:
            node.deliver = lambda *_: None  # type: ignore[method-assign]
            answer(message)
            node.deliver = deliver  # type: ignore[method-assign]
            if when != "before Go":
                deliver(message.conn, over)
        else:
            answer(message)

    def react(message: Message) -> None:
        landed = isinstance(message, gm.Sealed | gm.Aborted)
        if landed and ("digits", 2, "c1") not in node.accepted:
            node.accepted["digits", 1, "c1"] = node.model  # type: ignore[assignment]
        else:
            play(node, message, 2)

    node._answer, node.react = silent, react  # type: ignore[method-assign]
    results = []

    def train() -> None:
        with Client(node.tcp, job="digits", client="c1") as client:
            for round_ in client.rounds():
                done = round_.submit(update(), weight=1)
                results.append((round_.number, done.accepted, done.reason))

    trainer = threading.Thread(target=train, daemon=True)
    trainer.start()
    trainer.join(WAIT_S)
    assert not trainer.is_alive(), "it waits for an answer that does not come"
    if isinstance(over, cm.RoundOver):
        assert results[0] == (1, False, "too late") and results[-1] == (2, True, "")
    else:
        assert results == [(1, False, "the job is over")]


def test_a_model_that_is_gone_is_the_rounds_end(node: StandIn) -> None:
    assert node.model is not None
    node.arena.free(node.model)
    node.model = None
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            with pytest.raises(RoundEnded):
                _ = round_.model
            round_.submit(update(), weight=1)


# ---- the connection breaks -------------------------------------------------------------------------------------------


def test_a_gateway_killed_in_the_middle_of_a_body_gets_it_again() -> None:
    big = Layout((TensorSpec("w", "float32", (3_000_000,)),))
    node = StandIn()
    node.open_job("digits", big)
    node.react = lambda message: play(node, message, 1)
    tensor = np.random.default_rng(3).standard_normal(3_000_000).astype(np.float32)
    deaths = []

    def progress(sent_bytes: int, _all_bytes: int) -> None:
        if not deaths and sent_bytes:
            deaths.append(sent_bytes)
            node.kill()
            node.start_again()

    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            assert round_.submit({"w": tensor}, weight=1, progress=progress).accepted
    assert deaths and deaths[0] < big.data_bytes
    joins = [message.holding for message in node.said if isinstance(message, gm.ClientJoined)]
    assert joins == [None, 1]
    assert bytes(node.arena.data(node.accepted["digits", 1, "c1"])) == tensor.tobytes()
    assert node.live() == 1
    node.close()


def test_a_direct_client_whose_gateway_is_killed_writes_to_its_slot_no_more() -> None:
    """Its slot is another update's at once (which no lifld does): what that one holds stays as it is."""
    big = Layout((TensorSpec("w", "float32", (3_000_000,)),))
    node = StandIn()
    node.open_job("digits", big)
    node.react = lambda message: play(node, message, 1)
    tensor = np.random.default_rng(3).standard_normal(3_000_000).astype(np.float32)
    later: list[Key] = []

    def progress(sent_bytes: int, _all_bytes: int) -> None:
        if not later and sent_bytes:
            (slot,) = [entry.offset for _, entry in node.arena.live()]
            node.kill()
            later.append(node.arena.alloc(Kind.UPDATE, 1, 1, big.data_bytes, CONTRIBUTION_BYTES_MAX, 1))
            assert node.arena.offset(later[0]) == slot
            node.arena.data(later[0])[:] = b"\xab" * big.data_bytes
            node.arena.seal(later[0], 1.0, 1)
            node.start_again()

    with Client(f"unix:{node.unix}", job="digits", client="c1") as client:
        for round_ in client.rounds():
            assert round_.submit({"w": tensor}, weight=1, progress=progress).accepted
    assert bytes(node.arena.data(later[0])) == b"\xab" * big.data_bytes
    assert bytes(node.arena.data(node.accepted["digits", 1, "c1"])) == tensor.tobytes()
    node.close()


def test_a_gateway_killed_while_its_client_waits_is_found_again() -> None:
    node = StandIn()
    node.open_job("digits", LAYOUT)
    waiting, over = threading.Event(), threading.Event()

    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined) and not waiting.is_set():
            waiting.set()
        else:
            play(node, message, 1)

    def restart() -> None:
        waiting.wait()
        node.kill()
        node.start_again()
        over.wait()

    node.react = react
    restarting = threading.Thread(target=restart)
    restarting.start()
    one_round(node, update(4))
    node.close()
    over.set()
    restarting.join()


def test_an_update_lost_with_the_machine_is_sent_again_without_training_again(node: StandIn) -> None:
    """ACCEPTED, then the node comes back without it: selected again for the round, the client resubmits by itself."""
    lost = []

    def react(message: Message) -> None:
        if isinstance(message, gm.Sealed) and not lost:
            lost.append(node.accepted.popitem())
            node.select("c1", "digits", 1)
        elif isinstance(message, gm.ClientJoined | gm.Sealed):
            play(node, message, 1)

    node.react = react
    trained = []
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            trained.append(round_.number)
            round_.submit(update(5), weight=1)
    assert trained == [1] and lost
    assert stored(node) == as_bytes(update(5))


def test_who_waits_for_the_commit_sends_again_what_was_lost_meanwhile(node: StandIn) -> None:
    """Another node died with it: the selection comes again over the same connection."""
    lost: list[Key] = []

    def react(message: Message) -> None:
        match message:
            case gm.ClientJoined(_, client):
                node.select(client, "digits", 1)
            case gm.Sealed(conn) if not lost:
                lost.append(node.accepted.pop(("digits", 1, "c1")))
                node.select("c1", "digits", 1)
            case gm.Sealed(conn):
                node.deliver(conn, cm.Committed("digits", 1, True))
                node.deliver(conn, cm.JobOver("digits", "finished"))

    node.react = react
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            assert round_.submit(update(7), 1).accepted
            assert client.wait_committed(round_)
    assert lost and stored(node) == as_bytes(update(7))


def test_a_fate_told_before_the_answer_was_lost_again_is_kept() -> None:
    """ACCEPTED is lost with a gateway; the next one tells COMMITTED, and dies before it answers too."""
    said: list[Message] = []

    def serve(listener: socket.socket) -> None:
        for script in (
            [cm.Selected("digits", 1, 60.0, TENSORS, LAYOUT.data_bytes), cm.Submit],
            [cm.Committed("digits", 1, True), cm.Submit],
            [cm.JobOver("digits", "finished")],
        ):
            sock, _ = listener.accept()
            with sock:
                decoder: FrameDecoder[cm.FromClient] = FrameDecoder(cm.FromClient)
                for step in [cm.Hello, cm.Welcome(cm.PROTOCOL_VERSION, "n"), cm.Join, *script]:
                    if isinstance(step, type):
                        while (message := decoder.next_message()) is None:
                            decoder.feed(sock.recv(4096))
                        assert isinstance(message, step)
                        said.append(message)
                    else:
                        sock.sendall(encode(step))
                if len(script) == 1:
                    sock.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        with Client(f"127.0.0.1:{listener.getsockname()[1]}", job="digits", client="c1") as client:
            (round_,) = [round_ for round_ in client.rounds() if round_.submit(update(), 1.0).accepted]
            assert round_.committed is True
            assert client.wait_committed(round_)
        server.join()
    assert [message.holding for message in said if isinstance(message, cm.Join)] == [None, 1, None]
    assert sum(isinstance(message, cm.Submit) for message in said) == 2


def test_training_in_place_does_not_change_a_kept_update(node: StandIn) -> None:
    """The next round begins before the last one is committed; then the node loses it and asks again."""
    tensors = update(5)
    steps = []

    def react(message: Message) -> None:
        match message:
            case gm.ClientJoined():
                node.select("c1", "digits", 1)
            case gm.Sealed(conn) if len(steps) == 0:
                steps.append("accepted")
                node.select("c1", "digits", 2)
            case gm.Sealed(conn) if len(steps) == 1:
                steps.append("lost")
                node.accepted.clear()
                node.select("c1", "digits", 1)
            case gm.Sealed(conn):
                node.deliver(conn, cm.Committed("digits", 1, True))
                node.deliver(conn, cm.JobOver("digits", "finished"))

    node.react = react
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            if round_.number == 2:
                tensors["w"][:] = 0.0
            round_.submit(tensors, weight=1)
    assert steps == ["accepted", "lost"]
    assert stored(node, 1) == as_bytes(update(5))


def test_too_many_connections_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    node = StandIn(connections_max=1)
    node.open_job("digits", LAYOUT)
    node.react = lambda message: play(node, message, 1)
    first = Peer(node)
    first.hello("first")
    with Client(node.tcp, job="digits", client="c1", give_up_after_s=WAIT_S) as client:
        pauses = []

        def make_room(closed: threading.Event, pause_s: float) -> None:
            """At the second refusal: it has been turned away, and has come again."""
            pauses.append(pause_s)
            if len(pauses) == 2:
                first.close()
            pause(closed, pause_s)

        monkeypatch.setattr("lifl.client.home.pause", make_room)
        for round_ in client.rounds():
            assert round_.submit(update(1), weight=2).accepted
    assert len(pauses) >= 2
    assert stored(node) == as_bytes(update(1))
    node.close()


def test_a_node_that_stays_away_is_given_up() -> None:
    client = Client("127.0.0.1:1", job="digits", client="c1", give_up_after_s=0.3)
    with pytest.raises(NodeUnreachable, match="lifl up"):
        next(client.rounds())
    client.close()


@pytest.mark.parametrize("together", [", ".join, tuple])
def test_of_several_nodes_the_next_one_is_tried(node: StandIn, together: Callable[[list[str]], Any]) -> None:
    """The first two are not there; the third is, and takes the client for good."""
    addresses = together(["127.0.0.1:1", "unix:/tmp/lt-nobody", node.tcp])
    with Client(addresses, job="digits", client="c1") as client:
        for round_ in client.rounds():
            assert round_.submit(update(2), weight=1).accepted
        assert client.node == node.tcp
    assert stored(node) == as_bytes(update(2))


def test_a_client_whose_node_is_killed_goes_to_the_next_one_with_its_update(node: StandIn) -> None:
    first = StandIn()
    first.open_job("digits", LAYOUT)
    first.react = lambda message: isinstance(message, gm.ClientJoined) and first.select(message.client, "digits", 1)
    with Client([first.tcp, node.tcp], job="digits", client="c1") as client:
        for round_ in client.rounds():
            first.close()
            assert round_.submit(update(3), weight=1).accepted
        assert client.node == node.tcp
    assert stored(node) == as_bytes(update(3))


def test_of_several_nodes_that_all_stay_away_each_is_named() -> None:
    client = Client("127.0.0.1:1,127.0.0.1:2", job="digits", client="c1", give_up_after_s=0.5)
    with pytest.raises(NodeUnreachable, match=r"127.0.0.1:\d or 127.0.0.1:\d"):
        next(client.rounds())
    client.close()


@pytest.mark.parametrize("nodes", ["", "127.0.0.1:1,", []])
def test_no_address_is_said_at_once(nodes: str | list[str]) -> None:
    with pytest.raises(LocalFault, match="give an address"):
        Client(nodes, job="j", client="c")


@pytest.mark.parametrize(
    "names", [{"job": "", "client": "c"}, {"job": "j", "client": "a/b"}, {"job": "j", "client": "c\n"}]
)
def test_names_are_checked_at_once(names: dict[str, str]) -> None:
    with pytest.raises(LocalFault):
        Client("127.0.0.1:1", **names)


def test_an_address_that_is_none_is_said() -> None:
    with Client("localhost", job="j", client="c") as client, pytest.raises(LocalFault, match="HOST:PORT"):
        next(client.rounds())


def test_importing_lifl_loads_no_numpy() -> None:
    import subprocess

    code = "import lifl, sys; assert 'numpy' not in sys.modules; lifl.Client; assert 'numpy' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The client against a real gateway: rounds, resubmission, reconnection, refusals before anything is sent."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gateway_standin import WAIT_S, Peer, StandIn
from safetensors.numpy import save_file

from lifl import Client
from lifl.client import JobCancelled, JobFailed, NodeUnreachable, Refused, RoundEnded, home
from lifl.client.books import FATES_REMEMBERED
from lifl.client.home import pause
from lifl.client.tensors import as_array
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


def test_a_model_that_somebody_has_is_not_written_over(node: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifl.client.buffers.KEPT_BYTES_MIN", 1)
    node.react = lambda message: play(node, message, 4)
    kept, places = None, []
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            tensor = next(iter(round_.model.values()))
            places.append(tensor.ctypes.data)
            if kept is None:
                kept, before = round_.model, {name: array.copy() for name, array in round_.model.items()}
                node.put_model(as_bytes(update(98)))
            assert round_.submit(update(round_.number), 1).accepted and client.wait_committed(round_)
            del tensor
    assert kept is not None and {n: a.tobytes() for n, a in kept.items()} == {n: a.tobytes() for n, a in before.items()}
    assert places[1] == places[3] and len(set(places)) == 3, "two take turns beside the one that is kept"


def one_round(node: StandIn, tensors: object, models: bool = True, **arguments: object) -> None:
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds(models):
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
    "NaN in bfloat16": ({"h": np.full((5, 1), np.nan, ml_dtypes.bfloat16)}, {}, "not-finite", "tensors.h"),
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


def test_a_masked_array_without_masked_numbers_is_taken(node: StandIn) -> None:
    one_round(node, {name: np.ma.masked_array(array) for name, array in update(3).items()})
    assert stored(node) == as_bytes(update(3))


def test_a_truth_of_another_byte_than_one_goes_as_one() -> None:
    flags = np.array([0, 1, 7, 255], np.uint8).view(bool)
    assert as_array("flags", flags).tobytes() == b"\0\1\1\1"


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


def test_what_is_asked_after_the_jobs_end_is_answered_at_once(node: StandIn) -> None:
    """The node says once that the job is over."""
    with Client(node.tcp, job="digits", client="c1") as client:
        rounds = client.rounds()
        round_ = next(rounds)
        node.deliver(node.conns["c1"], cm.JobOver("digits", "finished"))
        assert list(rounds) == []
        assert not client.wait_committed(round_)
        assert not round_.submit(update(), 1).accepted
        assert list(client.rounds()) == []
    assert not node.accepted


def test_a_job_that_failed_has_failed_for_whoever_asks_again(node: StandIn) -> None:
    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined):
            node.deliver(message.conn, cm.JobOver("digits", "failed", "the disk is full"))

    node.react = react
    with Client(node.tcp, job="digits", client="c1") as client:
        for _ in range(3):
            with pytest.raises(JobFailed, match="the disk is full"):
                list(client.rounds())


def test_the_fate_of_a_round_is_known_for_as_long_as_the_trainer_has_it(node: StandIn) -> None:
    count = 2 * FATES_REMEMBERED + 2
    node.react = lambda message: play(node, message, count)
    with Client(node.tcp, job="digits", client="c1") as client:
        kept = [next(client.rounds(models=False))]
        for round_ in client.rounds(models=False):
            assert round_.submit(update(), 1).accepted
            if round_.number == 3:
                kept.append(round_)
        assert all(client.wait_committed(round_) and round_.committed for round_ in kept)
        assert len(client._books.fates) <= FATES_REMEMBERED + len({*kept, round_})


def test_a_round_that_was_left_out_is_not_waited_for(node: StandIn) -> None:
    """What became of it was told over a connection that broke, or never."""

    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined):
            node.select("c1", "digits", 1)
            node.select("c1", "digits", 2)

    node.react = react
    with Client(node.tcp, job="digits", client="c1") as client:
        rounds = client.rounds(models=False)
        first, _second = next(rounds), next(rounds)
        assert not client.wait_committed(first)


@pytest.mark.parametrize("models", [True, False])
def test_a_round_of_which_nothing_came_is_given_again_to_who_asks_again(node: StandIn, models: bool) -> None:
    node.react = lambda message: play(node, message, 2)
    numbers = []
    with Client(node.tcp, job="digits", client="c1") as client:
        for _ in range(2):
            for round_ in client.rounds(models):
                numbers.append(round_.number)
                break
        assert next(client.rounds(models)).submit(update(), 1).accepted
        numbers += [round_.number for round_ in client.rounds(models) if round_.submit(update(), 1).accepted]
    assert numbers == [1, 1, 2] and len(node.accepted) == 2


def test_a_round_that_has_ended_is_not_given_again(node: StandIn) -> None:
    with Client(node.tcp, job="digits", client="c1") as client:
        first = next(client.rounds(models=False))
        node.deliver(node.conns["c1"], cm.RoundOver("digits", 1, "the deadline"))
        assert not client.wait_committed(first)
        node.select("c1", "digits", 2)
        assert (first.number, next(client.rounds(models=False)).number) == (1, 2)


def test_an_unknown_job_is_refused(node: StandIn) -> None:
    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined):
            node.deliver(message.conn, cm.Refusal("unknown-job", "job", "no job 'x' here", "x"))

    node.react = react
    with (
        Client(node.tcp, job="x", client="c1", give_up_after_s=0.3) as client,
        pytest.raises(Refused, match="no job"),
    ):
        next(client.rounds())
    assert node.count(gm.ClientJoined) > 1


def test_a_client_may_start_before_its_job_and_says_that_it_waits(
    node: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined) and len(asked) < 3:
            asked.append(message.conn)
            node.deliver(message.conn, cm.Refusal("unknown-job", "job", "no job 'digits' here", "digits"))
        else:
            play(node, message, 1)

    node.react = react
    one_round(node, update(3))
    assert len(set(asked)) == 1, "it asks over one connection"
    said = [record for record in caplog.records if record.message.startswith("job.unknown job=digits")]
    assert len(said) == 3 and {record.levelname for record in said} == {"WARNING"}


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
    answers = []
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            assert round_.committed is None
            answers.append(round_.submit(update(1), weight=1))
    assert [(answer.accepted, answer.reason) for answer in answers] == [
        (False, "a node is gone; the round begins again")
    ]
    assert stored(node) == as_bytes(update(1)), "what was trained for the first attempt is sent again"
    assert round_.committed is True


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
        for round_ in client.rounds(models=False):
            with pytest.raises(RoundEnded):
                _ = round_.model
            round_.submit(update(), weight=1)


FIVE_LINES = """
with Client(node, job="digits", client="c1") as client:
    for round in client.rounds():  # waits to be selected, without polling
        tensors, n, loss = train(round.model)  # your code; a dict of NumPy arrays in, the same out
        round.submit(tensors, weight=n, metrics={"loss": loss})
"""


def five_lines(node: StandIn, train: Callable[[dict[str, Any]], tuple[dict[str, Any], int, float]]) -> None:
    """The trainer of the README."""
    exec(FIVE_LINES, {"Client": Client, "node": node.tcp, "train": train})


def test_the_readme_has_these_five_lines() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert FIVE_LINES[FIVE_LINES.index("    for") :] in readme


OVERS = [
    cm.RoundOver("digits", 1, "the round was committed without this update"),
    cm.Committed("digits", 1, False),
    cm.Refusal("round-over", "round", "the round's model is gone", "digits", 1),
    cm.Refusal("not-selected", "client", "another was", "digits", 1),
]


@pytest.mark.parametrize("over", OVERS, ids=lambda over: type(over).__name__ + getattr(over, "code", ""))
def test_a_round_that_ends_while_its_model_is_fetched_is_passed_over(node: StandIn, over: Message) -> None:
    """It is no exception of the trainer's, and the next round is."""
    answer, ended = node._answer, []

    def end_first(message: gm.FromGateway) -> None:
        if isinstance(message, gm.WantModel) and message.round == 1:
            ended.append(message.conn)
            node.accepted["digits", 1, "c1"] = node.model  # type: ignore[assignment]
            node.deliver(message.conn, over)
            if isinstance(over, cm.Refusal):
                node.select("c1", "digits", 2)
        else:
            answer(message)

    node._answer = end_first  # type: ignore[method-assign]
    node.react = lambda message: play(node, message, 2)
    trained = []
    five_lines(node, lambda model: (trained.append(model) or update(2), 1, 0.5))  # type: ignore[func-returns-value]
    assert ended and len(trained) == 1
    assert stored(node, 2) == as_bytes(update(2))


@pytest.mark.parametrize("asked", [gm.WantModel, gm.Admit])
@pytest.mark.parametrize("code", ["unknown-job", "round-over"])
def test_a_round_that_is_refused_and_not_over_is_taken_part_in_again(
    node: StandIn, code: str, asked: type[Message]
) -> None:
    """A gateway that has just begun does not know the job yet: nobody else would send what this client trains."""
    answer, refused = node._answer, []

    def refuse_first(message: gm.FromGateway) -> None:
        if isinstance(message, asked) and not refused:
            refused.append(message)
            node.deliver(message.conn, cm.Refusal(code, "job", "it is not here", "digits", 1))  # type: ignore[attr-defined]
        else:
            answer(message)

    node._answer = refuse_first  # type: ignore[method-assign]
    node.react = lambda message: play(node, message, 1)
    trained = []
    five_lines(node, lambda model: (trained.append(model) or update(1), 1, 0.5))  # type: ignore[func-returns-value]
    assert refused and len(trained) == 1
    assert node.count(gm.ClientJoined) == 2
    assert stored(node, 1) == as_bytes(update(1))


def test_a_job_that_ends_while_a_model_is_fetched_ends_the_loop(node: StandIn) -> None:
    answer = node._answer

    def finish(message: gm.FromGateway) -> None:
        if isinstance(message, gm.WantModel):
            node.deliver(message.conn, cm.RoundOver("digits", 1, "the round was committed without this update"))
            node.deliver(message.conn, cm.JobOver("digits", "finished"))
        else:
            answer(message)

    node._answer = finish  # type: ignore[method-assign]
    node.react = lambda message: play(node, message, 1) if node.count(gm.WantModel) == 0 else over_again(node, message)
    five_lines(node, lambda model: pytest.fail("there is nothing to train"))


def over_again(node: StandIn, message: Message) -> None:
    """A job that is over, as one that joins is told."""
    if isinstance(message, gm.ClientJoined):
        node.deliver(message.conn, cm.JobOver("digits", "finished"))


@pytest.mark.parametrize("told", [False, True], ids=["RoundOver", "RoundOver and Selected"])
def test_training_that_takes_longer_than_the_deadline_is_sent_and_not_repeated(node: StandIn, told: bool) -> None:
    """The attempt ends and the next one begins while it trains: what it trained counts, over the same connection."""
    trained = []
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            trained.append(round_.number)
            node.deliver(node.conns["c1"], cm.RoundOver("digits", 1, "deadline of 1 s passed"))
            if told:
                node.select("c1", "digits", 1)
            assert client._home.stream is not None
            assert select.select([client._home.stream._sock], [], [], WAIT_S)[0], "the end of the attempt is there"
            assert round_.submit(update(4), 1).accepted
    assert trained == [1]
    assert stored(node) == as_bytes(update(4))
    assert node.count(gm.ClientJoined) == 1 and node.count(gm.Admit) == 1


def test_an_update_that_was_accepted_is_sent_again_when_its_round_is_tried_again(node: StandIn) -> None:
    lost = []

    def react(message: Message) -> None:
        if isinstance(message, gm.Sealed) and not lost:
            lost.append(node.accepted.popitem())
            node.deliver(message.conn, cm.RoundOver("digits", 1, "the rule raised; the round begins again"))
            node.select("c1", "digits", 1)
        else:
            play(node, message, 1)

    node.react = react
    trained = []
    five_lines(node, lambda model: (trained.append(model) or update(4), 1, 0.5))  # type: ignore[func-returns-value]
    assert lost and len(trained) == 1
    assert stored(node) == as_bytes(update(4))


@pytest.mark.parametrize("committed", [False, True])
def test_a_second_submission_gets_the_first_ones_answer_also_when_the_next_round_has_begun(
    node: StandIn, committed: bool
) -> None:
    def react(message: Message) -> None:
        if isinstance(message, gm.Sealed):
            if committed:
                node.deliver(message.conn, cm.Committed("digits", 1, True))
            node.select("c1", "digits", 2)
        elif isinstance(message, gm.ClientJoined):
            node.select("c1", "digits", 1)

    node.react = react
    with Client(node.tcp, job="digits", client="c1") as client:
        rounds = client.rounds()
        round_ = next(rounds)
        assert round_.submit(update(4), 1).accepted
        node.wait_for(gm.Sealed)
        assert client._home.stream is not None
        select.select([client._home.stream._sock], [], [], WAIT_S)
        second = round_.submit(update(5), 7)
        assert second.accepted and not second.reason
        with pytest.raises(Refused, match="weight"):
            round_.submit(update(5), -1)
    assert stored(node) == as_bytes(update(4))
    assert node.count(gm.Admit) == 1


def test_an_update_is_sent_again_after_the_node_went_down_in_good_order(node: StandIn) -> None:
    down = []

    def react(message: Message) -> None:
        if isinstance(message, gm.Sealed) and not down:
            down.append(node.accepted.popitem())
            node.deliver(message.conn, cm.RoundOver("digits", 1, "the node went down before the round was complete"))
            node.send(gm.HangUp())
        else:
            play(node, message, 1)

    node.react = react
    trained = []
    five_lines(node, lambda model: (trained.append(model) or update(4), 1, 0.5))  # type: ignore[func-returns-value]
    assert down and len(trained) == 1
    assert [message.holding for message in node.said if isinstance(message, gm.ClientJoined)] == [None, 1]
    assert stored(node) == as_bytes(update(4))


def test_a_kept_update_is_dropped_when_another_round_begins(node: StandIn) -> None:
    """Round 1 went on without it; when the node, come back from a loss, selects for round 1 it is trained anew."""
    rounds = []

    def react(message: Message) -> None:
        match message:
            case gm.ClientJoined():
                node.select("c1", "digits", 1)
            case gm.Sealed(conn) if len(rounds) == 1:
                node.deliver(conn, cm.RoundOver("digits", 1, "committed without it"))
                node.select("c1", "digits", 2)
            case gm.Sealed(conn) if len(rounds) == 2:
                node.accepted.clear()
                node.select("c1", "digits", 1)
            case gm.Sealed(conn):
                node.deliver(conn, cm.JobOver("digits", "finished"))

    node.react = react
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            rounds.append(round_.number)
            round_.submit(update(len(rounds)), weight=1)
    assert rounds == [1, 2, 1]


def test_a_kept_update_that_is_refused_is_trained_anew(node: StandIn) -> None:
    admit, turns = node._admit, []

    def refuse_second(message: gm.Admit) -> None:
        turns.append(message.round)
        if len(turns) == 2:
            node.deliver(message.conn, cm.Refusal("bad-weight", "weight", "too large by far", "digits", 1))
        else:
            admit(message)

    def react(message: Message) -> None:
        if isinstance(message, gm.Sealed) and len(turns) == 1:
            node.accepted.clear()
            node.deliver(message.conn, cm.RoundOver("digits", 1, "it begins again"))
            node.select("c1", "digits", 1)
        else:
            play(node, message, 1)

    node._admit, node.react = refuse_second, react  # type: ignore[method-assign]
    trained = []
    five_lines(node, lambda model: (trained.append(model) or update(4), 1, 0.5))  # type: ignore[func-returns-value]
    assert len(trained) == 2 and len(turns) == 3


# ---- declining -------------------------------------------------------------------------------------------------------


def test_a_round_is_declined_and_the_next_one_comes(node: StandIn) -> None:
    def react(message: Message) -> None:
        if isinstance(message, gm.ClientDeclined):
            node.select("c1", "digits", 2)
        elif isinstance(message, gm.Sealed):
            node.deliver(message.conn, cm.JobOver("digits", "finished"))
        else:
            play(node, message, 2)

    node.react = react
    rounds = []
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            rounds.append(round_.number)
            if round_.number == 1:
                round_.decline("out of memory")
                assert round_.committed is False
                with pytest.raises(LocalFault, match="declined"):
                    round_.submit(update(), 1)
            else:
                assert round_.submit(update(), 1).accepted
                with pytest.raises(LocalFault, match="cannot be declined"):
                    round_.decline()
    said = node.wait_for(gm.ClientDeclined)
    assert (said.client, said.job, said.round, said.reason) == ("c1", "digits", 1, "out of memory")
    assert rounds == [1, 2] and node.count(gm.ClientDeclined) == 1


def test_that_a_round_is_declined_is_said_again_over_a_new_connection(node: StandIn) -> None:
    """The coordinator may not have heard it: it selects the client again, and would wait for it."""
    declined: list[gm.ClientDeclined] = []

    def react(message: Message) -> None:
        if isinstance(message, gm.ClientDeclined):
            declined.append(message)
            if len(declined) == 1:
                node.send(gm.HangUp(message.conn))
            else:
                node.select("c1", "digits", 2)
        elif isinstance(message, gm.ClientJoined):
            node.select("c1", "digits", 1)
        else:
            play(node, message, 2)

    node.react = react
    with Client(node.tcp, job="digits", client="c1") as client:
        rounds = client.rounds()
        next(rounds).decline("out of memory \ud800")
        assert next(rounds).number == 2
    first, again = declined
    assert first.conn != again.conn
    assert (first.round, first.reason) == (again.round, again.reason) == (1, "out of memory ?")


def test_a_node_of_an_earlier_version_is_told_what_it_understands() -> None:
    """It refuses a Hello with a word more; a round that is declined is left, and its next selection is passed over."""
    heard: list[Any] = []

    def hear(sock: socket.socket, decoder: FrameDecoder[cm.FromClient]) -> Any:
        while (message := decoder.next_message()) is None:
            data = sock.recv(4096)
            if not data:
                return None
            decoder.feed(data)
        heard.append(message)
        return message

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as sock:
            hear(sock, FrameDecoder(cm.FromClient))
            sock.sendall(encode(cm.Refusal("protocol", "", "Object contains unknown field `knows`")))
        with listener.accept()[0] as sock:
            decoder: FrameDecoder[cm.FromClient] = FrameDecoder(cm.FromClient)
            hear(sock, decoder)
            sock.sendall(encode(cm.Welcome(cm.PROTOCOL_VERSION, "n")))
            while (message := hear(sock, decoder)) is not None:
                if isinstance(message, cm.Join):
                    sock.sendall(encode(cm.Selected("digits", 1, 60.0, TENSORS, LAYOUT.data_bytes)))
                    if sum(isinstance(each, cm.Join) for each in heard) == 2:
                        sock.sendall(encode(cm.Selected("digits", 2, 60.0, TENSORS, LAYOUT.data_bytes)))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        with Client(f"127.0.0.1:{listener.getsockname()[1]}", job="digits", client="c1") as client:
            rounds = client.rounds(models=False)
            first = next(rounds)
            first.decline("out of memory")
            assert (first.number, next(rounds).number) == (1, 2)
        server.join()
    assert [type(message).__name__ for message in heard] == ["Hello", "Hello", "Join", "Leave", "Join", "Leave"]
    assert [message.knows for message in heard[:2]] == [cm.KNOWS, ()]
    assert b"knows" not in encode(heard[1]) and b"knows" not in encode(cm.Welcome(1, "n"))


# ---- whose name it is ------------------------------------------------------------------------------------------------


def test_one_that_is_replaced_by_its_own_past_joins_once_more(node: StandIn) -> None:
    text = "client 'c1' has joined job 'digits' from another connection; names must differ"

    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined) and node.count(gm.ClientJoined) == 1:
            node.deliver(message.conn, cm.Refusal("replaced", "client", text, "digits"))
        else:
            play(node, message, 1)

    node.react = react
    one_round(node, update(3))
    first, second = (message for message in node.said if isinstance(message, gm.ClientJoined))
    assert first.connected_ns < second.connected_ns


def test_one_that_is_replaced_again_gives_up(node: StandIn) -> None:
    text = "client 'c1' has joined job 'digits' from another connection; names must differ"

    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined):
            node.deliver(message.conn, cm.Refusal("replaced", "client", text, "digits"))

    node.react = react
    with Client(node.tcp, job="digits", client="c1") as client, pytest.raises(Refused, match="names must differ"):
        next(client.rounds())
    assert node.count(gm.ClientJoined) == 2


def test_a_clock_that_goes_back_does_not_make_a_later_connection_an_earlier_one(
    node: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To nodes of earlier versions, which compare."""
    times = iter([5_000, 4_000])
    monkeypatch.setattr(
        "lifl.client.home.time", types.SimpleNamespace(time_ns=lambda: next(times), monotonic=lambda: 0.0)
    )

    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined) and node.count(gm.ClientJoined) == 1:
            node.send(gm.HangUp())
        else:
            play(node, message, 1)

    node.react = react
    one_round(node, update(3))
    assert [message.connected_ns for message in node.said if isinstance(message, gm.ClientJoined)] == [5_000, 5_001]


# ---- closing, forking, what is seen ----------------------------------------------------------------------------------


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """A thread that runs it, and what it came to: the result, or the exception."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(call())
        except BaseException as error:  # noqa: BLE001 - the test asks for it
            came.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, came


def ended(thread: threading.Thread) -> bool:
    thread.join(WAIT_S)
    return not thread.is_alive()


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_close_wakes_a_thread_that_waits_to_be_selected(node: StandIn, way: str) -> None:
    node.react = lambda message: None
    client = Client(node.tcp if way == "tcp" else f"unix:{node.unix}", job="digits", client="c1")
    thread, came = in_thread(lambda: list(client.rounds()))
    node.wait_for(gm.ClientJoined)
    client.close()
    assert ended(thread) and came == [[]]
    node.wait_for(gm.ClientLeft)


def test_close_wakes_a_thread_that_sends_and_what_it_sent_is_no_update(node: StandIn) -> None:
    node.holding_back = []
    client = Client(node.tcp, job="digits", client="c1")
    thread, came = in_thread(lambda: [round_.submit(update(), 1) for round_ in client.rounds()])
    node.wait_for(gm.Admit)
    client.close()
    assert ended(thread)
    assert isinstance(came[0], LocalFault) and "closed" in str(came[0])
    node.send(node.holding_back.pop())
    node.wait_for(gm.Aborted)
    node.wait_for(gm.ClientLeft)
    assert not node.accepted


def test_close_wakes_a_thread_that_waits_for_a_node_that_does_not_answer() -> None:
    """The first is not there and is paused for; the second takes the connection, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"127.0.0.1:{silent.getsockname()[1]}", job="digits", client="c1")
        thread, came = in_thread(lambda: list(client.rounds()))
        with silent.accept()[0] as sock:
            assert sock.recv(4096)
            client.close()
            assert ended(thread) and came == [[]]


def test_a_closed_client_has_no_rounds(node: StandIn) -> None:
    client = Client(node.tcp, job="digits", client="c1")
    client.close()
    client.close()
    with pytest.raises(LocalFault, match="closed"):
        next(client.rounds())


def test_a_second_thread_is_told_that_the_client_is_in_use(node: StandIn) -> None:
    node.react = lambda message: None
    with Client(node.tcp, job="digits", client="c1") as client:
        thread, _ = in_thread(lambda: list(client.rounds()))
        node.wait_for(gm.ClientJoined)
        with pytest.raises(LocalFault, match="in use"):
            next(client.rounds())
    assert ended(thread)


FORKING = """
import os, sys
from lifl import Client

with Client(sys.argv[1], job="digits", client="c1") as client:
    for round_ in client.rounds():
        ours, theirs = os.pipe()
        hold, let_go = os.pipe()
        child = os.fork()
        if not child:
            os.close(let_go)
            try:
                round_.submit(round_.model, 1)
            except Exception as error:
                os.write(theirs, f"{type(error).__name__}: {error}".encode())
            client.close()
            os.write(theirs, b" closed")
            os.read(hold, 1)  # lives as long as its parent
            os._exit(0)
        os.close(hold)
        said = b""
        while b"closed" not in said:
            said += os.read(ours, 1000)
        print(said.decode(), flush=True)
        print(round_.submit(round_.model, 1).accepted, flush=True)
        if len(sys.argv) > 2:
            sys.stdin.read()  # until it is killed
"""


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_a_forked_child_neither_leaves_for_its_parent_nor_uses_its_connection(node: StandIn, way: str) -> None:
    node.react = lambda message: play(node, message, 1)
    address = node.tcp if way == "tcp" else f"unix:{node.unix}"
    done = subprocess.run(
        [sys.executable, "-c", FORKING, address], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    child, accepted = done.stdout.splitlines()
    assert child == "LocalFault: a forked process cannot use its parent's client: make a Client of its own in it closed"
    assert accepted == "True", done.stderr
    assert node.count(gm.ClientJoined) == 1


def test_a_forked_child_that_lives_longer_does_not_keep_the_connection_alive(node: StandIn) -> None:
    node.react = lambda message: isinstance(message, gm.ClientJoined) and node.select("c1", "digits", 1)
    trainer = subprocess.Popen(
        [sys.executable, "-c", FORKING.replace("os.read(hold, 1)", "os.read(0, 1)"), node.tcp, "stay"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert trainer.stdin is not None and trainer.stdout is not None
    for _ in range(2):
        trainer.stdout.readline()
    trainer.kill()
    node.wait_for(gm.ClientLeft)  # though the child is still there
    trainer.stdin.close()
    trainer.stdout.close()
    trainer.wait()


def test_a_connection_that_breaks_and_is_made_again_is_seen(node: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined) and node.count(gm.ClientJoined) == 1:
            node.send(gm.HangUp())
        else:
            play(node, message, 1)

    node.react = react
    one_round(node, update(3))
    said = [(r.levelname, r.message.split()[0]) for r in caplog.records if r.name == "lifl.client"]
    assert said == [("WARNING", "node.unreachable"), ("WARNING", "node.reached")]


@pytest.mark.parametrize("stays", [False, True])
def test_one_that_is_sent_away_again_and_again_comes_back_less_and_less_often(
    stays: bool, node: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where nobody coordinates; a connection that lasted a while, and then ended, is a fault of its own."""
    times = 30
    pauses: list[float] = []
    monkeypatch.setattr(home, "pause", lambda _closed, pause_s: pauses.append(pause_s))
    if stays:
        monkeypatch.setattr(home, "STAYED_S", 0.0)

    def react(message: Message) -> None:
        if isinstance(message, gm.ClientJoined) and node.count(gm.ClientJoined) <= times:
            node.send(gm.HangUp(message.conn))
        else:
            play(node, message, 1)

    node.react = react
    one_round(node, update(3))
    assert len(pauses) == times and pauses[0] <= home.PAUSE_FIRST_S
    if stays:
        assert max(pauses) <= home.PAUSE_FIRST_S
    else:
        assert home.PAUSE_MAX_S / 2 <= max(pauses) <= home.PAUSE_MAX_S, "and no longer than that"
        assert sum(pauses[:8]) < 2.0, "it is not long before the first ones: a coordinator is back within seconds"


# ---- what is not ours becomes ours -----------------------------------------------------------------------------------


class Torchlike:
    """A tensor that cannot be moved."""

    def detach(self) -> Torchlike:
        return self

    def cpu(self) -> Torchlike:
        raise RuntimeError("CUDA error: device-side assert triggered")


class Wordless:
    def __float__(self) -> float:
        raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")


class Nameless(Mapping[str, Any]):
    """A mapping that does not even say what is in it."""

    def __iter__(self) -> Iterator[str]:
        raise OSError("no list of names")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)


def flipped_npz(path: Path) -> Path:
    """Write an archive of one tensor, and change a byte of that."""
    np.savez(path, v=np.full(11, 7.5, np.float32))
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(7.5).tobytes())] ^= 1
    path.write_bytes(data)
    return path


FOREIGN: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "a tensor on a broken device": ({"v": Torchlike()}, {}, "bad-tensor", "tensors.v"),
    "rows of different lengths": ({"v": [[1.0], [1.0, 2.0]]}, {}, "bad-tensor", "tensors.v"),
    "objects": ({"v": object()}, {}, "wrong-dtype", "tensors.v"),
    "a name that is a number": ({3: np.zeros(3, np.float32)}, {}, "unknown-tensor", "tensors"),
    "an array with masked numbers": (
        {"v": np.ma.masked_less(np.arange(11, dtype="f4"), 2)},
        {},
        "bad-tensor",
        "tensors.v",
    ),
    "a weight that is a text": ({}, {"weight": "many"}, "bad-weight", "weight"),
    "no weight": ({}, {"weight": None}, "bad-weight", "weight"),
    "a weight beyond all floats": ({}, {"weight": 10**400}, "bad-weight", "weight"),
    "a metric that is none": ({}, {"metrics": {"loss": None}}, "bad-metric", "metrics.loss"),
    "a metric that is a tensor": ({}, {"metrics": {"loss": Wordless()}}, "bad-metric", "metrics.loss"),
    "metrics in a list": ({}, {"metrics": [0.5]}, "bad-metric", "metrics"),
}


def test_what_others_raise_is_refused_by_tensor_metric_or_file(node: StandIn, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"\xff" * 100)
    with Client(node.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            for changes, arguments, code, field in FOREIGN.values():
                with pytest.raises(Refused) as caught:
                    round_.submit(update() | changes, **({"weight": 1} | arguments))
                assert (caught.value.code, caught.value.field) == (code, field)
            for path in (tmp_path / "missing", tmp_path, tmp_path / "damaged"):
                with pytest.raises(Refused, match=str(path)) as caught:
                    round_.submit(str(path), 1)
                assert (caught.value.code, caught.value.field) == ("bad-file", "tensors")
            lazy = np.load(flipped_npz(tmp_path / "flipped.npz"))
            with lazy, pytest.raises(Refused, match="'v' of it cannot be read") as caught:
                round_.submit(lazy, 1)
            assert (caught.value.code, caught.value.field) == ("bad-tensor", "tensors.v")
            with pytest.raises(Refused, match="no list of names"):
                round_.submit(Nameless(), 1)
            with pytest.raises(Refused, match="not a list") as caught:
                round_.submit([1.0], 1)  # type: ignore[arg-type]
            assert (caught.value.code, caught.value.field) == ("bad-tensor", "tensors")
            assert round_.submit(update(), weight=1).accepted


def test_what_progress_raises_is_not_taken_for_a_broken_connection(node: StandIn) -> None:
    def progress(_sent: int, _total: int) -> None:
        raise BrokenPipeError("the terminal is gone")

    with Client(node.tcp, job="digits", client="c1") as client, pytest.raises(LocalFault, match="terminal is gone"):
        next(client.rounds()).submit(update(), 1, progress=progress)
    assert node.count(gm.ClientJoined) == 1


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
        for round_ in client.rounds(models=False):
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
        for round_ in client.rounds(models=False):
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
    one_round(node, update(4), models=False)
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
            [cm.Submit, cm.Committed("digits", 1, True)],
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
            (round_,) = [round_ for round_ in client.rounds(models=False) if round_.submit(update(), 1.0).accepted]
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
        for round_ in client.rounds(models=False):
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
        for round_ in client.rounds(models=False):
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


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("localhost", "HOST:PORT"),
        ("http://127.0.0.1:7433", "do not speak http"),
        ("HTTPS://node:7433/x", "do not speak https"),
        ("tcp://127.0.0.1", "HOST:PORT"),
        ("tcp://", "HOST:PORT"),
        ("127.0.0.1:0", "1 to 65535"),
        ("127.0.0.1:65536", "1 to 65535"),
        ("127.0.0.1:99999999999999999999", "1 to 65535"),
        ("127.0.0.1:-1", "HOST:PORT"),
        ("127.0.0.1:\u0667\u0664\u0663\u0663", "HOST:PORT"),
        ("127.0.0.1:7433/metrics", "HOST:PORT"),
        ("my node:7433", "HOST:PORT"),
        ("me@node:7433", "HOST:PORT"),
        ("a..b:7433", "HOST:PORT"),
        ("..node:7433", "HOST:PORT"),
        ("x" * 64 + ":7433", "HOST:PORT"),
        ("\u00e9" * 64 + ":7433", "HOST:PORT"),
        ("\u3002:7433", "HOST:PORT"),
        ("\udc80:7433", "HOST:PORT"),
        ("h\0x:7433", "HOST:PORT"),
        ("unix:/tmp/\ud800", "can be no path"),
        ("unix:\0name", "can be no path"),
        ("unix:", "1 to 107 bytes"),
        ("unix:/" + "x" * 107, "shorter path"),
        ("/" + "x" * 107, "shorter path"),
        ("127.0.0.1:7433,http://other:1", "do not speak http"),
        (["127.0.0.1:7433", 7433], "is a int"),
        (7433, "give an address"),
        (b"127.0.0.1:7433", "give an address"),
        (None, "give an address"),
    ],
)
def test_an_address_that_is_none_is_said_at_once(address: Any, says: str) -> None:
    with pytest.raises(LocalFault, match=says):
        Client(address, job="j", client="c")


def test_addresses_in_other_words_are_understood(node: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(node.folder.name).parent)
    folder = Path(node.folder.name)
    for address in (
        f"tcp://{node.tcp}",
        f"TCP://{node.tcp}/",
        folder,
        Path(folder.name),
        [Path(node.unix)],
        f"unix://{node.unix}",
    ):
        node.accepted.clear()
        node.react = lambda message: play(node, message, 1)
        with Client(address, job="digits", client="c1") as client:
            for round_ in client.rounds():
                assert round_.submit(update(1), 1).accepted


@pytest.mark.parametrize("seconds", [-1, float("nan"), "300", None])
def test_how_long_to_wait_is_a_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(LocalFault, match="give_up_after_s"):
        Client("127.0.0.1:1", job="j", client="c", give_up_after_s=seconds)


def test_importing_lifl_loads_no_numpy() -> None:
    code = "import lifl, sys; assert 'numpy' not in sys.modules; lifl.Client; assert 'numpy' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""What a program may hand to the aggregator by mistake: it is told which argument is wrong, before a node is asked."""

from __future__ import annotations

import copy
import pickle
import threading
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lifl
from lifl.aggregator import Fold, FoldResult, UpdateRefused
from lifl.aggregator.aggregator import _number_of
from lifl.aggregator.line import Line
from lifl.client.tensors import Update, as_arrays, as_metrics, as_weight
from lifl.core.errors import LocalFault, Refused
from lifl.core.limits import ARENA_BYTES_MAX, ARENA_BYTES_MIN, CLIENTS_PER_ROUND_MAX, DEADLINE_S_MAX, STREAMS_MAX
from lifl.core.schema import Layout, TensorSpec


@pytest.mark.parametrize(
    "given",
    [
        *({"arena_bytes": each} for each in ("x", -5, 1.5, True, ARENA_BYTES_MIN - 1, ARENA_BYTES_MAX + 1)),
        *({"return_within_s": each} for each in ("x", float("nan"), -1, float("inf"), True, DEADLINE_S_MAX + 1)),
        *({"identity": each} for each in (5, b"x", ["x"])),
        *({"reproducible": each} for each in (1, None, "yes")),
        *({"streams": each} for each in (-1, STREAMS_MAX + 1, 1.5, True, None)),
    ],
    ids=str,
)
def test_an_argument_that_can_be_none_is_named(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(LocalFault, match=name):
        lifl.Aggregator(**given)


def test_arguments_at_their_limits_are_taken() -> None:
    for nbytes in (ARENA_BYTES_MIN, ARENA_BYTES_MAX):
        for seconds in (0, DEADLINE_S_MAX):
            lifl.Aggregator(arena_bytes=nbytes, return_within_s=seconds).close()


def test_a_number_of_updates_is_any_whole_number_within_its_limits() -> None:
    assert [_number_of(each) for each in (1, np.int64(3), CLIENTS_PER_ROUND_MAX)] == [1, 3, CLIENTS_PER_ROUND_MAX]
    for wrong in (0, True, 1.0, "3", None, float("nan"), CLIENTS_PER_ROUND_MAX + 1):
        with pytest.raises(Refused) as refused:
            _number_of(wrong)  # type: ignore[arg-type]
        assert refused.value.code == "bad-expected"


def test_a_tensors_name_that_cannot_travel_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        as_arrays({"\ud800": np.zeros(2, np.float32)})
    assert refused.value.code == "not-utf8"


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        *((each, "bad-tensor", "tensors") for each in (None, b"w", 3, 1.5, True, [1.0], np.zeros(2), {"w"}, ...)),
        *((each, "bad-file", "tensors") for each in ("", "no such file", "/", "\0", "/dev/null/x")),
        ({1: np.zeros(2)}, "unknown-tensor", "tensors"),
        ({None: np.zeros(2)}, "unknown-tensor", "tensors"),
        *(({"w": each}, "wrong-dtype", "tensors.w") for each in (None, "x", {"v": np.zeros(2)}, np.array([1, None]))),
    ],
    ids=repr,
)
def test_what_is_no_update_is_refused_by_field(given: Any, code: str, field: str) -> None:
    layout = Layout([TensorSpec("w", "float32", (2,))])
    session: Any = SimpleNamespace(name="s", next_round=1, layout=layout, trainable=())
    fold = Fold(session, 1, 1, Update(layout, {"w": np.zeros(2, np.float32)}), lambda _session: None)
    with pytest.raises(UpdateRefused) as refused:
        fold.add(given, weight=1)
    assert (refused.value.code, refused.value.field) == (code, field)


@pytest.mark.parametrize("metrics", ["", "x", 0, 5, [], [("loss", 1.0)], {"loss": None}])
def test_metrics_are_a_dict_of_numbers(metrics: Any) -> None:
    with pytest.raises(Refused) as refused:
        as_metrics(metrics)
    assert refused.value.code == "bad-metric"


NO_NUMBERS = (
    "1",
    "nan",
    b"1",
    bytearray(b"1"),
    np.str_("1"),
    np.array("1"),
    np.array(1, object),
    np.timedelta64(1, "s"),
)
NO_NUMBERS += (True, np.True_, np.array(False), None, 1j, [1])
NUMBERS = (
    1,
    1.0,
    np.float32(1),
    np.float64(1),
    np.int8(1),
    np.uint64(1),
    np.array(1),
    ml_dtypes.bfloat16(1),
    Fraction(1),
)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_only_looks_like_a_number_is_refused_by_its_field(value: Any) -> None:
    for given, code, field in (
        (lambda: as_weight(value), "bad-weight", "weight"),
        (lambda: as_metrics({"loss": value}), "bad-metric", "metrics.loss"),
    ):
        with pytest.raises(Refused) as refused:
            given()
        assert (refused.value.code, refused.value.field) == (code, field)


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers_of_any_library_are_taken(value: Any) -> None:
    assert as_weight(value) == as_metrics({"loss": value})["loss"] == 1.0


@pytest.mark.parametrize("again", [copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_a_result_can_be_copied_and_sent_to_another_process(again: Any) -> None:
    array = np.arange(3, dtype=np.float32)
    array.flags.writeable = False
    made = again(FoldResult({"w": array}, ("a",), 2.0, {"loss": 0.5}))
    np.testing.assert_array_equal(made["w"], array)
    assert (made.clients, made.weight, dict(made.metrics)) == (("a",), 2.0, {"loss": 0.5})


class Closed:
    """A connection of which no more is wanted than that it is closed."""

    closed = False
    _sock = SimpleNamespace(shutdown=lambda _how: None)

    def close(self) -> None:
        self.closed = True


def test_a_line_whose_making_was_interrupted_before_its_thread_began_is_made_anew() -> None:
    line = Line(lambda: "", "c", None, 1.0, lambda _message: True, lambda: None)
    stream: Any = Closed()
    line._stream, line._reader = stream, threading.Thread()
    line._drop(stream)
    assert stream.closed and not line.is_up

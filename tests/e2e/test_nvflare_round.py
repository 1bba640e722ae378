"""A round of an NVFlare job without NVFlare: what counts, by tickets and by messages, and what is refused."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

import lifl
from lifl.aggregator import UpdateRefused
from lifl.core.errors import LocalFault, Refused
from lifl.core.fields import Name
from lifl.integrations.nvflare.messages import Brought, Sent
from lifl.integrations.nvflare.params import NUMBER, as_params, as_tensors
from lifl.integrations.nvflare.round import DIFF, FULL, Round, checked_factors, name_of, weight_of
from lifl.integrations.references import Reference, Taking

MODEL: dict[str, Any] = {"w": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32), "n": 0.5}
ODD_NAMES = ["site-1", "Klinik Süd", "ein Name", "a" * 200, "", ".", "\ud800", "client-" + "0" * 32, "x\n"]


def update(value: float, like: dict[str, Any] = MODEL) -> dict[str, Any]:
    return {name: array * 0 + value for name, array in like.items()}


@pytest.fixture(scope="module")
def aggregator() -> Iterator[lifl.Aggregator]:
    with lifl.Aggregator(arena_bytes=32 << 20) as found:
        yield found


@pytest.fixture
def round_(aggregator: lifl.Aggregator) -> Iterator[Round]:
    found = Round(aggregator, "fedavg", 4)
    yield found
    found.cancel()


class Lazy:
    """Stands for what NVFlare has put on the disk."""

    def materialize(self) -> Any:
        return np.ones(3, np.float32)


# ---- params and names ------------------------------------------------------------------------------------------------


def test_params_go_there_and_back() -> None:
    given = {"lazy": Lazy(), "n": 3, "t": True, "np": np.float64(2.5), "h": np.ones(2, np.float16)}
    tensors, kinds = as_tensors(given)
    assert kinds == {"n": NUMBER, "t": NUMBER}
    found = as_params(tensors, kinds)
    assert found["n"] == 3.0 and found["t"] == 1.0 and type(found["n"]) is float
    assert found["h"].dtype == np.float16 and found["np"].shape == ()
    np.testing.assert_array_equal(found["lazy"], np.ones(3))


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (None, "params"),
        ({}, "params"),
        ([np.ones(2)], "params"),
        ({"w": {"nested": np.ones(2)}}, "tensors.w"),
        ({"w": b"an encrypted vector"}, "tensors.w"),
        ({"w": None}, "tensors.w"),
        ({"w": "text"}, "tensors.w"),
        ({3: np.ones(2)}, "tensors"),
        ({"w": np.ones(2, complex)}, "tensors.w"),
    ],
)
def test_what_are_no_params_is_refused_by_its_name(params: Any, field: str, round_: Round) -> None:
    with pytest.raises(UpdateRefused) as refused:
        round_.add("site-1", params, FULL, 1.0)
    assert (refused.value.field, refused.value.client) == (field, "site-1")
    with pytest.raises(Refused, match="no client's was taken"):
        round_.result()


def test_names_are_those_of_lifl_and_of_one_client_each() -> None:
    found = [name_of(name) for name in ODD_NAMES]
    assert len(set(found)) == len(ODD_NAMES)
    assert all(msgspec.convert(name, Name) for name in found)
    assert found[0] == "site-1"


@pytest.mark.parametrize(
    ("steps", "weight"),
    [
        (None, 2.0),
        (5, 10.0),
        ("7", 14.0),
        (True, 2.0),
        (0, 2.0),
        (-3, 2.0),
        (math.nan, 2.0),
        (math.inf, 2.0),
        ([], 2.0),
    ],
)
def test_a_weight_is_what_nvflare_makes_of_the_steps(steps: object, weight: float) -> None:
    assert weight_of({"steps": steps}, "steps", 2.0) == weight
    assert weight_of(None, "steps", 2.0) == 2.0


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf, True, "2", None])
def test_a_factor_that_is_none_is_refused_by_its_client(factor: object) -> None:
    with pytest.raises(LocalFault, match=r"aggregation_weights\['site-1'\]"):
        checked_factors({"site-1": factor})


# ---- updates in messages ---------------------------------------------------------------------------------------------


def test_updates_are_averaged_and_of_the_first_ones_kinds(round_: Round) -> None:
    round_.prepare(MODEL)
    for number, client in enumerate(ODD_NAMES[:4]):
        round_.add(client, update(number), FULL, 1.0 + number)
    params, result = round_.result()
    np.testing.assert_allclose(params["w"], np.full((2, 3), 2.0))
    assert params["n"] == 2.0 and type(params["n"]) is float and params["b"].shape == ()
    assert result.weight == 10.0 and round_.absent(result) == []


@pytest.mark.parametrize("prepared", [True, False])
def test_the_first_update_says_how_all_are_laid_out(prepared: bool, round_: Round) -> None:
    if prepared:
        round_.prepare(MODEL)
    wide = {"w": np.ones((2, 3))}
    round_.add("site-1", wide, DIFF, 1.0)
    with pytest.raises(UpdateRefused) as refused:
        round_.add("site-2", update(1.0), DIFF, 1.0)
    assert refused.value.client == "site-2"
    with pytest.raises(UpdateRefused, match="no mean is both"):
        round_.add("site-3", wide, FULL, 1.0)
    with pytest.raises(UpdateRefused, match="FULL or DIFF"):
        round_.add("site-3", wide, "None", 1.0)
    round_.add("site-3", {"w": np.full((2, 3), 3.0)}, DIFF, 1.0)
    params, _ = round_.result()
    assert list(params) == ["w"] and params["w"].dtype == np.float64
    np.testing.assert_array_equal(params["w"], np.full((2, 3), 2.0))


@pytest.mark.parametrize("prepared", [True, False])
def test_a_first_update_that_is_refused_says_nothing_of_the_others(prepared: bool, round_: Round) -> None:
    if prepared:
        round_.prepare(MODEL)
    for bad in ({"x": np.full(3, np.nan)}, {"w": np.full((9, 9), np.inf, np.float32)}, update(np.nan)):
        with pytest.raises(UpdateRefused):
            round_.add("site-1", bad, FULL, 1.0)
    round_.add("site-2", update(2.0), FULL, 1.0)
    params, result = round_.result()
    assert result.clients == ("site-2",) and params["n"] == 2.0


def test_threads_that_all_come_first_are_one_round(round_: Round) -> None:
    failed: list[BaseException] = []

    def add(client: int) -> None:
        try:
            round_.add(f"site-{client}", update(client), FULL, 1.0)
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=add, args=(client,)) for client in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    params, result = round_.result()
    assert not failed and len(result.clients) == 12 and round_.absent(result) == []
    np.testing.assert_array_equal(params["w"], np.full((2, 3), 5.5))


def test_a_rule_that_steps_from_the_model_takes_no_differences() -> None:
    with lifl.Aggregator(rule="fedavgm", options={"server_learning_rate": 0.5}) as aggregator:
        round_ = Round(aggregator, "fedavgm", 2)
        round_.prepare({"w": np.full(3, 10, np.float32)})
        with pytest.raises(UpdateRefused, match="rule fedavgm takes its step from the model"):
            round_.add("site-1", {"w": np.ones(3, np.float32)}, DIFF, 1.0)
        round_.add("site-1", {"w": np.full(3, 12, np.float32)}, FULL, 1.0)
        np.testing.assert_allclose(round_.result()[0]["w"], np.full(3, 11))


# ---- updates by tickets ----------------------------------------------------------------------------------------------


def bring(reference: Reference, value: float) -> None:
    """What a client's filters do."""
    with Taking(reference) as taking:
        model = taking.model()
        taking.submit({name: array * 0 + value for name, array in model.items()}, 1.0)


def test_a_model_that_another_filter_has_changed_is_another_one(round_: Round) -> None:
    round_.prepare(MODEL | {"nan": np.full(2, np.nan)})
    same = {name: np.copy(array) for name, array in MODEL.items()} | {"nan": np.full(2, np.nan), "n": 0.5}
    assert round_.is_model(same)
    less = {name: array for name, array in same.items() if name != "b"}
    noisy = {"w": same["w"] + np.float32(1e-30)}
    for other in (
        less,
        same | noisy,
        same | {"more": np.ones(1)},
        same | {"w": same["w"].astype(np.float16)},
        {"w": ""},
    ):
        assert not round_.is_model(other)
    assert not round_.is_model(same | {"w": same["w"].reshape(3, 2)})


def test_tickets_and_messages_are_one_round(round_: Round) -> None:
    round_.prepare(MODEL)
    bring(round_.refer("site-1"), 1.0)
    assert round_.refer("site-1") == round_.refer("site-1"), "one ticket for each"
    round_.add("site-2", update(3.0), FULL, 1.0)  # cut off, and faster than the first one's message
    round_.brought("site-1", round_.refer("site-1"), FULL)
    params, result = round_.result()
    np.testing.assert_array_equal(params["w"], np.full((2, 3), 2.0))
    assert params["n"] == 2.0 and sorted(result.clients) == ["site-1", "site-2"]


def test_a_client_that_brought_its_update_and_sends_it_again_counts_once(round_: Round) -> None:
    """Its connection broke after the node had taken it: it does not know, and lets it ride in its message."""
    round_.prepare(MODEL)
    bring(round_.refer("site-1"), 1.0)
    round_.add("site-1", update(1.0), FULL, 1.0)
    assert round_.result()[1].weight == 1.0


def test_who_says_that_it_has_brought_its_update_is_looked_after(round_: Round) -> None:
    round_.prepare(MODEL)
    mine, yours = round_.refer("site-1"), round_.refer("site-2")
    for said in (yours, Reference("lifl-ticket-1:xx", mine.digest), Reference("")):
        with pytest.raises(UpdateRefused, match="not the one of its own in this round"):
            round_.brought("site-1", said, FULL)
    with pytest.raises(UpdateRefused, match="not the one of its own"):
        round_.brought("a stranger", mine, FULL)
    bring(yours, 4.0)
    round_.brought("site-2", yours, FULL)
    round_.brought("site-1", mine, FULL)  # it lies
    params, result = round_.result()
    assert round_.absent(result) == ["site-1"]
    np.testing.assert_array_equal(params["w"], np.full((2, 3), 4.0))


def test_two_types_of_updates_that_are_there_already_have_no_mean(round_: Round) -> None:
    round_.prepare(MODEL)
    for client, kind in (("site-1", FULL), ("site-2", DIFF)):
        bring(round_.refer(client), 1.0)
        if kind == FULL:
            round_.brought(client, round_.refer(client), kind)
    with pytest.raises(UpdateRefused, match="no mean is both"):
        round_.brought("site-2", round_.refer("site-2"), DIFF)
    with pytest.raises(Refused, match="'site-2' has brought its update already"):
        round_.result()


def test_updates_of_another_layout_count_where_nobody_brought_one_of_the_models(round_: Round) -> None:
    round_.prepare(MODEL)
    late = round_.refer("site-2")
    round_.add("site-1", {"w": np.ones((2, 3))}, FULL, 1.0)
    bring(late, 5.0)
    with pytest.raises(UpdateRefused, match="laid out as the model"):
        round_.brought("site-2", late, FULL)
    params, result = round_.result()
    assert list(params) == ["w"] and result.clients == ("site-1",)


@pytest.mark.parametrize(
    "data", [None, {}, 3, MODEL, {"lifl-ticket": ""}, {"lifl-digest": "x"}, {"lifl-ticket": np.ones(3)}]
)
def test_what_is_no_reference_are_params(data: Any) -> None:
    assert Sent.read(data) is None
    assert Brought.read(data) is None


def test_messages_are_read_as_they_were_written() -> None:
    reference = Reference("a ticket", "a digest")
    sent = Sent(reference, 2.5, {"n": NUMBER}, {"rest": 1})
    assert Sent.read(sent.data()) == sent
    for brought in (Brought(reference), Brought(reference, "has NaN")):
        assert Brought.read(brought.data()) == brought

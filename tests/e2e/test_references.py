"""References: what a framework's message carries instead of tensors, and what is done where LIFL cannot be reached."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

import lifl
from lifl.aggregator import Fold, FoldFailed, UpdateRefused
from lifl.aggregator.tickets import BEGIN, read_ticket
from lifl.integrations.references import NotReached, Reference, Taking, digest_of, reference

MODEL = {"steps": np.array([1, 2], np.int64), "w": np.linspace(0, 1, 5, dtype=np.float32)}


@pytest.fixture(scope="module")
def aggregator() -> Iterator[lifl.Aggregator]:
    with lifl.Aggregator() as found:
        yield found


@pytest.fixture
def fold(aggregator: lifl.Aggregator) -> Iterator[Fold]:
    with aggregator.open(MODEL, expected=2) as found:
        yield found


def test_the_model_comes_and_the_update_goes_by_what_a_message_carries(fold: Fold) -> None:
    texts = reference(fold, "site-1", 60.0, digest_of(MODEL)).texts()
    assert all(type(text) is str for pair in texts.items() for text in pair)
    found = Reference.read({"round": 3, **texts})
    assert found is not None
    with Taking(found) as taking:
        model = taking.model()
        assert list(model) == list(MODEL), "not the server's order"
        assert digest_of(model) == digest_of(MODEL)
        taking.submit({name: array + 1 for name, array in model.items()}, 3.0, {"loss": 0.5})
    result = fold.result()
    assert result.clients == ("site-1",)
    np.testing.assert_array_equal(result["w"], MODEL["w"] + 1)


def test_a_message_without_a_ticket_has_no_reference() -> None:
    assert Reference.read({}) is None
    assert Reference.read({"lifl-ticket": "", "lifl-digest": "00"}) is None


def test_a_digest_is_of_names_dtypes_shapes_and_numbers_and_of_no_order() -> None:
    w = MODEL["w"]
    others = [
        {**MODEL, "w": w.astype(np.float64)},
        {**MODEL, "w": w.reshape(5, 1)},
        {**MODEL, "w": w + np.float32(1e-3)},
        {"steps": MODEL["steps"], "v": w},
        {"w": w},
    ]
    assert len({digest_of(each) for each in [MODEL, *others]}) == 1 + len(others)
    assert digest_of(dict(reversed(MODEL.items()))) == digest_of(MODEL)


def test_another_model_than_the_one_that_is_named_is_not_taken(fold: Fold) -> None:
    wrong = reference(fold, "site-1", 60.0, digest_of({"w": MODEL["w"]}))
    with Taking(wrong) as taking, pytest.raises(NotReached, match="digest differs"):
        taking.model()


@pytest.mark.parametrize("broken", ["nobody there", "damaged", "no ticket", "another's"])
def test_where_lifl_cannot_be_reached_the_reason_is_said(fold: Fold, broken: str) -> None:
    good = reference(fold, "site-1", 60.0)
    content = read_ticket(good.ticket)
    if broken == "nobody there":
        content = msgspec.structs.replace(content, addresses=("127.0.0.1:9",))
    elif broken == "another's":
        content = msgspec.structs.replace(content, client="site-2")
    ticket = BEGIN + base64.urlsafe_b64encode(msgspec.msgpack.encode(content)).decode()
    bad = {"damaged": good.ticket[:-5], "no ticket": "hello"}.get(broken, ticket)
    with Taking(Reference(bad), reach_within_s=0.2) as taking, pytest.raises(NotReached):
        taking.submit(MODEL, 1.0)
    with Taking(good) as taking:  # nobody else is harmed
        taking.submit(MODEL, 1.0)
    assert fold.result().clients == ("site-1",)


def test_what_cannot_count_is_no_matter_of_the_way(aggregator: lifl.Aggregator) -> None:
    with aggregator.open(MODEL, expected=2) as fold:
        found = reference(fold, "site-1", 60.0)
        with Taking(found) as taking, pytest.raises(UpdateRefused, match="NaN"):
            taking.submit({**MODEL, "w": np.full(5, np.nan, np.float32)}, 1.0)
    with Taking(found) as taking, pytest.raises(FoldFailed):
        taking.submit(MODEL, 1.0)

"""What travels, in itself: keys and records, contributions, schemas, and what an update's announcement must be."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifl.core.errors import LocalFault, Refused, RemoteFault
from lifl.core.ids import (
    ATTEMPTS_MAX,
    KEY_BYTES,
    RECORD_BYTES,
    RECORDS_PER_SEND_MAX,
    Key,
    Record,
    epoch_of,
    pack_records,
    round_of,
    unpack_records,
)
from lifl.core.limits import (
    CONTRIBUTION_BYTES_MAX,
    DIMENSIONS_MAX,
    KNOWN_WORDS_MAX,
    METRICS_MAX,
    TENSOR_NAME_CHARS_MAX,
    TENSORS_MAX,
)
from lifl.core.protocol import cluster
from lifl.core.protocol.client import Submit
from lifl.core.protocol.contribution import Contribution, pack_contribution, unpack_contributions
from lifl.core.protocol.update_check import check_submit
from lifl.core.schema import (
    SEGMENT_ALIGN_BYTES,
    Layout,
    Segment,
    TensorSpec,
    check_same,
)

LONG = "n" * TENSOR_NAME_CHARS_MAX
KEYS = st.builds(Key, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
W, V = TensorSpec("w", "float32", (3, 5)), TensorSpec("v", "float16", (7,))


# ---- names -----------------------------------------------------------------------------------------------------------


@given(KEYS)
def test_a_key_is_sixteen_bytes_there_and_back(key: Key) -> None:
    assert len(key.pack()) == KEY_BYTES
    assert Key.unpack(key.pack()) == key
    assert str(key).endswith(f"@{key.node:016x}")


@given(st.lists(st.tuples(KEYS, st.integers(0, 2**32 - 1)), min_size=1, max_size=RECORDS_PER_SEND_MAX))
def test_records_of_one_send_come_as_they_went(keys: list[tuple[Key, int]]) -> None:
    records = [Record(7, key, attempt, 1, 2) for key, attempt in keys]
    data = pack_records(records)
    assert len(data) == RECORD_BYTES * len(records)
    assert unpack_records(data) == unpack_records(memoryview(data)) == records


def test_records_that_are_none_are_refused() -> None:
    record = Record(7, Key(1, 2, 3))
    for wrong in ([], [record] * (RECORDS_PER_SEND_MAX + 1), [record, record._replace(address=8)]):
        with pytest.raises(LocalFault):
            pack_records(wrong)
    with pytest.raises(RemoteFault, match="63 bytes are not a whole number"):
        unpack_records(bytes(63))
    with pytest.raises(RemoteFault, match="a record starts with 0x0000"):
        unpack_records(bytes(64))
    with pytest.raises(RemoteFault, match="a key has 16 bytes, this one has 15"):
        Key.unpack(bytes(15))


@given(st.integers(0, 1_000_000), st.integers(0, ATTEMPTS_MAX))
def test_an_epoch_tells_its_round_and_later_attempts_are_larger(round_: int, attempt: int) -> None:
    assert round_of(epoch_of(round_, attempt)) == round_
    assert epoch_of(round_, attempt) < epoch_of(round_ + 1, 0)


@pytest.mark.parametrize("attempt", [-1, ATTEMPTS_MAX + 1])
def test_an_attempt_beyond_the_limit_has_no_epoch(attempt: int) -> None:
    with pytest.raises(LocalFault, match=f"at most {ATTEMPTS_MAX} attempts"):
        epoch_of(1, attempt)


# ---- contributions ---------------------------------------------------------------------------------------------------


def test_contributions_one_behind_the_other_come_as_they_went() -> None:
    members = [Contribution("c1", 2.0), Contribution("c2", 0.5, {"loss": 1.25})]
    meta = b"".join(map(pack_contribution, members))
    assert unpack_contributions(meta) == unpack_contributions(memoryview(meta)) == members
    assert unpack_contributions(b"") == []


def test_one_of_the_largest_size_fits_and_a_larger_one_does_not() -> None:
    empty = len(pack_contribution(Contribution("", 1.0, {"m" * 32: 1.0})))
    longest = "c" * (CONTRIBUTION_BYTES_MAX - empty - 2)  # its length takes two bytes more
    assert len(pack_contribution(Contribution(longest, 1.0, {"m" * 32: 1.0}))) == CONTRIBUTION_BYTES_MAX
    with pytest.raises(LocalFault, match=f"at most {CONTRIBUTION_BYTES_MAX} fit"):
        pack_contribution(Contribution(longest + "c", 1.0, {"m" * 32: 1.0}))


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        (b"\x05", "ends within"),
        (b"\x05\x00abc", "ends within"),
        (b"\x01\x00\xc1", "damaged contribution"),
        (b"\x02\x00\x01\x01", "damaged contribution"),
        (b"\x01\x00\x01", "damaged contribution"),
    ],
)
def test_a_damaged_meta_region_is_the_remote_s_fault(meta: bytes, said: str) -> None:
    with pytest.raises(RemoteFault, match=said):
        unpack_contributions(meta)


# ---- schemas ---------------------------------------------------------------------------------------------------------


def test_tensors_of_one_dtype_are_one_segment_each_aligned() -> None:
    layout = Layout((V, W, TensorSpec("s", "float32", ())))
    assert layout.segments == (Segment("float32", 0, 16), Segment("float16", 64, 7))
    assert (layout.offsets, layout.data_bytes) == ((64, 0, 60), 128)
    assert layout.accumulators == (Segment("float64", 0, 16), Segment("float64", 128, 7))
    assert layout.accumulator_bytes == 192
    assert not layout.data_bytes % SEGMENT_ALIGN_BYTES


@pytest.mark.parametrize(
    ("tensors", "code", "field"),
    [
        ((), "bad-schema", "tensors"),
        ((W,) * (TENSORS_MAX + 1), "bad-schema", "tensors"),
        ((TensorSpec("", "float32", ()),), "bad-schema", "tensors."),
        (
            (TensorSpec("n" * (TENSOR_NAME_CHARS_MAX + 1), "float32", ()),),
            "bad-schema",
            "tensors." + "n" * TENSOR_NAME_CHARS_MAX,
        ),
        ((W, W), "bad-schema", "tensors.w"),
        ((TensorSpec("w", "complex64", ()),), "wrong-dtype", "tensors.w"),
        ((TensorSpec("w", "float32", (0,)),), "bad-schema", "tensors"),
        ((TensorSpec("w", "float32", (-1,)),), "wrong-shape", "tensors.w"),
        ((TensorSpec("w", "float32", (1,) * (DIMENSIONS_MAX + 1)),), "wrong-shape", "tensors.w"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_schema_that_cannot_be_aggregated_names_its_tensor(tensors: Any, code: str, field: str) -> None:
    with pytest.raises(Refused) as refused:
        Layout(tensors)
    assert (refused.value.code, refused.value.field) == (code, field)


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ((W,), "missing-tensor", "tensors.v"),
        ((W, TensorSpec("v", "float32", (7,))), "wrong-dtype", "tensors.v"),
        ((W, TensorSpec("v", "float16", (8,))), "wrong-shape", "tensors.v"),
        ((W, V, TensorSpec("x", "int8", ())), "unknown-tensor", "tensors.x"),
        ((V, W), "wrong-order", "tensors"),
    ],
)
def test_tensors_that_are_not_the_model_s_are_told_apart(given: Any, code: str, field: str) -> None:
    check_same((W, V), (W, V))
    with pytest.raises(Refused) as refused:
        check_same((W, V), given)
    assert (refused.value.code, refused.value.field) == (code, field)


# ---- an announcement -------------------------------------------------------------------------------------------------

LAYOUT = Layout((W, V))
SUBMIT = Submit("j", 1, 2.0, LAYOUT.data_bytes, LAYOUT.tensors, {"loss": 1.0})


def test_an_announcement_that_is_right_passes_also_at_the_limits() -> None:
    check_submit(LAYOUT, SUBMIT, "c1")
    check_submit(LAYOUT, msgspec.structs.replace(SUBMIT, metrics={f"{n:032}": 0.0 for n in range(METRICS_MAX)}), "c1")


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"tensors": (W,)}, "missing-tensor", "tensors.v"),
        ({"data_bytes": LAYOUT.data_bytes + 1}, "wrong-size", "data_bytes"),
        ({"weight": 0.0}, "bad-weight", "weight"),
        ({"weight": -1.0}, "bad-weight", "weight"),
        ({"weight": math.nan}, "bad-weight", "weight"),
        ({"weight": math.inf}, "bad-weight", "weight"),
        ({"metrics": {f"m{n}": 0.0 for n in range(METRICS_MAX + 1)}}, "bad-metric", "metrics"),
        ({"metrics": {"": 0.0}}, "bad-metric", "metrics"),
        ({"metrics": {"m" * 33: 0.0}}, "bad-metric", "metrics"),
        ({"metrics": {"loss": math.nan}}, "bad-metric", "metrics.loss"),
    ],
)
def test_one_that_is_wrong_names_the_field(changes: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(Refused) as refused:
        check_submit(LAYOUT, msgspec.structs.replace(SUBMIT, **changes), "c1")
    assert (refused.value.code, refused.value.field) == (code, field)


def test_a_node_that_may_coordinate_has_room_for_all_words_that_it_says() -> None:
    """Nodes of the earlier release take no more, either: beyond that no cluster with a store comes together."""
    words = (*cluster.KNOWS, cluster.COORDINATES)
    assert len(set(words)) == len(words) <= KNOWN_WORDS_MAX

"""Each limit fits every frame that it travels in, what is at a limit is taken and what is beyond refused, and the page
about limits is current.
"""

from __future__ import annotations

import math
from typing import Any

import limits_page
import msgspec
import pytest
from limits_page import CHANNELS, HELD, edges, hints, messages, packed_max, small

from lifl.core import limits
from lifl.core.errors import RemoteFault
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import FrameDecoder, framed
from lifl.core.schema import TensorSpec

MESSAGES = list(messages())
FIELDS = [
    (kind, name, value, taken)
    for _channel, kind in {kind: (channel, kind) for channel, kind in MESSAGES}.values()
    for name, hint in hints(kind).items()
    for value, taken in edges(hint)
]


@pytest.mark.parametrize(("channel", "kind"), MESSAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_message_with_all_at_its_limits_fits_its_frame(channel: str, kind: type) -> None:
    longest = packed_max(kind)
    assert longest < math.inf, f"nothing holds {kind.__name__}"
    most = limits.GREETING_BYTES_MAX if channel == "first frame of a node" else limits.FRAME_BYTES_MAX
    assert longest <= most, f"{kind.__name__} of {longest} bytes, {channel}"


def test_what_one_event_says_to_all_fits_the_link() -> None:
    """A gateway has so many connections; each may be told one of these in one event."""
    at_all = limits.CONNECTIONS_MAX
    about = packed_max(gm.TellClient) - HELD["message"][0]
    reason = limits.REASON_BYTES_MAX + 5 - packed_max(hints(cm.RoundOver)["reason"])
    over = packed_max(cm.RoundOver) + reason
    selected = packed_max(cm.Selected) - HELD["tensors"][0] - HELD["options"][0]
    # Of an address of 280 characters, as here, none has more than one byte each: host names are ASCII.
    selected -= 3 * limits.ADDRESS_CHARS_MAX
    for each in (over, selected, packed_max(cm.Committed), packed_max(cm.Accepted)):
        assert at_all * (4 + about + each) <= limits.LINK_WAITING_BYTES_MAX


def test_the_schemas_of_all_jobs_fit_the_link_at_once() -> None:
    beside = packed_max(gm.JobSchema) - HELD["tensors"][0] + 4
    assert limits.SCHEMAS_BYTES_MAX + limits.JOBS_MAX * beside <= limits.LINK_WAITING_BYTES_MAX


def test_the_pages_of_an_inventory_fit_the_link_at_once() -> None:
    assert 2 * limits.INVENTORY_BYTES_MAX <= limits.LINK_WAITING_BYTES_MAX
    members = limits.PAGES_MAX * limits.MEMBERS_PER_FRAME_MAX
    assert members >= 2 * limits.CLIENTS_PER_ROUND_MAX
    assert members * limits.CONTRIBUTION_BYTES_MAX >= limits.INVENTORY_BYTES_MAX


def test_a_model_of_the_longest_schema_fits_its_files_header() -> None:
    each = len('{"dtype":"BF16","shape":[],"data_offsets":[,]},"":') + 2 * 20
    shapes = 20 * limits.DIMENSIONS_MAX  # of few tensors: their bytes are in the schema, too
    assert 2 * limits.SCHEMA_BYTES_MAX + limits.TENSORS_MAX * each + shapes <= limits.MODEL_HEADER_BYTES_MAX


@pytest.mark.parametrize("kind", [p.PeerHello, p.PeerRefusal, p.PeerWelcome], ids=lambda kind: kind.__name__)
def test_a_greeting_fits_its_frame(kind: type) -> None:
    assert packed_max(kind) <= limits.GREETING_BYTES_MAX


def decoded(kind: type, **changes: Any) -> Any:
    fields = {name: small(hint) for name, hint in hints(kind).items()} | changes
    decoder: FrameDecoder[Any] = FrameDecoder(kind)
    decoder.feed(framed(msgspec.msgpack.encode({"type": kind.__struct_config__.tag, **fields})))
    return decoder.next_message()


@pytest.mark.parametrize("kind", sorted({kind for _channel, kind in MESSAGES}, key=lambda kind: kind.__name__))
def test_the_smallest_of_each_message_is_taken(kind: type) -> None:
    assert isinstance(decoded(kind), kind)


@pytest.mark.parametrize(
    ("kind", "name", "value", "taken"),
    FIELDS,
    ids=[f"{k.__name__}.{n}-{'at' if t else 'beyond'}" for k, n, _, t in FIELDS],
)
def test_a_field_at_its_limit_is_taken_and_beyond_it_refused(kind: type, name: str, value: Any, taken: bool) -> None:
    if taken:
        assert isinstance(decoded(kind, **{name: value}), kind)
    else:
        with pytest.raises(RemoteFault, match=f"`\\$\\.{name}"):
            decoded(kind, **{name: value})


@pytest.mark.parametrize(
    "tensor",
    [
        ["a" * (limits.TENSOR_NAME_CHARS_MAX + 1), "float32", [1]],
        ["a", "f" * (limits.DTYPE_CHARS_MAX + 1), [1]],
        ["a", "float32", [1] * (limits.DIMENSIONS_MAX + 1)],
    ],
)
def test_a_tensor_beyond_its_limits_is_refused(tensor: list[Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(tensor, TensorSpec)


def test_every_channel_is_on_the_page() -> None:
    assert set(CHANNELS) <= {line[4:] for line in limits_page.page().splitlines()}


def test_the_page_is_current() -> None:
    assert limits_page.PAGE.read_text() == limits_page.page(), "run `make limits`"

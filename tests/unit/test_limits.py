"""Each limit fits every frame that it travels in, what is at a limit is taken and what is beyond refused, and the page
about limits is current.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import click
import limits_page
import msgspec
import pytest
from lifl_cli import daemon_client
from limits_page import (
    ARGUMENT_FIELDS,
    CHANNELS,
    HELD,
    edges,
    hints,
    is_struct,
    messages,
    metas,
    packed_max,
    parameters,
    section_of,
    small,
)

from lifl.core import limits
from lifl.core.config.job import JobConfig, parse_job
from lifl.core.config.node import NodeConfig, parse_node
from lifl.core.errors import ConfigError, Refused, RemoteFault
from lifl.core.planning.client_list import Listed
from lifl.core.planning.treatment import Patterns
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


MOST = {
    "first frame of a node": limits.GREETING_BYTES_MAX,
    "who wants a certificate → control port": limits.GREETING_BYTES_MAX,
    "control port → who wants a certificate": limits.ENROLLED_BYTES_MAX,
}
"""Channels whose frames are shorter than others'."""


@pytest.mark.parametrize(("channel", "kind"), MESSAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_message_with_all_at_its_limits_fits_its_frame(channel: str, kind: type) -> None:
    longest = packed_max(kind)
    assert longest < math.inf, f"nothing holds {kind.__name__}"
    assert longest <= MOST.get(channel, limits.FRAME_BYTES_MAX), f"{kind.__name__} of {longest} bytes, {channel}"


def test_what_one_event_says_to_all_fits_the_link() -> None:
    """A gateway has so many connections; each may be told one of these in one event."""
    at_all = limits.CONNECTIONS_MAX
    about = packed_max(gm.TellClient) - HELD["message"][0]
    reason = limits.REASON_BYTES_MAX + 5 - packed_max(hints(cm.RoundOver)["reason"])
    over = packed_max(cm.RoundOver) + reason
    # The gateway adds what is the same for all.
    selected = packed_max(cm.Selected) - HELD["tensors"][0] - HELD["options"][0]
    selected -= packed_max(hints(cm.Selected)["trainable"])
    # Of an address of 280 characters, as here, none has more than one byte each: host names are ASCII.
    selected -= 3 * limits.ADDRESS_CHARS_MAX
    for each in (over, selected, packed_max(cm.Committed), packed_max(cm.Accepted)):
        assert at_all * (4 + about + each) <= limits.LINK_WAITING_BYTES_MAX


def test_the_schemas_of_all_jobs_fit_the_link_at_once() -> None:
    counted = HELD["tensors"][0] + packed_max(Patterns) + packed_max(Listed)  # `JobSpec.schema_bytes`
    beside = packed_max(gm.JobSchema) - counted + 4
    assert limits.SCHEMAS_BYTES_MAX + limits.JOBS_MAX * beside <= limits.LINK_WAITING_BYTES_MAX


def test_the_pages_of_an_inventory_fit_the_link_at_once() -> None:
    assert 2 * limits.INVENTORY_BYTES_MAX <= limits.LINK_WAITING_BYTES_MAX
    members = limits.PAGES_MAX * limits.MEMBERS_PER_FRAME_MAX
    assert members >= 2 * limits.CLIENTS_PER_ROUND_MAX
    assert members * limits.CONTRIBUTION_BYTES_MAX >= limits.INVENTORY_BYTES_MAX


def test_what_all_tasks_of_a_branch_have_taken_is_within_its_cost() -> None:
    leaves = limits.BRANCH_UPDATES_MAX
    assert 2 * leaves * limits.DEADLINE_S_MAX <= limits.COST_S_MAX  # and no more middles than leaves


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


def keys(kind: type, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key of a configuration, with its type."""
    for name, hint in hints(kind).items():
        base = section_of(hint)
        if is_struct(base):
            yield from keys(base, (*prefix, name))
        else:
            yield (*prefix, name), hint


def table(config: type, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A right configuration, but for one key."""
    most = limits.CLIENTS_PER_ROUND_MAX
    right: dict[str, Any] = {
        "job": {"name": "j", "rounds": 1},
        "model": {"path": "/m"},
        "selection": {"clients_per_round": most, "strategy": "power_of_choice"},
    }
    found = right if config is JobConfig else {}
    inner = found
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    of_node = path == ("labels",)  # none of its labels is empty
    inner[path[-1]] = {key: each or "x" for key, each in value.items()} if of_node else value
    return found


KEYS = [
    (config, path, value, taken)
    for config in (JobConfig, NodeConfig)
    for path, hint in keys(config)
    for value, taken in edges(hint)
]


@pytest.mark.parametrize(
    ("config", "path", "value", "taken"),
    KEYS,
    ids=[f"{'.'.join(path)}-{'at' if taken else 'beyond'}-{index}" for index, (_, path, _, taken) in enumerate(KEYS)],
)
def test_a_key_at_its_limit_is_taken_and_beyond_it_refused(
    config: type, path: tuple[str, ...], value: Any, taken: bool
) -> None:
    parse = parse_job if config is JobConfig else parse_node
    given = table(config, path, value)
    if not taken:
        with pytest.raises(ConfigError, match=r"\.".join(path)):
            parse(given)
        return
    said = ""
    try:
        parse(given)
    except ConfigError as error:
        said = str(error)
    # A text at its limit may be no address or no rule; and a path has a limit in bytes, too.
    assert not said or (isinstance(value, str | list) and ("at most" not in said or "bytes" in said)), said


TEXTS = [
    (words, value, taken)
    for words, (kind, name) in ARGUMENT_FIELDS.items()
    for value, taken in edges(hints(kind)[name])
]


@pytest.mark.parametrize(
    ("words", "value", "taken"),
    TEXTS,
    ids=[f"{words}-{'at' if taken else 'beyond'}-{index}" for index, (words, _, taken) in enumerate(TEXTS)],
)
def test_an_argument_at_its_limit_is_sent_and_beyond_it_refused_by_its_name(
    words: str, value: Any, taken: bool
) -> None:
    kind, name = ARGUMENT_FIELDS[words]
    plain = {each: small(hint) for each, hint in hints(kind).items()}
    request = kind(**plain | {name: tuple(value) if isinstance(value, list) else value})
    (command,) = [command for at, command, _ in parameters() if at == words]
    with click.Context(command, info_name=words.rpartition(" ")[0]).scope():
        if taken:
            assert daemon_client._frame(request)
        else:
            called = "JOB" if words == "plan --round" else words.rpartition(" ")[2]
            with pytest.raises(Refused, match=f"^{called}: it may be "):
                daemon_client._frame(request)


NUMBERS = [
    (words, parameter.type, value, taken)
    for words, _, parameter in parameters()
    if isinstance(parameter.type, click.IntRange | click.FloatRange)
    for value, taken in [
        *([(parameter.type.min, True), (parameter.type.min - 1, False)] if parameter.type.min is not None else []),
        *([(parameter.type.max, True), (parameter.type.max + 1, False)] if parameter.type.max is not None else []),
    ]
]


@pytest.mark.parametrize(("words", "kind", "value", "taken"), NUMBERS)
def test_a_number_of_the_command_line_at_its_limit_is_taken_and_beyond_it_refused(
    words: str, kind: click.ParamType, value: float, taken: bool
) -> None:
    if taken:
        assert kind.convert(str(value), None, None) == value
    else:
        with pytest.raises(click.BadParameter):
            kind.convert(str(value), None, None)


def test_every_text_and_number_of_a_configuration_has_a_limit() -> None:
    for config in (JobConfig, NodeConfig):
        for path, hint in keys(config):
            base, held = metas(hint)
            if base in (str, int, float):
                assert {"max_length", "le"} & held.keys(), ".".join(path)


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

"""Every number that comes from outside has a limit in its type: found by walking through the types of all channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect as mi

from lifl.core.errors import RemoteFault
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import enrolment as e
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import journal as jm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.frames import FrameDecoder, encode

CHANNELS: dict[str, Any] = {
    "client": cm.FromClient,
    "a client's node": cm.ToClient,
    "hello": p.PeerHello,
    "greeting": p.Greeting,
    "asking": e.Asking,
    "enrolled": e.Answer,
    "agent": p.ToCoordinator,
    "coordinator": p.ToAgent,
    "cli": om.FromCli,
    "gateway": gm.FromGateway,
    "worker": wm.FromWorker,
    "journal": jm.FromJournal,
    "journal's lifld": jm.ToJournal,
    "zygote": wm.FromZygote,
}
BY_FIELD = {
    # Refused by `check_submit`, `check_evaluated` and the intake with the field's name, for who trains to read.
    "Submit.weight",
    "Submit.metrics{}",
    "Evaluated.weight",
    "Evaluated.metrics{}",
    "TensorSpec.shape[]",
    "Offer.weight",
    # Said for benchmarks: nothing is decided by it.
    "TaskDone.weight",
}
SIXTY_FOUR_BITS = {"node", "owner", "data", "meta", "checksum", "digest", "digests[]"}
"""A node's number, a checksum: any value of the wire's largest number is one."""


CONFIGURED = ("AggregationSection.", "Kernel")
"""A job's config has its own limits, which name the key (`config/job.py`)."""


def leaves(kind: mi.Type, path: str, seen: tuple[type, ...] = ()) -> Iterator[tuple[str, mi.Type]]:
    """Every number that the type holds, with where it is."""
    match kind:
        case mi.StructType():
            if kind.cls in seen:
                return
            name = kind.cls.__name__
            for field in kind.fields:
                yield from leaves(field.type, f"{name}.{field.encode_name}", (*seen, kind.cls))
        case mi.UnionType():
            for each in kind.types:
                yield from leaves(each, path, seen)
        case mi.VarTupleType() | mi.ListType():
            yield from leaves(kind.item_type, f"{path}[]", seen)
        case mi.TupleType():
            for number, each in enumerate(kind.item_types):
                yield from leaves(each, f"{path}[{number}]", seen)
        case mi.DictType():
            yield from leaves(kind.value_type, f"{path}{{}}", seen)
        case mi.FloatType() | mi.IntType():
            yield path, kind


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_number_of_a_channel_is_bounded(channel: str) -> None:
    unbounded = []
    for path, kind in leaves(mi.type_info(CHANNELS[channel]), ""):
        if path in BY_FIELD or path.startswith(CONFIGURED) or path.split(".")[-1] in SIXTY_FOUR_BITS:
            continue
        low = kind.ge if kind.ge is not None else kind.gt
        high = kind.le if kind.le is not None else kind.lt
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            unbounded.append(path)
    assert not unbounded, unbounded


@pytest.mark.parametrize(
    "message",
    [
        p.Heartbeat(rate_per_s=math.nan),
        p.Heartbeat(execution_s=math.inf),
        p.Heartbeat(arena_used_bytes=1 << 63),
        p.Heartbeat(workers=1 << 63),
        p.Heartbeat(hosted_bytes=1 << 63),
        gm.Admit(1, "c", "j", 1, math.nan),
        gm.Admit(1, "c", "j", 1, 1.0, {"loss": math.inf}),
        gm.ClientJoined(1, "c", "j", 1 << 63),
        gm.ClientLeft(-1),
        p.Inventory((1 << 63,)),
        p.Inventory((), (p.BranchHeld(1, 1, 1, (("c", math.nan, {}),), (), False),)),
        p.Heartbeat(tree=({},) * (p.TREE_LINES_MAX + 1)),
    ],
    ids=repr,
)
def test_what_is_beyond_is_refused_before_it_is_a_message(message: msgspec.Struct) -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(p.ToCoordinator)
    decoder.feed(encode(message))
    with pytest.raises(RemoteFault):
        decoder.next_message()

"""What a committed round was made of, as a file: its updates with their digests, and how they become the model.

Beside it lie `MODEL`, that it made, `BEFORE`, that it began with, and of a rule with state `STATE`, that of before.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lifl.core.config.aggregation import AggregationSection
from lifl.core.errors import Refused, ResourceFault
from lifl.core.fields import Name, TrainablePatterns, Weight
from lifl.core.limits import CLIENTS_PER_ROUND_MAX, ROUNDS_MAX
from lifl.core.protocol.contribution import root_of

RECEIPT, MODEL, BEFORE, STATE = "receipt.json", "model.safetensors", "before.safetensors", "before.state.safetensors"
RECEIPT_BYTES_MAX = 16 * 1024 * 1024
"""Of a receipt's file: one of `CLIENTS_PER_ROUND_MAX` updates takes some megabytes."""
NAMED_MAX = 8
"""Clients that a text names; the others are counted."""
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{16})?\Z")]
_Root = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]


class UpdateLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An update that counted; `digest` is the checksum of its bytes (`shm/checksum.py`), empty: it is not known."""

    client: Name
    weight: Weight
    digest: _Digest


class RoundReceipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A committed round; `model` and `before` are the digests of the models' files (empty: not known).

    `updates_digest` stands for all of `updates` (`contribution.root_of`), as the node's receipt has it.
    """

    job: Name
    round: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS_MAX)]
    aggregation: AggregationSection
    model: _Digest
    before: _Digest
    updates_digest: _Root
    updates: Annotated[tuple[UpdateLine, ...], msgspec.Meta(min_length=1, max_length=CLIENTS_PER_ROUND_MAX)]
    trainable: TrainablePatterns = ()
    format: Literal[1] = 1


def check_regular(path: Path) -> None:
    """Raise `OSError` for what is no file: opening a pipe, from whomever the folder is, would wait for a writer."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))


def write_receipt(path: Path, receipt: RoundReceipt) -> None:
    """Write a receipt as JSON.  Raise `ResourceFault`."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(receipt)) + b"\n")
    except OSError as error:
        raise ResourceFault(f"{path} cannot be written: {error.strerror or error}") from error


def read_receipt(path: Path) -> RoundReceipt:
    """Return the receipt in a file, whose list of updates is what its digest stands for.

    Raise `Refused`, `ResourceFault`.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            data = file.read(RECEIPT_BYTES_MAX + 1)
    except OSError as error:
        raise ResourceFault(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > RECEIPT_BYTES_MAX:
        raise Refused("bad-receipt", "receipt", f"{path} has more than {RECEIPT_BYTES_MAX} bytes: it is no receipt")
    try:
        receipt = msgspec.json.decode(data, type=RoundReceipt)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("bad-receipt", "receipt", f"{path} is no receipt: {error}") from error
    check_receipt(receipt)
    return receipt


def check_receipt(receipt: RoundReceipt) -> None:
    """Raise `Refused` when updates lack their digests, are there twice, or are not those that the digest stands for."""
    which = f"the receipt of round {receipt.round} of job {receipt.job}"
    unknown = [line.client for line in receipt.updates if not line.digest]
    if unknown or not receipt.updates_digest:
        text = f"{which} has no digest of the update of {named(unknown)}: its node runs an earlier release"
        raise Refused("no-receipt", "updates", text)
    if len({line.client for line in receipt.updates}) < len(receipt.updates):
        raise Refused("bad-receipt", "updates", f"{which} has a client twice")
    found = root_of((line.client, line.weight, int(line.digest, 16)) for line in receipt.updates)
    if found != receipt.updates_digest:
        text = f"{which}: its updates have the digest {found}, and it says {receipt.updates_digest}"
        raise Refused("bad-receipt", "updates_digest", text)


def named(clients: list[str]) -> str:
    """Return the first of some clients, and how many more there are."""
    more = f" and {len(clients) - NAMED_MAX} more" if clients[NAMED_MAX:] else ""
    return f"{', '.join(clients[:NAMED_MAX])}{more}"

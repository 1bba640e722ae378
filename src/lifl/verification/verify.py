"""Whether a committed model is that of its updates.

Of a job with `aggregation.reproducible` the two are the same bit for bit.  Of another one with the rule fedavg each is
within the error that docs/rules.md states of the exact mean, and so the two are within twice that of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lifl.core.errors import ConfigError, Refused, ResourceFault
from lifl.core.modelfile import model_pieces, state_pieces
from lifl.core.planning.treatment import MEANS, trainable_of
from lifl.core.schema import DTYPE_BYTES, KEPT, Layout, TensorSpec
from lifl.rules.builtin import BUILTIN
from lifl.rules.kernels import Vector
from lifl.shm.checksum import as_array
from lifl.verification.again import made_again
from lifl.verification.receipt_file import BEFORE, MODEL, STATE, RoundReceipt, check_regular, read_receipt
from lifl.verification.update_files import FoundUpdate, header_of, load_updates, room_for
from lifl.worker.files import read_file

ROUNDINGS_OF_UPDATES, ROUNDING = 8, 2.0**-50
"""Of a mean of n updates that is summed in float64 (n + 8) · 2^-50 of the mean magnitude may be lost."""
ULPS = 1.01
"""Of a model's dtype: twice what rounding a mean costs, which for two-byte floats goes by way of float32."""


class Verified(NamedTuple):
    """What was found of a round: how many of its updates were looked at, and how its model was compared."""

    job: str
    round: int
    updates: int
    compared: Literal["bits", "error", "digest"]


def verify(receipt_path: Path, given: Sequence[Path]) -> Verified:
    """Compare the model beside a receipt with what the updates in these files and folders make of the one before.

    With none given its file's digest alone is compared.  Raise `Refused`, which says what is wrong: a receipt, whose
    update is missing or another, or which numbers of the model; `ResourceFault` for what cannot be read.
    """
    receipt = read_receipt(receipt_path)
    try:
        layout = _layout_of(receipt, receipt_path.parent / MODEL)
        after = _model(receipt_path.parent / MODEL, layout, receipt.model, receipt)
        if not given:
            if not receipt.model:
                text = f"the receipt of round {receipt.round} of job {receipt.job} has no digest of its model"
                raise Refused("no-receipt", "model", f"{text}: compare it with its updates (--updates)")
            return Verified(receipt.job, receipt.round, 0, "digest")
        _check_can(receipt)
        updates = load_updates(given, receipt, layout)
        before = _model(receipt_path.parent / BEFORE, layout, receipt.before, receipt)
        made = made_again(receipt, layout, before, _states(receipt, layout, receipt_path.parent / STATE), updates)
    except OSError as error:
        where = error.filename or "a folder for temporary files ($TMPDIR)"
        raise ResourceFault(f"{where} cannot be used: {error.strerror or error}") from error
    except ConfigError as error:
        raise Refused("not-recomputed", error.path, str(error)) from error
    for tensor, offset in zip(layout.tensors, layout.offsets, strict=True):
        _compare(receipt, tensor, offset, made, after, updates)
    compared: Literal["bits", "error"] = "bits" if receipt.aggregation.is_reproducible else "error"
    return Verified(receipt.job, receipt.round, len(updates), compared)


def _layout_of(receipt: RoundReceipt, path: Path) -> Layout:
    tensors = trainable_of(header_of(path).tensors, receipt.trainable)
    return Layout(tensors, receipt.aggregation.is_reproducible)


def _check_can(receipt: RoundReceipt) -> None:
    """Raise `Refused` for a job whose models are not made again here: the text says why."""
    section, why = receipt.aggregation, ""
    if section.rule not in BUILTIN:
        why = f"the rule {section.rule} is the job's own, whose code is not run here"
    elif section.first:
        why = "aggregation.first takes the numbers of whichever update came first, which is not noted"
    elif not section.is_reproducible and section.rule not in MEANS:
        why = f"for the rule {section.rule} no error is stated; of a job with aggregation.reproducible it is made again"
    if why:
        text = f"the model of round {receipt.round} of job {receipt.job} cannot be made again: {why}"
        raise Refused("not-recomputed", "aggregation", f"{text}; without --updates its digests are compared")


def _model(path: Path, layout: Layout, digest: str, receipt: RoundReceipt) -> memoryview:
    """Return a model's bytes.  Raise `OSError`, and `Refused` when it is not the file with this digest."""
    check_regular(path)
    view = room_for(layout.data_bytes)
    _, found = read_file(path, model_pieces(layout), [view], bool(receipt.trainable))
    if digest and found != digest:
        text = f"{path} has the digest {found}, that of the model which job {receipt.job} has committed is {digest}"
        raise Refused("other-model", "model", text)
    return view


def _states(receipt: RoundReceipt, layout: Layout, path: Path) -> dict[str, memoryview]:
    """Return the rule's states before the round; none before the first.  Raise `OSError`, `Refused`."""
    names = BUILTIN[receipt.aggregation.rule].states
    if not names or receipt.round == 1:
        return {}
    if not path.exists():
        text = f"the rule {receipt.aggregation.rule} goes on from its state, which is not there: {path}"
        raise Refused("not-recomputed", "state", f"{text}; `lifl verify JOB ROUND --save` on the node's machine has it")
    check_regular(path)
    views = [room_for(layout.state_bytes) for _ in names]
    read_file(path, state_pieces(layout, names), views)
    return dict(zip(names, views, strict=True))


def _compare(
    receipt: RoundReceipt,
    tensor: TensorSpec,
    offset: int,
    made: memoryview,
    after: memoryview,
    updates: Sequence[FoundUpdate],
) -> None:
    """Raise `Refused` when numbers of a tensor are not those that the updates make."""
    part = slice(offset, offset + tensor.size * DTYPE_BYTES[tensor.dtype])
    ours, theirs = as_array(made[part], tensor.dtype), as_array(after[part], tensor.dtype)
    bits = np.dtype(f"u{DTYPE_BYTES[tensor.dtype]}")
    other = ours.view(bits) != theirs.view(bits)
    if other.any() and not receipt.aggregation.is_reproducible and tensor.dtype not in KEPT:
        weights = [update.line.weight for update in updates]
        other &= _apart(ours, theirs, [as_array(update.view[part], tensor.dtype) for update in updates], weights)
    if other.any():
        at = int(np.argmax(other))
        found = f"element {at} (flattened) is {theirs[at]}, and of its updates {ours[at]}"
        text = f"the model of round {receipt.round} of job {receipt.job} is not that of its updates"
        text = f"{text}: tensor {tensor.name!r} differs in {int(other.sum())} of {tensor.size} numbers; {found}"
        raise Refused("other-model", f"tensors.{tensor.name}", text)


def _apart(ours: Vector, theirs: Vector, updates: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """Return where two means of the same updates are further apart than their rounding explains."""
    if ours.dtype.kind in "iu":
        exact = all(weight.is_integer() for weight in weights) and sum(weights) < 2.0**53
        larger, smaller = np.maximum(ours, theirs), np.minimum(ours, theirs)
        # The difference of two integers of a type may be beyond it, and wraps around to the right one without a sign.
        difference = larger.view(f"u{ours.itemsize}") - smaller.view(f"u{ours.itemsize}")
        apart: Vector = difference > (0 if exact else 1)
        return apart
    largest = np.zeros(len(ours))
    for vector in updates:  # where an update lacks the tensor it is zeros
        np.maximum(largest, np.abs(vector.astype(np.float64)), out=largest)
    with np.errstate(invalid="ignore", over="ignore"):
        larger = np.where(np.abs(ours) > np.abs(theirs), ours, theirs)
        ulp = np.abs(np.spacing(np.abs(larger)).astype(np.float64))
        lost = 2 * (len(updates) + ROUNDINGS_OF_UPDATES) * ROUNDING * largest
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        apart = ~(difference <= ULPS * ulp + lost)
    return apart

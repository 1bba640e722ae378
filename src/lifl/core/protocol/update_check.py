"""What the announcement of an update must be; clients ask it before they send, the gateway before it takes a byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from lifl.core.errors import Refused
from lifl.core.fields import METRIC_NAME_RULE, MetricName
from lifl.core.limits import CONTRIBUTION_BYTES_MAX, METRICS_MAX, WEIGHT_MAX, WEIGHT_MIN, WHOLE_WEIGHT_MAX
from lifl.core.protocol.client import Evaluated, Submit
from lifl.core.protocol.contribution import Contribution, packed_bytes
from lifl.core.schema import Layout, check_same


def is_text(value: Any) -> bool:
    """Return whether Python reads a number out of what is none: text and bytes, and arrays of these or of times."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return isinstance(value, str | bytes | bytearray | memoryview) or kind in tuple("SUOMm")


def is_boolean(value: Any) -> bool:
    """Return whether something is true or false: Python's own, NumPy's or torch's."""
    dtype = getattr(value, "dtype", None)
    return isinstance(value, bool) or getattr(dtype, "kind", "") == "b" or str(dtype) == "torch.bool"


def check_submit(layout: Layout, submit: Submit, client: str, may_lack: bool = False) -> None:
    """Raise `Refused`, naming the field, unless what `client` announces can be an update of a job of this `layout`.

    With `may_lack` it may lack some of the tensors: the job has `trainable` ones.
    """
    if submit.digest is msgspec.UNSET:
        check_same(layout.tensors, submit.tensors)
    elif submit.digest != layout.digest:
        text = "the update's tensors are not the model's; send what this round's selection described"
        raise Refused("wrong-schema", "digest", text)
    if submit.data_bytes != layout.data_bytes:
        raise Refused(
            "wrong-size",
            "data_bytes",
            f"the update announces {submit.data_bytes} bytes, the model's tensors take {layout.data_bytes}; send"
            " them in the layout's order, each dtype's vector padded to 64 bytes",
        )
    if not isinstance(submit.absent, msgspec.UnsetType):
        _check_absent(layout, submit.absent, may_lack)
    _check_contribution(Contribution(client, submit.weight, submit.metrics, submit.absent))
    if layout.reproducible and not (submit.weight.is_integer() and 1.0 <= submit.weight <= WHOLE_WEIGHT_MAX):
        text = f"the weight is {submit.weight}; the job's sums are reproducible, which takes whole numbers from 1 to"
        raise Refused("bad-weight", "weight", f"{text} {WHOLE_WEIGHT_MAX:.0f}, such as the number of examples")


def check_evaluated(evaluated: Evaluated, client: str) -> None:
    """Raise `Refused`, naming the field, unless it can be what `client` has found of a model."""
    _check_contribution(Contribution(client, evaluated.weight, evaluated.metrics))


def _check_contribution(contribution: Contribution) -> None:
    weight, metrics = contribution.weight, contribution.metrics
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise Refused(
            "bad-weight",
            "weight",
            f"the weight is {weight}; it must be a number from {WEIGHT_MIN} to {WEIGHT_MAX}, such as the number"
            " of examples",
        )
    check_metrics(metrics)
    nbytes = packed_bytes(contribution)
    if nbytes > CONTRIBUTION_BYTES_MAX:
        text = (
            f"the client's name and {len(metrics)} metrics take {nbytes} bytes, at most {CONTRIBUTION_BYTES_MAX}"
            " are kept with an update: send fewer metrics, or shorter names (a letter beyond ASCII takes 2 to 4 bytes)"
        )
        raise Refused("bad-metric", "metrics", text)


def _check_absent(layout: Layout, absent: bytes, may_lack: bool) -> None:
    """Raise `Refused`, naming the first tensor that must not be absent, or unless the bits are those of `layout`."""
    bits, tensors = int.from_bytes(absent, "little"), layout.tensors
    if not may_lack:
        lacking = [tensor.name for index, tensor in enumerate(tensors) if bits >> index & 1]
        what = f"the model's tensor {lacking[0]!r}" if lacking else "none of the model's tensors, and says so"
        where = f"tensors.{lacking[0]}" if lacking else "absent"
        text = f"the update lacks {what}; send all of them: the job has no job.trainable"
        raise Refused("missing-tensor", where, text)
    if len(absent) != -(-len(tensors) // 8) or bits >> len(tensors):
        text = f"it must have a bit for each of the {len(tensors)} tensors in whole bytes, and 0 beyond them"
        raise Refused("bad-absent", "absent", text)
    if bits == (1 << len(tensors)) - 1:
        raise Refused("missing-tensor", "tensors", "the update has none of the job's tensors; send those trained")


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Raise `Refused`, naming the metric, unless all have names that can be shown, and finite values."""
    if len(metrics) > METRICS_MAX:
        text = f"an update has at most {METRICS_MAX} metrics, not {len(metrics)}"
        raise Refused("bad-metric", "metrics", text)
    for name, value in metrics.items():
        try:
            msgspec.convert(name, MetricName)
        except msgspec.ValidationError:
            text = f"a metric is named {name!a}; a name is {METRIC_NAME_RULE}"
            raise Refused("bad-metric", "metrics", text) from None
        if not math.isfinite(value):
            raise Refused(
                "bad-metric",
                f"metrics.{name}",
                f"the metric {name!r} is {value}; it must be finite: leave it out if there is none",
            )

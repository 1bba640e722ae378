"""What the announcement of an update must be; clients ask it before they send, the gateway before it takes a byte."""

from __future__ import annotations

import math

import msgspec

from lifl.core.errors import Refused
from lifl.core.limits import METRICS_MAX
from lifl.core.protocol.client import Submit
from lifl.core.schema import Layout, check_same


def check_submit(layout: Layout, submit: Submit) -> None:
    """Raise `Refused`, naming the field, unless an update announced so can become one of a job with this `layout`."""
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
    if not (math.isfinite(submit.weight) and submit.weight > 0):
        raise Refused(
            "bad-weight",
            "weight",
            f"the weight is {submit.weight}; it must be a positive, finite number, such as the number of examples",
        )
    if len(submit.metrics) > METRICS_MAX:
        text = f"an update has at most {METRICS_MAX} metrics, not {len(submit.metrics)}"
        raise Refused("bad-metric", "metrics", text)
    for name, value in submit.metrics.items():
        if not 1 <= len(name) <= 32:
            raise Refused("bad-metric", "metrics", f"a metric's name has 1 to 32 characters, not {len(name)}")
        if not math.isfinite(value):
            raise Refused(
                "bad-metric",
                f"metrics.{name}",
                f"the metric {name!r} is {value}; it must be finite: leave it out if there is none",
            )

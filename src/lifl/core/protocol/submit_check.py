"""What the announcement of an update must be; clients ask it before they send, the gateway before it takes a byte."""

from __future__ import annotations

import math

from lifl.core.errors import Refused
from lifl.core.limits import METRICS_MAX, WEIGHT_MAX, WEIGHT_MIN
from lifl.core.protocol.client import Submit
from lifl.core.schema import Layout, check_same


def check_submit(layout: Layout, submit: Submit) -> None:
    """Raise `Refused`, naming the field, unless an update announced so can become one of a job with this `layout`."""
    check_same(layout.tensors, submit.tensors)
    if submit.data_bytes != layout.data_bytes:
        raise Refused(
            "wrong-size",
            "data_bytes",
            f"the update announces {submit.data_bytes} bytes, the model's tensors take {layout.data_bytes}; send"
            " them in the layout's order, each dtype's vector padded to 64 bytes",
        )
    if not WEIGHT_MIN <= submit.weight <= WEIGHT_MAX:
        raise Refused(
            "bad-weight",
            "weight",
            f"the weight is {submit.weight}; it must be a number from {WEIGHT_MIN} to {WEIGHT_MAX}, such as the number"
            " of examples",
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

"""A user's function looks at a model, and says what it finds.

It is given the model as a dict of arrays that cannot be written to, over the arena's own bytes, and returns a dict of
metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lifl.core.errors import LocalFault
from lifl.core.ids import Key
from lifl.core.protocol.update_check import check_metrics, is_text
from lifl.core.protocol.worker import Evaluate
from lifl.core.schema import DTYPE_BYTES, Layout
from lifl.rules.kernels import numpy_dtype
from lifl.rules.load import load_function
from lifl.shm.arena import Arena
from lifl.worker.files import layout_of


def evaluate(message: Evaluate, arena: Arena) -> dict[str, float]:
    """Return the metrics that the function finds.  Raise what it raises; `ConfigError`, `Refused`, `LocalFault`."""
    function = load_function(message.function, message.folder, "evaluation.server")
    model = model_of(layout_of(message.tensors), arena.data(Key.unpack(message.model)))
    return checked(message.function, function(model))


def checked(name: str, found: Any) -> dict[str, float]:
    """Return what a function has returned, as metrics.  Raise `Refused`, `LocalFault`."""
    if not isinstance(found, Mapping):
        raise LocalFault(f"{name} returned a {type(found).__name__}: it is to return a dict of name and number")
    metrics = {}
    for metric, value in found.items():
        try:
            if is_text(value):
                raise TypeError("text, bytes and times are no numbers")
            metrics[str(metric)] = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            text = f"{name} returned {value!r:.80} as {str(metric)!r:.40}, which is no number ({error})"
            raise LocalFault(text) from error
    check_metrics(metrics)
    return metrics


def model_of(layout: Layout, data: memoryview) -> dict[str, Any]:
    """Return name → array over an object's data, none of which can be written to."""
    flat = np.frombuffer(data.toreadonly(), np.uint8)
    model = {}
    for tensor, offset in zip(layout.tensors, layout.offsets, strict=True):
        own = flat[offset : offset + tensor.size * DTYPE_BYTES[tensor.dtype]]
        model[tensor.name] = own.view(numpy_dtype(tensor.dtype)).reshape(tensor.shape)
    return model

"""NVFlare's params, a dict of what has a `*` and a `+`, as tensors of an update; and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lifl.client.tensors import Array, as_array
from lifl.client.torch_tensors import as_state_dict
from lifl.core.errors import Refused
from lifl.core.schema import Layout, TensorSpec

TENSOR, NUMBER = "tensor", "number"
Kinds = dict[str, str]
"""name → `TENSOR` (of torch) or `NUMBER` (of Python), of those that are no arrays."""


def as_tensors(params: Any) -> tuple[dict[str, Array], Kinds]:
    """Return params as name → array, and the kinds that they were.

    What NVFlare has put on the disk is read.  Raise `Refused`, naming the entry that is no array of numbers.
    """
    if not isinstance(params, Mapping) or not params:
        text = f"params are a dict of arrays or tensors, not {params!r:.40}, a {type(params).__name__}"
        raise Refused("bad-params", "params", text)
    tensors: dict[str, Array] = {}
    kinds: Kinds = {}
    for name, found in params.items():
        read = getattr(found, "materialize", None)
        value = read() if callable(read) else found
        if isinstance(value, bool | int | float) and not isinstance(value, np.generic):
            value = np.float64(value)
            kinds[name] = NUMBER
        elif hasattr(value, "detach"):
            kinds[name] = TENSOR
        tensors[name] = as_array(name, value)
    return tensors, kinds


def as_params(tensors: Mapping[str, Array], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Return tensors as params of these kinds, over the same memory.  Raise `LocalFault` where torch is missing."""
    params: dict[str, Any] = dict(tensors)
    params |= {name: float(params[name]) for name, kind in kinds.items() if kind == NUMBER and name in params}
    torches = {name: params[name] for name, kind in kinds.items() if kind == TENSOR and name in params}
    return params | (as_state_dict(torches) if torches else {})


def layout_of(tensors: Mapping[str, Array]) -> Layout:
    """Return the layout of arrays.  Raise `Refused`."""
    return Layout([TensorSpec(name, array.dtype.name, array.shape) for name, array in tensors.items()])

"""PyTorch's models beside a job's tensors; torch is imported when it is first needed, and by nobody else.

A tensor that stands under several names in a model (tied weights) stands in the model's file under one of them, as
safetensors' `save_model` writes it: it travels once, and has all its names again in `as_state_dict`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Protocol, TypeGuard

import numpy as np

from lifl.core.errors import LocalFault
from lifl.core.schema import KEPT


class HasState(Protocol):
    """What is asked of a torch module."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return its parameters and buffers by name."""


def is_module(tensors: object) -> TypeGuard[HasState]:
    """Return whether it is a model that has a `state_dict`, as torch's modules have."""
    return not isinstance(tensors, Mapping) and callable(getattr(tensors, "state_dict", None))


def state_of(module: HasState, names: Container[str]) -> dict[str, Any]:
    """Return a module's tensors, without those that are the same memory as one of `names`: they are its other names."""
    state: dict[str, Any] = dict(module.state_dict())
    known = {_place(tensor) for name, tensor in state.items() if name in names}
    return {name: tensor for name, tensor in state.items() if name in names or _place(tensor) not in known}


def _place(tensor: Any) -> object:
    """Return what two tensors have in common that are the same numbers in memory; empty ones have nothing."""
    if not hasattr(tensor, "data_ptr") or not tensor.numel():
        return object()
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def as_state_dict(model: Mapping[str, np.ndarray[Any, Any]], module: HasState | None = None) -> dict[str, Any]:
    """Return a model's arrays as torch tensors over the same memory, in the dtypes that they have.

    With `module` the names of its tied tensors are there, too.  Raise `LocalFault` where there is no torch.
    """
    try:
        import torch
    except ImportError as error:
        raise LocalFault("state_dict() gives torch tensors, and torch is not installed: use `round.model`") from error
    state = {}
    for name, array in model.items():
        kind = array.dtype.name
        if kind == "bfloat16":
            state[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        elif kind in KEPT and kind != "bool":
            state[name] = torch.from_numpy(array.view(np.uint8)).view(getattr(torch, kind))
        else:
            state[name] = torch.from_numpy(array)
    if module is not None:
        own = module.state_dict()
        tied = {_place(tensor): name for name, tensor in own.items() if name in state}
        state |= {name: state[tied[place]] for name, tensor in own.items() if (place := _place(tensor)) in tied}
    return state

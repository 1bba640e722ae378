"""Example models by name, as `model.example` in a job's config, and real trainers for them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np

from lifl.core.errors import ConfigError
from lifl.examples import digits

Tensors = dict[str, np.ndarray[Any, Any]]

MODELS: dict[str, Callable[[int], Tensors]] = {"digits-mlp": digits.make_model}


def make_model(name: str, seed: int) -> Tensors:
    """Return the initial tensors of the example model `name`.  Raise `ConfigError` for an unknown name."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(MODELS)}"
        raise ConfigError("model.example", f"there is no example model {name!r}; {hint}")
    return MODELS[name](seed)

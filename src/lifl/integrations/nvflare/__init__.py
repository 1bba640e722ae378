"""LIFL in NVFlare: an aggregator for its FedAvg controller, and filters by which the tensors go past its messages.

recipe = NumpyFedAvgRecipe(..., aggregator=LiflAggregator())
send_by_lifl(recipe)

When NVFlare makes a job of objects it puts the file of each object's module into the job, and all that it imports.  So
the components say that they are of this module, which imports nothing of ours before it is asked for it: a job holds
this one file, which an installed LIFL goes before.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

PLACES = {"LiflAggregator": "aggregator", "LiflFilter": "filters", "send_by_lifl": "filters"}
__all__ = ["LiflAggregator", "LiflFilter", "send_by_lifl"]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
    if isinstance(found, type):
        found.__module__ = __name__
    return found

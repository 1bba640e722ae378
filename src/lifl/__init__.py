"""LIFL: the aggregation tier of federated learning as a small, event-driven, serverless platform.

A trainer needs one name: ``from lifl import Client``; a program that aggregates by itself `Aggregator`, and who brings
an update to its fold `take_part`.  They are loaded when they are first asked for, so that the command line and the
daemon, which import `lifl` too, do not pay for NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lifl.aggregator import Aggregator, take_part
    from lifl.client import Client

__all__ = ["Aggregator", "Client", "take_part"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from lifl.client import Client

        return Client
    if name == "Aggregator":
        from lifl.aggregator import Aggregator

        return Aggregator
    if name == "take_part":
        from lifl.aggregator import take_part

        return take_part
    raise AttributeError(f"module 'lifl' has no attribute {name!r}")

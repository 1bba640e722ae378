"""LIFL: the aggregation tier of federated learning as a small, event-driven, serverless platform.

A trainer needs one name: ``from lifl import Client``.  It is loaded when it is first asked for, so that the command
line and the daemon, which import `lifl` too, do not pay for NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lifl.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from lifl.client import Client

        return Client
    raise AttributeError(f"module 'lifl' has no attribute {name!r}")

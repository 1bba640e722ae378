"""LIFL in Flower: one line in the ServerApp (`LiflStrategy`), one in the ClientApp (`lifl_mod`).

from lifl.integrations.flower import LiflStrategy, lifl_mod

Only public names of flwr are used.  They are imported with the first of the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lifl.integrations.flower.mod import lifl_mod
    from lifl.integrations.flower.strategy import LiflStrategy

__all__ = ["LiflStrategy", "lifl_mod"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lifl.integrations.flower' has no attribute {name!r}")
    try:
        import flwr.app  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{name} needs Flower: pip install 'lifl[flower]' ({error})") from error
    if name == "lifl_mod":
        from lifl.integrations.flower.mod import lifl_mod

        return lifl_mod
    from lifl.integrations.flower.strategy import LiflStrategy

    return LiflStrategy

"""A user's function selects clients, or says that a job is to stop.

It is given what the coordinator has packed, and its answer is checked here, where it can be said what is wrong with it.
The coordinator checks it again (`coordinator/choosing.py`, `coordinator/stopping.py`): this process has run the user's
code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import msgspec

from lifl.core.errors import LocalFault
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.protocol.user_calls import SELECTS, STOPS
from lifl.core.protocol.worker import Call
from lifl.rules.load import load_function


def call(message: Call) -> bytes:
    """Return the packed answer of the function.  Raise what it raises; `ConfigError`, `LocalFault`."""
    function = load_function(message.function, message.folder, message.key)
    answer = _CALLS[message.key](message.function, function, msgspec.msgpack.decode(message.given))
    return msgspec.msgpack.encode(answer)


def _select(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> list[int]:
    """Return which of the clients are named, by their places among those that are given."""
    clients, wanted = given["clients"], given["wanted"]
    places = {client["name"]: place for place, client in enumerate(clients)}
    random.seed(given["seed"])  # so that a run can be repeated
    named = function(clients, wanted, given["round"])
    if isinstance(named, str | bytes | Mapping) or not isinstance(named, Iterable):
        raise LocalFault(f"{name} returned a {type(named).__name__}: it is to return a list of clients' names")
    found: dict[int, None] = {}
    for client in islice(named, wanted + 1):
        if len(found) == wanted:
            raise LocalFault(f"{name} named more than the {wanted} clients that are wanted")
        place = places.get(client) if isinstance(client, str) else None
        if place is None:
            raise LocalFault(f"{name} named {client!r:.80}, which is none of the {len(clients)} clients it was given")
        if place in found:
            raise LocalFault(f"{name} named {client!r:.80} twice")
        found[place] = None
    return list(found)


def _stop(name: str, function: Callable[..., Any], given: list[dict[str, Any]]) -> tuple[bool, str]:
    """Return whether the job is to stop, and why."""
    said = function(given)
    if said is None or said is False or said is True:
        return bool(said), ""
    if isinstance(said, str):
        return bool(said), said[:TEXT_CHARS_MAX]
    if type(said).__name__ in ("bool", "bool_"):  # NumPy's
        return bool(said), ""
    text = f"{name} returned a {type(said).__name__}: it is to return True, False, or a text that says why to stop"
    raise LocalFault(text)


_CALLS: Mapping[str, Callable[[str, Callable[..., Any], Any], Any]] = {SELECTS: _select, STOPS: _stop}

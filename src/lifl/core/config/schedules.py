"""Values of `client.options` that change from round to round: ``lr = {cosine = [0.1, 0.001]}``.

A schedule is a table with one key, a list of numbers under it.  What a round gets depends on its number and the job's
number of rounds alone.

* ``linear = [first, last]``: in equal steps from the first round to the last one.
* ``cosine = [first, last]``: along half a wave of the cosine (Loshchilov and Hutter, SGDR, 2017, without restarts).
* ``step = [first, factor, every]``: times the factor after every so many rounds.

With a third number, ``linear`` and ``cosine`` get to the last value in that round, and stay there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lifl.core.errors import ConfigError
from lifl.core.limits import REAL_MAX, ROUNDS_MAX


def _share(number: int, rounds: int, values: Sequence[float]) -> float:
    """Return which part of its way a value has gone in a round."""
    last = int(values[2]) if len(values) > 2 else rounds
    return min((number - 1) / (last - 1), 1.0) if last > 1 else float(len(values) > 2)


def _linear(number: int, rounds: int, values: Sequence[float]) -> float:
    share = _share(number, rounds, values)
    return values[0] * (1.0 - share) + values[1] * share


def _cosine(number: int, rounds: int, values: Sequence[float]) -> float:
    share = (1.0 - math.cos(math.pi * _share(number, rounds, values))) / 2.0
    return values[0] * (1.0 - share) + values[1] * share


def _step(number: int, _rounds: int, values: Sequence[float]) -> float:
    try:
        return float(values[0] * values[1] ** ((number - 1) // int(values[2])))
    except OverflowError:
        return math.inf


_FORMS: dict[str, tuple[Callable[[int, int, Sequence[float]], float], str, tuple[int, ...]]] = {
    "linear": (_linear, "[first, last], or [first, last, rounds]", (2, 3)),
    "cosine": (_cosine, "[first, last], or [first, last, rounds]", (2, 3)),
    "step": (_step, "[first, factor, every]", (3,)),
}


def _schedule(value: Any) -> tuple[str, Sequence[Any]] | None:
    """Return the name and the list of a value that is a schedule."""
    if isinstance(value, Mapping) and len(value) == 1:
        name, given = next(iter(value.items()))
        if name in _FORMS and isinstance(given, list | tuple):
            return name, given
    return None


def check_schedules(options: Any, path: str, rounds: int) -> None:
    """Raise `ConfigError`, naming the key, when a schedule in the options is none."""
    found = _schedule(options)
    if found is None:
        for key, below in options.items() if isinstance(options, Mapping) else ():
            check_schedules(below, f"{path}.{key}", rounds)
        return
    name, values = found
    curve, form, lengths = _FORMS[name]
    where = f"{path}.{name}"
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if len(values) not in lengths or not numbers:
        raise ConfigError(where, f"{list(values)!r:.80} is not {form}, all of them numbers")
    if len(values) == 3 and not (isinstance(values[2], int) and 1 <= values[2] <= ROUNDS_MAX):
        raise ConfigError(where, f"{values[2]!r} is no number of rounds, 1 to {ROUNDS_MAX}")
    if name == "step" and values[1] <= 0:
        raise ConfigError(where, f"the factor {values[1]!r} must be above 0")
    if not all(abs(curve(number, rounds, values)) <= REAL_MAX for number in (1, rounds)):
        raise ConfigError(where, f"does not stay a number until round {rounds}")


def resolved(options: Any, number: int, rounds: int) -> Any:
    """Return the options as they are in a round: each schedule's place is taken by its value."""
    found = _schedule(options)
    if found is not None:
        name, values = found
        return _FORMS[name][0](number, rounds, values)
    if isinstance(options, Mapping):
        return {key: resolved(below, number, rounds) for key, below in options.items()}
    return options

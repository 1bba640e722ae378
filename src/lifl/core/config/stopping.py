"""When a job has learned enough: ``loss plateau 10``, ``accuracy >= 0.95``, ``mine:enough``; several joined by ``or``.

* ``METRIC >= NUMBER`` (also ``>``, ``<=``, ``<``): as soon as the metric is so.
* ``METRIC plateau N``: when it has not come below its least value for N times it was told; with ``max`` behind it, not
  above its greatest; with ``by DELTA``, not by more than that.
* ``module:function``: when that function of the user's, which is told the metrics by round, says so; one of the forms
  may be such a one (`coordinator/stopping.py`).

The metrics are those of a job's evaluations where it has any, and else the means of what its clients measured in
training.  A metric that is not told says nothing.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from lifl.core.config.users_code import is_function
from lifl.core.errors import ConfigError
from lifl.core.limits import REAL_MAX, ROUNDS_MAX, STOP_RULES_MAX

FORM = 'write it such as "loss plateau 10", "accuracy plateau 5 max by 0.001", "accuracy >= 0.95" or "module:function"'
CALL = "call"
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_REACHED = re.compile(rf"(\S+)\s*(>=|<=|>|<)\s*({_NUMBER})")
_PLATEAU = re.compile(rf"(\S+)\s+plateau\s+([0-9]{{1,9}})(?:\s+(min|max))?(?:\s+by\s+({_NUMBER}))?")
_ORDERS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class StopRule(NamedTuple):
    """One form: `order` is one of `_ORDERS` with its `value`, or ``min`` or ``max`` of a plateau of so many `times`.

    It is `CALL` where the `text` is the user's function.
    """

    text: str
    metric: str
    order: str
    value: float
    times: int = 0


Seen = tuple[tuple[float | None, int], ...]
"""By rule: the best value of a plateau, and how often another one was told since."""


@lru_cache(maxsize=256)
def parse_stop(text: str, path: str) -> tuple[StopRule, ...]:
    """Return the rules that `text` is.  Raise `ConfigError`, naming `path` and what is wrong."""
    parts = [part.strip() for part in re.split(r"\s+or\s+", text)]
    if len(parts) > STOP_RULES_MAX:
        raise ConfigError(path, f"has {len(parts)} forms, at most {STOP_RULES_MAX} are taken")
    rules = tuple(_rule(part, path) for part in parts)
    if len(functions := [rule.text for rule in rules if rule.order == CALL]) > 1:
        raise ConfigError(
            path, f"names {len(functions)} functions, {', '.join(functions):.160}; let one call the others"
        )
    return rules


def stop_function(text: str) -> str:
    """Return the user's function among the forms of `text`, which are such; empty: there is none."""
    return next((rule.text for rule in parse_stop(text, "job.stop") if rule.order == CALL), "")


def _rule(text: str, path: str) -> StopRule:
    if (found := _PLATEAU.fullmatch(text)) is not None:
        times, delta = int(found[2]), _number(found[4] or "0", path)
        if not 1 <= times <= ROUNDS_MAX or delta < 0:
            raise ConfigError(path, f"{text!r:.80}: a plateau lasts 1 to {ROUNDS_MAX} times, by 0 or more")
        return StopRule(text, found[1], found[3] or "min", delta, times)
    if (found := _REACHED.fullmatch(text)) is not None:
        return StopRule(text, found[1], found[2], _number(found[3], path))
    if is_function(text):
        return StopRule(text, "", CALL, 0.0)
    raise ConfigError(path, f"{text!r:.80} is none of the forms: {FORM}")


def _number(text: str, path: str) -> float:
    value = float(text)
    if not abs(value) <= REAL_MAX:
        raise ConfigError(path, f"{text:.80} is no finite number")
    return value


def judged(rules: Sequence[StopRule], seen: Seen, values: Mapping[str, float]) -> tuple[Seen, str]:
    """Return what is seen by now, and why the job is to stop (empty: it goes on), when these metrics are told."""
    after: list[tuple[float | None, int]] = []
    why = ""
    for index, rule in enumerate(rules):
        best, since = seen[index] if index < len(seen) else (None, 0)
        value = values.get(rule.metric) if rule.metric else None
        if value is not None and rule.times:
            sign = 1.0 if rule.order == "min" else -1.0
            if best is None or sign * value < sign * best - rule.value:
                best, since = value, 0
            else:
                since += 1
            if since >= rule.times:
                why = why or f"{rule.text}: {rule.metric} is {value:.6g}, its best was {best:.6g}, {since} times before"
        elif value is not None and math.isfinite(value) and _ORDERS[rule.order](value, rule.value):
            why = why or f"{rule.text}: {rule.metric} is {value:.6g}"
        after.append((best, since))
    return tuple(after), why

"""Conditions on what clients say of themselves, such as ``region == 'eu' and examples >= 100``.

They are read by Python's own parser, and nothing of them is run: what is not in `_parsed` is refused.  A name is a
label's, or ``examples``, ``device`` or ``client`` (the client's own name).  Names are compared with numbers and texts
by ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in (...)`` and ``not in (...)``; that is joined by ``and``, ``or``,
``not`` and parentheses.  A comparison of something that the client has not said is false, and so is one of a text with
a number.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from lifl.core.errors import ConfigError
from lifl.core.fields import LABEL_PATTERN, LABEL_RULE, Properties
from lifl.core.limits import CONDITION_TERMS_MAX, LABEL_CHARS_MAX, REAL_MAX

Condition = tuple[Any, ...]
"""``("and", ...)``, ``("or", ...)``, ``("not", condition)`` or (operator, name, value or values)."""
Values = Mapping[str, str | int | float]

_ORDERS: dict[type, str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TURNED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
SAID_BESIDE_LABELS = ("examples", "device", "client")
"""What a condition may name that is no label."""
_LABEL = re.compile(LABEL_PATTERN)
FORM = "write it such as: region == 'eu' and examples >= 100"


@lru_cache(maxsize=256)
def parse_condition(text: str, path: str) -> Condition:
    """Return the condition that `text` is.  Raise `ConfigError`, naming `path` and what is wrong."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise ConfigError(path, f"{text!r:.80} is no condition ({why}): {FORM}") from error
    if sum(1 for _ in ast.walk(tree)) > CONDITION_TERMS_MAX:
        raise ConfigError(path, f"has more than {CONDITION_TERMS_MAX} names, values and operators")
    return _parsed(tree.body, path)


def _parsed(node: ast.expr, path: str) -> Condition:
    match node:
        case ast.BoolOp(op, parts):
            return ("and" if isinstance(op, ast.And) else "or", *(_parsed(part, path) for part in parts))
        case ast.UnaryOp(ast.Not(), part):
            return ("not", _parsed(part, path))
        case ast.Compare(left, [order], [right]) if type(order) in _ORDERS:
            return _comparison(left, _ORDERS[type(order)], right, path)
        case ast.Compare(left, orders, rights) if len(orders) > 1:  # 1 <= examples <= 9
            befores = [left, *rights]
            return (
                "and",
                *(
                    _parsed(ast.Compare(befores[index], [orders[index]], [rights[index]]), path)
                    for index in range(len(orders))
                ),
            )
    raise ConfigError(path, f"{ast.unparse(node)!r:.80} compares nothing: {FORM}")


def _comparison(left: ast.expr, order: str, right: ast.expr, path: str) -> Condition:
    if isinstance(right, ast.Name) and order in _TURNED and not isinstance(left, ast.Name):
        left, order, right = right, _TURNED[order], left
    if not isinstance(left, ast.Name):
        raise ConfigError(path, f"{ast.unparse(left)!r:.80} is no name of a label, nor examples, device or client")
    if left.id not in SAID_BESIDE_LABELS and (len(left.id) > LABEL_CHARS_MAX or _LABEL.search(left.id) is None):
        raise ConfigError(path, f"{left.id!r:.80} can be no label, so nobody has it: {LABEL_RULE}")
    if order not in ("in", "not in"):
        return (order, left.id, _value(right, path))
    if not isinstance(right, ast.Tuple | ast.List | ast.Set):
        raise ConfigError(path, f"{ast.unparse(right)!r:.80}: behind `{order}` comes a list, such as ('eu', 'us')")
    return (order, left.id, tuple(_value(each, path) for each in right.elts))


def _value(node: ast.expr, path: str) -> str | int | float:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        sign, node = -1, node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, str) and sign == 1:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= REAL_MAX:
        return sign * value
    hint = f"; write '{node.id}' in quotes" if isinstance(node, ast.Name) else ""
    raise ConfigError(path, f"{ast.unparse(node)!r:.80} is neither a text in quotes nor a number{hint}")


def values_of(client: str, properties: Properties) -> Values:
    """Return what a condition on a client may name."""
    values: dict[str, str | int | float] = {**properties.labels, "client": client}
    if isinstance(properties.examples, int):
        values["examples"] = properties.examples
    if properties.device:
        values["device"] = properties.device
    return values


def holds(condition: Condition, values: Values) -> bool:
    """Return whether the condition is true of a client."""
    what, *rest = condition
    if what == "and":
        return all(holds(part, values) for part in rest)
    if what == "or":
        return any(holds(part, values) for part in rest)
    if what == "not":
        part: Condition = rest[0]
        return not holds(part, values)
    name, wanted = rest
    if name not in values:
        return False
    said = values[name]
    if isinstance(wanted, tuple):
        return bool((said in wanted) == (what == "in"))
    return isinstance(said, str) == isinstance(wanted, str) and bool(_COMPARED[what](said, wanted))

"""Aggregation rules: the algebra, the built-in rules and the kernels.  A user's rule subclasses `Rule`."""

from lifl.rules.base import Rule, RuleFailed, RuleOptions
from lifl.rules.load import load_rule

__all__ = ["Rule", "RuleFailed", "RuleOptions", "load_rule"]

"""From a config's `aggregation.rule` and `aggregation.options` to a `Rule`.

A user's rule is "module:Class".  `module` is looked up first as a file in `folder` (the folder of the round
config), afresh at every load, so that a warm worker never runs an older job's code; else it is imported
like any module.  Every problem is a `ConfigError` that names the key to change.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from lifl.core.errors import ConfigError
from lifl.core.fields import NAME_RULE, StateNames
from lifl.core.limits import RECURSION_MAX, STATES_MAX
from lifl.rules.base import Rule, RuleOptions, error_text
from lifl.rules.builtin import BUILTIN

if TYPE_CHECKING:
    from lifl.core.config.job import JobConfig

_PATH = "aggregation.rule"
_FIELD = re.compile(r" - at `\$\.([^.`\[]+)")


def is_users(name: str) -> bool:
    """Return whether a rule's name is that of a user's own, "module:Class"."""
    return ":" in name


def load_rule(name: str, options: Mapping[str, Any], folder: str = "") -> Rule:
    """Return the rule `name` (a key of `BUILTIN` or "module:Class") with its checked options.

    Raise `ConfigError`: an unknown name (with the nearest known one), a module that cannot be imported, a
    class that is no `Rule`, an option that is unknown or out of range, a constructor that raises.
    """
    with _told_as(f"{name} cannot be used"):
        kind = BUILTIN.get(name) or _users_class(name, folder)
        checked = check_options(kind, options)
        with _told_as(f"{name} refused its options"):
            rule = kind(checked)
        _check_states(name, rule.states)
        return rule


def load_function(name: str, folder: str, path: str) -> Callable[..., Any]:
    """Return the user's function "module:function" of a folder.  Raise `ConfigError` for the key `path`."""
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(_users_module(module_name, folder), function_name, None)
    except ConfigError as error:
        raise ConfigError(path, error.problem) from error
    if not callable(function):
        raise ConfigError(path, f"module {module_name!r} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def states_of(config: JobConfig, folder: str) -> tuple[str, ...]:
    """Return the names of the states of a job's rule.  Raise `ConfigError` when it cannot be used."""
    aggregation = config.aggregation
    rule = load_rule(aggregation.rule, aggregation.options, folder)
    if config.trainable:
        check_lacking(rule, aggregation.rule)
    for key, function in config.functions.items():
        load_function(function, folder, key)
    return tuple(rule.states)


def check_lacking(rule: Rule, name: str) -> None:
    """Raise `ConfigError` for a rule that cannot be used where updates may lack tensors: it is given parts of them."""
    if type(rule).fold is not Rule.fold:
        text = f"rule {name} has a `fold` of its own, which may look at whole updates, and those may lack tensors"
        raise ConfigError("job.trainable", f"{text}; leave the key out, or use a rule that changes `finish` alone")


def check_reproducible(rule: Rule, name: str) -> None:
    """Raise `ConfigError` for a rule that cannot be used where sums are reproducible: it sums by itself."""
    if type(rule).fold is not Rule.fold or type(rule).merge is not Rule.merge:
        text = f"rule {name} has a `fold` or a `merge` of its own, whose sums depend on the order"
        raise ConfigError(
            "aggregation.reproducible", f"{text}; leave it out, or use a rule that changes `finish` alone"
        )


@contextmanager
def _told_as(what: str) -> Iterator[None]:
    """Make a `ConfigError` of whatever a user's code raises, its wish to exit too; who presses Ctrl-C is heard."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigError(_PATH, f"{what}: {error_text(error)}") from error


def _check_states(name: str, states: Any) -> None:
    """Refuse names of states that cannot travel, or that mean two."""
    try:
        if not isinstance(states, tuple | list):
            raise ValueError(f"they are {type(states).__name__}, not a tuple of texts")
        names = msgspec.convert(states, StateNames)
        if len(set(names)) < len(names):
            raise ValueError("a name is there twice")
    except ValueError as error:  # a ValidationError is one
        text = f"the states of {name} must be a tuple of at most {STATES_MAX} names ({NAME_RULE}): {error}"
        raise ConfigError(_PATH, text) from error


def check_options(kind: type[Rule], options: Mapping[str, Any]) -> RuleOptions:
    """Return an instance of `kind.Options`.  Raise `ConfigError` naming ``aggregation.options.X``."""
    if not (isinstance(kind.Options, type) and issubclass(kind.Options, RuleOptions)):
        raise ConfigError(_PATH, f"{kind.__name__}.Options is no subclass of lifl.rules.RuleOptions; derive it")
    known = kind.Options.__struct_fields__
    asked, options = options, _renamed(kind, options)
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known) or 'none'}"
            raise ConfigError(f"aggregation.options.{key}", f"{kind.__name__} has no such option; {hint}")
    try:
        return msgspec.convert(options, kind.Options)
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        given = {now: before for before, now in kind.earlier_options.items() if before in asked}
        path = f"aggregation.options.{given.get(found.group(1), found.group(1))}" if found else "aggregation.options"
        raise ConfigError(path, _FIELD.sub("", str(error)).replace("`", "")) from error


def _renamed(kind: type[Rule], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by the names that they have now."""
    found = dict(options)
    for before, now in kind.earlier_options.items():
        if before in found and now in kind.Options.__struct_fields__:
            if now in found:
                text = f"{before!r} is an earlier name of {now!r}; give one of them"
                raise ConfigError(f"aggregation.options.{before}", text)
            found[now] = found.pop(before)
    return found


def _users_class(name: str, folder: str) -> type[Rule]:
    module_name, colon, class_name = name.partition(":")
    if not colon or not module_name or not class_name:
        near = difflib.get_close_matches(name.lower(), BUILTIN, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(BUILTIN)}, or 'module:Class'"
        raise ConfigError(_PATH, f"there is no rule {name!r}; {hint}")
    module = _users_module(module_name, folder)
    kind = getattr(module, class_name, None)
    if kind is None:
        near = difflib.get_close_matches(class_name, dir(module), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(_PATH, f"module {module_name!r} has no class {class_name!r}{hint}")
    if not (isinstance(kind, type) and issubclass(kind, Rule)):
        raise ConfigError(_PATH, f"{name} is no subclass of lifl.rules.Rule; derive it from Rule")
    return kind


def _users_module(name: str, folder: str) -> ModuleType:
    file = Path(folder, *name.split(".")).with_suffix(".py") if folder else None
    if folder:
        sys.path.insert(0, folder)
    try:
        with _told_as(f"importing {name!r} failed"):
            return _imported(name, file, folder)
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _imported(name: str, file: Path | None, folder: str) -> ModuleType:
    try:
        if file is None or not file.is_file():
            return importlib.import_module(name)
        # A name of its own, so that a user's random.py does not become everyone's.
        own_name = f"_lifl_rule_{zlib.crc32(str(file).encode()):08x}_{file.stem}"
        spec = importlib.util.spec_from_file_location(own_name, file)
        if spec is None or spec.loader is None:
            raise ConfigError(_PATH, f"{file} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[own_name] = module  # where typing, dataclasses and msgspec look for annotations
        spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as error:
        where = f" in {folder} or" if folder else ""
        raise ConfigError(_PATH, f"cannot import {name!r}: {error}; looked{where} on Python's path") from error


def bound_recursion() -> None:
    """Have a user's rule that recurses without end fail at once in this process, whatever limit it sets.

    Without a bound it fills the memory first, and Python then takes half a minute to give that back.
    """
    set_limit = sys.setrecursionlimit

    def bounded(limit: int) -> None:
        set_limit(min(limit, RECURSION_MAX))

    vars(sys)["setrecursionlimit"] = bounded

"""Labels of nodes as they are given on a command line: ``NAME=VALUE``."""

from __future__ import annotations

from collections.abc import Iterable

from lifl.core.errors import ConfigError


def labels_of(texts: Iterable[str], path: str) -> dict[str, str]:
    """Return the labels by name.  Raise `ConfigError`, naming `path`, for what is none, and for a name twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ConfigError(path, f"{text!r:.80} is not NAME=VALUE, such as zone=eu")
        if name in found:
            raise ConfigError(path, f"{name!r:.80} is given twice, as {found[name]!r:.80} and {value!r:.80}")
        found[name] = value
    return found

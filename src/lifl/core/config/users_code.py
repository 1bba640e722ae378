"""The names of a user's functions, as a job's file has them: ``module:function``."""

from __future__ import annotations

import re

from lifl.core.errors import ConfigError

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_function(text: str) -> bool:
    """Return whether `text` is ``module:function``."""
    return _FUNCTION.fullmatch(text) is not None


def check_function(text: str, path: str) -> None:
    """Raise `ConfigError`, naming the key `path`, unless `text` is ``module:function``."""
    if not is_function(text):
        raise ConfigError(path, f"{text!r:.80} is not module:function, of your own")

"""Where copies of committed models go: ``s3://BUCKET/PREFIX``, or any other address that fsspec knows."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from lifl.core.errors import ConfigError
from lifl.core.limits import UPLOAD_URL_CHARS_MAX

UploadUrl = Annotated[str, msgspec.Meta(min_length=1, max_length=UPLOAD_URL_CHARS_MAX)]
PATH = "checkpoint.upload"
_URL = re.compile(r"([a-z][a-z0-9+.-]{0,31})://(.+)")


def check_upload(text: str) -> str:
    """Return the scheme of an address.  Raise `ConfigError`, also for one with a name, a key or options in it."""
    match = _URL.fullmatch(text)
    if match is None or not text.isprintable() or "::" in text or len(text) > UPLOAD_URL_CHARS_MAX:
        raise ConfigError(PATH, f"{text!r:.80} is no address to store models at; write s3://BUCKET/PREFIX")
    scheme, rest = match.groups()
    if "@" in rest.partition("/")[0] or "?" in rest or "#" in rest:
        problem = (
            "has a name, a key or options in it, which would be kept and shown: give these to lifld by its environment"
        )
        raise ConfigError(PATH, f"{problem} (AWS_PROFILE, AWS_ENDPOINT_URL)")
    if scheme in ("file", "local") and not rest.startswith("/"):
        raise ConfigError(PATH, f"{text!r:.80} is no absolute path; write file:///FOLDER")
    if ".." in rest.split("/"):
        raise ConfigError(PATH, f"{text!r:.80} leads out of a folder; write its real path")
    return scheme

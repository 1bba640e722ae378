"""The format of a state folder: a file says it, and which release wrote it first in that format.

Whoever starts on the folder, or mends it, looks here before anything else.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from lifl.core.errors import ResourceFault
from lifl.core.fields import Word
from lifl.core.formats import RELEASE, STATE_FORMAT, newer_text
from lifl.core.limits import COUNT_MAX, FORMAT_FILE_BYTES_MAX
from lifl.node.modes import open_file, open_private, told

FORMAT_FILE = "format.json"


class StateFormat(msgspec.Struct, frozen=True):
    """What the file says; a later release may say more."""

    format: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
    release: Word


class FormatDamaged(ResourceFault):
    """The file says nothing that can be understood."""


def check_format(folder: Path) -> int:
    """Return the format of a state folder; 0: it says none.

    Raise `ResourceFault` with the release to take when it is newer, and `FormatDamaged`.
    """
    path = folder / FORMAT_FILE
    try:
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    with open(fd, "rb") as file:
        content = file.read(FORMAT_FILE_BYTES_MAX + 1)
    try:
        if len(content) > FORMAT_FILE_BYTES_MAX:
            raise msgspec.ValidationError(f"it is longer than {FORMAT_FILE_BYTES_MAX} bytes")
        found = msgspec.json.decode(content, type=StateFormat)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FormatDamaged(f"{path} is damaged ({error}): `lifl doctor --repair` sets it aside") from error
    if found.format > STATE_FORMAT:
        raise ResourceFault(newer_text(f"state folder {folder}", found.format, STATE_FORMAT, found.release))
    return found.format


def take_format(folder: Path) -> None:
    """Let a state folder, which no other process uses, be one of this release's format; raise as `check_format` does.

    What the first releases left differs from format 1 in nothing but this file.
    """
    with told(folder):
        if check_format(folder) == STATE_FORMAT:
            return
        temporary = folder / f".{FORMAT_FILE}.tmp"
        with open(open_private(temporary, os.O_WRONLY | os.O_TRUNC), "wb") as file:
            file.write(msgspec.json.encode(StateFormat(STATE_FORMAT, RELEASE)) + b"\n")
            file.flush()
            with suppress(OSError):  # without it the folder says none after a power cut, and it is written again
                os.fsync(file.fileno())
        temporary.rename(folder / FORMAT_FILE)

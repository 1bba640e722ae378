"""The frames in docs/protocol.md: each message is followed by its bytes.  Run as a script it writes the bytes anew."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import encode

PAGE = Path(__file__).parents[1] / "docs/protocol.md"
KINDS = {">": cm.FromClient, "<": cm.ToClient}
BLOCK = re.compile(r"^```frames\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def message_of(line: str) -> msgspec.Struct:
    """Return the message in a line of the page; `hex:` stands before bytes."""
    fields: dict[str, Any] = json.loads(line[2:])
    for name in fields.keys() & {"digest", "absent"}:
        fields[name] = bytes.fromhex(fields[name].removeprefix("hex:"))
    message: msgspec.Struct = msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=KINDS[line[0]])
    return message


def examples() -> Iterator[tuple[str, str]]:
    """Return the lines of the page that are messages, each with the line of bytes below it."""
    for block in BLOCK.findall(PAGE.read_text()):
        lines = block.splitlines()
        yield from zip(lines[::2], lines[1::2], strict=True)


def written() -> str:
    """Return the page with the bytes that belong there."""
    text = PAGE.read_text()
    for line, digits in examples():
        text = text.replace(f"{line}\n{digits}\n", f"{line}\n{encode(message_of(line)).hex()}\n")
    return text


if __name__ == "__main__":
    PAGE.write_text(written())

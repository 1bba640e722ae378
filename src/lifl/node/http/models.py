"""A model as a safetensors file that is nowhere: its header is made, its tensors are sent from where they lie."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

from lifl.core.modelfile import encode_header, model_pieces
from lifl.node.http.sessions import Lent
from lifl.shm.ingest_check import ingest_check

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


class ModelFile:
    """The file of a model that is lent."""

    def __init__(self, lent: Lent) -> None:
        self._view = lent.view
        self._head, self._spans = encode_header(model_pieces(lent.layout), {})
        self._digest = lent.layout.digest.hex()[:16]
        self._checksum = lent.checksum
        self.nbytes = len(self._head) + sum(span.nbytes for span in self._spans)

    async def etag(self) -> str:
        """Return what stands for the file's bytes."""
        if not self._checksum:
            self._checksum = await asyncio.get_running_loop().run_in_executor(None, self._sum)
        return f'"{self._checksum:016x}-{self._digest}"'

    def _sum(self) -> int:
        check = ingest_check(self._view)
        check.advance(check.nbytes)
        return check.finish()

    def pieces(self, begin: int, end: int) -> Iterator[memoryview]:
        """Yield the file's bytes from `begin` to `end`."""
        at = 0
        for data in self._all():
            piece = data[max(0, begin - at) : max(0, end - at)]
            at += len(data)
            if piece:
                yield piece

    def _all(self) -> Iterator[memoryview]:
        yield memoryview(self._head)
        for span in self._spans:
            yield self._view[span.offset : span.offset + span.nbytes]


def wanted(header: str, nbytes: int) -> tuple[int, int] | None:
    """Return the bytes that a Range asks for, of so many; None: all of them, for it asks for no one range.

    Raise `ValueError` when there are none.
    """
    found = _RANGE.fullmatch(header.replace(" ", ""))
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        begin, end = max(0, nbytes - int(last)), nbytes
    else:
        begin, end = int(first), min(int(last) + 1, nbytes) if last else nbytes
        if last and int(last) < int(first):
            return None
    if begin >= end:
        raise ValueError("no bytes are there")
    return begin, end


def names(header: str, etag: str) -> bool:
    """Return whether an If-None-Match names the file."""
    tags = [each.strip().removeprefix("W/") for each in header.split(",")]
    return "*" in tags or etag in tags

"""The archive of a node's durable state: files one after the other in tar's format, and last a list of them.

`tar tf` shows it.  It is read here header by header, for an archive may come from anywhere: only files are in it, under
the names that `KINDS` knows, none longer than its kind may be, and what a header promises must be there.  So no name
leads out of the folder that is restored, and no archive takes more of a disk than it has bytes itself.  The list has
the size, the mode and the SHA-256 of each file, and its own behind it: what was cut off or changed by accident is
found.  That is no proof of who made it.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec

from lifl.core.errors import Refused, ResourceFault
from lifl.core.fields import Word
from lifl.core.formats import RELEASE, newer_text
from lifl.core.limits import (
    AUDIT_FILE_BYTES_MAX,
    BACKUP_FILES_MAX,
    BACKUP_LIST_BYTES_MAX,
    BACKUP_SMALL_BYTES_MAX,
    COUNT_MAX,
)

BACKUP_FORMAT = 1
LIST = "manifest.json"
DATABASE = "lifl.db"
BLOCK_BYTES = 512
CHUNK_BYTES = 1 << 20


class Kind(NamedTuple):
    """What may be in an archive: its name, the rights that its file may have, and its length."""

    name: re.Pattern[str]
    mode: int
    bytes_max: int


PRIVATE, PUBLIC = 0o600, 0o644
KINDS = (
    Kind(re.compile(r"format\.json|authority\.pem|identity/key\.pem"), PRIVATE, BACKUP_SMALL_BYTES_MAX),
    Kind(re.compile(r"identity/(ca|cert)\.pem"), PUBLIC, BACKUP_SMALL_BYTES_MAX),
    Kind(re.compile(r"audit/audit-[0-9]{1,20}\.jsonl"), PRIVATE, 2 * AUDIT_FILE_BYTES_MAX),
    Kind(re.compile(r"jobs/[0-9]{1,19}/\.lifl-job"), PUBLIC, BACKUP_SMALL_BYTES_MAX),
    Kind(re.compile(r"jobs/[0-9]{1,19}/round-[0-9]{5,7}(\.[0-9]{1,20})?(\.state)?\.safetensors"), PUBLIC, COUNT_MAX),
    Kind(re.compile(re.escape(DATABASE)), PRIVATE, COUNT_MAX),
    Kind(re.compile(re.escape(LIST)), PRIVATE, BACKUP_LIST_BYTES_MAX),
)


def kind_of(name: str) -> Kind | None:
    """Return what a name in an archive stands for; None: it has no place there."""
    return next((kind for kind in KINDS if kind.name.fullmatch(name)), None)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One file of an archive."""

    name: str
    size: Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Contents(msgspec.Struct, frozen=True):
    """What the list says: the files in their order, and where they come from.

    `node` is its number; `left_out` are folders of models that are elsewhere.
    """

    backup: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
    release: Word
    made_unix_s: float
    node: Word
    files: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=BACKUP_FILES_MAX)]
    left_out: tuple[str, ...] = ()


class _AnyContents(msgspec.Struct):
    backup: int
    release: Word = ""


class Writer:
    """Writes an archive to `file`.  Everything raises `OSError`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.entries: list[Entry] = []

    def add(self, name: str, mode: int, source: BinaryIO, size: int) -> None:
        """Append a file of `size` bytes.  Raise `ResourceFault` when `source` ends before, or there are too many."""
        if len(self.entries) >= BACKUP_FILES_MAX:
            raise ResourceFault(f"a backup has at most {BACKUP_FILES_MAX} files: move models of old rounds away")
        self._head(name, mode, size)
        digest, left = hashlib.sha256(), size
        while left and (data := source.read(min(left, CHUNK_BYTES))):
            digest.update(data)
            self._file.write(data)
            left -= len(data)
        if left:
            raise ResourceFault(f"{name} became shorter while it was read; try again")
        self._pad(size)
        self.entries.append(Entry(name, size, mode, digest.hexdigest()))

    def end(self, node: str, made_unix_s: float, left_out: tuple[str, ...]) -> Contents:
        """Append the list; return what it says."""
        about = (BACKUP_FORMAT, RELEASE, made_unix_s, node)
        contents = Contents(*about, tuple(self.entries), left_out)
        packed = msgspec.json.encode(contents)
        data = packed + b"\n" + hashlib.sha256(packed).hexdigest().encode() + b"\n"
        self._head(LIST, PRIVATE, len(data))
        self._file.write(data)
        self._pad(len(data))
        self._file.write(bytes(2 * BLOCK_BYTES))
        return contents

    def _head(self, name: str, mode: int, size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, mode
        self._file.write(info.tobuf(tarfile.GNU_FORMAT))

    def _pad(self, size: int) -> None:
        self._file.write(bytes(-size % BLOCK_BYTES))


class Reader:
    """Reads the archive `path` from the open `file`; what is wrong with it is `Refused`, by the place."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._left = os.fstat(file.fileno()).st_size
        self._seen: dict[str, Entry] = {}
        self.contents: Contents | None = None

    def entries(self, take: Callable[[str, int, Iterator[bytes]], None]) -> Contents:
        """Hand name, mode and content of each file to `take`, which reads it to its end; return the list."""
        while self.contents is None:
            name, size, mode = self._head()
            if name == LIST:
                self.contents = self._list(b"".join(self._data(name, size)))
                break
            if len(self._seen) >= BACKUP_FILES_MAX:
                raise self._bad(f"it has more than {BACKUP_FILES_MAX} files")
            digest = hashlib.sha256()
            take(name, mode, self._told(digest.update, self._data(name, size)))
            self._seen[name] = Entry(name, size, mode, digest.hexdigest())
        if self._read(2 * BLOCK_BYTES).strip(b"\0") or self._left:
            raise self._bad("something follows its list")
        return self._checked(self.contents)

    @staticmethod
    def _told(tell: Callable[[bytes], None], data: Iterator[bytes]) -> Iterator[bytes]:
        for piece in data:
            tell(piece)
            yield piece

    def _head(self) -> tuple[str, int, int]:
        """Return name, size and mode of the next file."""
        block = self._read(BLOCK_BYTES)
        if not block.strip(b"\0"):
            raise self._torn("it ends before its list")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._bad(f"what follows {self._last()} is no file of an archive: {error}") from error
        kind = kind_of(info.name)
        if info.type != tarfile.REGTYPE or kind is None:
            raise self._bad(f"it has {info.name!r:.200}, which has no place in a backup")
        if info.name in self._seen:
            raise self._bad(f"it has {info.name} twice")
        if not 0 <= info.size <= kind.bytes_max:
            raise self._bad(f"{info.name} has {info.size} bytes, and at most {kind.bytes_max} have a place")
        if info.size > self._left:
            raise self._torn(f"{info.name} is to have {info.size} bytes, and {self._left} are left")
        return info.name, info.size, info.mode & kind.mode | 0o600

    def _data(self, name: str, size: int) -> Iterator[bytes]:
        left = size
        while left:
            data = self._read(min(left, CHUNK_BYTES))
            left -= len(data)
            yield data
        if self._read(-size % BLOCK_BYTES).strip(b"\0"):
            raise self._bad(f"there is something behind {name}")

    def _read(self, nbytes: int) -> bytes:
        data = self._file.read(nbytes)
        self._left -= len(data)
        if len(data) < nbytes:
            raise self._torn(f"it ends behind {self._last()}")
        return data

    def _list(self, data: bytes) -> Contents:
        packed, _, rest = data.partition(b"\n")
        if rest != hashlib.sha256(packed).hexdigest().encode() + b"\n":
            raise self._torn("its list is not as it was written")
        try:
            said = msgspec.json.decode(packed, type=_AnyContents)
            if said.backup > BACKUP_FORMAT:
                raise ResourceFault(newer_text(f"backup {self._path}", said.backup, BACKUP_FORMAT, said.release))
            return msgspec.json.decode(packed, type=Contents)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise self._bad(f"its list cannot be read: {error}") from error

    def _checked(self, contents: Contents) -> Contents:
        listed = {entry.name: entry for entry in contents.files}
        if listed.keys() != self._seen.keys() or len(listed) != len(contents.files):
            odd = sorted(listed.keys() ^ self._seen.keys())
            raise self._bad(f"its list and its files differ: {', '.join(odd)[:200] or 'one is listed twice'}")
        for name, entry in self._seen.items():
            if (listed[name].size, listed[name].sha256) != (entry.size, entry.sha256):
                raise Refused(
                    "damaged-backup", name, f"{self._path}: {name} is not as it was written; use another backup"
                )
        if DATABASE not in listed:
            raise self._bad(f"it has no {DATABASE}")
        return contents

    def _last(self) -> str:
        return next(reversed(self._seen), "its beginning")

    def _torn(self, what: str) -> Refused:
        text = f"{self._path} is not whole: {what}; copy it again, or use another backup"
        return Refused("torn-backup", self._last(), text)

    def _bad(self, what: str) -> Refused:
        return Refused("bad-backup", self._last(), f"{self._path} is no backup of a node: {what}")

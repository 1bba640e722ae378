"""A journal's file: the updates that were accepted for one epoch of a job on this node, one behind the other.

Each begins at a page with a header page (whose it is, how long it is, its checksum, its contribution), then its bytes.
A header also says how far the file was synced when it was written: what is before that is whole, unless the disk is
damaged.  Behind it, after a power cut, anything may be: a reader checks the bytes themselves, and takes the file to end
where they are not what the header says.  None of that had been told ACCEPTED.

Updates of a branch that was given up are named in a page of their own kind.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lifl.core.errors import RemoteFault, ResourceFault
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.protocol.contribution import Contribution, unpack_contributions
from lifl.core.protocol.journal import Stored
from lifl.node.modes import open_private
from lifl.shm.checksum import StreamChecksum
from lifl.shm.direct import ALIGN_BYTES, write_all

SUFFIX = ".journal"
VERSION = 1
_MAGIC = b"LIFLJRNL"
_HEADER = struct.Struct("<8sIIIIQQQQQ")
"""magic, crc of the page without it, version, kind, meta bytes, number, epoch, data bytes, checksum, synced to."""
_CRC_AT = 8
_UPDATE, _DROPPED = 1, 2
_PLACE = struct.Struct("<Q")
PLACES_MAX = (ALIGN_BYTES - _HEADER.size) // _PLACE.size
"""Updates that one page of dropped ones names."""
READ_BYTES = 1 << 20


class Header(NamedTuple):
    """What a page says."""

    kind: int
    data_bytes: int
    checksum: int
    synced_to: int
    meta: bytes

    @property
    def total_bytes(self) -> int:
        """How much of the file it takes, with what follows it."""
        return ALIGN_BYTES + -(-self.data_bytes // ALIGN_BYTES) * ALIGN_BYTES


class Found(NamedTuple):
    """What a file has: its updates that count, where its whole part ends, and what is damaged."""

    stored: list[Stored]
    end: int
    fault: str


def path_of(folder: Path, number: int, epoch: int) -> Path:
    """Return the file of an epoch's journal."""
    return folder / f"{number}-{epoch}{SUFFIX}"


def named(path: Path) -> tuple[int, int] | None:
    """Return the job's number and the epoch that a file's name says, or None."""
    number, _, epoch = path.name.removesuffix(SUFFIX).partition("-")
    return (int(number), int(epoch)) if number.isdecimal() and epoch.isdecimal() else None


class JournalFile:
    """One file, open for writing; made when it is not there.  Raise `OSError` as files do."""

    def __init__(self, folder: Path, number: int, epoch: int) -> None:
        self.path = path_of(folder, number, epoch)
        self._number, self._epoch = number, epoch
        is_new = not self.path.exists()
        self._fd = open_private(self.path, os.O_RDWR)
        self._end = self._synced_to = 0
        self._folder = folder if is_new else None  # to be synced, too
        if not is_new:
            self._check_version()
            self._end = self._synced_to = self.scan().end
            os.ftruncate(self._fd, self._end)

    def _check_version(self) -> None:
        """Raise `OSError` for a file of a later version: it stays as it is."""
        magic, _crc, version, *_ = _HEADER.unpack(os.pread(self._fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0"))
        if magic == _MAGIC and version > VERSION:
            os.close(self._fd)
            text = f"it has version {version}, this lifld reads {VERSION}: run the release that wrote it"
            raise OSError(errno.EINVAL, text, str(self.path))

    def append(self, data: memoryview, meta: bytes, checksum: int) -> int:
        """Write an update to the end; return its place.  It is durable after `sync`."""
        place = self._end
        header = self._page(_UPDATE, len(data), checksum, meta)
        os.lseek(self._fd, place, os.SEEK_SET)
        write_all(self._fd, memoryview(header))
        write_all(self._fd, data)
        self._end = place + ALIGN_BYTES + -(-len(data) // ALIGN_BYTES) * ALIGN_BYTES
        os.ftruncate(self._fd, self._end)
        return place

    def drop(self, places: tuple[int, ...]) -> None:
        """Let updates count no more; durable after `sync`."""
        for begin in range(0, len(places), PLACES_MAX):
            meta = b"".join(_PLACE.pack(place) for place in places[begin : begin + PLACES_MAX])
            os.lseek(self._fd, self._end, os.SEEK_SET)
            write_all(self._fd, memoryview(self._page(_DROPPED, 0, 0, meta)))
            self._end += ALIGN_BYTES

    def sync(self) -> None:
        """Have all that was written durable."""
        os.fdatasync(self._fd)
        if self._folder is not None:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            self._folder = None
        self._synced_to = self._end

    def roll_back(self) -> None:
        """Forget what is not durable: it could not be written."""
        self._end = self._synced_to
        os.ftruncate(self._fd, self._end)

    def load(self, place: int, into: memoryview) -> Header:
        """Read the update at `place`.  Raise `ResourceFault` when it is damaged, or another than `into` is for."""
        header = self._header(place)
        if header is None or header.kind != _UPDATE:
            raise ResourceFault(f"{self.path} is damaged: no update begins at byte {place}")
        if header.data_bytes != len(into):
            raise ResourceFault(f"the update at byte {place} of {self.path} has {header.data_bytes} bytes")
        done = 0
        while done < len(into):
            count = os.preadv(self._fd, [into[done:]], place + ALIGN_BYTES + done)
            if not count:
                raise ResourceFault(f"{self.path} ends within the update at byte {place}")
            done += count
        digest = StreamChecksum()
        digest.update(into)
        if digest.finish() != header.checksum:
            raise ResourceFault(f"{self.path} is damaged: the update at byte {place} is not what was written")
        return header

    def scan(self) -> Found:
        """Return what the file has: from the front, as far as it is whole."""
        size = os.fstat(self._fd).st_size
        pages = list(self._pages(size))
        synced_to = max((header.synced_to for _, header in pages), default=0)
        stored: dict[int, Stored] = {}
        fault, end = "", 0
        for place, header in pages:
            if place > end and end < synced_to:
                fault = f"{self.path} is damaged at byte {end}: what was accepted there is lost"
            elif place > end or (place >= synced_to and not self._is_whole(place, header)):
                break
            end = place + header.total_bytes
            if header.kind == _DROPPED:
                for at in range(0, len(header.meta), _PLACE.size):
                    stored.pop(_PLACE.unpack_from(header.meta, at)[0], None)
                continue
            try:
                (member,) = unpack_contributions(header.meta)
            except (RemoteFault, ValueError) as error:
                fault = f"{self.path} is damaged at byte {place}: {error}"
            else:
                stored[place] = _stored(member, place)
        return Found(list(stored.values()), end, fault)

    def _pages(self, size: int) -> Iterator[tuple[int, Header]]:
        """Yield the headers; where none is, pages are passed over."""
        place = 0
        while place + ALIGN_BYTES <= size:
            header = self._header(place)
            if header is not None and place + ALIGN_BYTES + header.data_bytes <= size:
                yield place, header
                place += header.total_bytes
            else:
                place += ALIGN_BYTES

    def _is_whole(self, place: int, header: Header) -> bool:
        if header.kind != _UPDATE:
            return True
        digest, left, at = StreamChecksum(), header.data_bytes, place + ALIGN_BYTES
        while left:
            piece = os.pread(self._fd, min(left, READ_BYTES), at)
            if not piece:
                return False
            digest.update(piece)
            left, at = left - len(piece), at + len(piece)
        return digest.finish() == header.checksum

    def _page(self, kind: int, data_bytes: int, checksum: int, meta: bytes) -> bytes:
        what = (self._number, self._epoch, data_bytes, checksum, self._synced_to)
        page = bytearray(_HEADER.pack(_MAGIC, 0, VERSION, kind, len(meta), *what).ljust(_HEADER.size) + meta)
        page += bytes(ALIGN_BYTES - len(page))
        struct.pack_into("<I", page, _CRC_AT, zlib.crc32(page))
        return bytes(page)

    def _header(self, place: int) -> Header | None:
        """Return what the page at `place` says; None: it is none of this journal's, or damaged."""
        page = bytearray(os.pread(self._fd, ALIGN_BYTES, place))
        if len(page) < ALIGN_BYTES:
            return None
        magic, crc, version, kind, meta_bytes, *what, data_bytes, checksum, synced_to = _HEADER.unpack_from(page)
        struct.pack_into("<I", page, _CRC_AT, 0)
        own = magic == _MAGIC and version == VERSION and what == [self._number, self._epoch]
        room = CONTRIBUTION_BYTES_MAX if kind == _UPDATE else ALIGN_BYTES - _HEADER.size
        if not own or zlib.crc32(page) != crc or meta_bytes > room:
            return None
        meta = bytes(page[_HEADER.size : _HEADER.size + meta_bytes])
        return Header(kind, data_bytes, checksum, synced_to, meta)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _stored(member: Contribution, place: int) -> Stored:
    return Stored(member.client, member.weight, member.metrics, place)

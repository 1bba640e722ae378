"""The arena of an earlier version, which was one segment with everything: made a table and a segment of objects.

Whenever this is killed, the arena that has the name is whole: as it was, or taken over.  The objects stay where they
are, in a segment that is no job's, until they are freed.
"""

from __future__ import annotations

import os
import struct

from lifl.shm import layout
from lifl.shm.layout import Header
from lifl.shm.segment import (
    EARLIER,
    SHM_FOLDER,
    make_file,
    new_table_name,
    open_file,
    punch,
    remove_file,
    reserve,
    segment_name,
)

NUMBER = 1
"""Of the segment that the objects are in."""
_WORD = struct.Struct("<I")
_VERSION_OFFSET = 8


def take_over(name: str) -> None:
    """Make the arena `name`, whose header is an earlier version's, one of this version.  Raise `ResourceFault`."""
    earlier = open_file(name, writes=True)
    try:
        header = Header(*layout.HEADER.unpack_from(os.pread(earlier, layout.PAGE_BYTES, 0)))
        table = bytearray(os.pread(earlier, header.data_offset, 0))
        _WORD.pack_into(table, _VERSION_OFFSET, layout.VERSION)
        for slot in range(header.entries):
            _WORD.pack_into(table, layout.entry_position(slot) + layout.BODY_OFFSET, NUMBER)
        fresh, objects = new_table_name(name), segment_name(name, NUMBER, EARLIER)
        remove_file(fresh)
        fd = make_file(fresh)
        try:
            reserve(fd, 0, len(table))
            os.pwrite(fd, table, 0)
        finally:
            os.close(fd)
        remove_file(objects)
        os.link(SHM_FOLDER + name, SHM_FOLDER + objects)
        os.rename(SHM_FOLDER + fresh, SHM_FOLDER + name)
        punch(earlier, 0, header.data_offset)
    finally:
        os.close(earlier)

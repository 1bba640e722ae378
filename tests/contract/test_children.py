"""The end of a child's standard error: how much is kept, and that neither writer nor reader waits for ever."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from lifl.node.children import LAST_WORDS_BYTES, LastWords

WAIT_S = 30.0
# The first loop opens a pipe that libuv keeps for as long as the process lives: not a leak of any test's.
uvloop.new_event_loop().close()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[LastWords, int]]:
    """Last words, and where to write them."""
    reading, writing = os.pipe()
    words = LastWords(os.fdopen(reading, "rb", buffering=0))
    try:
        yield words, writing
    finally:
        words.close()
        os.close(writing)


@pytest.mark.parametrize("pieces", [1, 3, LAST_WORDS_BYTES])
@pytest.mark.parametrize("more_bytes", [-1, 0, 1, LAST_WORDS_BYTES])
def test_so_much_is_kept(pieces: int, more_bytes: int) -> None:
    said = b"".join(b"%05d." % number for number in range(2 * LAST_WORDS_BYTES))[: LAST_WORDS_BYTES + more_bytes]

    async def run() -> None:
        async with listening() as (words, writing):
            size = -(-len(said) // pieces)
            for begin in range(0, len(said), size):
                os.write(writing, said[begin : begin + size])
                words.text()
            assert words.text() == said[-LAST_WORDS_BYTES:].decode()
            assert len(words._last) <= LAST_WORDS_BYTES

    uvloop.run(run())


def test_a_writer_waits_only_until_it_is_read() -> None:
    async def run() -> None:
        async with listening() as (words, writing):
            text = b"x" * (1 << 20) + b"\nthe end\n"
            async with asyncio.timeout(WAIT_S):
                await asyncio.to_thread(os.write, writing, text)
            assert words.text().splitlines()[-1] == "the end"

    uvloop.run(run())


def test_a_process_that_writes_for_ever_keeps_nobody() -> None:
    """Neither who asks for its words, nor what else the loop has to do; when nobody reads any more, it can end."""

    async def run() -> None:
        command = [sys.executable, "-c", "import os\nwhile True:\n    os.write(2, b'again\\n')"]
        writer = subprocess.Popen(command, stderr=subprocess.PIPE, bufsize=0)
        try:
            assert writer.stderr is not None
            words = LastWords(writer.stderr)
            async with asyncio.timeout(WAIT_S):
                while "again" not in words.text():
                    await asyncio.sleep(0)
                for _ in range(100):
                    await asyncio.sleep(0)
                    words.text()
            assert set(words.text().splitlines()[1:-1]) == {"again"}
            words.close()
            assert writer.wait(WAIT_S) == 1, "its write failed"
        finally:
            writer.kill()
            writer.wait()

    uvloop.run(run())


def test_the_end_of_all_writers_leaves_the_loop_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read: Callable[[int, int], bytes] = os.read

    async def run() -> None:
        reading, writing = os.pipe()
        words = LastWords(os.fdopen(reading, "rb", buffering=0))
        os.write(writing, b"done\n")
        os.close(writing)
        monkeypatch.setattr(os, "read", lambda fd, size: reads.append(fd) or read(fd, size))
        for _ in range(50):
            await asyncio.sleep(0)
        assert 1 <= len(reads) <= 2, "an end that is read again and again would take a core"
        assert words.text() == "done"
        words.close()

    uvloop.run(run())

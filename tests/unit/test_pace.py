"""A question of many is asked once for all who wait, one at a time, and all get an answer that is new to them."""

from __future__ import annotations

import asyncio

import pytest

from lifl.node.pace import Joint


def test_all_who_wait_share_one_question_that_was_asked_after_they_came() -> None:
    async def play() -> None:
        asked: list[asyncio.Future[int]] = []

        async def ask() -> int:
            asked.append(asyncio.get_running_loop().create_future())
            return await asked[-1]

        joint = Joint(ask)
        first = asyncio.ensure_future(joint.answer())
        while not asked:
            await asyncio.sleep(0)
        later = [asyncio.ensure_future(joint.answer()) for _ in range(1000)]
        await asyncio.sleep(0)
        assert len(asked) == 1, "one at a time"
        later.pop().cancel()
        asked[0].set_result(1)
        assert await first == 1
        while len(asked) < 2:
            await asyncio.sleep(0)
        assert not any(each.done() for each in later), "what was asked before they came is no answer to them"
        asked[1].set_result(2)
        assert set(await asyncio.gather(*later)) == {2} and len(asked) == 2
        again = asyncio.ensure_future(joint.answer())
        while len(asked) < 3:
            await asyncio.sleep(0)
        asked[2].set_exception(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            await again
        last = asyncio.ensure_future(joint.answer())
        while len(asked) < 4:
            await asyncio.sleep(0)
        asked[3].set_result(4)
        assert await last == 4

    asyncio.run(play())

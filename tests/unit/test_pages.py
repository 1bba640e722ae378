"""Reports that name clients, in pages: what is joined is what was split, each page fits a frame, and no other order."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.errors import RemoteFault
from lifl.core.limits import (
    CLIENTS_PER_ROUND_MAX,
    CONTRIBUTION_BYTES_MAX,
    FRAME_BYTES_MAX,
    MEMBERS_PER_FRAME_MAX,
    PAGES_MAX,
)
from lifl.core.protocol import pages
from lifl.core.protocol.cluster import BranchHeld, Inventory
from lifl.core.protocol.commands import BranchAdopted, Contributions, PartialArrived, UpdateSealed
from lifl.core.protocol.contribution import Contribution, pack_contribution
from lifl.core.protocol.frames import encode
from lifl.core.protocol.pages import Pages, split


def members(count: int, start: int = 0) -> Contributions:
    return tuple((f"c{index}", 1.0, {"loss": 0.5}) for index in range(start, start + count))


def joined(sent: list[object]) -> list[object]:
    reader = Pages()
    return [whole for page in sent if (whole := reader.joined(page)) is not None]


@pytest.mark.parametrize("count", [0, 1, MEMBERS_PER_FRAME_MAX, MEMBERS_PER_FRAME_MAX + 1, CLIENTS_PER_ROUND_MAX])
def test_ten_thousand_members_come_whole(count: int) -> None:
    arrived = PartialArrived(1, 257, 3, members(count), 9)
    adopted = BranchAdopted(1, 257, 0, members(count))
    inventory = Inventory((1, 2), (BranchHeld(1, 257, 0, members(count), members(count, count), False),), (7,))
    for report in (arrived, adopted, inventory):
        sent = split(report)
        assert all(not page.more for page in sent[-1:])
        assert joined(sent) == [report]
    assert len(split(arrived)) == max(1, -(-count // MEMBERS_PER_FRAME_MAX))


def test_the_largest_members_of_a_round_fit_their_frames() -> None:
    """10,000 clients of a kilobyte each: 10 MB, which one frame does not hold."""
    metrics = {f"{index:02d}" + "m" * 30: 0.123456789 for index in range(16)}
    each = Contribution("c" * 64, 1e300, metrics)
    room = CONTRIBUTION_BYTES_MAX - len(pack_contribution(each))
    assert 0 <= room < 256
    largest = tuple((f"{index:064d}", 1e300, metrics) for index in range(CLIENTS_PER_ROUND_MAX))
    report = PartialArrived(1, 257, 3, largest, 9)
    assert len(msgspec.msgpack.encode(report)) + CLIENTS_PER_ROUND_MAX * room > FRAME_BYTES_MAX
    for page in split(report):
        assert len(encode(page)) + MEMBERS_PER_FRAME_MAX * room < FRAME_BYTES_MAX
    assert joined(split(report)) == [report]


sizes = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8)


@settings(deadline=None)
@given(sizes)
def test_any_inventory_comes_whole(branches: list[tuple[int, int]]) -> None:
    held = tuple(
        BranchHeld(number, 257, 0, members(sealed), members(granted, 100), bool(granted % 2))
        for number, (sealed, granted) in enumerate(branches)
    )
    inventory = Inventory(tuple(range(len(held))), held, (4,))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pages, "MEMBERS_PER_FRAME_MAX", 4)
        sent = split(inventory)
        assert all(sum(1 + len(b.members) + len(b.granted) for b in page.branches) <= 4 for page in sent)
        assert joined(sent) == [inventory]


def test_what_is_not_paged_passes_between_no_pages() -> None:
    sealed = UpdateSealed(1, 257, 0, "c1", 10)
    assert split(sealed) == [sealed]
    assert joined([sealed]) == [sealed]


def test_pages_of_another_report_are_a_breach() -> None:
    reader = Pages()
    assert reader.joined(PartialArrived(1, 257, 3, members(1), 9, more=True)) is None
    with pytest.raises(RemoteFault, match="between the pages"):
        reader.joined(PartialArrived(1, 257, 4, members(1), 9))


def test_pages_without_an_end_are_a_breach() -> None:
    reader = Pages()
    for _ in range(PAGES_MAX):
        assert reader.joined(Inventory(more=True)) is None
    with pytest.raises(RemoteFault, match=str(PAGES_MAX)):
        reader.joined(Inventory(more=True))

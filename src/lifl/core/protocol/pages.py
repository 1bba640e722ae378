"""Reports that name clients, cut into frames: a round may have ten thousand of them.

Who sends splits a report, who receives joins its pages, which follow one another on the link that they come by; nobody
else knows of pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from lifl.core.errors import RemoteFault
from lifl.core.limits import MEMBERS_PER_FRAME_MAX, PAGES_MAX
from lifl.core.protocol.cluster import BranchHeld, Inventory
from lifl.core.protocol.commands import BranchAdopted, PartialArrived

Paged = PartialArrived | BranchAdopted | Inventory


def split(message: Any) -> list[Any]:
    """Return the frames' messages of a report: nearly always itself."""
    if isinstance(message, Inventory):
        return _with_more(_of_inventory(message))
    if isinstance(message, PartialArrived | BranchAdopted) and len(message.members) > MEMBERS_PER_FRAME_MAX:
        cuts = range(0, len(message.members), MEMBERS_PER_FRAME_MAX)
        lists = {name: getattr(message, name) for name in _lists(message)}
        pages = [{name: each[cut : cut + MEMBERS_PER_FRAME_MAX] for name, each in lists.items()} for cut in cuts]
        return _with_more([msgspec.structs.replace(message, **page) for page in pages])
    return [message]


def _lists(message: PartialArrived | BranchAdopted) -> tuple[str, ...]:
    """Return the fields that pages share out."""
    return ("members", "digests") if isinstance(message, PartialArrived) else ("members",)


def _with_more(pages: list[Any]) -> list[Any]:
    return [msgspec.structs.replace(page, more=True) for page in pages[:-1]] + pages[-1:]


def _of_inventory(message: Inventory) -> list[Inventory]:
    pages: list[Inventory] = []
    page: list[BranchHeld] = []
    room = MEMBERS_PER_FRAME_MAX
    for branch in message.branches:
        for piece in _pieces(branch):
            size = 1 + len(piece.members) + len(piece.granted)
            if size > room:
                pages.append(Inventory((), tuple(page), ()))
                page, room = [], MEMBERS_PER_FRAME_MAX
            page.append(piece)
            room -= size
    pages.append(Inventory((), tuple(page), ()))
    first = {"jobs": message.jobs, "orphans": message.orphans, "drains": message.drains}
    first["labels"] = message.labels
    pages[0] = msgspec.structs.replace(pages[0], **first)
    return pages


def _pieces(branch: BranchHeld) -> Iterator[BranchHeld]:
    """Yield the branch in pieces of less than a frame."""
    step = MEMBERS_PER_FRAME_MAX - 1
    members, granted = branch.members, branch.granted
    while True:
        here, members = members[:step], members[step:]
        left = step - len(here)
        there, granted = granted[:left], granted[left:]
        yield msgspec.structs.replace(branch, members=here, granted=there)
        if not members and not granted:
            return


class Pages:
    """Joins the pages that come by one link."""

    def __init__(self) -> None:
        self._pages: list[Any] = []

    def joined(self, message: Any) -> Any | None:
        """Return the whole report when this was its last page; None while more are to come.  Raise `RemoteFault`."""
        if not isinstance(message, Paged):
            return message
        pages = self._pages
        if pages and not _same(pages[0], message):
            raise RemoteFault(f"a {type(message).__name__} comes between the pages of a {type(pages[0]).__name__}")
        if len(pages) == PAGES_MAX:
            raise RemoteFault(f"a {type(message).__name__} has more than {PAGES_MAX} pages")
        pages.append(message)
        if message.more:
            return None
        self._pages = []
        if len(pages) == 1:
            return message
        if isinstance(message, Inventory):
            return msgspec.structs.replace(pages[0], branches=_branches(pages), more=False)
        whole = {name: tuple(each for page in pages for each in getattr(page, name)) for name in _lists(message)}
        return msgspec.structs.replace(message, **whole)


def _same(first: Any, other: Any) -> bool:
    if type(first) is not type(other):
        return False
    at = ("number", "epoch", "branch")
    return isinstance(first, Inventory) or all(getattr(first, name) == getattr(other, name) for name in at)


def _branches(pages: list[Inventory]) -> tuple[BranchHeld, ...]:
    found: dict[tuple[int, int, int], list[BranchHeld]] = {}
    for page in pages:
        for piece in page.branches:
            found.setdefault((piece.number, piece.epoch, piece.branch), []).append(piece)
    return tuple(
        msgspec.structs.replace(
            pieces[0],
            members=tuple(member for piece in pieces for member in piece.members),
            granted=tuple(member for piece in pieces for member in piece.granted),
        )
        for pieces in found.values()
    )

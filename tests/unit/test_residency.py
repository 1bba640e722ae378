"""Which segment holds which pages: against a list of pages."""

from __future__ import annotations

from itertools import groupby, pairwise

from hypothesis import given
from hypothesis import strategies as st

from lifl.shm.residency import NOBODY, Residency

PAGES, BEGIN, PAGE = 24, 4096, 4096
GIVES = st.lists(st.tuples(st.integers(0, PAGES), st.integers(0, PAGES), st.integers(0, 4)), max_size=40)


def at(page: int) -> int:
    return BEGIN + page * PAGE


@given(GIVES, st.integers(0, PAGES - 1), st.integers(1, PAGES))
def test_it_is_what_a_list_of_pages_is(gives: list[tuple[int, int, int]], first: int, count: int) -> None:
    """Each page is one segment's, whatever was given to whom; pieces and ranges are the longest runs."""
    pages, residency = [NOBODY] * PAGES, Residency(BEGIN, at(PAGES))
    for begin, end, segment in gives:
        residency.give(at(begin), at(end), segment)
        pages[begin:end] = [segment] * max(0, end - begin)
    for segment in range(5):
        assert residency.held_bytes(segment) == pages.count(segment) * PAGE
    assert sum(residency.held_bytes(segment) for segment in range(5)) == PAGES * PAGE
    last = min(PAGES, first + count)
    expected, position = [], first
    for segment, run in groupby(pages[first:last]):
        length = len(list(run))
        expected.append((at(position), at(position + length), segment))
        position += length
    assert residency.pieces(at(first), at(last)) == expected
    assert residency.is_whole == (len(set(pages)) == 1)
    for wanted in ({1}, {0, 2}, {1, 2, 3}):
        ranges = residency.ranges(wanted)
        inside = {page for begin, end in ranges for page in range((begin - BEGIN) // PAGE, (end - BEGIN) // PAGE)}
        assert inside == {page for page in range(PAGES) if pages[page] in wanted}
        assert all(end < following for (_, end), (following, _) in pairwise(ranges))

"""The chain of a fold's tasks: every update has one place, whenever it is closed, and few partials are there."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifl.core.config.job import FOLD_FAN_IN, FOLD_PLACES_FREE, expected_of, fold_job, most_of
from lifl.core.errors import LocalFault
from lifl.core.limits import CLIENTS_PER_ROUND_MAX
from lifl.core.planning.arena_need import fold_bytes_min
from lifl.core.planning.chain import Chain
from lifl.core.planning.tree import Task
from lifl.core.schema import Layout, TensorSpec


def run(chain: Chain, updates: int, partials: int) -> None:
    """Gives each task what it is to get, in order, and checks that it ends with exactly that."""
    got = Counter(chain.taker_of(position) for position in range(updates))
    got.update(chain.adopting[:partials])
    sealed: list[Task] = []
    for task in chain.tasks:
        assert got[task] == task.expect
        if task.expect and task.parent is not None:
            got[task.parent] += 1
        sealed += [task] * (task.expect > 0)
    assert sealed[-1] is chain.root


@given(
    updates=st.integers(0, 60),
    fan_in=st.integers(1, 9),
    partials=st.integers(0, 5),
    expected=st.integers(0, 20),
    data=st.data(),
)
def test_every_update_has_one_place_also_when_fewer_come(
    updates: int, fan_in: int, partials: int, expected: int, data: st.DataObject
) -> None:
    if updates + partials == 0:
        with pytest.raises(LocalFault):
            Chain(updates, fan_in, partials, expected)
        return
    chain = Chain(updates, fan_in, partials, expected)
    run(chain, updates, partials)
    assert chain.partials_held_max() <= 2 + max(0, partials - 1)
    fewer = data.draw(st.integers(0, updates))
    if fewer + partials:
        fell = {task for task in chain.close(fewer) if task.expect == 0}
        run(chain, fewer, partials)
        assert fell == {task for task in chain.tasks if task.expect == 0}
        assert chain.root.updates < fan_in, "what is a whole link's is not the top's"


@pytest.mark.parametrize(("expected", "tail"), [(16, 1), (4, 1), (15, 3), (17, 1)])
def test_the_last_update_that_is_expected_is_not_the_end_of_a_link_that_others_wait_in(
    expected: int, tail: int
) -> None:
    chain = Chain(most_of(expected) + FOLD_PLACES_FREE, 4, expected=expected)
    chain.close(expected)
    assert chain.root.updates == tail
    assert sum(link.updates for link in chain.takers) == expected


def test_how_many_are_expected_follows_from_the_places_of_a_folds_tree() -> None:
    sizes = [*range(1, 100), CLIENTS_PER_ROUND_MAX // 3 - 1]
    assert [expected_of(most_of(expected) + FOLD_PLACES_FREE) for expected in sizes] == sizes
    assert [expected_of(places) for places in (1, 33, 50, 51, CLIENTS_PER_ROUND_MAX + 1)] == [0] * 5


def test_what_is_open_together() -> None:
    chain = Chain(13, 4)
    first, second, third = chain.takers[:3]
    assert list(chain.path(first)) == [first, second, chain.root]
    assert list(chain.path(third)) == [third, chain.root]
    assert [chain.opened_for(takers) for takers in range(4)] == [0, 1, 1, 2], "updates come before their link is open"
    found = Chain(13, 4, 1)
    assert list(found.path(found.takers[0])) == [found.takers[0], found.root], "a partial is there already"


def test_what_a_fold_needs_does_not_grow_with_its_updates() -> None:
    layout = Layout((TensorSpec("w", "float32", (11_700_000,)),))

    def need(expected: int) -> int:
        aggregation = fold_job("s", expected, "fedavg", {}, update_bytes=layout.data_bytes).aggregation
        return fold_bytes_min(layout, aggregation, most_of(expected), 0)

    models, partials = 2 * layout.data_bytes, 2 * layout.accumulator_bytes
    for expected in (16, 32, 300):
        of_members = 6 * (most_of(expected) + 1) * 1024  # names and metrics, in models and partials
        assert models + partials + FOLD_FAN_IN * layout.data_bytes <= need(expected)
        assert need(expected) <= models + partials + FOLD_FAN_IN * layout.data_bytes + of_members + (1 << 16)

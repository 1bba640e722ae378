"""Large folds on a node of their own: in little memory, whatever dies; and results that are read where they are."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from leaks import mapped_file

import lifl
from lifl.client.tensors import Array
from lifl.core.config.job import FOLD_FAN_IN
from lifl.core.errors import LocalFault, Refused

COUNT = 400_000
MODEL = {"w": np.zeros(COUNT, np.float32), "steps": np.zeros(3, np.int64)}
UPDATES = 3 * FOLD_FAN_IN + 2


@pytest.fixture(scope="module")
def aggregator() -> Iterator[lifl.Aggregator]:
    with lifl.Aggregator(":local:") as found:
        yield found


def update(client: int) -> dict[str, Array]:
    """In the mean each client that is in it stands as its share."""
    w = np.full(COUNT, client, np.float32)
    w[client] = 1000.0
    return {"w": w, "steps": np.full(3, client, np.int64)}


def mean_of(clients: int) -> Array:
    return np.mean([update(client)["w"] for client in range(clients)], axis=0, dtype=np.float64)


def made(aggregator: lifl.Aggregator, value: float = 1.0) -> lifl.FoldResult:
    """The result of one update."""
    with aggregator.open(MODEL, expected=1) as fold:
        fold.add({"w": np.full(COUNT, value, np.float32), "steps": np.zeros(3, np.int64)}, 1.0)
        return fold.result()


def test_a_chain_of_links_counts_each_update_once_though_workers_and_the_node_die(
    aggregator: lifl.Aggregator,
) -> None:
    with aggregator.open(MODEL, expected=UPDATES) as fold:
        for client in range(UPDATES):
            fold.add(update(client), 1.0, client=f"c{client}")
            assert aggregator._local is not None
            lifld = psutil.Process(aggregator._local.pid)
            if client in (FOLD_FAN_IN, 2 * FOLD_FAN_IN + 1):
                lifld.kill()
            elif client % 2:
                for child in lifld.children(recursive=True):
                    if "worker" in child.name():
                        child.send_signal(signal.SIGKILL)
        result = fold.result()
    assert sorted(result.clients) == sorted(f"c{client}" for client in range(UPDATES))
    np.testing.assert_allclose(result["w"], mean_of(UPDATES), rtol=1e-6)
    np.testing.assert_array_equal(result["steps"], np.full(3, round((UPDATES - 1) / 2)))


def test_a_large_result_is_read_where_it_is_until_the_next_one_takes_its_place(aggregator: lifl.Aggregator) -> None:
    first = made(aggregator, 1.0)
    assert "lifl" in mapped_file(first["w"]), "it was copied"
    with pytest.raises(ValueError, match="read-only"):
        first["w"][0] = 2.0
    own = first.copy()
    own["w"][0] = 2.0
    second = made(aggregator, 5.0)
    assert not mapped_file(first["w"]), "the node is to have that memory"
    assert "lifl" in mapped_file(second["w"])
    assert (first["w"] == 1.0).all() and (second["w"] == 5.0).all() and not first["w"].flags.writeable
    session = next(iter(aggregator._sessions.values()))
    lent = session._lent
    assert lent is not None and lent._stream is not None
    del second
    gc.collect()
    assert lent._stream is None, "nobody looks at it any more"


def test_what_is_looked_at_stays_when_the_process_forks_and_when_the_node_dies(aggregator: lifl.Aggregator) -> None:
    first = made(aggregator, 3.0)
    child = os.fork()
    if child == 0:
        os._exit(0 if (first["w"] == 3.0).all() and not mapped_file(first["w"]) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not mapped_file(first["w"])
    second = made(aggregator, 4.0)
    assert aggregator._local is not None
    psutil.Process(aggregator._local.pid).kill()
    third = made(aggregator, 5.0)
    assert (first["w"] == 3.0).all() and (second["w"] == 4.0).all() and (third["w"] == 5.0).all()
    assert not mapped_file(second["w"])


def test_folds_of_other_models_have_the_room_in_turn_and_at_once_only_where_there_is_enough() -> None:
    with lifl.Aggregator(":local:") as own:
        first = made(own, 2.0)
        with pytest.raises(Refused, match="arena_bytes="):  # it is larger than what the node was made for
            own.open({"u": np.ones(2 * COUNT, np.float32)}, expected=1)
        for model in (MODEL, {"w": MODEL["w"]}):
            with own.open(model, expected=1) as fold:
                fold.add(model, 1.0)
                with pytest.raises(Refused, match="arena_bytes="):
                    own.open(MODEL, expected=1)
                fold.result()
        assert (first["w"] == 2.0).all()


def test_a_result_outlives_its_aggregator() -> None:
    with lifl.Aggregator(":local:") as own:
        result = made(own, 7.0)
        assert "lifl" in mapped_file(result["w"])
    assert not mapped_file(result["w"])
    kept: Any = result["w"][10:20]
    del result
    gc.collect()
    assert (kept == 7.0).all()


def test_a_forked_child_is_told_that_the_aggregator_is_its_parents_and_ends_nothing_of_it(
    aggregator: lifl.Aggregator,
) -> None:
    with aggregator.open({"w": np.zeros(2, np.float32)}, expected=2) as fold:
        fold.add({"w": np.ones(2, np.float32)}, 1.0, client="a")
        child = os.fork()
        if not child:  # nothing of the test's own is to run here
            code = 1
            try:
                with contextlib.suppress(LocalFault):
                    fold.add({"w": np.ones(2, np.float32)}, 1.0, client="b")
                    code = 2
                fold.cancel()
                aggregator.close()
                code = 0 if code == 1 else code
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert aggregator._local is not None and Path(aggregator._local.folder).is_dir()
        fold.add({"w": np.full(2, 3, np.float32)}, 1.0, client="c")
        assert fold.result().clients == ("a", "c")

"""A client's memory for models: used again, and by nobody who may still look at it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lifl.client import buffers
from lifl.client.buffers import Buffers
from lifl.client.tensors import as_model
from lifl.core.schema import Layout, TensorSpec

NBYTES = buffers.KEPT_BYTES_MIN
LAYOUT = Layout([TensorSpec("w", "float32", (NBYTES // 4,))])


def place(data: NDArray[np.uint8]) -> int:
    return int(data.ctypes.data)


def test_memory_is_used_again_when_nothing_refers_to_it() -> None:
    kept = Buffers()
    first = kept.take(NBYTES)
    assert first.flags.writeable and not kept.idle_bytes
    first[:] = 1
    where = place(first)
    del first
    assert kept.idle_bytes == NBYTES
    assert place(kept.take(NBYTES)) == where


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param(lambda data: as_model(LAYOUT, data), id="the model"),
        pytest.param(lambda data: as_model(LAYOUT, data)["w"][7:9].reshape(2, 1).T, id="a view of a slice"),
        pytest.param(lambda data: data[5:].data.cast("B"), id="a memoryview"),
        pytest.param(np.from_dlpack, id="what DLPack has handed over"),
        pytest.param(lambda data: data.base, id="what an array is over"),
        pytest.param(lambda data: np.asarray(data.base.obj), id="an array over that"),
        pytest.param(lambda data: [lambda: data], id="a cell of a function"),
    ],
)
def test_memory_is_not_used_again_while_anything_refers_to_it(looks: Callable[[NDArray[np.uint8]], Any]) -> None:
    kept = Buffers()
    first = kept.take(NBYTES)
    where, held = place(first), looks(first)
    del first
    gc.collect()
    second = kept.take(NBYTES)
    assert place(second) != where
    del held
    gc.collect()
    assert place(kept.take(NBYTES)) == where


@pytest.mark.parametrize(
    ("nbytes", "is_kept"),
    [(NBYTES - 1, False), (NBYTES, True), (2 * NBYTES, True), (2 * NBYTES + 1, False)],
)
def test_what_is_kept_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch, nbytes: int, is_kept: bool) -> None:
    monkeypatch.setattr(buffers, "KEPT_BYTES_MAX", 2 * NBYTES)
    kept = Buffers()
    assert len(kept.take(nbytes)) == nbytes
    assert kept.idle_bytes == (nbytes if is_kept else 0)


def test_one_is_kept_and_none_of_another_size() -> None:
    kept = Buffers()
    taken = [kept.take(NBYTES) for _ in range(3)]
    taken.clear()
    assert kept.idle_bytes == buffers.KEPT_MAX * NBYTES
    larger = kept.take(2 * NBYTES)
    assert len(larger) == 2 * NBYTES and not kept.idle_bytes
    del larger
    assert kept.idle_bytes == 2 * NBYTES


def test_who_has_closed_keeps_nothing() -> None:
    kept = Buffers()
    first, second = kept.take(NBYTES), kept.take(NBYTES)
    del first
    kept.close()
    assert not kept.idle_bytes
    second[:] = 7
    assert second.all()
    del second
    assert not kept.idle_bytes

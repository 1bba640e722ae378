"""A round is made again from files: what is wrong with them is told, and whose it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lifl.client import Client
from lifl.client.kept_updates import keep_update
from lifl.client.tensors import Update
from lifl.core.config.aggregation import AggregationSection
from lifl.core.errors import LocalFault, Refused, ResourceFault
from lifl.core.modelfile import model_pieces
from lifl.core.protocol import client as cm
from lifl.core.protocol.contribution import root_of
from lifl.core.schema import Layout, TensorSpec
from lifl.rules import binned
from lifl.rules.kernels import numpy_dtype
from lifl.shm.checksum import checksum
from lifl.verification.receipt_file import BEFORE, MODEL, RECEIPT, RoundReceipt, UpdateLine, write_receipt
from lifl.verification.verify import verify
from lifl.worker.files import write_file

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8)
CLIENTS = 5


class Case:
    """A round of five clients in a folder, as `lifl verify --save` and `keep_updates` leave it."""

    def __init__(self, folder: Path, number: int = 1, trainable: tuple[str, ...] = (), **aggregation: Any) -> None:
        self.folder, self.updates = folder, folder / "updates"
        rng = np.random.default_rng(3)
        self.before = {np.dtype(dtype).name: np.full(40, 3, dtype) for dtype in DTYPES}
        self.sent: list[dict[str, np.ndarray]] = []
        layout = Layout(tuple(TensorSpec(name, name, array.shape) for name, array in self.before.items()))
        lines = []
        for index in range(CLIENTS):
            numbers = {name: (rng.standard_normal(40) * 9 + 99).astype(a.dtype) for name, a in self.before.items()}
            if trainable and index == 2:
                del numbers["float32"]
            weight, update = float(index + 1), Update(layout, numbers, trainable=trainable)
            submit = cm.Submit("j", number, weight, layout.data_bytes, layout.tensors, {}, absent=update.absent)
            path = keep_update(self.updates, f"c{index}", submit, update)
            lines.append(UpdateLine(f"c{index}", weight, path.name.split(".")[-2]))
            assert int(lines[-1].digest, 16) == checksum(b"".join(update.views))  # as a gateway computes it
            self.sent.append(numbers)
        save_file(self.before, folder / BEFORE)
        save_file(self.mean(), folder / MODEL)
        root = root_of((line.client, line.weight, int(line.digest, 16)) for line in lines)
        section = AggregationSection(**aggregation)
        self.receipt = RoundReceipt("j", number, section, "", "", root, tuple(lines), trainable)
        self.says()

    def mean(self) -> dict[str, np.ndarray]:
        """What fedavg makes, by NumPy in float64."""
        found = {}
        for name, array in self.before.items():
            have = [(each[name], index + 1) for index, each in enumerate(self.sent) if name in each]
            numbers = np.stack([vector.astype(np.float64) for vector, _ in have])
            mean = np.average(numbers, axis=0, weights=[weight for _, weight in have])
            found[name] = (np.rint(mean) if array.dtype.kind in "iu" else mean).astype(array.dtype)
        return found

    def says(self, **changes: Any) -> None:
        self.receipt = msgspec.structs.replace(self.receipt, **changes)
        write_receipt(self.folder / RECEIPT, self.receipt)

    def file_of(self, client: str) -> Path:
        (path,) = self.updates.glob(f"{client}.*")
        return path

    def change(self, path: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
        """Change a tensor of a file, which keeps its metadata."""
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        change(tensors[name])
        save_file(tensors, path, metadata)

    def verified(self) -> str:
        return verify(self.folder / RECEIPT, [self.updates]).compared

    def wrong(self) -> Refused:
        with pytest.raises(Refused) as told:
            self.verified()
        return told.value


@pytest.mark.parametrize("name", [RECEIPT, MODEL, BEFORE])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    """Who has made the folder may be somebody else."""
    case = Case(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ResourceFault, match=f"{name}.*no regular file"):
        case.verified()


def one_more(array: np.ndarray) -> None:
    array[7] += 1


def test_a_mean_is_compared_within_its_stated_error_and_no_more(tmp_path: Path) -> None:
    case = Case(tmp_path)
    assert case.verified() == "error"
    for name, array in case.mean().items():
        case.change(tmp_path / MODEL, name, lambda a: a.__setitem__(7, further(a[7])))
        told = case.wrong()
        assert (told.code, told.field) == ("other-model", f"tensors.{name}")
        assert "1 of 40 numbers; element 7" in str(told)
        case.change(tmp_path / MODEL, name, lambda a, right=array: a.__setitem__(slice(None), right))
    assert case.verified() == "error"


def further(number: Any, steps: int = 3) -> Any:
    """The number some steps of its type on; of float64 many, of which a sum of five may lose a few."""
    if number.dtype.kind in "iu":
        return number + 1
    steps = steps << 9 if number.itemsize == 8 else steps
    return (np.array(number).view(f"u{number.itemsize}") + steps).view(number.dtype)


def test_a_reproducible_one_is_compared_bit_for_bit(tmp_path: Path) -> None:
    case = Case(tmp_path, reproducible=True)
    weights = [float(index + 1) for index in range(CLIENTS)][::-1]
    model = case.mean()
    for name in ("float64", "float32"):
        acc = np.zeros(40, numpy_dtype(binned.ACCUMULATOR))
        binned.add(acc, [], [each[name] for each in case.sent[::-1]], weights, keep=False)
        binned.mean(model[name], acc, sum(weights))
    save_file(model, tmp_path / MODEL)
    assert case.verified() == "bits"
    case.change(tmp_path / MODEL, "float32", lambda a: a.__setitem__(7, further(a[7], 1)))
    assert case.wrong().field == "tensors.float32"


def test_a_tensor_that_an_update_lacks_is_averaged_without_it(tmp_path: Path) -> None:
    case = Case(tmp_path, trainable=("*",))
    assert case.verified() == "error"
    case.change(tmp_path / MODEL, "float32", lambda a: a.__imul__(0.8))  # as if it had been there, as zeros
    assert case.wrong().field == "tensors.float32"


def test_a_receipt_without_the_model_s_digest_says_nothing_of_the_model_alone(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.says(model="")
    with pytest.raises(Refused, match="has no digest of its model") as refused:
        verify(case.folder / RECEIPT, [])
    assert refused.value.code == "no-receipt"
    assert case.verified() == "error"


def pipe_at(path: Path) -> None:
    """Opening it would wait for a writer."""
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        (lambda case: case.file_of("c3").unlink(), "missing-update", "c3 is missing (1 of 5)"),
        (lambda case: case.change(case.file_of("c3"), "uint8", one_more), "other-update", "c3 has another update"),
        (lambda case: case.file_of("c3").write_bytes(b"\xff" * 99), "missing-update", "1 files there cannot be read"),
        (lambda case: pipe_at(case.file_of("c3")), "missing-update", "1 files there cannot be read"),
        (lambda case: case.says(updates=case.receipt.updates[1:]), "bad-receipt", "have the digest"),
        (lambda case: case.says(updates=(case.receipt.updates[0],) * 2), "bad-receipt", "a client twice"),
        (lambda case: case.says(updates_digest=""), "no-receipt", "an earlier release"),
        (lambda case: case.says(model="0" * 16), "other-model", MODEL),
        (lambda case: case.says(before="0" * 16), "other-model", BEFORE),
        (lambda case: (case.folder / RECEIPT).write_text("[" * 99_999), "bad-receipt", "is no receipt"),
        (lambda case: case.says(aggregation=AggregationSection(first=("u*",))), "not-recomputed", "first"),
        (lambda case: case.says(aggregation=AggregationSection("os:Own")), "not-recomputed", "own"),
        (lambda case: case.says(aggregation=AggregationSection("fedadam")), "not-recomputed", "no error is stated"),
    ],
)
def test_what_is_wrong_is_told_and_whose_it_is(
    what: Callable[[Case], Any], code: str, text: str, tmp_path: Path
) -> None:
    case = Case(tmp_path)
    what(case)
    told = case.wrong()
    assert told.code == code
    assert text in str(told)


def test_another_weight_than_the_client_sent_is_told(tmp_path: Path) -> None:
    case = Case(tmp_path)
    lines = (msgspec.structs.replace(case.receipt.updates[0], weight=50.0), *case.receipt.updates[1:])
    root = root_of((line.client, line.weight, int(line.digest, 16)) for line in lines)
    case.says(updates=lines, updates_digest=root)
    told = case.wrong()
    assert told.code == "other-update"
    assert "c0 was sent with weight 1.0, and counted with 50.0" in str(told)


def test_a_file_that_says_nothing_goes_by_its_name_and_those_of_other_rounds_are_passed_over(tmp_path: Path) -> None:
    case = Case(tmp_path)
    plain = load_file(case.file_of("c1"))
    case.file_of("c1").unlink()
    save_file(plain, case.updates / "c1.safetensors")
    save_file(plain, case.updates / "c2.j.2.safetensors", {"lifl.job": "j", "lifl.round": "2", "lifl.client": "c2"})
    (case.updates / "notes.txt").write_text("no update")
    assert case.verified() == "error"


def test_a_rule_with_state_asks_for_it_behind_the_first_round(tmp_path: Path) -> None:
    case = Case(tmp_path, number=2, rule="fedavgm", reproducible=True)
    told = case.wrong()
    assert told.code == "not-recomputed"
    assert "goes on from its state" in str(told)


def test_updates_of_another_model_are_refused_by_their_tensor(tmp_path: Path) -> None:
    case = Case(tmp_path)
    save_file({"float32": np.zeros(3, np.float32)}, case.updates / "c1.safetensors")
    case.file_of("c1.j").unlink()
    assert case.wrong().code == "bad-model-file"


def test_nothing_is_kept_where_there_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    layout = Layout((TensorSpec("w", "float32", (1,)),))
    update = Update(layout, {"w": np.zeros(1, np.float32)})
    submit = cm.Submit("j", 1, 1.0, layout.data_bytes, layout.tensors, {})
    with pytest.raises(ResourceFault, match="keep_updates"):
        keep_update(tmp_path / "file", "c", submit, update)


@pytest.mark.parametrize("folder", [3, b"bytes", ["x"], "a\0b"])
def test_a_folder_for_updates_that_is_no_path_is_refused_before_anything_is_trained(folder: Any) -> None:
    with pytest.raises(LocalFault, match="keep_updates"):
        Client("127.0.0.1:1", job="j", client="c", keep_updates=folder)


def test_a_folder_for_updates_that_cannot_be_made_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below", tmp_path / ("x" * 300)):
        with pytest.raises(ResourceFault, match="keep_updates"):
            Client("127.0.0.1:1", job="j", client="c", keep_updates=folder)


def test_what_stands_for_the_updates_does_not_depend_on_their_order() -> None:
    some = [("b", 2.0, 7), ("a", 0.1, 2**64 - 1)]
    assert root_of(some) == root_of(some[::-1])
    others = [some[:1], [("b", 2.0, 8), some[1]], [("b", 3.0, 7), some[1]], [("c", 2.0, 7), some[1]]]
    assert len({root_of(some), *map(root_of, others)}) == 5


def test_a_model_s_digest_is_that_of_its_file(tmp_path: Path) -> None:
    case = Case(tmp_path)
    layout = Layout(tuple(TensorSpec(name, name, array.shape) for name, array in case.before.items()))
    data = b"".join(Update(layout, case.mean()).views)
    digest = write_file(tmp_path / MODEL, model_pieces(layout), {"lifl.round": "1"}, [memoryview(data)])
    case.says(model=digest)
    assert verify(tmp_path / RECEIPT, []).compared == "digest"
    assert case.verified() == "error"
